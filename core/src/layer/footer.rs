//! The first and the last page of a layer.

use alloc::string::String;
use core::ops::Range;

use crc32c::crc32c;
use sha2::{Digest, Sha256};

use super::index::{FRAME_ENTRY_BYTES, RUN_BYTES};
use super::{Damage, Fault};
use crate::journal::frame::{PAGE_BYTES, le32, le64};
use crate::judge::{Bug, planted};
use crate::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX};

/// The version that this code writes, and the only one it reads.
pub const VERSION: u16 = 1;
/// Bytes of the header, and of the footer.
pub const FOOTER_BYTES: usize = PAGE_BYTES;
/// The last so many bytes of a file are mostly all that opening it needs.
pub const SUFFIX_BYTES: u64 = 256 << 10;
/// No section is longer: room for 64 million runs, or for the frames of 8 TiB.
pub const SECTION_BYTES_MAX: u64 = 1 << 30;
/// No note is longer.
pub const NOTE_BYTES_MAX: u64 = 64 << 10;
/// No name of a parent is longer.
pub const NAME_BYTES_MAX: usize = 255;

const MAGIC: [u8; 8] = *b"GLASSLYR";
const FOOTER_MAGIC: [u8; 8] = *b"LAYERFTR";
const SECTIONS_AT: usize = 128;
const SECTION_BYTES: usize = 64;
const NAME_AT: usize = SECTIONS_AT + 3 * SECTION_BYTES;
const RESERVED: [Range<usize>; 2] = [116..SECTIONS_AT, NAME_AT + NAME_BYTES_MAX..CRC_AT];
const CRC_AT: usize = PAGE_BYTES - 4;

/// What a parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ParentKind {
    /// A raw disk image. Its identity is whatever the driver knows it by.
    Image = 1,
    /// Another layer.
    Layer = 2,
}

/// What a layer is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parent {
    /// What it is.
    pub kind: ParentKind,
    /// By what it is known again.
    pub id: [u8; 32],
    /// Its size to the byte; behind it there are zeroes.
    pub bytes: u64,
    /// The name of its file when the layer was made: a hint where to look, and nothing else. May be empty.
    pub name: String,
}

/// Where a section lies, and what its bytes hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Section {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Their SHA-256.
    pub digest: [u8; 32],
}

impl Section {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The last page of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Footer {
    /// A number that no other layer has: the driver draws it. So two layers never have one identity.
    pub number: [u8; 16],
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// What it is over, if anything: else blocks that it does not have are zero.
    pub parent: Option<Parent>,
    /// How many blocks are data.
    pub data_blocks: u64,
    /// How many blocks are zero.
    pub zero_blocks: u64,
    /// How many frames there are.
    pub frames: u64,
    /// Which blocks are data or zero.
    pub index: Section,
    /// The frames.
    pub table: Section,
    /// What its maker had to say; JSON. May be empty.
    pub note: Section,
}

/// The first page of every layer.
#[must_use]
pub fn header() -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// Whether a file with this first and this last page is meant to be a layer, whole or not.
#[must_use]
pub fn is_layer(first: &[u8], last: &[u8]) -> bool {
    first.starts_with(&MAGIC) || last.starts_with(&FOOTER_MAGIC)
}

/// Whether this is the first page of a layer that this program can read.
pub fn check_header(first: &[u8]) -> Result<(), Damage> {
    let damage = |offset, fault| Err(Damage { offset, fault });
    let Some(first) = first.get(..PAGE_BYTES) else { return damage(0, Fault::Short) };
    if first[..8] != MAGIC {
        return damage(0, Fault::Header);
    }
    let version = u16::from_le_bytes([first[8], first[9]]);
    if version != VERSION {
        return damage(8, Fault::Version(version));
    }
    match first[10..].iter().position(|byte| *byte != 0) {
        Some(at) => damage(10 + at as u64, Fault::Reserved),
        None => Ok(()),
    }
}

/// What a layer with this footer is known by. It covers all there is to know about the layer: the footer has
/// the digests of the sections, and those have the checksums of the frames.
#[must_use]
pub fn identity(footer: &[u8; PAGE_BYTES]) -> [u8; 32] {
    Sha256::digest(footer).into()
}

impl Footer {
    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.note.end() + PAGE_BYTES as u64
    }

    /// Where the sections lie, all in one piece: between the frames and the footer.
    #[must_use]
    pub fn sections(&self) -> Range<u64> {
        self.index.offset..self.note.end()
    }

