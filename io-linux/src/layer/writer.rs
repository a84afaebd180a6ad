//! Makes a layer, front to back, under a name of its own until it is complete.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use glassine_core::layer::footer::{self, Parent};
use glassine_core::layer::index::{self, Codec, Content, Index, Run};
use glassine_core::layer::{Hex, WINDOW_BLOCKS, WINDOW_BYTES};
use glassine_core::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX};
use zstd::bulk::Compressor;

use crate::new_file::NewFile;
use crate::sys;

const BLOCK: usize = BLOCK_BYTES as usize;
/// So many bytes of frames are written by one system call.
const RAW_BATCH_BYTES: usize = 1 << 20;
/// So many bytes that come in one piece are written from where they are.
const DIRECT_BYTES_MIN: usize = 256 << 10;
/// So many bytes are compressed at a time, by all threads together.
const ZSTD_BATCH_BYTES: usize = 8 << 20;
/// More threads than this wait for the disk.
const THREADS_MAX: usize = 16;

/// What a layer is to be.
#[derive(Debug, Clone)]
pub struct About {
    /// Size of the device to the byte.
    pub virtual_bytes: u64,
    /// What it is over. Without a parent, blocks that it does not have are zero.
    pub parent: Option<Parent>,
    /// The zstd level, if it is to be compressed.
    pub compress: Option<i32>,
}

/// What a finished layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// What it is known by.
    pub id: [u8; 32],
    /// How many blocks are data.
    pub data_blocks: u64,
    /// How many blocks are zero.
    pub zero_blocks: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// A layer that is being made. Blocks come in rising order, over [`Self::data`] and [`Self::zero`] together;
/// those that are left out are as in the parent. The file has its name once [`Self::finish`] returns, and is
/// gone if that is never called.
#[derive(Debug)]
pub struct LayerWriter {
    file: NewFile,
    about: index::About,
    /// The frames that are in the file, and all runs.
    index: Index,
    /// No block before this one may come any more.
    next: u64,
    /// Frames that are not in the file yet, one behind the other.
    packed: Vec<u8>,
    /// The window of each, and where it ends; behind the last one is the frame that is still growing.
    pending: Vec<(u64, usize)>,
    /// The window of that frame.
    window: u64,
    zstd: Zstd,
    /// Something went wrong, and something is missing.
    is_broken: bool,
}

/// One compressor for each thread; none if frames are to be stored as they are.
struct Zstd(Vec<Compressor<'static>>);

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Zstd").field(&self.0.len()).finish()
    }
}

/// A frame as it is to be stored.
#[derive(Debug)]
struct Stored {
    checksum: u32,
    /// Absent if it is stored as it is.
    bytes: Option<Vec<u8>>,
}

impl LayerWriter {
    /// Begins a layer that is to be at `out`.
    pub fn create(out: &Path, about: &About) -> anyhow::Result<Self> {
        let shown = out.display();
        let virtual_bytes = about.virtual_bytes;
        ensure!(
            (1..=DEVICE_BYTES_MAX).contains(&virtual_bytes),
            "a layer of a device of {virtual_bytes} bytes cannot be made; it has 1 byte to 1 PiB"
        );
        if let Some(parent) = &about.parent {
            ensure!(
                (1..=virtual_bytes).contains(&parent.bytes),
                "the parent has {} bytes, and a layer over it cannot have {virtual_bytes}",
                parent.bytes
            );
            ensure!(
                footer::is_file_name(&parent.name),
                "{:?} cannot be noted as the parent's name; give the name of a file, without a directory, of at most 255 bytes",
                parent.name
            );
        }
        let file = NewFile::create(out)?;
        file.file()
            .write_all_at(&footer::header(), 0)
            .with_context(|| format!("cannot write {shown}"))?;
        let number = [sys::random(), sys::random()].map(|half| half.map(u64::to_le_bytes));
        let [Ok(low), Ok(high)] = number else { bail!("the system has no random numbers") };
        Ok(Self {
            file,
            about: index::About {
                number: [low, high].concat().try_into().expect("sixteen bytes"),
                size_bytes: virtual_bytes,
                parent: about.parent.clone(),
                note: note(),
            },
            index: Index::default(),
            next: 0,
            packed: Vec::new(),
            pending: Vec::new(),
            window: 0,
            zstd: Zstd::new(about.compress)?,
            is_broken: false,
        })
    }

    /// These blocks are zero, whatever the parent has there.
    pub fn zero(&mut self, blocks: Range<u64>) -> anyhow::Result<()> {
        self.advance(&blocks)?;
        if !blocks.is_empty() {
            self.note_zero(blocks.start, blocks.end - blocks.start);
        }
        Ok(())
    }

