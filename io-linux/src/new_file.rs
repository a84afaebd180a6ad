//! New files: under a name of their own until they are complete and durable, and never in the place of another.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use tempfile::NamedTempFile;

/// A file that is being made. It is gone unless [`Self::finish`] is called; a kill may leave `NAME.….new`.
#[derive(Debug)]
pub struct NewFile {
    out: PathBuf,
    file: NamedTempFile,
}

impl NewFile {
    /// Begins a file that is to be at `out`.
    pub fn create(out: &Path) -> anyhow::Result<Self> {
        // It is asked again at the end; but who would work for nothing?
        refuse_existing(out)?;
        Ok(Self { out: out.to_owned(), file: temporary(out)? })
    }

    /// Where it is to be.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Where to write.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Makes it durable, and gives it its name.
    pub fn finish(self) -> anyhow::Result<()> {
        let shown = self.out.display();
        self.file.as_file().sync_all().with_context(|| format!("cannot write {shown}"))?;
        self.file.persist_noclobber(&self.out).map_err(|error| error.error).with_context(|| {
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
