//! The superblock: what a sheet is, and which generation of its map counts. Drawn in `docs/formats.md`.
//!
//! There are two copies in one file. A new generation overwrites the copy of the generation before the
//! last, so that one whole copy is there at every moment.

use core::fmt;
use core::ops::Range;

use crc32c::crc32c;

use super::frame::{PAGE_BYTES, VERSION, le32, le64};
use super::{JournalFile, Position, SEGMENT_BYTES_MAX};
use crate::limits::DEVICE_BYTES_MAX;

const MAGIC: [u8; 8] = *b"GLASSINE";
const RESERVED: [Range<usize>; 3] = [10..16, 100..104, 112..4092];
const CRC_AT: usize = 4092;

/// Bytes of the file that holds both copies.
pub const SUPERBLOCK_FILE_BYTES: usize = 2 * PAGE_BYTES;

/// What a sheet is: said when it is made, and never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A number that no other sheet has: the driver draws it.
    pub sheet: u64,
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// Size of the template to the byte; 0 for a blank device.
    pub template_bytes: u64,
    /// By what the driver knows the template again.
    pub template_id: [u8; 32],
    /// Size of each journal segment.
    pub segment_bytes: u64,
}

/// One copy of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Superblock {
    /// What the sheet is.
    pub identity: Identity,
    /// The generation that counts: its checkpoint is whole.
    pub generation: u64,
    /// The number of the first record of this generation.
    pub number: u64,
    /// The checksum of the record before it.
    pub chain: u32,
    /// The number behind the last record that must be there: of those before it, the checkpoint may have seen some
    /// edits and not others.
    pub needs: u64,
}

/// Why bytes are no superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SuperblockError {
    /// There are fewer bytes than it has.
    Short,
    /// It does not begin like one.
    Magic,
    /// It is of a version that this program does not know.
    Version(u16),
    /// Bytes that must be zero are not.
    Reserved,
    /// Its checksum does not fit its bytes.
    Checksum,
    /// A size in it is beyond what there can be.
    Range,
    /// It is whole, but lies where the copy of another generation belongs.
    Misplaced,
    /// No whole copy of the generation before lies beside it.
    Alone,
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "it is cut short",
            Self::Magic => "it does not begin like a superblock",
            Self::Version(version) => return write!(f, "it is of the unknown version {version}"),
            Self::Reserved => "bytes that must be zero are not",
            Self::Checksum => "its checksum does not fit",
            Self::Range => "a size in it is out of range",
            Self::Misplaced => "it lies where another copy belongs",
            Self::Alone => "there is no whole copy of the generation before",
        })
    }
}

impl Superblock {
    /// Where the copy of a generation lies.
    #[must_use]
    pub fn offset(generation: u64) -> u64 {
        generation % 2 * PAGE_BYTES as u64
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.identity.sheet.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.identity.size_bytes.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.identity.template_bytes.to_le_bytes());
        bytes[48..80].copy_from_slice(&self.identity.template_id);
        bytes[80..88].copy_from_slice(&self.identity.segment_bytes.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.number.to_le_bytes());
        bytes[96..100].copy_from_slice(&self.chain.to_le_bytes());
        bytes[104..112].copy_from_slice(&self.needs.to_le_bytes());
        let checksum = crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The superblock in the first page of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let Some(bytes) = bytes.get(..PAGE_BYTES) else { return Err(SuperblockError::Short) };
        if bytes[..8] != MAGIC {
            return Err(SuperblockError::Magic);
        }
        // Where the checksum lies is the same in every version, so that a damaged version is no version.
        if crc32c(&bytes[..CRC_AT]) != le32(bytes, CRC_AT) {
            return Err(SuperblockError::Checksum);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        if RESERVED.into_iter().any(|range| bytes[range].iter().any(|byte| *byte != 0)) {
            return Err(SuperblockError::Reserved);
        }
        let identity = Identity {
            sheet: le64(bytes, 16),
            size_bytes: le64(bytes, 32),
            template_bytes: le64(bytes, 40),
            template_id: bytes[48..80].try_into().expect("32 bytes"),
            segment_bytes: le64(bytes, 80),
        };
        let segment_bytes = PAGE_BYTES as u64..=SEGMENT_BYTES_MAX;
        if identity.size_bytes > DEVICE_BYTES_MAX
            || identity.template_bytes > identity.size_bytes
            || !segment_bytes.contains(&identity.segment_bytes)
            || !identity.segment_bytes.is_multiple_of(PAGE_BYTES as u64)
        {
            return Err(SuperblockError::Range);
        }
        Ok(Self {
            identity,
            generation: le64(bytes, 24),
            number: le64(bytes, 88),
            chain: le32(bytes, 96),
            needs: le64(bytes, 104),
        })
    }

