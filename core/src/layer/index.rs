//! Which blocks a layer has, and where their bytes are.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use sha2::{Digest, Sha256};

use super::footer::{
    FOOTER_BYTES, Footer, NOTE_BYTES_MAX, Parent, SECTION_BYTES_MAX, Section, identity,
};
use super::{Damage, Fault, WINDOW_BLOCKS};
use crate::journal::frame::{le32, le64};
use crate::judge::{Bug, planted};
use crate::limits::BLOCK_BYTES;

/// Bytes of a run in the index.
pub const RUN_BYTES: usize = 16;
/// Bytes of a frame in the table.
pub const FRAME_ENTRY_BYTES: usize = 8;

/// What a block is that a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Content {
    /// In the frame of its window.
    Data = 1,
    /// Zero, whatever the parent has there.
    Zero = 2,
}

/// Blocks side by side that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// The first block.
    pub block: u64,
    /// How many; never zero.
    pub count: u64,
    /// What they are.
    pub content: Content,
}

impl Run {
    /// The block behind the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.block + self.count
    }
}

/// How a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// As one zstd frame.
    Zstd = 1,
}

/// The data blocks of one window, packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Which window of the device.
    pub window: u64,
    /// Where it lies in the file.
    pub offset: u64,
    /// How many bytes lie there.
    pub stored_bytes: u32,
    /// How they are to be read.
    pub codec: Codec,
    /// CRC-32C of the blocks.
    pub checksum: u32,
}

impl Frame {
    /// Whether blocks that were read from it are what was written: takes their CRC-32C.
    pub fn check(&self, checksum: u32) -> Result<(), Damage> {
        if checksum != self.checksum && !planted(Bug::ChecksumSkipped) {
            return Err(Damage { offset: self.offset, fault: Fault::Checksum });
        }
        Ok(())
    }
}

/// What the 16 blocks of a window are, one bit each. A block in neither is as in the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Window {
    /// Those that are data.
    pub data: u16,
    /// Those that are zero.
    pub zero: u16,
}

/// Why a layer cannot be sealed: it is larger than any layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a layer has room for 64 million runs of blocks, 8 TiB of data and a note of 64 KiB",
        )
    }
}

impl core::error::Error for TooLarge {}

/// What a layer says of itself, apart from its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// A number that no other layer has.
    pub number: [u8; 16],
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// What it is over.
    pub parent: Option<Parent>,
    /// What its maker has to say: JSON, or nothing.
    pub note: Vec<u8>,
}

/// Which blocks a layer has, and its frames. It is put together front to back, by [`Self::push`] and
/// [`Self::push_frame`], or parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    runs: Vec<Run>,
    frames: Vec<Frame>,
}

impl Index {
    /// Appends a run, which lies behind all that are there.
    pub fn push(&mut self, run: Run) {
        assert!(run.count > 0, "a run has blocks");
        match self.runs.last_mut() {
            Some(last) if last.end() == run.block && last.content == run.content => {
                last.count += run.count;
            }
            last => {
                assert!(last.is_none_or(|last| last.end() <= run.block), "runs come in order");
                self.runs.push(run);
            }
        }
    }

    /// Appends the frame of a window, which lies behind those that are there, on the device and in the file.
    pub fn push_frame(&mut self, window: u64, stored_bytes: u32, codec: Codec, checksum: u32) {
        let last = self.frames.last();
        assert!(last.is_none_or(|last| last.window < window), "frames come in order");
        let frame = Frame { window, offset: self.frames_end(), stored_bytes, codec, checksum };
        self.frames.push(frame);
    }

    /// Where the last frame ends.
    #[must_use]
    pub fn frames_end(&self) -> u64 {
        let end = |frame: &Frame| frame.offset + u64::from(frame.stored_bytes);
        self.frames.last().map_or(FOOTER_BYTES as u64, end)
    }

    /// The runs, in order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The frames, in the order of their windows and in that of the file.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frame of a window, if it has data.
    #[must_use]
    pub fn frame(&self, window: u64) -> Option<&Frame> {
        let found = self.frames.binary_search_by_key(&window, |frame| frame.window);
        found.ok().map(|position| &self.frames[position])
    }

