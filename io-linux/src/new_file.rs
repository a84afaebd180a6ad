//! New files: without their name until they are complete and durable, and never in the place of another.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use tempfile::NamedTempFile;

use crate::sys;

/// A file that is being made. It is gone unless [`Self::finish`] is called, even after a kill.
#[derive(Debug)]
pub struct NewFile {
    out: PathBuf,
    file: Unfinished,
}

#[derive(Debug)]
enum Unfinished {
    Nameless(File),
    /// Where the file system has no files without a name: a kill leaves `NAME.….new`.
    Named(NamedTempFile),
}

impl NewFile {
    /// Begins a file that is to be at `out`.
    pub fn create(out: &Path) -> anyhow::Result<Self> {
        // It is asked again at the end; but who would work for nothing?
        refuse_existing(out)?;
        let file = match sys::nameless_file(directory(out)) {
            Ok(file) if out.file_name().is_some() => Unfinished::Nameless(file),
            // If the directory is at fault, this says so.
            _ => Unfinished::Named(temporary(out)?),
        };
        Ok(Self { out: out.to_owned(), file })
    }

    /// Where it is to be.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Where to write.
    #[must_use]
    pub fn file(&self) -> &File {
        match &self.file {
            Unfinished::Nameless(file) => file,
            Unfinished::Named(file) => file.as_file(),
        }
    }

    /// Makes it durable, and gives it its name.
    pub fn finish(self) -> anyhow::Result<()> {
        let shown = self.out.display();
        self.file().sync_all().with_context(|| format!("cannot write {shown}"))?;
        match self.file {
            Unfinished::Nameless(file) => sys::give_name(&file, &self.out),
            Unfinished::Named(file) => {
                file.persist_noclobber(&self.out).map(drop).map_err(|error| error.error)
            }
        }
        .with_context(|| {
            format!(
                "cannot give {shown} its name; a file that is there is never replaced: give another name"
            )
        })?;
        File::open(directory(&self.out))
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot sync the directory of {shown}"))
    }
}

/// An error if there is such a file.
pub fn refuse_existing(out: &Path) -> anyhow::Result<()> {
    let shown = out.display();
    // A link to nowhere is something as well.
    ensure!(
        out.symlink_metadata().is_err(),
        "{shown} exists, and is never replaced; give another name"
    );
    Ok(())
}

/// A file beside another that is yet to be made; it goes when it is dropped.
pub fn temporary(out: &Path) -> anyhow::Result<NamedTempFile> {
    let shown = out.display();
    let Some(name) = out.file_name() else { bail!("{shown} is no name for a file; give one") };
    let mut prefix = name.to_owned();
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".new")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory(out))
        .with_context(|| {
            format!("cannot make a file beside {shown}; its directory must be there and writable")
        })
}

fn directory(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn with_and_without_a_name_before_its_own_a_file_comes_whole_and_replaces_none() {
        let directory = tempfile::tempdir().unwrap();
        let begin = |name: &str, is_named: bool| {
            let out = directory.path().join(name);
            let file = if is_named {
                Unfinished::Named(temporary(&out).unwrap())
            } else {
                Unfinished::Nameless(sys::nameless_file(directory.path()).unwrap())
            };
            NewFile { out, file }
        };
        for (is_named, name) in [(false, "a"), (true, "b")] {
            let names = || fs::read_dir(directory.path()).unwrap().count();
            let before = names();
            drop(begin(name, is_named));
            assert_eq!(names(), before);
            let (new, late) = (begin(name, is_named), begin(name, is_named));
            let there = if is_named { before + 2 } else { before };
            assert_eq!(names(), there, "files that are being made");
            new.file().write_all(b"precious").unwrap();
            new.finish().unwrap();
            let error = format!("{:#}", late.finish().unwrap_err());
            assert!(error.contains("never replaced"), "{error}");
            let out = directory.path().join(name);
            assert_eq!(fs::read(&out).unwrap(), b"precious");
            let mode = out.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o600, 0o600, "its owner's, as umask has it");
            assert_eq!(names(), before + 1);
        }
    }
}