    /// The newer of the two copies that are whole; or why there is none. A copy of another version is
    /// somebody else's newer one: the copy beside it does not count.
    pub fn newest(file: &[u8]) -> Result<Self, SuperblockError> {
        match Self::copies(file) {
            [Err(error @ SuperblockError::Version(_)), _] => Err(error),
            [_, Err(error @ SuperblockError::Version(_))] => Err(error),
            [Ok(one), Ok(other)] if one.generation >= other.generation => Ok(one),
            [_, Ok(other)] => Ok(other),
            [one, _] => one,
        }
    }

    /// The newest one, and the one of the generation before it.
    pub fn last_two(file: &[u8]) -> Result<[Self; 2], SuperblockError> {
        let newest = Self::newest(file)?;
        let is_before = |copy: &Self| {
            newest.generation.checked_sub(1) == Some(copy.generation)
                && copy.identity == newest.identity
        };
        let before = Self::copies(file).into_iter().flatten().find(is_before);
        Ok([newest, before.ok_or(SuperblockError::Alone)?])
    }

    fn copies(file: &[u8]) -> [Result<Self, SuperblockError>; 2] {
        [0, PAGE_BYTES].map(|offset| {
            let copy = Self::parse(file.get(offset..).unwrap_or_default())?;
            let is_here = Self::offset(copy.generation) == offset as u64;
            if is_here { Ok(copy) } else { Err(SuperblockError::Misplaced) }
        })
    }

    /// Where its first record belongs.
    pub(crate) fn first(&self) -> Position {
        Position { number: self.number, chain: self.chain }
    }