    /// What the blocks of a window are.
    #[must_use]
    pub fn window(&self, window: u64) -> Window {
        let blocks = window * WINDOW_BLOCKS..(window + 1) * WINDOW_BLOCKS;
        let first = self.runs.partition_point(|run| run.end() <= blocks.start);
        let mut found = Window::default();
        for run in self.runs[first..].iter().take_while(|run| run.block < blocks.end) {
            let mask = mask(&(run.block..run.end()), blocks.start);
            match run.content {
                Content::Data => found.data |= mask,
                Content::Zero => found.zero |= mask,
            }
        }
        found
    }

    /// How many blocks are of a kind.
    #[must_use]
    pub fn blocks(&self, content: Content) -> u64 {
        let runs = self.runs.iter().filter(|run| run.content == content);
        runs.map(|run| run.count).sum()
    }

    /// Everything behind the frames, down to the last byte of the file; and what the layer is known by.
    pub fn seal(&self, about: &About) -> Result<(Vec<u8>, Footer, [u8; 32]), TooLarge> {
        let (index_bytes, table_bytes) =
            (self.runs.len() * RUN_BYTES, self.frames.len() * FRAME_ENTRY_BYTES);
        if index_bytes.max(table_bytes) as u64 > SECTION_BYTES_MAX
            || about.note.len() as u64 > NOTE_BYTES_MAX
        {
            return Err(TooLarge);
        }
        let mut bytes =
            Vec::with_capacity(index_bytes + table_bytes + about.note.len() + FOOTER_BYTES);
        for run in &self.runs {
            bytes.extend((run.block | (run.content as u64) << 40).to_le_bytes());
            bytes.extend(run.count.to_le_bytes());
        }
        for frame in &self.frames {
            bytes.extend((frame.stored_bytes | (frame.codec as u32) << 24).to_le_bytes());
            bytes.extend(frame.checksum.to_le_bytes());
        }
        bytes.extend(&about.note);
        let mut offset = self.frames_end();
        let mut rest = &bytes[..];
        let mut section = |length: usize| {
            let (section, behind) = rest.split_at(length);
            rest = behind;
            let digest = Sha256::digest(section).into();
            let section = Section { offset, length: length as u64, digest };
            offset = section.end();
            section
        };
        let footer = Footer {
            number: about.number,
            size_bytes: about.size_bytes,
            parent: about.parent.clone(),
            data_blocks: self.blocks(Content::Data),
            zero_blocks: self.blocks(Content::Zero),
            frames: self.frames.len() as u64,
            index: section(index_bytes),
            table: section(table_bytes),
            note: section(about.note.len()),
        };
        let page = footer.encode();
        bytes.extend(page);
        Ok((bytes, footer, identity(&page)))
    }

    /// The index of a layer, from all of its sections ([`Footer::sections`]).
    pub fn parse(footer: &Footer, sections: &[u8]) -> Result<Self, Damage> {
        let range = footer.sections();
        if sections.len() as u64 != range.end - range.start {
            return Err(Damage { offset: range.start, fault: Fault::Short });
        }
        let mut rest = sections;
        for section in [&footer.index, &footer.table, &footer.note] {
            let (bytes, behind) = rest.split_at(section.length as usize);
            rest = behind;
            if <[u8; 32]>::from(Sha256::digest(bytes)) != section.digest {
                return Err(Damage { offset: section.offset, fault: Fault::Checksum });
            }
        }
        let (runs, rest) = sections.split_at(footer.index.length as usize);
        let (frames, _) = rest.split_at(footer.table.length as usize);
        let runs = parse_runs(footer, runs)?;
        let frames = parse_frames(footer, &runs, frames)?;
        Ok(Self { runs, frames })
    }
}

/// What a layer's maker had to say, from its sections after [`Index::parse`] has been over them.
#[must_use]
pub fn note<'a>(footer: &Footer, sections: &'a [u8]) -> &'a [u8] {
    &sections[sections.len() - footer.note.length as usize..]
}

