//! `glassine check`: whether a sheet can be served, and what is in it, without changing a byte of it.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use glassine_core::journal::recovery::{Recovered, Recovery, Refusal};
use glassine_core::limits::BLOCK_BYTES;
use glassine_core::map::Entry;
use glassine_core::{Overlay, OverlayConfig, SpaceLimits};
use serde::Serialize;

use crate::data_file::DataFile;
use crate::journal_files::{JournalFiles, Owner};
use crate::sheet::{self, Sheet, SheetNote};

/// What a sheet holds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// Where the template was when the sheet was served last.
    pub template: Option<std::path::PathBuf>,
    /// Bytes that were written and are in the sheet.
    pub written_bytes: u64,
    /// Bytes for which space is set aside.
    pub reserved_bytes: u64,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// Checkpoints since the sheet was made.
    pub generation: u64,
    /// Runs of blocks in the last of them.
    pub checkpoint_entries: u64,
    /// Records behind it, and the edits in them.
    pub records: u64,
    /// Edits in those records.
    pub edits: u64,
    /// Whether a crash cut a record that nobody had been promised.
    pub cut: bool,
    /// The map, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<Run>>,
}

/// Blocks that lie side by side, and are alike.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Byte offset in the device.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// What they are.
    pub is: What,
    /// Where they are in the data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_offset: Option<u64>,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// As in the template.
    Template,
    /// Zero.
    Zero,
    /// Zero, with space set aside.
    ZeroReserved,
    /// In the data file.
    Data,
}

/// A sheet with a journal that is not being served; ours alone until it is dropped.
#[derive(Debug)]
pub struct Closed {
    sheet: Sheet,
    journal: JournalFiles,
    note: Option<SheetNote>,
    /// What its superblock says it is of.
    owner: Owner,
    data_bytes: u64,
}

impl Closed {
    /// Opens the sheet in a directory.
    pub fn open(path: &Path, read_only: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        if !path.is_dir() {
            bail!(
                "there is no sheet directory {shown}; name the directory that was given as --sheet"
            );
        }
        if !JournalFiles::exist(path) {
            bail!(
                "{shown} has no journal: it is ephemeral, or no sheet; there is nothing to check"
            );
        }
        let sheet = Sheet::open(path, false)?;
        let journal = JournalFiles::open(path, read_only)?;
        let note = Sheet::note(path);
        let identity = journal.identity().map_err(|refusal| refused(path, &note, refusal))?;
        let owner = Owner {
            config: OverlayConfig {
                size_bytes: identity.size_bytes,
                template_bytes: identity.template_bytes,
                quota_bytes: u64::MAX,
                space: SpaceLimits::default(),
            },
            template_id: identity.template_id,
        };
        let data_bytes = Sheet::data_bytes(path)
            .with_context(|| format!("cannot look at the data of sheet {shown}"))?;
        Ok(Self { sheet, journal, note, owner, data_bytes })
    }

    /// What finds out what a server would make of it.
    pub fn recovery(&self) -> Recovery {
        let slots = self.data_bytes / u64::from(BLOCK_BYTES);
        self.owner.recovery(u32::try_from(slots).unwrap_or(u32::MAX))
    }

    /// Recovers without writing anything.
    pub fn look(&self, recovery: Recovery) -> Result<(Overlay, Recovered), Refusal> {
        self.journal.recover(recovery, None)
    }

    /// Recovers, and makes durable what a server would.
    pub fn perform(&self, recovery: Recovery) -> anyhow::Result<Recovered> {
        let shown = self.shown();
        let data = DataFile::new(self.sheet.data()?, self.owner.config.size_bytes)
            .with_context(|| format!("cannot map the data of sheet {shown}"))?;
        let recovered = self.journal.recover(recovery, Some(&data));
        recovered.map(|(_, found)| found).map_err(|refusal| {
            anyhow!("recovery of sheet {shown} was broken off: {refusal}; mend the storage and repeat it: nothing is lost")
        })
    }

    /// Where it is.
    pub fn shown(&self) -> impl std::fmt::Display {
        self.sheet.path().display()
    }
}

fn refused(path: &Path, note: &Option<SheetNote>, refusal: Refusal) -> anyhow::Error {
    match note {
        Some(note) => anyhow!("{}", sheet::explain(path, refusal, note, note)),
        None => anyhow!("sheet {} cannot be recovered: {refusal}", path.display()),
    }
}

/// Checks the sheet in a directory.
pub fn check(path: &Path, with_map: bool) -> anyhow::Result<Report> {
    let closed = Closed::open(path, true)?;
    let recovered = closed.look(closed.recovery());
    let (overlay, found) = recovered.map_err(|refusal| refused(path, &closed.note, refusal))?;
    Ok(report(&overlay, found, closed.note, closed.data_bytes, with_map))
}

fn report(
    overlay: &Overlay,
    found: Recovered,
    note: Option<SheetNote>,
    data_bytes: u64,
    with_map: bool,
) -> Report {
    let (block, tally) = (u64::from(BLOCK_BYTES), overlay.tally());
    Report {
        size_bytes: overlay.size_bytes(),
        template: note.and_then(|note| note.template),
        written_bytes: tally.slots * block,
        reserved_bytes: tally.reserved * block,
        data_bytes,
        generation: found.generation,
        checkpoint_entries: found.checkpoint_entries,
        records: found.records,
        edits: found.edits,
        cut: found.cut,
        map: with_map.then(|| runs(overlay)),
    }
}

fn runs(overlay: &Overlay) -> Vec<Run> {
    let block = u64::from(BLOCK_BYTES);
    let mut runs: Vec<Run> = Vec::new();
    overlay.walk(&mut |blocks, entry| {
        let (is, data_offset) = match entry {
            Entry::Template => (What::Template, None),
            Entry::Zero => (What::Zero, None),
            Entry::ZeroProvisioned | Entry::ZeroClaimed => (What::ZeroReserved, None),
            Entry::Slot(slot) => (What::Data, Some(slot.offset())),
        };
        let offset = blocks.start * block;
        let bytes = (blocks.end * block).min(overlay.size_bytes()) - offset;
        match runs.last_mut() {
            Some(last)
                if last.is == is && last.data_offset.map(|at| at + last.bytes) == data_offset =>
            {
                last.bytes += bytes;
            }
            _ => runs.push(Run { offset, bytes, is, data_offset }),
        }
    });
    runs
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let below = match &self.template {
            Some(template) => format!("over {}", template.display()),
            None => "over nothing".to_owned(),
        };
        writeln!(f, "a device of {} bytes {below}", self.size_bytes)?;
        writeln!(
            f,
            "{} bytes written, {} reserved; the data file has {}",
            self.written_bytes, self.reserved_bytes, self.data_bytes
        )?;
        write!(
            f,
            "journal: generation {}, {} entries in its checkpoint, {} records with {} edits behind it",
            self.generation, self.checkpoint_entries, self.records, self.edits
        )?;
        if self.cut {
            write!(f, "; a crash cut the last record, which nobody had been promised")?;
        }
        for Run { offset, bytes, is, data_offset } in self.map.iter().flatten() {
            let what = match is {
                What::Template => "template",
                What::Zero => "zero",
                What::ZeroReserved => "zero, reserved",
                What::Data => "data",
            };
            write!(f, "\n{offset:>16} {bytes:>16}  {what}")?;
            if let Some(at) = data_offset {
                write!(f, " at {at}")?;
            }
        }
        Ok(())
    }
}