    /// Without a parent, what is not there is zero.
    fn note_zero(&mut self, block: u64, count: u64) {
        if self.about.parent.is_some() {
            self.index.push(Run { block, count, content: Content::Zero });
        }
    }

    /// These are the bytes of some blocks, all of each. Blocks that are all zero are noted as such. What lies
    /// beyond the end of the device does not count.
    pub fn data(&mut self, first_block: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.is_broken |= !bytes.len().is_multiple_of(BLOCK);
        ensure!(!self.is_broken, "a layer takes whole blocks of 4096 bytes");
        let blocks = first_block..first_block.saturating_add((bytes.len() / BLOCK) as u64);
        self.advance(&blocks)?;
        let size = self.about.size_bytes;
        let tail = (size % u64::from(BLOCK_BYTES)) as usize;
        let has_tail = tail > 0 && !bytes.is_empty() && blocks.end == size.div_ceil(BLOCK as u64);
        let (bytes, last) = bytes.split_at(bytes.len() - if has_tail { BLOCK } else { 0 });
        let mut outcome = self.append(first_block, bytes);
        if has_tail && outcome.is_ok() {
            let mut block = [0; BLOCK];
            block[..tail].copy_from_slice(&last[..tail]);
            outcome = self.append(blocks.end - 1, &block);
        }
        self.is_broken |= outcome.is_err();
        outcome.with_context(|| {
            format!("cannot write {}; nothing is left of it", self.file.out().display())
        })
    }

    /// Writes what is left, makes it durable, and gives the file its name.
    pub fn finish(mut self) -> anyhow::Result<LayerSummary> {
        let shown = self.file.out().display().to_string();
        ensure!(!self.is_broken, "{shown} cannot be finished: something of it is missing");
        let (tail, footer, id) = self
            .close_frame()
            .and_then(|()| self.write_frames())
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.index.seal(&self.about)?))
            .with_context(|| format!("cannot write {shown}"))?;
        let written = self.file.file().write_all_at(&tail, self.index.frames_end());
        written.with_context(|| format!("cannot write {shown}"))?;
        self.file.finish()?;
        let (data_blocks, zero_blocks) = (footer.data_blocks, footer.zero_blocks);
        tracing::debug!(layer = %shown, id = %Hex(&id), data_blocks, zero_blocks, "sealed");
        Ok(LayerSummary { id, data_blocks, zero_blocks, file_bytes: footer.file_bytes() })
    }

    /// Some blocks come now.
    fn advance(&mut self, blocks: &Range<u64>) -> anyhow::Result<()> {
        let end = self.about.size_bytes.div_ceil(BLOCK_BYTES.into());
        let fits = self.next <= blocks.start && blocks.start <= blocks.end && blocks.end <= end;
        self.is_broken |= !fits;
        ensure!(
            !self.is_broken,
            "blocks {blocks:?} cannot follow block {} of a layer of {end}",
            self.next
        );
        self.next = blocks.end;
        Ok(())
    }

    /// Appends blocks, as runs that are zero or not.
    fn append(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let mut block = first;
        for run in alike(bytes) {
            let count = (run.bytes.len() / BLOCK) as u64;
            if run.is_zero {
                self.note_zero(block, count);
            } else {
                self.index.push(Run { block, count, content: Content::Data });
                self.pack(block, run.bytes)?;
            }
            block += count;
        }
        Ok(())
    }

    /// Appends blocks to the frames of their windows.
    fn pack(&mut self, mut block: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.zstd.0.is_empty()
                && block.is_multiple_of(WINDOW_BLOCKS)
                && bytes.len() >= DIRECT_BYTES_MIN
            {
                let (here, rest) = bytes.split_at(bytes.len() / WINDOW_BYTES * WINDOW_BYTES);
                self.write_windows(block / WINDOW_BLOCKS, here)?;
                block += (here.len() / BLOCK) as u64;
                bytes = rest;
                continue;
            }
            let window = block / WINDOW_BLOCKS;
            if window != self.window {
                self.close_frame()?;
                self.window = window;
            }
            let room = ((window + 1) * WINDOW_BLOCKS - block) as usize * BLOCK;
            let (here, rest) = bytes.split_at(bytes.len().min(room));
            self.packed.extend_from_slice(here);
            block += (here.len() / BLOCK) as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes whole windows from where they are.
    fn write_windows(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        self.close_frame()?;
        self.write_frames()?;
        self.file.file().write_all_at(bytes, self.index.frames_end())?;
        for (window, plain) in (first..).zip(bytes.chunks_exact(WINDOW_BYTES)) {
            let checksum = crc32c::crc32c(plain);
            self.index.push_frame(window, WINDOW_BYTES as u32, Codec::Raw, checksum);
            self.window = window;
        }
        Ok(())
    }

    /// Ends the frame that is growing, if there is one, and writes when there is enough to write.
    fn close_frame(&mut self) -> io::Result<()> {
        if self.packed.len() > self.pending.last().map_or(0, |(_, end)| *end) {
            self.pending.push((self.window, self.packed.len()));
        }
        if self.packed.len() >= self.zstd.batch_bytes() {
            self.write_frames()?;
        }
        Ok(())
    }

    /// Writes the frames that have ended.
    fn write_frames(&mut self) -> io::Result<()> {
        let mut start = 0;
        let mut plain = Vec::with_capacity(self.pending.len());
        for (_, end) in &self.pending {
            plain.push(&self.packed[start..*end]);
            start = *end;
        }
        let stored = self.zstd.store(&plain)?;
        let all: Vec<u8>;
        let bytes = if self.zstd.0.is_empty() {
            &self.packed[..start]
        } else {
            let each = stored.iter().zip(&plain);
            let each = each.map(|(stored, plain)| stored.bytes.as_deref().unwrap_or(plain));
            all = each.collect::<Vec<_>>().concat();
            &all
        };
        self.file.file().write_all_at(bytes, self.index.frames_end())?;
        for ((window, _), (stored, plain)) in self.pending.iter().zip(stored.iter().zip(&plain)) {
            let (codec, length) = match &stored.bytes {
                Some(bytes) => (Codec::Zstd, bytes.len()),
                None => (Codec::Raw, plain.len()),
            };
            self.index.push_frame(*window, length as u32, codec, stored.checksum);
        }
        self.pending.clear();
        self.packed.drain(..start);
        Ok(())
    }
}