fn parse_runs(footer: &Footer, bytes: &[u8]) -> Result<Vec<Run>, Damage> {
    let mut runs: Vec<Run> = Vec::with_capacity(bytes.len() / RUN_BYTES);
    for (position, entry) in bytes.chunks_exact(RUN_BYTES).enumerate() {
        let damage = |fault| {
            let offset = footer.index.offset + (position * RUN_BYTES) as u64;
            Err(Damage { offset, fault })
        };
        let (first, count) = (le64(entry, 0), le64(entry, 8));
        let block = first & ((1 << 40) - 1);
        let content = match first >> 40 {
            1 => Content::Data,
            2 => Content::Zero,
            _ => return damage(Fault::Kind),
        };
        let blocks = footer.blocks();
        if count == 0 || block >= blocks || count > blocks - block {
            return damage(Fault::Range);
        }
        if let Some(last) = runs.last() {
            let is_joined = last.end() != block || last.content != content;
            if last.end() > block || !is_joined {
                return damage(Fault::Order);
            }
        }
        runs.push(Run { block, count, content });
    }
    let index = Index { runs, frames: Vec::new() };
    let counts = [index.blocks(Content::Data), index.blocks(Content::Zero)];
    if counts != [footer.data_blocks, footer.zero_blocks] {
        return Err(Damage { offset: footer.index.offset, fault: Fault::Count });
    }
    Ok(index.runs)
}

/// Every window with data has one frame, in order, and they lie side by side.
fn parse_frames(footer: &Footer, runs: &[Run], bytes: &[u8]) -> Result<Vec<Frame>, Damage> {
    let mut entries = bytes.chunks_exact(FRAME_ENTRY_BYTES);
    let mut frames: Vec<Frame> = Vec::with_capacity(entries.len());
    let mut offset = FOOTER_BYTES as u64;
    for (window, blocks) in windows_with_data(runs) {
        let damage = |fault| {
            let offset = footer.table.offset + (frames.len() * FRAME_ENTRY_BYTES) as u64;
            Err(Damage { offset, fault })
        };
        let Some(entry) = entries.next() else { return damage(Fault::Count) };
        let (stored_bytes, plain_bytes) = (le32(entry, 0) & 0xff_ffff, blocks * BLOCK_BYTES);
        let codec = match le32(entry, 0) >> 24 {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return damage(Fault::Kind),
        };
        let fits = match codec {
            Codec::Raw => stored_bytes == plain_bytes,
            Codec::Zstd => stored_bytes > 0 && stored_bytes < plain_bytes,
        };
        if !fits || u64::from(stored_bytes) > footer.index.offset - offset {
            return damage(Fault::FrameLength);
        }
        frames.push(Frame { window, offset, stored_bytes, codec, checksum: le32(entry, 4) });
        offset += u64::from(stored_bytes);
    }
    if entries.next().is_some() || offset != footer.index.offset {
        return Err(Damage { offset: footer.table.offset, fault: Fault::Count });
    }
    Ok(frames)
}

/// The windows that some runs have data in, in order, each with how many blocks of it.
fn windows_with_data(runs: &[Run]) -> impl Iterator<Item = (u64, u32)> {
    let mut runs = runs.iter().filter(|run| run.content == Content::Data);
    let mut blocks = 0..0;
    core::iter::from_fn(move || {
        let mut found: Option<(u64, u32)> = None;
        loop {
            if blocks.is_empty() {
                let Some(run) = runs.next() else { return found };
                blocks = run.block..run.end();
            }
            let window = blocks.start / WINDOW_BLOCKS;
            if found.is_some_and(|(before, _)| before != window) {
                return found;
            }
            let end = blocks.end.min((window + 1) * WINDOW_BLOCKS);
            let count = (end - blocks.start) as u32;
            found = Some((window, count + found.map_or(0, |(_, count)| count)));
            blocks.start = end;
        }
    })
}

/// Which of the 16 blocks from `first` on are among some that meet them.
pub(super) fn mask(blocks: &Range<u64>, first: u64) -> u16 {
    let start = blocks.start.saturating_sub(first);
    let end = (blocks.end - first).min(WINDOW_BLOCKS);
    (((1u32 << end) - 1) & !((1u32 << start) - 1)) as u16
}
