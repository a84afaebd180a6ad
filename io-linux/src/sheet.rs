//! The directory of a sheet: a lock, a note of what the sheet is for, and the data file.
//!
//! Until there is a journal a sheet lives no longer than its process: the map that gives the data
//! file its meaning is in memory only. What an earlier process left behind is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::sys;

/// An open sheet directory; ours alone until it is dropped.
#[derive(Debug)]
pub struct Sheet {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// The data file of a sheet that has no directory: it has no name either, so it goes with the process
/// however that ends.
pub fn temporary_data() -> anyhow::Result<File> {
    tempfile::tempfile().with_context(|| {
        let directory = std::env::temp_dir();
        format!(
            "cannot make a temporary sheet in {}; set TMPDIR to a directory with space, or use --sheet",
            directory.display()
        )
    })
}

/// What a sheet is for; in `sheet.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SheetNote {
    /// Version of the directory's layout; 0 has no journal.
    pub format: u32,
    /// The template below, if any.
    pub template: Option<PathBuf>,
    /// Size of the template to the byte; 0 without one.
    pub template_bytes: u64,
    /// Size of the device to the byte.
    pub size_bytes: u64,
}

const NOTE: &str = "sheet.json";
const LOCK: &str = "lock";
const DATA: &str = "data";

impl Sheet {
    /// Takes a directory, making it if it is not there.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot make sheet directory {shown}"))?;
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the sheet is one for this template and size, and opens an empty data file.
    pub fn begin(&self, note: &SheetNote) -> anyhow::Result<File> {
        let shown = self.path.display();
        let note_path = self.path.join(NOTE);
        if let Ok(text) = fs::read_to_string(&note_path) {
            self.compare(&text, note)?;
        }
        let data_path = self.path.join(DATA);
        if fs::metadata(&data_path).is_ok_and(|data| data.len() > 0) {
            tracing::warn!(
                sheet = %shown,
                "the sheet was left behind by a process that was killed; without a journal its \
                 content cannot be recovered, and the device starts empty"
            );
        }
        let text = serde_json::to_string_pretty(note).expect("a note has a text form");
        fs::write(&note_path, text + "\n")
            .with_context(|| format!("cannot write {}", note_path.display()))?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&data_path)
            .with_context(|| format!("cannot create {}", data_path.display()))
    }

    fn compare(&self, text: &str, note: &SheetNote) -> anyhow::Result<()> {
        let shown = self.path.display();
        let path = self.path.join(NOTE);
        let path = path.display();
        let found: SheetNote = serde_json::from_str(text).with_context(|| {
            format!(
                "{path} cannot be read; use another --sheet, or remove {shown} if it is not needed"
            )
        })?;
        if found.format > note.format {
            bail!(
                "sheet {shown} was made by a later version of glassine; use that version, or another --sheet"
            );
        }
        if found.template != note.template || found.template_bytes != note.template_bytes {
            let describe = |note: &SheetNote| match &note.template {
                Some(template) => format!("{} ({} bytes)", template.display(), note.template_bytes),
                None => "a blank device".to_owned(),
            };
            bail!(
                "sheet {shown} belongs to {}, not to {}; use another --sheet, or remove {shown} if it is not needed",
                describe(&found),
                describe(note),
            );
        }
        if found.size_bytes != note.size_bytes {
            bail!(
                "sheet {shown} belongs to a device of {} bytes, not of {}; use that --size, another --sheet, or remove {shown}",
                found.size_bytes,
                note.size_bytes
            );
        }
        Ok(())
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        // Without its map the data means nothing; its space is wanted back.
        let _ = fs::remove_file(self.path.join(DATA));
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join(LOCK);
    let shown = lock_path.display();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .with_context(|| format!("cannot open {shown}; the sheet directory must be writable"))?;
    if !sys::try_lock(&file).with_context(|| format!("cannot lock {shown}"))? {
        let mut owner = String::new();
        let _ = file.read_to_string(&mut owner);
        bail!(
            "sheet {} is in use by process {}; stop that one, or use another --sheet",
            path.display(),
            owner.trim()
        );
    }
    file.set_len(0).with_context(|| format!("cannot write {shown}"))?;
    writeln!(file, "{}", std::process::id()).with_context(|| format!("cannot write {shown}"))?;
    Ok(file)
}
