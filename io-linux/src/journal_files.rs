//! The files of a sheet's journal: made once, recovered at every start, and written as the core says.
//!
//! A sheet has a journal when its `superblock` has that name. The name is given last, so a crash while a
//! sheet is made leaves none, and the sheet is made again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use glassine_core::journal::recovery::{self, Recovered, Recovery, Refusal, Step};
use glassine_core::journal::superblock::{Identity, SUPERBLOCK_FILE_BYTES, Superblock};
use glassine_core::journal::{Action, JournalFile, Task};
use glassine_core::limits::SEGMENT_BYTES;
use glassine_core::{JournalLimits, Overlay, OverlayConfig};

use crate::data_file::{DataFile, errno};
use crate::sys;

/// Under which name a superblock is made.
const NEW_SUPERBLOCK: &str = "superblock.new";
/// What a checkpoint may take for each slot of the data file: a run of one slot and a run of zeroes are an
/// entry of 16 bytes each, and the frames around them 2 %.
const CHECKPOINT_BYTES_PER_SLOT: u64 = 33;
/// What it takes besides: a frame that is not full.
const CHECKPOINT_BYTES_MIN: u64 = 64 << 10;

/// The open files of a journal.
#[derive(Debug)]
pub struct JournalFiles {
    directory: PathBuf,
    files: [File; JournalFile::ALL.len()],
}

/// Who a device is, for its journal.
#[derive(Debug, Clone)]
pub struct Owner {
    /// What the device is made of.
    pub config: OverlayConfig,
    /// By what its template is known again.
    pub template_id: [u8; 32],
}

impl Owner {
    /// Finds out what the device holds, over a data file with so many slots.
    #[must_use]
    pub fn recovery(&self, data_slots: u32) -> Recovery {
        let (config, limits) = (self.config.clone(), JournalLimits::default());
        Recovery::new(config, self.template_id, data_slots, limits)
    }
}

impl JournalFiles {
    /// Whether a directory has a journal.
    #[must_use]
    pub fn exist(directory: &Path) -> bool {
        directory.join(JournalFile::Superblock.to_string()).exists()
    }

    /// Makes the journal of a device that nobody has written to, all of it durable when this returns.
    pub fn create(directory: &Path, owner: &Owner) -> anyhow::Result<()> {
        let identity = Identity {
            sheet: sys::random()?,
            size_bytes: owner.config.size_bytes,
            template_bytes: owner.config.template_bytes,
            template_id: owner.template_id,
            segment_bytes: SEGMENT_BYTES,
        };
        let blank = recovery::blank(&identity);
        let make = |name: &str, bytes: &[u8], length: u64| {
            let path = directory.join(name);
            let context = || format!("cannot make {}", path.display());
            let file = File::create(&path).with_context(context)?;
            if length > 0 {
                sys::allocate(&file, 0, length).with_context(context)?;
            }
            file.write_all_at(bytes, 0).with_context(context)?;
            file.sync_all().with_context(context)
        };
        for file in JournalFile::ALL {
            let name = file.to_string();
            match file {
                JournalFile::Superblock => {}
                JournalFile::Segment(_) => make(&name, &[], SEGMENT_BYTES)?,
                JournalFile::Checkpoint(false) => {
                    make(&name, &blank.checkpoint, CHECKPOINT_BYTES_MIN)?;
                }
                JournalFile::Checkpoint(true) => make(&name, &[], CHECKPOINT_BYTES_MIN)?,
            }
        }
        make(NEW_SUPERBLOCK, &blank.superblock, 0)?;
        let superblock = directory.join(JournalFile::Superblock.to_string());
        let shown = superblock.display();
        fs::rename(directory.join(NEW_SUPERBLOCK), &superblock)
            .with_context(|| format!("cannot name {shown}"))?;
        // With the names of all of them, and of the directory itself.
        sync_directory(directory)?;
        sync_directory(
            directory.parent().filter(|path| *path != Path::new("")).unwrap_or(Path::new(".")),
        )
    }