    /// The checkpoint that it counts on, and the segment behind that.
    #[must_use]
    pub fn files(&self) -> [JournalFile; 2] {
        let side = self.generation % 2 == 1;
        [JournalFile::Checkpoint(side), JournalFile::Segment(side)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::tests::assert_words_of_their_own;
    use std::vec::Vec;

    fn superblock(generation: u64) -> Superblock {
        let identity = Identity {
            sheet: 1,
            size_bytes: 10_000,
            template_bytes: 7,
            template_id: [9; 32],
            segment_bytes: 4096,
        };
        Superblock { identity, generation, number: 5, chain: 6, needs: 1 << 56 | 8 }
    }

    #[test]
    fn a_superblock_reads_as_it_was_written_and_no_bit_of_it_may_change() {
        let bytes = superblock(7).encode();
        assert_eq!(Superblock::parse(&bytes), Ok(superblock(7)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_newer_copy_counts_and_a_damaged_one_does_not() {
        let file: Vec<u8> = [superblock(8).encode(), superblock(7).encode()].concat();
        assert_eq!(Superblock::newest(&file), Ok(superblock(8)));
        // Found by fuzzing: a copy in the wrong place, which recovery would have written over the other.
        let misplaced = [[0; PAGE_BYTES], superblock(8).encode()].concat();
        assert_eq!(Superblock::newest(&misplaced), Err(SuperblockError::Magic));
        let mut damaged = file.clone();
        damaged[20] ^= 1;
        assert_eq!(Superblock::newest(&damaged), Ok(superblock(7)));
        damaged[5000] ^= 1;
        assert_eq!(Superblock::newest(&damaged), Err(SuperblockError::Checksum));
        assert_eq!(Superblock::newest(&[0; 4096]), Err(SuperblockError::Magic));
    }

    #[test]
    fn the_generation_before_is_whole_and_of_the_same_sheet() {
        let two = |one: Superblock, other: Superblock| {
            Superblock::last_two(&[one.encode(), other.encode()].concat())
        };
        assert_eq!(two(superblock(8), superblock(7)), Ok([superblock(8), superblock(7)]));
        assert_eq!(two(superblock(8), superblock(9)), Ok([superblock(9), superblock(8)]));
        let alone = Err(SuperblockError::Alone);
        assert_eq!(two(superblock(8), superblock(5)), alone);
        let mut other = superblock(7);
        other.identity.sheet += 1;
        assert_eq!(two(superblock(8), other), alone);
        let new = [superblock(0).encode(), [0; PAGE_BYTES]].concat();
        assert_eq!(Superblock::last_two(&new), alone);
        let last = superblock(u64::MAX - 1);
        assert_eq!(two(last, superblock(u64::MAX)), Ok([superblock(u64::MAX), last]));
        assert_eq!(two(superblock(0), superblock(u64::MAX)), alone);
        assert_eq!(Superblock::last_two(&[0; 8192]), Err(SuperblockError::Magic));
    }

    #[test]
    fn beside_a_copy_of_a_newer_version_none_counts() {
        let error = Err(SuperblockError::Version(2));
        let file = [changed(superblock(8), 8, 2), superblock(7).encode()].concat();
        assert_eq!(Superblock::newest(&file), error);
        let file = [superblock(8).encode(), changed(superblock(9), 8, 2)].concat();
        assert_eq!(Superblock::newest(&file), error);
    }

    /// The bytes of one with another byte somewhere, and a checksum that fits.
    fn changed(superblock: Superblock, at: usize, byte: u8) -> [u8; PAGE_BYTES] {
        let mut bytes = superblock.encode();
        bytes[at] = byte;
        let checksum = crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn what_a_superblock_may_not_say_is_refused() {
        for at in [10, 15, 100, 103, 112, 4091] {
            let bytes = changed(superblock(7), at, 1);
            assert_eq!(Superblock::parse(&bytes), Err(SuperblockError::Reserved), "{at}");
        }
        let judge = |size_bytes, template_bytes, segment_bytes| {
            let Superblock { identity, .. } = superblock(7);
            let identity = Identity { size_bytes, template_bytes, segment_bytes, ..identity };
            Superblock::parse(&Superblock { identity, ..superblock(7) }.encode())
        };
        for (size, template, segment) in
            [(DEVICE_BYTES_MAX, 7, 4096), (7, 7, 4096), (0, 0, 8192), (7, 0, SEGMENT_BYTES_MAX)]
        {
            assert!(judge(size, template, segment).is_ok(), "{size} {template} {segment}");
        }
        for (size, template, segment) in [
            (DEVICE_BYTES_MAX + 1, 7, 4096),
            (7, 8, 4096),
            (7, 7, 0),
            (7, 7, 6144),
            (7, 7, SEGMENT_BYTES_MAX + 4096),
        ] {
            assert_eq!(judge(size, template, segment), Err(SuperblockError::Range));
        }
        assert_eq!(Superblock::parse(&[0; 4095]), Err(SuperblockError::Short));
    }

    #[test]
    fn every_error_has_words_of_its_own() {
        assert_words_of_their_own(&[
            SuperblockError::Short,
            SuperblockError::Magic,
            SuperblockError::Version(3),
            SuperblockError::Reserved,
            SuperblockError::Checksum,
            SuperblockError::Range,
            SuperblockError::Misplaced,
            SuperblockError::Alone,
        ]);
    }

    #[test]
    fn generations_take_turns() {
        for (generation, side) in [(6, false), (7, true)] {
            let files = [JournalFile::Checkpoint(side), JournalFile::Segment(side)];
            assert_eq!(superblock(generation).files(), files);
            assert_eq!(Superblock::offset(generation), 4096 * u64::from(side));
        }
    }
}
