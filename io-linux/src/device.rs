//! One copy-on-write device: its overlay behind a lock, and the files its bytes are in.

use std::io;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use glassine_core::journal::{Action, Lane, Task};
use glassine_core::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX};
use glassine_core::overlay::SessionKey;
use glassine_core::session::Merge;
use glassine_core::slot::Run;
use glassine_core::{Errno, Export, Instant, Overlay, OverlayConfig, Source, SpaceLimits};

use crate::config::DeviceConfig;
use crate::data_file::{self, DataFile};
use crate::journal_files::{JournalFiles, Owner};
use crate::layer::Parent;
use crate::sheet::{self, Sheet, SheetNote};
use crate::sync::{Arc, Mutex, lock};
use crate::template::Template;

/// A device being served.
#[derive(Debug)]
pub struct Device {
    /// What clients see of it.
    pub export: Export,
    /// All decisions about its bytes. Held for a batch, never across I/O.
    pub overlay: Mutex<Overlay>,
    template: Option<Arc<Template>>,
    /// Absent on a read-only device.
    data: Option<DataFile>,
    /// Absent on a device that need not survive.
    journal: Option<JournalFiles>,
    /// No barrier waits for a disk.
    is_in_memory: bool,
    sheet: Option<Sheet>,
}

/// What a use of an overlay leaves to be done.
#[derive(Debug)]
#[must_use = "somebody waits for it"]
pub struct After {
    /// Get space for slots.
    pub growth: Option<Run>,
    /// Give the space of slots back.
    pub punch: Option<Run>,
    /// Work of the journal, one of each lane at most.
    pub tasks: [Option<Task>; 2],
    /// Sessions to wake.
    pub woken: Vec<SessionKey>,
}

/// Where the bytes of a device are, and what they are.
#[derive(Debug)]
struct Storage {
    overlay: Overlay,
    data: Option<DataFile>,
    journal: Option<JournalFiles>,
    sheet: Option<Sheet>,
}

impl Storage {
    fn of(overlay: Overlay) -> Self {
        Self { overlay, data: None, journal: None, sheet: None }
    }

    fn temporary(owner: &Owner) -> anyhow::Result<Self> {
        let data = DataFile::new(sheet::temporary_data()?, owner.config.size_bytes);
        let data = data.context("cannot map a temporary sheet")?;
        Ok(Self { data: Some(data), ..Self::of(Overlay::new(owner.config.clone())) })
    }

    /// A sheet in a directory: an empty one, or what its journal says.
    fn open(path: &Path, ephemeral: bool, note: &SheetNote, owner: &Owner) -> anyhow::Result<Self> {
        let shown = path.display();
        let sheet = Sheet::open(path, ephemeral)?;
        let before = Sheet::note(path);
        let data = DataFile::new(sheet.begin(note)?, note.size_bytes)
            .with_context(|| format!("cannot map the data of sheet {shown}"))?;
        let mut storage = Self::of(Overlay::new(owner.config.clone()));
        if !ephemeral {
            let began = std::time::Instant::now();
            let is_new = !JournalFiles::exist(path);
            if is_new {
                JournalFiles::create(path, owner)?;
            }
            let journal = JournalFiles::open(path, false)?;
            let recovered = journal.recover(owner.recovery(data.slots()), Some(&data));
            let (overlay, report) = recovered.map_err(|refusal| {
                let before = before.as_ref().unwrap_or(note);
                anyhow!("{}", sheet::explain(path, refusal, before, note))
            })?;
            if !is_new {
                let milliseconds = began.elapsed().as_millis() as u64;
                tracing::info!(
                    sheet = %shown, milliseconds, generation = report.generation,
                    checkpoint = report.checkpoint_entries, records = report.records,
                    edits = report.edits, restored = report.restored, cut = report.cut, "recovered"
                );
            }
            (storage.overlay, storage.journal) = (overlay, Some(journal));
        }
        sheet.write_note(&note.remembering(before.as_ref()))?;
        Ok(Self { data: Some(data), sheet: Some(sheet), ..storage })
    }
}

