//! The frame: the unit of the journal and of a checkpoint, and the codec of both. Drawn in
//! `docs/formats.md`.
//!
//! A frame is a header and entries, padded to a multiple of 4 KiB, under one checksum: it is there as a
//! whole or not at all. An entry says what a run of blocks is; the entries of a frame touch no block
//! twice in a checkpoint, and take effect in order in a record.
//!
//! A record may *carry* the blocks of all slots that it names, behind its entries and under a checksum of
//! their own: then nothing has to be in the data file for the record to be true.

use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::ops::Range;

use crc32c::{crc32c, crc32c_append};

use crate::judge::{Bug, planted};
use crate::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX};
use crate::map::{SLOTS_MAX, Uniform};
use crate::slot::{Run, SlotId};

/// The little-endian number at `at`.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The little-endian number at `at`.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The frame's length is a multiple of this.
pub const PAGE_BYTES: usize = 4096;
/// No frame is longer. So looking for a record behind damage takes no longer than this for each page.
pub const FRAME_BYTES_MAX: usize = 2 << 20;
/// Bytes of a frame before its entries.
pub const HEADER_BYTES: usize = 64;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// The version of frames and of the superblock that this code writes, and the only one it reads.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"GLSF";
const CRC_AT: Range<usize> = 44..48;
const CARRIED_AT: usize = 48;
const CARRIED_CRC_AT: Range<usize> = 52..56;
const RESERVED: Range<usize> = 56..64;

/// What a run of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// In slots side by side, from this one on.
    Slots(SlotId),
    /// Zero.
    Zero,
    /// Zero, with space set aside.
    ZeroProvisioned,
}

/// One entry of a frame: what a run of blocks is from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The first block.
    pub block: u64,
    /// How many blocks; never zero.
    pub count: u64,
    /// What they are.
    pub content: Content,
}

impl Entry {
    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> Range<u64> {
        self.block..self.block + self.count
    }

    /// The slots, if that is what they are in.
    #[must_use]
    pub fn run(&self) -> Option<Run> {
        let Content::Slots(first) = self.content else { return None };
        let count = u32::try_from(self.count).expect("checked when it was made");
        Some(Run { first, count })
    }

    /// What else they all are.
    #[must_use]
    pub fn uniform(&self) -> Option<Uniform> {
        match self.content {
            Content::Slots(_) => None,
            Content::Zero => Some(Uniform::Zero),
            Content::ZeroProvisioned => Some(Uniform::ZeroProvisioned),
        }
    }

    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let (kind, low) = match self.content {
            Content::Slots(first) => (1u64, u64::from(first.0) | self.count << 32),
            Content::Zero => (2, self.count),
            Content::ZeroProvisioned => (3, self.count),
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&(self.block | kind << 40).to_le_bytes());
        bytes[8..].copy_from_slice(&low.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (first, second) = (le64(bytes, 0), le64(bytes, 8));
        let block = first & ((1 << 40) - 1);
        let (count, content) = match first >> 40 {
            1 => (second >> 32, Content::Slots(SlotId(second as u32))),
            2 => (second, Content::Zero),
            3 => (second, Content::ZeroProvisioned),
            _ => return Err(FrameError::Kind),
        };
        let last_slot = match content {
            Content::Slots(slot) => u64::from(slot.0) + count,
            Content::Zero | Content::ZeroProvisioned => 0,
        };
        const BLOCKS_MAX: u64 = DEVICE_BYTES_MAX / BLOCK_BYTES as u64;
        if count == 0 || count > BLOCKS_MAX - block.min(BLOCKS_MAX) || last_slot > SLOTS_MAX.into()
        {
            return Err(FrameError::Range);
        }
        Ok(Self { block, count, content })
    }
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Edits of the map, in a journal segment.
    Record = 1,
    /// A part of a checkpoint.
    Section = 2,
    /// The last part of a checkpoint.
    LastSection = 3,
}

