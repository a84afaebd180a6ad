//! The directory of a sheet: a lock, a note of what the sheet is for, the data file, and the files of its
//! journal (`journal_files`).
//!
//! An ephemeral sheet has no journal, and lives no longer than its process: the map that gives the data file its
//! meaning is in memory only. What an earlier process left behind of one is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use glassine_core::journal::recovery::Refusal;
use serde::{Deserialize, Serialize};

use crate::journal_files::JournalFiles;
use crate::sys;

/// An open sheet directory; ours alone until it is dropped.
#[derive(Debug)]
pub struct Sheet {
    path: PathBuf,
    /// Whether the data means nothing once the process is gone.
    is_ephemeral: bool,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SheetNote {
    /// Version of the directory's layout: 0 has no journal, 1 has one.
    pub format: u32,
    /// The template below, if any.
    pub template: Option<PathBuf>,
    /// Size of the template to the byte; 0 without one.
    pub template_bytes: u64,
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// SHA-256 of the template in hexadecimal digits, once it was read in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_sha256: Option<String>,
}

/// The newest layout of the directory.
pub const FORMAT: u32 = 1;
const NOTE: &str = "sheet.json";
const NEW_NOTE: &str = "sheet.json.new";
const LOCK: &str = "lock";
const DATA: &str = "data";

impl Sheet {
    /// Takes a directory, making it if it is not there.
    pub fn open(path: &Path, is_ephemeral: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot make sheet directory {shown}"))?;
        let lock = lock(path)?;
        // Before there is anything that could remove what is in it.
        if is_ephemeral && JournalFiles::exist(path) {
            bail!(
                "sheet {shown} has a journal, and what is in it is to survive; serve it without --ephemeral, or use another --sheet"
            );
        }
        Ok(Self { path: path.to_owned(), is_ephemeral, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the sheet is one for this template and size, and opens its data file.
    pub fn begin(&self, note: &SheetNote) -> anyhow::Result<File> {
        let shown = self.path.display();
        let has_journal = JournalFiles::exist(&self.path);
        if let Ok(text) = fs::read_to_string(self.path.join(NOTE)) {
            self.compare(&text, note, has_journal)?;
        }
        let is_left = fs::metadata(self.path.join(DATA)).is_ok_and(|data| data.len() > 0);
        if !has_journal && is_left {
            tracing::warn!(
                sheet = %shown,
                "the sheet was left behind by a process that was killed; without a journal its \
                 content cannot be recovered, and the device starts empty"
            );
        }
        self.data()
    }

    /// Opens the data file; an empty one if there is no journal to say what is in it.
    pub fn data(&self) -> anyhow::Result<File> {
        let data_path = self.path.join(DATA);
        let has_journal = JournalFiles::exist(&self.path);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(!has_journal)
            .truncate(!has_journal)
            .open(&data_path)
            .with_context(|| {
                let path = data_path.display();
                if has_journal {
                    return format!(
                        "cannot open {path}; a sheet needs all of its files: put it back, or use another --sheet"
                    );
                }
                format!("cannot create {path}; the sheet directory must be writable")
            })
    }

    /// Notes what the sheet is for, once it is known to be so.
    pub fn write_note(&self, note: &SheetNote) -> anyhow::Result<()> {
        let path = self.path.join(NOTE);
        let text = serde_json::to_string_pretty(note).expect("a note has a text form") + "\n";
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        // Whole or not at all: half a note would be a refusal at the next start.
        let new = self.path.join(NEW_NOTE);
        let replace = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        replace().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Bytes of the data file in a directory.
    pub fn data_bytes(path: &Path) -> std::io::Result<u64> {
        Ok(fs::metadata(path.join(DATA))?.len())
    }

    /// What a note that is there says the sheet is for.
    #[must_use]
    pub fn note(path: &Path) -> Option<SheetNote> {
        serde_json::from_str(&fs::read_to_string(path.join(NOTE)).ok()?).ok()
    }

    /// A journal knows its template by its content, so that both may be moved.
    fn compare(&self, text: &str, note: &SheetNote, has_journal: bool) -> anyhow::Result<()> {
        let shown = self.path.display();
        let path = self.path.join(NOTE);
        let path = path.display();
        let found: SheetNote = match serde_json::from_str(text) {
            Ok(found) => found,
            Err(error) if has_journal => {
                // The superblock says all that counts.
                tracing::warn!(note = %path, %error, "the note cannot be read, and is written anew");
                return Ok(());
            }
            Err(error) => {
                let advice = "use another --sheet, or remove the sheet if it is not needed";
                return Err(error).with_context(|| format!("{path} cannot be read; {advice}"));
            }
        };
        if found.format > FORMAT {
            bail!(
                "sheet {shown} was made by a later version of glassine; use that version, or another --sheet"
            );
        }
        let moved = found.template != note.template && !has_journal;
        if moved || found.template_bytes != note.template_bytes {
            bail!(
                "sheet {shown} belongs to {}, not to {}; use another --sheet, or remove {shown} if it is not needed",
                found.describe_template(),
                note.describe_template(),
            );
        }
        if let (Some(found), Some(now)) = (&found.template_sha256, &note.template_sha256)
            && found != now
        {
            bail!(
                "sheet {shown} was made over a template with the SHA-256 {found}, but {} has {now}; put back the image it was made over, or use another --sheet",
                note.describe_template()
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

impl SheetNote {
    /// The same, with what an earlier note knows of the template and this one did not look at.
    #[must_use]
    pub fn remembering(&self, before: Option<&Self>) -> Self {
        let known = before.and_then(|before| before.template_sha256.clone());
        Self { template_sha256: self.template_sha256.clone().or(known), ..self.clone() }
    }

    /// What the device is over, in words.
    #[must_use]
    pub fn describe_template(&self) -> String {
        match &self.template {
            Some(template) => format!("{} ({} bytes)", template.display(), self.template_bytes),
            None => "a blank device".to_owned(),
        }
    }
}

/// Why a sheet cannot be served, and what to do.
#[must_use]
pub fn explain(path: &Path, refusal: Refusal, before: &SheetNote, note: &SheetNote) -> String {
    let shown = path.display();
    match refusal {
        Refusal::Template => format!(
            "sheet {shown} belongs to {}, not to {}, which has other content; serve it over what it was made over, or use another --sheet",
            before.describe_template(),
            note.describe_template(),
        ),
        Refusal::DeviceSize { expected } => format!(
            "sheet {shown} belongs to a device of {expected} bytes, not of {}; use that --size, another --sheet, or remove {shown}",
            note.size_bytes
        ),
        refusal => format!(
            "sheet {shown} cannot be recovered: {refusal}; nothing was changed: run glassine repair {shown}, restore the sheet from a copy, or use another --sheet"
        ),
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        if self.is_ephemeral {
            // Without its map the data means nothing; its space is wanted back.
            let _ = fs::remove_file(self.path.join(DATA));
        }
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