/// An action without its bytes.
fn kind(action: &Action) -> String {
    match action {
        Action::SyncData => "sync the data".to_owned(),
        Action::Write { file, offset, bytes } => {
            format!("write {} bytes at {offset} of {file}", bytes.len())
        }
        Action::Sync { file } => format!("sync {file}"),
    }
}

impl Device {
    /// Opens everything a device needs.
    pub fn open(config: &DeviceConfig, template: Option<Arc<Template>>) -> anyhow::Result<Self> {
        let template_bytes = template.as_ref().map_or(0, |template| template.bytes());
        let size_bytes = config.size_bytes.unwrap_or(template_bytes);
        let name = &config.export;
        ensure!(size_bytes > 0, "export {name:?} has no size; give --template or --size");
        ensure!(
            size_bytes >= template_bytes,
            "export {name:?} is to have {size_bytes} bytes but its template has {template_bytes}; \
             give a --size that is not smaller, or none"
        );
        ensure!(
            size_bytes <= DEVICE_BYTES_MAX,
            "export {name:?} is larger than 1 PiB; give a smaller --size"
        );
        let owner = Owner {
            config: OverlayConfig {
                size_bytes,
                template_bytes,
                quota_bytes: config.quota_bytes.unwrap_or(u64::MAX),
                space: SpaceLimits::default(),
            },
            template_id: template.as_ref().map_or([0; 32], |template| template.fingerprint()),
        };
        let storage = match &config.sheet {
            _ if config.read_only => Storage::of(Overlay::new(owner.config)),
            None => Storage::temporary(&owner)?,
            Some(path) => {
                let template_sha256 = template.as_ref().and_then(|template| template.sha256());
                let template_sha256 = template_sha256.map(str::to_owned);
                let template = template.as_ref().map(|template| template.path().to_owned());
                let format = if config.ephemeral { 0 } else { sheet::FORMAT };
                let note =
                    SheetNote { format, template, template_bytes, size_bytes, template_sha256 };
                Storage::open(path, config.ephemeral, &note, &owner)?
            }
        };
        let is_in_memory = storage.journal.as_ref().is_some_and(JournalFiles::are_in_memory);
        Ok(Self {
            is_in_memory,
            export: Export {
                name: name.clone(),
                description: config.description.clone(),
                size_bytes,
                read_only: config.read_only,
            },
            overlay: Mutex::new(storage.overlay),
            template,
            data: storage.data,
            journal: storage.journal,
            sheet: storage.sheet,
        })
    }

    /// The one way to work with the overlay: under its lock, for a batch. What comes of it is to be done by
    /// [`Pool::settle`](crate::pool::Pool::settle).
    pub fn with_overlay(&self, work: impl FnOnce(&mut Overlay)) -> After {
        let mut overlay = lock(&self.overlay);
        work(&mut overlay);
        let growth = overlay.poll_growth();
        let tasks = [overlay.poll_task(), overlay.poll_task()];
        let mut woken = overlay.take_waiting();
        while let Some(key) = overlay.poll_woken() {
            woken.push(key);
        }
        let punch = overlay.poll_punch();
        After { growth, punch, tasks, woken }
    }

    /// Whether what is flushed survives.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// Gets space for slots of the data file, and for the checkpoint that will name them. May block.
    pub fn grow(&self, run: Run) -> io::Result<()> {
        let data = self.data();
        if let Some(journal) = &self.journal {
            journal.reserve(u64::from(data.slots().max(run.first.0 + run.count)))?;
        }
        data.grow(run)
    }

    /// Whether a task is done sooner than a thread is woken for it: a barrier of a sheet in memory.
    #[must_use]
    pub fn is_quick(&self, task: &Task) -> bool {
        self.is_in_memory && task.lane() == Lane::Barrier
    }