/// Where a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// What it is for.
    pub kind: FrameKind,
    /// The sheet it is of.
    pub sheet: u64,
    /// The life of the segment, or the checkpoint, it is in.
    pub generation: u64,
    /// Its position: among all records of the sheet, or in its checkpoint.
    pub number: u64,
    /// The checksum of the frame before it.
    pub chain: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameError {
    /// There are fewer bytes than a frame has, or than this one says it has.
    Short,
    /// It does not begin like a frame.
    Magic,
    /// It is of a version that this program does not know.
    Version(u16),
    /// It, or an entry, is of a kind that does not exist.
    Kind,
    /// Its length is not what its entries and what it carries need, or more than a frame has.
    Length,
    /// Bytes that must be zero are not.
    Reserved,
    /// Its checksum does not fit its bytes.
    Checksum,
    /// An entry's blocks or slots are none, or beyond what there can be.
    Range,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "it is cut short",
            Self::Magic => "it does not begin like a frame",
            Self::Version(version) => return write!(f, "it is of the unknown version {version}"),
            Self::Kind => "its kind is unknown",
            Self::Length => "its length does not fit its entries and blocks",
            Self::Reserved => "bytes that must be zero are not",
            Self::Checksum => "its checksum does not fit",
            Self::Range => "an entry is out of range",
        })
    }
}

/// Bytes of a frame with so many entries that carries nothing.
#[must_use]
pub const fn frame_bytes(entries: usize) -> usize {
    (HEADER_BYTES + entries * ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
}

/// A frame that is being put together. Its bytes are those of the finished frame but for the header.
#[derive(Debug, Default, Hash)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// An empty one that uses the memory of old bytes.
    #[must_use]
    pub fn reusing(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes }
    }

    /// How many entries it has.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER_BYTES) / ENTRY_BYTES
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: &Entry) {
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER_BYTES, 0);
        }
        self.bytes.extend_from_slice(&entry.encode());
    }

    /// Puts an entry in the place of another.
    pub fn replace(&mut self, position: usize, entry: &Entry) {
        let at = HEADER_BYTES + position * ENTRY_BYTES;
        self.bytes[at..at + ENTRY_BYTES].copy_from_slice(&entry.encode());
    }

    /// Looks at the entry at a position.
    pub(crate) fn foresee(&self, position: usize) {
        black_box(self.bytes.get(HEADER_BYTES + position * ENTRY_BYTES).copied());
    }

    /// See [`Bug::OrderSwapped`].
    pub(crate) fn rotate_last(&mut self, entries: usize, before: usize) {
        let end = self.bytes.len();
        let middle = end - entries * ENTRY_BYTES;
        self.bytes[middle - before * ENTRY_BYTES..end].rotate_right(entries * ENTRY_BYTES);
    }

    /// Its entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> {
        let entries = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        let entries = entries.chunks_exact(ENTRY_BYTES);
        entries.map(|bytes| Entry::parse(bytes).expect("it was encoded here"))
    }

    /// The finished frame, and its checksum.
    #[must_use]
    pub fn finish(self, header: &FrameHeader) -> (Vec<u8>, u32) {
        self.finish_carrying(header, 0)
    }

    /// The same with room for so many blocks, which [`carry`] brings in.
    #[must_use]
    pub fn finish_carrying(self, header: &FrameHeader, blocks: u32) -> (Vec<u8>, u32) {
        let entries = self.entries();
        let mut bytes = self.bytes;
        let length = frame_bytes(entries) + blocks as usize * BLOCK_BYTES as usize;
        bytes.resize(length, 0);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = header.kind as u8;
        let [length, entries] = [length, entries].map(|count| (count as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&length);
        bytes[12..16].copy_from_slice(&entries);
        bytes[16..24].copy_from_slice(&header.sheet.to_le_bytes());
        bytes[24..32].copy_from_slice(&header.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&header.number.to_le_bytes());
        bytes[40..44].copy_from_slice(&header.chain.to_le_bytes());
        bytes[CARRIED_AT..CARRIED_CRC_AT.start].copy_from_slice(&blocks.to_le_bytes());
        let checksum = checksum(&bytes[..frame_bytes(le32(&bytes, 12) as usize)]);
        bytes[CRC_AT].copy_from_slice(&checksum.to_le_bytes());
        (bytes, checksum)
    }
}

/// The checksum of a frame: of all its bytes but those it carries, with both checksums taken as zero.
fn checksum(head: &[u8]) -> u32 {
    let between = &head[CRC_AT.end..CARRIED_CRC_AT.start];
    let pieces = [&head[..CRC_AT.start], &[0; 4], between, &[0; 4], &head[CARRIED_CRC_AT.end..]];
    pieces.into_iter().fold(0, crc32c_append)
}