    /// Opens the files of a journal that is there.
    pub fn open(directory: &Path, read_only: bool) -> anyhow::Result<Self> {
        let open = |file: JournalFile| {
            let path = directory.join(file.to_string());
            OpenOptions::new().read(true).write(!read_only).open(&path).with_context(|| {
                format!(
                    "cannot open {}; a sheet needs all of its files: put it back, or use another --sheet",
                    path.display()
                )
            })
        };
        let [one, two, three, four, five] = JournalFile::ALL;
        let files = [open(one)?, open(two)?, open(three)?, open(four)?, open(five)?];
        Ok(Self { directory: directory.to_owned(), files })
    }

    /// What the sheet is, as its superblock says.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        let file = JournalFile::Superblock;
        let bytes = read(self.file(file), 0, SUPERBLOCK_FILE_BYTES as u64)
            .map_err(|error| Refusal::Storage { file, error: errno(&error) })?;
        let newest = Superblock::newest(&bytes).map_err(Refusal::Superblock)?;
        Ok(newest.identity)
    }

    /// Whether no sync of them ever waits for a disk.
    #[must_use]
    pub fn are_in_memory(&self) -> bool {
        self.files.iter().all(|file| sys::is_in_memory(file).unwrap_or(false))
    }

    fn file(&self, file: JournalFile) -> &File {
        let index = JournalFile::ALL.iter().position(|other| *other == file);
        &self.files[index.expect("all of them are there")]
    }

    /// The device as its journal has it. Without `data`, nothing is written.
    pub fn recover(
        &self,
        mut recovery: Recovery,
        data: Option<&DataFile>,
    ) -> Result<(Overlay, Recovered), Refusal> {
        while let Some(step) = recovery.poll() {
            let outcome = match (&step, data) {
                (Step::Read { file, offset, length }, _) => {
                    read(self.file(*file), *offset, *length)
                }
                (_, None) => Ok(Vec::new()),
                (Step::Write { file, offset, bytes }, _) => {
                    self.file(*file).write_all_at(bytes, *offset).map(|()| Vec::new())
                }
                (Step::Sync { file }, _) => self.file(*file).sync_data().map(|()| Vec::new()),
                (Step::WriteData { offset, bytes }, Some(data)) => {
                    data.write_all(bytes, *offset).map(|()| Vec::new())
                }
            };
            if let Err(error) = &outcome {
                let file = match &step {
                    Step::Read { file, .. } | Step::Write { file, .. } | Step::Sync { file } => {
                        file.to_string()
                    }
                    Step::WriteData { .. } => "data".to_owned(),
                };
                tracing::error!(sheet = %self.directory.display(), file, %error, "recovery failed");
            }
            recovery.handle(outcome.as_deref().map_err(errno))?;
        }
        Ok(recovery.finish())
    }

    /// Does what the journal asks for. May block.
    pub fn perform(&self, task: &mut Task, data: &DataFile) -> io::Result<()> {
        task.carry(|offset, bytes| data.read_all(bytes, offset))?;
        match &task.action {
            Action::SyncData => data.sync(),
            Action::Write { file, offset, bytes } => self.file(*file).write_all_at(bytes, *offset),
            Action::Sync { file } => self.file(*file).sync_data(),
        }
    }

    /// Makes room for the checkpoint of a data file that has so many slots, so that no checkpoint ever finds
    /// the disk full.
    pub fn reserve(&self, slots: u64) -> io::Result<()> {
        for generation in [false, true] {
            let length = CHECKPOINT_BYTES_MIN + slots * CHECKPOINT_BYTES_PER_SLOT;
            sys::allocate(self.file(JournalFile::Checkpoint(generation)), 0, length)?;
        }
        Ok(())
    }
}

/// What there is of a range.
fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let there = file.metadata()?.len().saturating_sub(offset).min(length);
    let mut bytes = vec![0; there as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Makes the names in a directory durable.
fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().with_context(|| format!("cannot sync directory {}", path.display()))
}
