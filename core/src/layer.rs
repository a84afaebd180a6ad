//! Sealed layers: immutable files that say what some blocks of a device are, over a parent. Drawn in
//! `docs/formats.md`.
//!
//! A layer's data is cut into *frames*: the data blocks of one *window* (64 KiB of the device), packed, and
//! stored as they are or compressed. Behind the frames lie the *index* (which blocks are data and which are
//! zero; all others are as in the parent), the table of frames, and the *footer*, which names everything else.
//!
//! This is the format only: `footer` and `index` turn bytes into values and back, `stack` says for a pile of
//! layers which of them a block is from. Reading, writing, compressing and the checksums of frames are the
//! driver's; it asks [`Frame::check`](index::Frame::check) whether it may believe a frame.

use core::fmt;

use crate::limits::BLOCK_BYTES;

pub mod footer;
pub mod index;
pub mod stack;
#[cfg(test)]
mod tests;

/// Blocks of a window: one bit each in a `u16`.
pub const WINDOW_BLOCKS: u64 = 16;
/// Bytes of a window.
pub const WINDOW_BYTES: usize = WINDOW_BLOCKS as usize * BLOCK_BYTES as usize;

/// What is wrong with a layer, and where in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Damage {
    /// The byte of the file where it shows.
    pub offset: u64,
    /// What it is.
    pub fault: Fault,
}

/// What can be wrong with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The file is too short for any layer.
    Short,
    /// It does not begin like a layer.
    Header,
    /// There is no footer at its end: it is cut short, or something was appended.
    NoFooter,
    /// It is of a version that this program does not know.
    Version(u16),
    /// Its blocks have a size that this program does not know.
    BlockSize(u32),
    /// A checksum does not fit the bytes.
    Checksum,
    /// Bytes that must be zero are not.
    Reserved,
    /// The file has another length than it says.
    FileLength(u64),
    /// A number is beyond what there can be.
    Range,
    /// A section, a run or a parent is of a kind that this program does not know.
    Kind,
    /// A section is not where it must be.
    Place,
    /// The name of the parent is no file name.
    Name,
    /// Runs of blocks are not in rising order, or not joined.
    Order,
    /// The numbers of blocks or frames contradict each other.
    Count,
    /// The length of a frame does not fit what is in it.
    FrameLength,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::Short => f.write_str("the file is too short for a layer"),
            Fault::Header => f.write_str("it does not begin like a layer"),
            Fault::NoFooter => f.write_str(
                "there is no footer at its end: it was cut short, or something was appended",
            ),
            Fault::Version(version) => write!(f, "it is of the unknown version {version}"),
            Fault::BlockSize(bytes) => write!(f, "its blocks have {bytes} bytes, not 4096"),
            Fault::Checksum => f.write_str("a checksum does not fit"),
            Fault::Reserved => f.write_str("bytes that must be zero are not"),
            Fault::FileLength(bytes) => write!(f, "it says that it is {bytes} bytes long"),
            Fault::Range => f.write_str("a number is out of range"),
            Fault::Kind => f.write_str("a section, a run or the parent is of an unknown kind"),
            Fault::Place => f.write_str("a section is not where it must be"),
            Fault::Name => f.write_str("the name of its parent is no file name"),
            Fault::Order => f.write_str("runs of blocks are not in order"),
            Fault::Count => {
                f.write_str("the numbers of its blocks or frames contradict each other")
            }
            Fault::FrameLength => f.write_str("the length of a frame does not fit its blocks"),
        }?;
        write!(f, " (byte {})", self.offset)
    }
}

/// How an identity is written: in hexadecimal digits.
#[derive(Debug, Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
