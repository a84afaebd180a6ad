//! The data file of a sheet: slots, and nothing else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use glassine_core::Errno;
use glassine_core::limits::BLOCK_BYTES;
use glassine_core::slot::Run;

use crate::flush_habit::FlushHabit;
use crate::mapping::Mapping;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::{self, IoVec};

/// Slots on disk, mapped for the kernel to send from and receive into.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    mapping: Mapping,
    bytes: AtomicU64,
    habit: FlushHabit,
}

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Room in the address space for more than the device holds: private and displaced slots come on top
/// of the live ones,
const SLACK_BYTES: u64 = 4 << 30;
/// and while there is a seal, as many again as the device has; of a very large one no more than this.
const SEALED_BYTES_MAX: u64 = 1 << 40;

impl DataFile {
    /// The data file of a device of this size; what is there of it counts in whole slots.
    pub fn new(file: File, device_bytes: u64) -> io::Result<Self> {
        let sealed_bytes = device_bytes.min(SEALED_BYTES_MAX);
        let mapping = Mapping::new(device_bytes + sealed_bytes + SLACK_BYTES, true);
        let bytes = file.metadata()?.len().min(mapping.capacity()) / BLOCK * BLOCK;
        mapping.extend(&file, bytes)?;
        Ok(Self { file, mapping, bytes: AtomicU64::new(bytes), habit: FlushHabit::default() })
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.bytes.load(Ordering::Relaxed) / BLOCK).unwrap_or(u32::MAX)
    }

    /// Makes everything durable that was written so far, and the length. May block.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Reserves space for slots: some that were punched, or new ones at the end. May block; one call at a time.
    pub fn grow(&self, run: Run) -> io::Result<()> {
        let (offset, length) = (run.first.offset(), u64::from(run.count) * BLOCK);
        let end = offset + length;
        if end > self.mapping.capacity() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        sys::allocate(&self.file, offset, length)?;
        if end > self.bytes.load(Ordering::Relaxed) {
            self.mapping.extend(&self.file, end)?;
            self.bytes.store(end, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives the space of slots back to the file system. May block.
    pub fn punch(&self, run: Run) -> io::Result<()> {
        if run.count == 0 {
            return Ok(());
        }
        sys::punch(&self.file, run.first.offset(), u64::from(run.count) * BLOCK)
    }

    /// Hands out pointers to a range of slots, for the kernel.
    pub fn pieces(&self, offset: u64, length: u64, visit: &mut impl FnMut(IoVec)) {
        self.mapping.pieces(offset, length, visit);
    }

    /// Writes pieces of memory to a place, all of them. `iovecs` is used up.
    pub fn write(&self, mut iovecs: &mut [IoVec], mut offset: u64) -> Result<(), Errno> {
        while !iovecs.is_empty() {
            let count = iovecs.len().min(sys::IOVECS_MAX);
            match sys::write_at(&self.file, &iovecs[..count], offset) {
                Ok(0) => return Err(Errno::Io),
                Ok(written) => {
                    offset += written as u64;
                    iovecs = skip(iovecs, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(())
    }

    /// Whether blocks should be written by a system call rather than through the mapping.
    pub fn goes_by_call(&self, bytes: u64) -> bool {
        self.habit.goes_by_call(bytes / BLOCK)
    }

    /// A flush begins, of files whose sync waits for a disk.
    pub fn flushed(&self) {
        self.habit.flushed();
    }

    /// Writes bytes to a place, all of them. For a few blocks: they are copied, as a rule without a system call.
    pub fn write_bytes(&self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        let copied = match self.habit.goes_by_call(1) {
            true => 0,
            false => bytes.len() - self.mapping.copy(offset, bytes),
        };
        let rest = &bytes[copied..];
        if rest.is_empty() {
            return Ok(());
        }
        // The system call knows what is wrong with the page, if it is.
        self.write(&mut [IoVec::of(rest)], offset + copied as u64)
    }

    /// Reads bytes from a place, all of them.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.read_all(bytes, offset).map_err(|error| errno(&error))
    }

    /// The same for the journal, whose log has the system's error.
    pub fn read_all(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Writes bytes to a place, all of them, for the journal.
    pub fn write_all(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
}

/// What is left of some pieces after so many bytes.
fn skip(mut iovecs: &mut [IoVec], mut count: usize) -> &mut [IoVec] {
    while let Some(first) = iovecs.first_mut() {
        if count < first.length() {
            let rest = first.length() - count;
            *first = IoVec::at(first.start().wrapping_add(count), rest);
            break;
        }
        count -= first.length();
        iovecs = &mut iovecs[1..];
    }
    iovecs
}

/// The protocol's error for one of the system's (C7).
#[must_use]
pub fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Errno::NoSpace
        }
        _ => Errno::Io,
    }
}
