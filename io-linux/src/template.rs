//! A template: a raw disk image, or a layer with all that is below it, that is only ever read, shared by every
//! device over it.
//!
//! A layer is served from a file that is composed as it is read (`composed`); everything else is the same. The
//! file's pages are sent from a mapping. Whether a page is in the page cache is asked first; a cold one
//! is read by the pool, so that the event loop never waits for a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use glassine_core::limits::DEVICE_BYTES_MAX;
use glassine_core::{Errno, Instant};
use sha2::{Digest, Sha256};

use crate::layer::{self, Parent, ParentKind};
use crate::mapping::Mapping;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::{self, IoVec};

use composed::{Composed, Done};

pub mod composed;
#[cfg(all(test, not(loom)))]
mod tests;

/// Residency is asked for, and remembered, by granules of this many bytes.
const GRANULE_BYTES: u64 = 1 << 20;
const GRANULE_PAGES: usize = (GRANULE_BYTES / 4096) as usize;
/// How long a granule that was resident is taken to be so.
const WARM_TIME: Duration = Duration::from_secs(1);
/// A cold range is read in pieces of this many bytes.
const FETCH_BYTES: usize = 256 << 10;

/// What a file is, whatever path leads to it: its device and inode.
pub fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// An open template.
#[derive(Debug)]
pub struct Template {
    path: PathBuf,
    file: File,
    bytes: u64,
    identity: (u64, u64),
    fingerprint: [u8; 32],
    sha256: Option<String>,
    mapping: Mapping,
    /// Present if it is a layer: then `file` is where that is composed.
    composed: Option<Composed>,
    /// For each granule, when it was last found resident as a whole.
    warm_at: Box<[AtomicU64]>,
}