    /// Blocks of the device, the last of them perhaps in part beyond its end.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        if planted(Bug::LayerTail) {
            return self.size_bytes / u64::from(BLOCK_BYTES);
        }
        self.size_bytes.div_ceil(BLOCK_BYTES.into())
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&FOOTER_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.number);
        bytes[32..40].copy_from_slice(&self.size_bytes.to_le_bytes());
        if let Some(parent) = &self.parent {
            let name = parent.name.as_bytes();
            bytes[10] = parent.kind as u8;
            bytes[11] = u8::try_from(name.len()).expect("checked when it was made");
            bytes[40..48].copy_from_slice(&parent.bytes.to_le_bytes());
            bytes[48..80].copy_from_slice(&parent.id);
            bytes[NAME_AT..][..name.len()].copy_from_slice(name);
        }
        bytes[80..88].copy_from_slice(&self.data_blocks.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.zero_blocks.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.frames.to_le_bytes());
        bytes[104..112].copy_from_slice(&self.file_bytes().to_le_bytes());
        let sections = [&self.index, &self.table, &self.note];
        bytes[112..116].copy_from_slice(&(sections.len() as u32).to_le_bytes());
        for (position, section) in sections.into_iter().enumerate() {
            let entry = &mut bytes[SECTIONS_AT + position * SECTION_BYTES..][..SECTION_BYTES];
            entry[..8].copy_from_slice(&section.offset.to_le_bytes());
            entry[8..16].copy_from_slice(&section.length.to_le_bytes());
            entry[16] = position as u8 + 1;
            entry[32..].copy_from_slice(&section.digest);
        }
        let checksum = crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The footer that is the last page of a file of so many bytes.
    pub fn parse(page: &[u8; PAGE_BYTES], file_bytes: u64) -> Result<Self, Damage> {
        let Some(begin) = file_bytes.checked_sub(PAGE_BYTES as u64) else {
            return Err(Damage { offset: 0, fault: Fault::Short });
        };
        let damage = |at: usize, fault| Damage { offset: begin + at as u64, fault };
        if page[..8] != FOOTER_MAGIC {
            return Err(damage(0, Fault::NoFooter));
        }
        // Where the checksum lies is the same in every version, so that a damaged version is no version.
        if crc32c(&page[..CRC_AT]) != le32(page, CRC_AT) {
            return Err(damage(CRC_AT, Fault::Checksum));
        }
        let version = u16::from_le_bytes([page[8], page[9]]);
        if version != VERSION {
            return Err(damage(8, Fault::Version(version)));
        }
        if le32(page, 12) != BLOCK_BYTES {
            return Err(damage(12, Fault::BlockSize(le32(page, 12))));
        }
        for range in RESERVED {
            if let Some(at) = page[range.clone()].iter().position(|byte| *byte != 0) {
                return Err(damage(range.start + at, Fault::Reserved));
            }
        }
        if le64(page, 104) != file_bytes {
            return Err(damage(104, Fault::FileLength(le64(page, 104))));
        }
        if le32(page, 112) != 3 {
            return Err(damage(112, Fault::Kind));
        }
        let section = |position: usize| {
            let at = SECTIONS_AT + position * SECTION_BYTES;
            let entry = &page[at..at + SECTION_BYTES];
            if entry[16] != position as u8 + 1 {
                return Err(damage(at + 16, Fault::Kind));
            }
            if entry[17..32].iter().any(|byte| *byte != 0) {
                return Err(damage(at + 17, Fault::Reserved));
            }
            let (offset, length) = (le64(entry, 0), le64(entry, 8));
            if offset > begin || length > begin - offset {
                return Err(damage(at, Fault::Place));
            }
            let digest = entry[32..].try_into().expect("32 bytes");
            Ok(Section { offset, length, digest })
        };
        let footer = Self {
            number: page[16..32].try_into().expect("16 bytes"),
            size_bytes: le64(page, 32),
            parent: parse_parent(page, begin)?,
            data_blocks: le64(page, 80),
            zero_blocks: le64(page, 88),
            frames: le64(page, 96),
            index: section(0)?,
            table: section(1)?,
            note: section(2)?,
        };
        let Self { index, table, note, .. } = &footer;
        if footer.size_bytes == 0 || footer.size_bytes > DEVICE_BYTES_MAX {
            return Err(damage(32, Fault::Range));
        }
        if footer.parent.as_ref().is_some_and(|parent| parent.bytes > footer.size_bytes) {
            return Err(damage(40, Fault::Range));
        }
        // One behind the other, without a gap, from the last frame to the footer.
        if index.offset < PAGE_BYTES as u64
            || table.offset != index.end()
            || note.offset != table.end()
            || note.end() != begin
        {
            return Err(damage(SECTIONS_AT, Fault::Place));
        }
        if index.length > SECTION_BYTES_MAX
            || table.length > SECTION_BYTES_MAX
            || note.length > NOTE_BYTES_MAX
            || !index.length.is_multiple_of(RUN_BYTES as u64)
        {
            return Err(damage(SECTIONS_AT, Fault::Range));
        }
        if !table.length.is_multiple_of(FRAME_ENTRY_BYTES as u64)
            || table.length / FRAME_ENTRY_BYTES as u64 != footer.frames
        {
            return Err(damage(96, Fault::Count));
        }
        Ok(footer)
    }
}

fn parse_parent(page: &[u8; PAGE_BYTES], begin: u64) -> Result<Option<Parent>, Damage> {
    let damage = |at: usize, fault| Err(Damage { offset: begin + at as u64, fault });
    let (kind, name_bytes, bytes) = (page[10], usize::from(page[11]), le64(page, 40));
    let (name, behind) = page[NAME_AT..NAME_AT + NAME_BYTES_MAX].split_at(name_bytes);
    if behind.iter().any(|byte| *byte != 0) {
        return damage(NAME_AT, Fault::Reserved);
    }
    let id = page[48..80].try_into().expect("32 bytes");
    let kind = match kind {
        0 if bytes == 0 && id == [0; 32] && name.is_empty() => return Ok(None),
        0 => return damage(40, Fault::Reserved),
        1 => ParentKind::Image,
        2 => ParentKind::Layer,
        _ => return damage(10, Fault::Kind),
    };
    if bytes == 0 {
        return damage(40, Fault::Range);
    }
    match core::str::from_utf8(name) {
        Ok(name) if is_file_name(name) => {
            Ok(Some(Parent { kind, id, bytes, name: String::from(name) }))
        }
        _ => damage(NAME_AT, Fault::Name),
    }
}

/// Whether something may be the name of a parent: of a file in whatever directory, or empty.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && !name.contains(['/', '\0']) && name != "." && name != ".."
}