impl Zstd {
    fn new(level: Option<i32>) -> anyhow::Result<Self> {
        let Some(level) = level else { return Ok(Self(Vec::new())) };
        let levels = zstd::compression_level_range();
        ensure!(
            levels.contains(&level),
            "there is no zstd level {level}; give one from 1 to {}",
            levels.end()
        );
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        let compressors = (0..threads).map(|_| Compressor::new(level));
        Ok(Self(compressors.collect::<io::Result<_>>().context("cannot prepare zstd")?))
    }

    fn batch_bytes(&self) -> usize {
        if self.0.is_empty() { RAW_BATCH_BYTES } else { ZSTD_BATCH_BYTES }
    }

    /// What is to be stored of some frames, in their order.
    fn store(&mut self, plain: &[&[u8]]) -> io::Result<Vec<Stored>> {
        if self.0.is_empty() {
            let raw = |plain: &&[u8]| Stored { checksum: crc32c::crc32c(plain), bytes: None };
            return Ok(plain.iter().map(raw).collect());
        }
        let share = plain.len().div_ceil(self.0.len()).max(1);
        thread::scope(|scope| {
            let threads: Vec<_> = plain
                .chunks(share)
                .zip(&mut self.0)
                .map(|(plain, compressor)| {
                    let mut one = |plain: &&[u8]| compress(compressor, plain);
                    scope.spawn(move || plain.iter().map(&mut one).collect::<io::Result<Vec<_>>>())
                })
                .collect();
            let parts = threads.into_iter().map(|thread| thread.join().expect("it cannot panic"));
            Ok(parts.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
        })
    }
}

/// A frame that compression makes shorter by less than a sixteenth is stored as it is.
fn compress(compressor: &mut Compressor<'_>, plain: &[u8]) -> io::Result<Stored> {
    let bytes = compressor.compress(plain)?;
    let pays = bytes.len() <= plain.len() - plain.len() / 16;
    Ok(Stored { checksum: crc32c::crc32c(plain), bytes: pays.then_some(bytes) })
}

/// Whole blocks that are all zero, or all not.
pub struct Alike<'a> {
    /// Their bytes.
    pub bytes: &'a [u8],
    /// Whether that is what they are.
    pub is_zero: bool,
}

/// Cuts bytes into runs of blocks that are zero, and such that are not. The last block may be cut short.
pub fn alike(bytes: &[u8]) -> impl Iterator<Item = Alike<'_>> {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    let is_zero = |block: &[u8]| *block == ZEROES[..block.len()];
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let zero = is_zero(rest.chunks(BLOCK).next()?);
        let blocks = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero);
        let (bytes, behind) = rest.split_at(blocks.map(<[u8]>::len).sum());
        rest = behind;
        Some(Alike { bytes, is_zero: zero })
    })
}

/// Who made the layer, and when.
fn note() -> Vec<u8> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let creator = concat!("glassine ", env!("CARGO_PKG_VERSION"));
    serde_json::json!({ "creator": creator, "created": time }).to_string().into_bytes()
}