impl Template {
    /// Opens a raw image, or a layer whose parents are beside it or in one of some directories. It is served to
    /// the byte.
    pub fn open(path: &Path, layer_directories: &[PathBuf]) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| {
            format!("cannot open template {shown}; name a readable raw disk image or layer")
        })?;
        let metadata = file.metadata().with_context(|| format!("cannot stat template {shown}"))?;
        ensure!(!metadata.is_dir(), "template {shown} is a directory; name a raw disk image");
        let is_layer =
            layer::is_layer(&file).with_context(|| format!("cannot read template {shown}"))?;
        let mut composed = None;
        if is_layer {
            let opened;
            (opened, file) = Composed::open(path, layer_directories)?;
            composed = Some(opened);
        }
        let bytes = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("cannot find the size of template {shown}"))?;
        if bytes == 0 {
            bail!(
                "template {shown} is empty; name a raw disk image, or use --size for a blank device"
            );
        }
        ensure!(bytes <= DEVICE_BYTES_MAX, "template {shown} is larger than 1 PiB");
        let mapping = Mapping::new(bytes, false);
        mapping.extend(&file, bytes).with_context(|| format!("cannot map template {shown}"))?;
        let fingerprint = match &composed {
            Some(composed) => composed.chain().top().id(),
            None => fingerprint(&file, bytes)
                .with_context(|| format!("cannot read template {shown}"))?,
        };
        let granules = bytes.div_ceil(GRANULE_BYTES);
        Ok(Self {
            path: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
            file,
            bytes,
            identity: (metadata.dev(), metadata.ino()),
            fingerprint,
            sha256: None,
            mapping,
            composed,
            warm_at: (0..granules).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Device and inode: two paths to one file are one template.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// What its content is known by. Of a layer, its identity. Of an image, a SHA-256 over its size and 64 blocks
    /// all over it: it tells images apart that are different images, not every change of one.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Reads all of an image; answers with the SHA-256 of its bytes, in hexadecimal digits. From then on the template
    /// is known by that as well, so that a sheet can tell any change. A layer needs none: its identity covers
    /// the checksums of all that is read.
    pub fn digest(&mut self) -> anyhow::Result<&str> {
        let shown = self.path.display();
        let mut digest = Sha256::new();
        let mut bytes = vec![0; 1 << 20];
        for offset in (0..self.bytes).step_by(bytes.len()) {
            let there = (self.bytes - offset).min(bytes.len() as u64) as usize;
            self.file
                .read_exact_at(&mut bytes[..there], offset)
                .with_context(|| format!("cannot read template {shown}"))?;
            digest.update(&bytes[..there]);
        }
        let digits = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(self.sha256.insert(digits))
    }

    /// What [`Self::digest`] found, if it was asked for.
    #[must_use]
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// What a layer has to say of its parent if it is sealed from a device over this template.
    #[must_use]
    pub fn as_parent(&self) -> Parent {
        let kind = if self.composed.is_some() { ParentKind::Layer } else { ParentKind::Image };
        layer::parent(kind, self.fingerprint, self.bytes, &self.path)
    }

    /// How many layers it is made of, and what they have; nothing for an image.
    #[must_use]
    pub fn composed(&self) -> Option<&Composed> {
        self.composed.as_ref()
    }

    /// Hands out pointers to a range, for the kernel. Of a layer, all of it [is ready](Self::is_ready), or was
    /// [fetched](Self::fetch).
    pub fn pieces(&self, offset: u64, length: u64, visit: &mut impl FnMut(IoVec)) {
        self.mapping.pieces(offset, length, visit);
    }

    /// Sends what a socket takes of a range without waiting, from the page cache and without copying: the
    /// reader copies when it reads. 0 means that the template became shorter.
    pub fn send(&self, socket: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<usize> {
        sys::send_file(socket, &self.file, offset, length)
    }

    /// Whether a range can be sent without waiting for a disk.
    #[must_use]
    pub fn is_ready(&self, offset: u64, length: u64, now: Instant) -> bool {
        let (first, last) = (offset / GRANULE_BYTES, (offset + length - 1) / GRANULE_BYTES);
        (first..=last).all(|granule| self.is_warm(granule, now, offset, length))
    }

    fn is_warm(&self, granule: u64, now: Instant, offset: u64, length: u64) -> bool {
        let warm_at = &self.warm_at[granule as usize];
        let seen = warm_at.load(Ordering::Relaxed);
        if seen != 0 && now.since(Instant(seen)) < WARM_TIME {
            return true;
        }
        let mut pages = [0u8; GRANULE_PAGES + 1];
        let start = granule * GRANULE_BYTES;
        let end = (start + GRANULE_BYTES).min(self.bytes);
        if self.is_there(start, end, &mut pages) {
            warm_at.store(now.0.max(1), Ordering::Relaxed);
            return true;
        }
        let (from, to) = (offset.max(start), (offset + length).min(end));
        self.is_there(from, to, &mut pages)
    }

    /// Whether a range is in the page cache, and composed. `pages` is scratch.
    fn is_there(&self, from: u64, to: u64, pages: &mut [u8]) -> bool {
        let mut is_resident = |from, to| self.mapping.is_resident(from, to - from, pages);
        match &self.composed {
            None => is_resident(from, to),
            // A hole is never on a disk, and on a tmpfs never in the page cache.
            Some(composed) => {
                composed.is_ready(from..to)
                    && composed.filled(from..to).all(|part| is_resident(part.start, part.end))
            }
        }
    }

    /// Brings a range into the page cache, composed. May block.
    pub fn fetch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let Some(composed) = &self.composed else { return self.read_ahead(offset, length) };
        for part in composed.filled(offset..offset + length) {
            if composed.compose(part.start)? == Done::Before {
                self.read_ahead(part.start, part.end - part.start)?;
            }
        }
        Ok(())
    }

    fn read_ahead(&self, offset: u64, length: u64) -> Result<(), Errno> {
        sys::will_need(&self.file, offset, length);
        let mut scratch = vec![0; FETCH_BYTES.min(length as usize)];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(FETCH_BYTES as u64) as usize;
            self.read(&mut scratch[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }

    /// Advice that a range of the device will be read.
    pub fn prefetch(&self, offset: u64, length: u64) {
        if offset < self.bytes {
            sys::will_need(&self.file, offset, length.min(self.bytes - offset));
        }
    }

    /// Reads bytes from a place, all of them.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), Errno> {
        if let Some(composed) = &self.composed {
            for part in composed.filled(offset..offset + bytes.len() as u64) {
                composed.compose(part.start)?;
            }
        }
        self.file.read_exact_at(bytes, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                tracing::error!(
                    template = %self.path.display(), offset,
                    "the template has become shorter while it is served; restore it and restart"
                );
            } else {
                let template = self.path.display();
                tracing::error!(%template, offset, %error, "cannot read the template");
            }
            Errno::Io
        })
    }
}

/// What an image of so many bytes is known by.
pub(crate) fn fingerprint(file: &File, bytes: u64) -> io::Result<[u8; 32]> {
    const SAMPLES: u64 = 64;
    const SAMPLE_BYTES: u64 = 4096;
    let mut digest = Sha256::new();
    digest.update(bytes.to_le_bytes());
    let mut sample = [0; SAMPLE_BYTES as usize];
    for index in 0..SAMPLES {
        // The first and the last bytes, and as many between; a small image all of it.
        let room = bytes.saturating_sub(SAMPLE_BYTES);
        let offset = (u128::from(room) * u128::from(index) / u128::from(SAMPLES - 1)) as u64;
        let there = (bytes - offset).min(SAMPLE_BYTES) as usize;
        file.read_exact_at(&mut sample[..there], offset)?;
        digest.update(&sample[..there]);
    }
    Ok(digest.finalize().into())
}
