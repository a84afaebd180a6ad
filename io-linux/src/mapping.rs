//! A mapping of a file whose pages only the kernel touches, and the guarded [`copy`](crate::copy).
//!
//! It is made of windows of 1 GiB, mapped when first needed, so that hundreds of large devices do not
//! reserve the address space for what they never hold.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

use crate::copy;
use crate::sync::OnceLock;
use crate::sys::{self, IoVec};

const WINDOW_BYTES: u64 = 1 << 30;

/// A mapping of the first bytes of a file, as many as it was made for.
#[derive(Debug)]
pub struct Mapping {
    windows: Box<[OnceLock<MmapRaw>]>,
    writable: bool,
}

impl Mapping {
    /// A mapping of up to `length` bytes, none of them mapped yet.
    #[must_use]
    pub fn new(length: u64, writable: bool) -> Self {
        let windows = (0..length.div_ceil(WINDOW_BYTES)).map(|_| OnceLock::new()).collect();
        Self { windows, writable }
    }

    /// The most bytes it can map.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.windows.len() as u64 * WINDOW_BYTES
    }

    /// Maps what is not mapped yet of the first `length` bytes. They may lie beyond the end of the
    /// file: touching those is an error of the call that does, until the file grows.
    pub fn extend(&self, file: &File, length: u64) -> io::Result<()> {
        let count = length.div_ceil(WINDOW_BYTES) as usize;
        for (index, window) in self.windows[..count].iter().enumerate() {
            if window.get().is_none() {
                let mut options = MmapOptions::new();
                options.offset(index as u64 * WINDOW_BYTES).len(WINDOW_BYTES as usize);
                let map = if self.writable {
                    options.map_raw(file)?
                } else {
                    options.map_raw_read_only(file)?
                };
                // Another thread may have been faster; its window serves as well.
                let _ = window.set(map);
            }
        }
        Ok(())
    }

    /// Hands out pointers to a range, split where windows meet.
    pub fn pieces(&self, offset: u64, length: u64, visit: &mut impl FnMut(IoVec)) {
        let (mut offset, mut left) = (offset, length);
        while left > 0 {
            let window = &self.windows[(offset / WINDOW_BYTES) as usize];
            let map = window.get().expect("mapped before it is used");
            let within = offset % WINDOW_BYTES;
            let count = left.min(WINDOW_BYTES - within);
            visit(IoVec::at(map.as_mut_ptr().wrapping_add(within as usize), count as usize));
            offset += count;
            left -= count;
        }
    }

    /// Copies bytes to a place, as far as its pages are there; answers how many at the end are missing.
    #[must_use]
    pub fn copy(&self, offset: u64, bytes: &[u8]) -> usize {
        assert!(self.writable);
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = offset + (bytes.len() - rest.len()) as u64;
            let window = self.windows[(at / WINDOW_BYTES) as usize].get();
            let within = at % WINDOW_BYTES;
            let count = (rest.len() as u64).min(WINDOW_BYTES - within) as usize;
            let map = window.expect("mapped before it is used");
            let missing = copy::copy(map, within as usize, &rest[..count]);
            rest = &rest[count - missing..];
            if missing > 0 {
                break;
            }
        }
        rest.len()
    }

    /// Whether a range is in the page cache; `pages` is scratch with a byte for every page of it.
    #[must_use]
    pub fn is_resident(&self, offset: u64, length: u64, pages: &mut [u8]) -> bool {
        let start = offset & !4095;
        let mut resident = true;
        self.pieces(start, offset + length - start, &mut |piece| {
            resident = resident && sys::is_resident(piece.start(), piece.length(), pages);
        });
        resident
    }
}