    /// Does what the journal asks for. May block.
    pub fn perform(&self, task: &mut Task) -> Result<(), Errno> {
        let journal = self.journal.as_ref().expect("tasks come from a journal");
        let ends_barrier =
            task.lane() == Lane::Barrier && matches!(task.action, Action::Sync { .. });
        if ends_barrier && !self.is_in_memory {
            self.data().flushed();
        }
        journal.perform(task, self.data()).map_err(|error| {
            let (export, action) = (&self.export.name, kind(&task.action));
            let errno = data_file::errno(&error);
            if task.may_fail_with(errno) {
                tracing::warn!(
                    export, ?action, %error,
                    "a checkpoint waits for space, and is tried again every few seconds; make space \
                     before the journal is full, or writes are refused then"
                );
            } else {
                tracing::error!(
                    export, ?action, %error,
                    "the journal failed: writes and flushes of this device fail from now on, reads go on; \
                     repair the storage and restart"
                );
            }
            errno
        })
    }

    /// Makes everything durable, for when nobody uses the device any more. Answers whether it is, or need not
    /// be: `false` if the journal has failed.
    pub fn close(&self) -> bool {
        let mut overlay = lock(&self.overlay);
        overlay.flush();
        while let Some(mut task) = overlay.poll_task() {
            let result = self.perform(&mut task);
            overlay.finished(task, result);
        }
        !overlay.has_failed()
    }

    /// The data file. Only a device that can be written to has slots.
    #[must_use]
    pub fn data(&self) -> &DataFile {
        self.data.as_ref().expect("only a writable device has slots")
    }

    /// The template. Only a device over one has blocks that show it.
    #[must_use]
    pub fn template(&self) -> &Arc<Template> {
        self.template.as_ref().expect("only a device over a template has blocks that show it")
    }

    /// What a layer is over that is made of this device.
    #[must_use]
    pub fn layer_parent(&self) -> Option<Parent> {
        self.template.as_ref().map(|template| template.as_parent())
    }

    /// Where the template is, if there is one.
    #[must_use]
    pub fn template_path(&self) -> Option<&Path> {
        self.template.as_ref().map(|template| template.path())
    }

    /// Where the sheet is, if it has a directory.
    #[must_use]
    pub fn sheet_path(&self) -> Option<&Path> {
        self.sheet.as_ref().map(Sheet::path)
    }

    /// In words, for the log: what is below and above.
    #[must_use]
    pub fn describe(&self) -> String {
        let below = match &self.template {
            Some(template) => format!("template {}", template.path().display()),
            None => "blank".to_owned(),
        };
        match &self.sheet {
            None if self.export.read_only => format!("{below}, read-only"),
            None => format!("{below}, temporary sheet"),
            Some(sheet) if self.is_durable() => {
                format!("{below}, sheet {}", sheet.path().display())
            }
            Some(sheet) => format!("{below}, ephemeral sheet {}", sheet.path().display()),
        }
    }

    /// Advice that a range will be read.
    pub fn prefetch(&self, offset: u64, length: u64) {
        if let Some(template) = &self.template {
            template.prefetch(offset, length);
        }
    }

    /// Reads the bytes that start at a source.
    pub fn read(&self, source: Source, bytes: &mut [u8]) -> Result<(), Errno> {
        match source {
            Source::Zero => {
                bytes.fill(0);
                Ok(())
            }
            Source::Template { offset } => self.template().read(bytes, offset),
            Source::Data { offset } => self.data().read(bytes, offset),
        }
    }

    /// Whether a merge can be done without waiting for a disk.
    #[must_use]
    pub fn is_ready(&self, merge: &Merge, now: Instant) -> bool {
        match merge.source {
            Source::Template { offset } => {
                self.template().is_ready(offset, u64::from(merge.source_bytes), now)
            }
            Source::Zero | Source::Data { .. } => true,
        }
    }

    /// Completes a block that a request covers only in part.
    pub fn merge(&self, merge: &Merge) -> Result<(), Errno> {
        let mut block = [0; BLOCK_BYTES as usize];
        self.read(merge.source, &mut block[..merge.source_bytes as usize])?;
        let (start, end) = (merge.keep.start as usize, merge.keep.end as usize);
        if merge.zero_keep {
            block[start..end].fill(0);
            return self.data().write_bytes(&block, merge.target);
        }
        // The bytes between are the payload's: they may be arriving at this very moment.
        for range in [0..start, end..block.len()] {
            if !range.is_empty() {
                let at = merge.target + range.start as u64;
                self.data().write_bytes(&block[range], at)?;
            }
        }
        Ok(())
    }
}