/// Brings the blocks into a finished frame that it has room for: `read` fills bytes from an offset of the
/// data file on.
pub(crate) fn carry<E>(
    frame: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    if le32(frame, CARRIED_AT) == 0 {
        return Ok(());
    }
    let entries = le32(frame, 12) as usize;
    let (head, carried) = frame.split_at_mut(frame_bytes(entries));
    let mut rest = &mut *carried;
    for bytes in head[HEADER_BYTES..][..entries * ENTRY_BYTES].chunks_exact(ENTRY_BYTES) {
        if let Some(run) = Entry::parse(bytes).expect("it was encoded here").run() {
            let (blocks, behind) = rest.split_at_mut(run.count as usize * BLOCK_BYTES as usize);
            read(run.first.offset(), blocks)?;
            rest = behind;
        }
    }
    assert!(rest.is_empty(), "a record carries all of its slots or none");
    head[CARRIED_CRC_AT].copy_from_slice(&crc32c(carried).to_le_bytes());
    Ok(())
}

/// A frame that was read and found whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where it belongs.
    pub header: FrameHeader,
    /// All of its bytes.
    pub bytes: &'a [u8],
    /// Its checksum.
    pub checksum: u32,
}

impl<'a> Frame<'a> {
    /// The frame at the beginning of `bytes`. Looks at no more than the frame, and copies nothing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let Some(page) = bytes.get(..PAGE_BYTES) else { return Err(FrameError::Short) };
        if page[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes([page[4], page[5]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = match page[6] {
            1 => FrameKind::Record,
            2 => FrameKind::Section,
            3 => FrameKind::LastSection,
            _ => return Err(FrameError::Kind),
        };
        if page[7] != 0 || page[RESERVED].iter().any(|byte| *byte != 0) {
            return Err(FrameError::Reserved);
        }
        let (length, entries) = (le32(page, 8) as usize, le32(page, 12) as usize);
        let carried = le32(page, CARRIED_AT);
        // The products stay far from 64 bits.
        let head = (HEADER_BYTES as u64 + entries as u64 * ENTRY_BYTES as u64)
            .next_multiple_of(PAGE_BYTES as u64);
        let needed = head + u64::from(carried) * u64::from(BLOCK_BYTES);
        if length as u64 != needed || length > FRAME_BYTES_MAX {
            return Err(FrameError::Length);
        }
        if carried > 0 && kind != FrameKind::Record {
            return Err(FrameError::Kind);
        }
        let Some(bytes) = bytes.get(..length) else { return Err(FrameError::Short) };
        let found = le32(bytes, CRC_AT.start);
        let (head, blocks) = bytes.split_at(head as usize);
        if found != checksum(head) && !planted(Bug::TornTailAccepted) {
            return Err(FrameError::Checksum);
        }
        let carried_crc = if blocks.is_empty() { 0 } else { crc32c(blocks) };
        if le32(page, CARRIED_CRC_AT.start) != carried_crc && !planted(Bug::CarriedUnchecked) {
            return Err(FrameError::Checksum);
        }
        let header = FrameHeader {
            kind,
            sheet: le64(bytes, 16),
            generation: le64(bytes, 24),
            number: le64(bytes, 32),
            chain: le32(bytes, 40),
        };
        Ok(Self { header, bytes, checksum: found })
    }

    /// Its entries, each checked by itself.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, FrameError>> + use<'a> {
        let count = le32(self.bytes, 12) as usize;
        let entries = &self.bytes[HEADER_BYTES..HEADER_BYTES + count * ENTRY_BYTES];
        entries.chunks_exact(ENTRY_BYTES).map(Entry::parse)
    }

    /// The blocks it carries, one behind the other, in the order in which its entries name slots. Empty if it
    /// carries none.
    #[must_use]
    pub fn carried(&self) -> &'a [u8] {
        &self.bytes[frame_bytes(le32(self.bytes, 12) as usize)..]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::tests::assert_words_of_their_own;
    use std::vec::Vec;

    const HEADER: FrameHeader =
        FrameHeader { kind: FrameKind::Record, sheet: 77, generation: 3, number: 12, chain: 5 };

    fn entries() -> Vec<Entry> {
        let content = [Content::Slots(SlotId(9)), Content::Zero, Content::ZeroProvisioned];
        let counts = [16_385, 1 << 38, 1];
        let blocks = [(1 << 38) - 16_385, 0, 5];
        (0..3)
            .map(|at| Entry { block: blocks[at], count: counts[at], content: content[at] })
            .collect()
    }

    pub(in crate::journal) fn buffer_of(entries: &[Entry]) -> FrameBuffer {
        let mut buffer = FrameBuffer::default();
        entries.iter().for_each(|entry| buffer.push(entry));
        buffer
    }

    fn frame_of(entries: &[Entry]) -> Vec<u8> {
        let buffer = buffer_of(entries);
        assert_eq!(buffer.iter().collect::<Vec<_>>(), entries);
        buffer.finish(&HEADER).0
    }

    #[test]
    fn a_frame_reads_as_it_was_written() {
        for count in [0, 1, 3, 252, 253, 1000] {
            let written: Vec<_> = entries().into_iter().cycle().take(count).collect();
            let bytes = frame_of(&written);
            assert_eq!(bytes.len(), frame_bytes(count));
            let read = Frame::parse(&bytes).unwrap();
            assert_eq!(read.header, HEADER);
            assert_eq!(read.entries().collect::<Result<Vec<_>, _>>(), Ok(written));
        }
    }

    #[test]
    fn no_bit_of_a_frame_may_change() {
        let bytes = frame_of(&entries());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(&damaged).is_err(), "bit {bit}");
        }
        assert_eq!(Frame::parse(&bytes[..4095]), Err(FrameError::Short));
        assert_eq!(Frame::parse(&[0; 4096]), Err(FrameError::Magic));
    }

    #[test]
    fn an_entry_out_of_range_is_refused() {
        let entry = |block, count, content| Entry { block, count, content }.encode();
        for (bytes, error) in [
            (entry(0, 0, Content::Zero), FrameError::Range),
            (entry(1, 1 << 38, Content::Zero), FrameError::Range),
            ((entry((1 << 40) - 1, 1, Content::Zero)), FrameError::Range),
            (entry(0, 3, Content::Slots(SlotId(SLOTS_MAX - 2))), FrameError::Range),
            (entry(0, 0, Content::Slots(SlotId(0))), FrameError::Range),
            (entry(0, u64::from(SLOTS_MAX) + 1, Content::Slots(SlotId(0))), FrameError::Range),
            ([0; 16], FrameError::Kind),
            ([0xff; 16], FrameError::Kind),
        ] {
            assert_eq!(Entry::parse(&bytes), Err(error));
        }
        for (first, count) in [(SLOTS_MAX - 2, 2), (SLOTS_MAX / 2, 100), (0, SLOTS_MAX)] {
            let slots = Content::Slots(SlotId(first));
            assert!(Entry::parse(&entry(0, count.into(), slots)).is_ok());
        }
    }

    /// The frame of some entries that carries blocks, each of bytes of its slot's number.
    fn carrying(entries: &[Entry], blocks: u32) -> Vec<u8> {
        let (mut bytes, checksum) = buffer_of(entries).finish_carrying(&HEADER, blocks);
        let fill = |offset: u64, bytes: &mut [u8]| {
            for (index, block) in bytes.chunks_exact_mut(BLOCK_BYTES as usize).enumerate() {
                block.fill((offset / u64::from(BLOCK_BYTES)) as u8 + index as u8);
            }
            Ok::<_, ()>(())
        };
        carry(&mut bytes, fill).unwrap();
        assert_eq!(
            Frame::parse(&bytes).unwrap().checksum,
            checksum,
            "it does not cover what is carried"
        );
        bytes
    }

    #[test]
    fn a_frame_carries_the_blocks_of_all_its_slots_in_order() {
        let slots = |block, count, first| {
            let content = Content::Slots(SlotId(first));
            Entry { block, count, content }
        };
        let zero = Entry { block: 9, count: 5, content: Content::Zero };
        let bytes = carrying(&[slots(0, 2, 7), zero, slots(70, 1, 3)], 3);
        assert_eq!(bytes.len(), 4 * 4096);
        let frame = Frame::parse(&bytes).unwrap();
        let carried: Vec<_> = frame.carried().chunks_exact(4096).collect();
        assert_eq!(carried, [&[7; 4096], &[8; 4096], &[3; 4096]]);
        assert_eq!(frame.entries().count(), 3);
        for byte in [4096, 8191, 4 * 4096 - 1, 52, 55] {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1;
            assert_eq!(Frame::parse(&damaged), Err(FrameError::Checksum), "{byte}");
        }
        assert_eq!(Frame::parse(&bytes[..bytes.len() - 1]), Err(FrameError::Short));
        assert_eq!(Frame::parse(&frame_of(&[zero])).unwrap().carried(), [0u8; 0]);
    }

    /// What is wrong with the frame of an entry that has other bytes somewhere, and a checksum that fits.
    fn refused(change: impl FnOnce(&mut Vec<u8>)) -> Option<FrameError> {
        let mut bytes = frame_of(&entries()[1..2]);
        change(&mut bytes);
        let checksum = checksum(&bytes[..4096]);
        bytes[CRC_AT].copy_from_slice(&checksum.to_le_bytes());
        Frame::parse(&bytes).err()
    }

    #[test]
    fn what_a_frame_may_not_say_is_refused() {
        assert_eq!(refused(|_| ()), None);
        assert_eq!(refused(|bytes| bytes[4] = 2), Some(FrameError::Version(2)));
        for kind in [0, 4] {
            assert_eq!(refused(|bytes| bytes[6] = kind), Some(FrameError::Kind));
        }
        for kind in [FrameKind::Section, FrameKind::LastSection] {
            assert_eq!(refused(|bytes| bytes[6] = kind as u8), None);
        }
        for reserved in [7, 56, 63] {
            assert_eq!(refused(|bytes| bytes[reserved] = 1), Some(FrameError::Reserved));
        }
        // A page more, or entries that need one, or that are none of this world.
        assert_eq!(refused(|bytes| bytes[9] += 16), Some(FrameError::Length));
        assert_eq!(refused(|bytes| bytes[12] = 252), None);
        assert_eq!(refused(|bytes| bytes[12] = 253), Some(FrameError::Length));
        assert_eq!(refused(|bytes| bytes[12..16].fill(255)), Some(FrameError::Length));
        assert_eq!(refused(|bytes| bytes[48] = 1), Some(FrameError::Length));
        let carries = |kind: FrameKind| {
            refused(|bytes| {
                bytes.resize(2 * 4096, 0);
                (bytes[6], bytes[9], bytes[CARRIED_AT]) = (kind as u8, 32, 1);
                bytes[CARRIED_CRC_AT].copy_from_slice(&crc32c(&[0; 4096]).to_le_bytes());
            })
        };
        assert_eq!(carries(FrameKind::Record), None);
        assert_eq!(carries(FrameKind::Section), Some(FrameError::Kind));
    }

    #[test]
    fn the_longest_frame_is_read_and_no_longer_one() {
        let zero = Entry { block: 0, count: 1, content: Content::Zero };
        let entries = (FRAME_BYTES_MAX - HEADER_BYTES) / ENTRY_BYTES;
        let longest = frame_of(&std::vec![zero; entries]);
        assert_eq!(longest.len(), 2 << 20);
        assert_eq!(Frame::parse(&longest).unwrap().entries().count(), entries);
        let longer = frame_of(&std::vec![zero; entries + 1]);
        assert_eq!(Frame::parse(&longer), Err(FrameError::Length));
    }

    #[test]
    fn a_frame_is_put_together_and_changed_in_place() {
        let [slots, zero, provisioned] = entries().try_into().unwrap();
        let mut buffer = FrameBuffer::reusing(std::vec![1; 100]);
        assert_eq!((buffer.entries(), buffer.iter().count()), (0, 0));
        assert_eq!(buffer.bytes.capacity(), 100);
        buffer.push(&slots);
        buffer.push(&zero);
        assert_eq!(buffer.entries(), 2);
        buffer.replace(1, &provisioned);
        assert_eq!(buffer.iter().collect::<Vec<_>>(), [slots, provisioned]);
        buffer.replace(0, &zero);
        assert_eq!(buffer.iter().collect::<Vec<_>>(), [zero, provisioned]);
        assert_eq!(slots.run(), Some(Run { first: SlotId(9), count: 16_385 }));
        assert_eq!((zero.run(), slots.uniform()), (None, None));
        assert_eq!(zero.uniform(), Some(Uniform::Zero));
        assert_eq!(provisioned.uniform(), Some(Uniform::ZeroProvisioned));
        assert_eq!(slots.blocks(), (1 << 38) - 16_385..1 << 38);
    }

    #[test]
    fn every_error_has_words_of_its_own() {
        assert_words_of_their_own(&[
            FrameError::Short,
            FrameError::Magic,
            FrameError::Version(3),
            FrameError::Kind,
            FrameError::Length,
            FrameError::Reserved,
            FrameError::Checksum,
            FrameError::Range,
        ]);
    }

    /// The check value of CRC-32C that every description of it gives.
    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
