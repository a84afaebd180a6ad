//! One copy-on-write device: its overlay behind a lock, and the files its bytes are in.

use anyhow::ensure;
use glassine_core::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX, GROWTH_SLOTS_MIN};
use glassine_core::session::Merge;
use glassine_core::{Errno, Export, Instant, Overlay, OverlayConfig, Source};

use crate::config::DeviceConfig;
use crate::data_file::DataFile;
use crate::sheet::{self, Sheet, SheetNote};
use crate::sync::{Arc, Mutex};
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
    sheet: Option<Sheet>,
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
        let sheet = match &config.sheet {
            Some(path) if !config.read_only => Some(Sheet::open(path)?),
            _ => None,
        };
        let data = match &sheet {
            _ if config.read_only => None,
            None => Some(sheet::temporary_data()?),
            Some(sheet) => Some(sheet.begin(&SheetNote {
                format: 0,
                template: template.as_ref().map(|template| template.path().to_owned()),
                template_bytes,
                size_bytes,
            })?),
        };
        let data = data.map(|file| DataFile::new(file, size_bytes));
        let quota_bytes = config.quota_bytes.unwrap_or(u64::MAX);
        Ok(Self {
            export: Export {
                name: name.clone(),
                description: config.description.clone(),
                size_bytes,
                read_only: config.read_only,
            },
            overlay: Mutex::new(Overlay::new(OverlayConfig {
                size_bytes,
                template_bytes,
                quota_bytes,
                growth_slots_min: GROWTH_SLOTS_MIN,
            })),
            template,
            data,
            sheet,
        })
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
            Some(sheet) => format!("{below}, sheet {}", sheet.path().display()),
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
