//! The files of a device, as a kernel and a disk keep them: what was written is seen at once, and what
//! was not synced may be lost, sector by sector, in a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Range;

use glassine_core::journal::JournalFile;
use glassine_core::journal::recovery::blank;
use glassine_core::journal::superblock::Identity;
use glassine_core::limits::BLOCK_BYTES;
use glassine_core::slot::Run;

use crate::choice::{Lane, Tape};

/// What a disk writes as a whole.
pub const SECTOR_BYTES: u64 = 512;

/// A file of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskFile {
    /// The data file.
    Data,
    /// A file of the journal.
    Journal(JournalFile),
}

type Sector = [u8; SECTOR_BYTES as usize];

/// One file.
#[derive(Debug, Clone, Default)]
struct File {
    /// What a process sees.
    bytes: Vec<u8>,
    /// What the medium holds of sectors that were written and not synced.
    unsynced: BTreeMap<u64, Sector>,
    /// The same of sectors whose sync failed: the kernel takes them for clean, and they will be lost.
    doomed: BTreeMap<u64, Sector>,
    /// The length that is certain.
    synced_bytes: usize,
}

/// All files of a device.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: BTreeMap<DiskFile, File>,
    /// Slots of the data file that gave their space back; and those of them that have it again, until a sync
    /// makes that certain.
    holes: BTreeSet<u64>,
    filled: BTreeSet<u64>,
    /// Whether there will be power cuts: otherwise nobody needs to know what the medium holds.
    is_volatile: bool,
}

/// Two disks are alike if they show the same.
impl Hash for Disk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (name, file) in &self.files {
            name.hash(state);
            state.write(&file.bytes);
        }
    }
}

impl Disk {
    /// A disk with an empty data file; `is_volatile` if there may be power cuts.
    #[must_use]
    pub fn new(is_volatile: bool) -> Self {
        let files = BTreeMap::from([(DiskFile::Data, File::default())]);
        Self { files, is_volatile, ..Self::default() }
    }

    /// A file that is there, and durable.
    pub fn put(&mut self, file: DiskFile, bytes: Vec<u8>) {
        let synced_bytes = bytes.len();
        self.files.insert(file, File { bytes, synced_bytes, ..File::default() });
    }

    /// The files of the journal of a sheet that nobody has written to.
    pub fn put_blank(&mut self, identity: &Identity) {
        let blank = blank(identity);
        for file in JournalFile::ALL {
            let bytes = match file {
                JournalFile::Superblock => blank.superblock.clone(),
                JournalFile::Checkpoint(false) => blank.checkpoint.clone(),
                JournalFile::Checkpoint(true) => Vec::new(),
                JournalFile::Segment(_) => vec![0; identity.segment_bytes as usize],
            };
            self.put(DiskFile::Journal(file), bytes);
        }
    }

    fn file(&mut self, file: DiskFile) -> &mut File {
        self.files.get_mut(&file).expect("the file was made")
    }

    /// What is in a file.
    #[must_use]
    pub fn bytes(&self, file: DiskFile) -> &[u8] {
        &self.files[&file].bytes
    }

    /// A part of a file, shorter if the file is.
    #[must_use]
    pub fn read(&self, file: DiskFile, offset: u64, length: u64) -> &[u8] {
        let bytes = self.bytes(file);
        let start = bytes.len().min(offset as usize);
        &bytes[start..bytes.len().min(start + length as usize)]
    }

    /// Makes a file longer.
    pub fn grow(&mut self, file: DiskFile, more: usize, fill: u8) {
        let file = self.file(file);
        file.bytes.resize(file.bytes.len() + more, fill);
    }

    /// Writes, and makes the file longer if need be.
    pub fn write(&mut self, file: DiskFile, offset: u64, bytes: &[u8]) {
        let is_volatile = self.is_volatile;
        let file = self.file(file);
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        file.bytes.resize(file.bytes.len().max(end), 0);
        if is_volatile {
            file.keep(offset..end as u64);
        }
        file.bytes[start..end].copy_from_slice(bytes);
    }

    /// Slots give their space back. A power cut may bring back what was in them, but not the space.
    pub fn punch(&mut self, run: Run) {
        let bytes = vec![0; run.count as usize * BLOCK_BYTES as usize];
        self.write(DiskFile::Data, run.first.offset(), &bytes);
        self.holes.extend(slots(run));
        self.filled.retain(|slot| !slots(run).contains(slot));
    }

    /// Slots get space again.
    pub fn fill(&mut self, run: Run) {
        for slot in slots(run) {
            if self.holes.remove(&slot) && self.is_volatile {
                self.filled.insert(slot);
            }
        }
    }

    /// Whether a slot of the data file has space.
    #[must_use]
    pub fn has_space(&self, slot: u64) -> bool {
        !self.holes.contains(&slot)
    }

    /// Whether all of these do.
    #[must_use]
    pub fn have_space(&self, run: Run) -> bool {
        slots(run).all(|slot| self.has_space(slot))
    }

    /// Changes a byte on the medium itself, as a failing disk does.
    pub fn spoil(&mut self, file: DiskFile, offset: u64) {
        self.file(file).bytes[offset as usize] ^= 0x40;
    }

    /// What was written to a file becomes durable.
    pub fn sync(&mut self, file: DiskFile) {
        if file == DiskFile::Data {
            self.filled.clear();
        }
        let file = self.file(file);
        file.unsynced.clear();
        file.synced_bytes = file.bytes.len();
    }

    /// A sync fails: what was written counts as clean from now on, and never reaches the medium.
    pub fn fail_to_sync(&mut self, file: DiskFile) {
        let file = self.file(file);
        file.doomed.append(&mut file.unsynced);
    }

    /// The power goes: of what was not synced, any part may be lost.
    pub fn cut_power(&mut self, tape: &mut Tape) {
        const LANE: Lane = Lane::Backend;
        for file in self.files.values_mut() {
            // Nothing is lost; all is; or it depends on the sector.
            let percent = *tape.pick(LANE, &[100, 0, 50, 90, 10]);
            file.lose(&mut |_| !tape.chance(LANE, 100 - percent));
        }
        let lost = std::mem::take(&mut self.filled).into_iter();
        self.holes.extend(lost.filter(|_| tape.chance(LANE, 50)));
        let slots = self.bytes(DiskFile::Data).len() as u64 / u64::from(BLOCK_BYTES);
        self.holes.retain(|slot| *slot < slots);
    }

    /// The power goes: of what was not synced, each sector is kept or lost as `keeps` says.
    pub fn cut_power_where(&mut self, mut keeps: impl FnMut(DiskFile, u64) -> bool) {
        for (name, file) in &mut self.files {
            file.lose(&mut |sector| keeps(*name, sector));
        }
    }

    /// Every sector that a power cut may take; `u64::MAX` for a length.
    pub fn unsynced(&self) -> impl Iterator<Item = (DiskFile, u64)> {
        self.files.iter().flat_map(|(name, file)| {
            let grown = (file.bytes.len() > file.synced_bytes).then_some(u64::MAX);
            file.unsynced.keys().copied().chain(grown).map(|sector| (*name, sector))
        })
    }
}

fn slots(run: Run) -> Range<u64> {
    u64::from(run.first.0)..u64::from(run.first.0) + u64::from(run.count)
}

impl File {
    /// Keeps what the medium holds where bytes are about to be written.
    fn keep(&mut self, bytes: Range<u64>) {
        for sector in bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES) {
            if self.unsynced.contains_key(&sector) {
                continue;
            }
            // A sector that is written again may reach the medium after all.
            let old = self.doomed.remove(&sector).unwrap_or_else(|| {
                let start = (sector * SECTOR_BYTES) as usize;
                let end = self.bytes.len().min(start + SECTOR_BYTES as usize);
                let mut old = [0; SECTOR_BYTES as usize];
                old[..end - start].copy_from_slice(&self.bytes[start..end]);
                old
            });
            self.unsynced.insert(sector, old);
        }
    }

    fn lose(&mut self, keeps: &mut impl FnMut(u64) -> bool) {
        let mut lost = std::mem::take(&mut self.doomed);
        let unsynced = std::mem::take(&mut self.unsynced);
        lost.extend(unsynced.into_iter().filter(|(sector, _)| !keeps(*sector)));
        for (sector, old) in lost {
            let start = (sector * SECTOR_BYTES) as usize;
            let end = self.bytes.len().min(start + SECTOR_BYTES as usize);
            self.bytes[start..end].copy_from_slice(&old[..end - start]);
        }
        if self.bytes.len() > self.synced_bytes && !keeps(u64::MAX) {
            self.bytes.truncate(self.synced_bytes);
        }
        self.synced_bytes = self.bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: DiskFile = DiskFile::Data;

    fn disk() -> Disk {
        let mut disk = Disk::new(true);
        disk.put(FILE, vec![1; 2048]);
        disk
    }

    fn sectors(disk: &Disk) -> Vec<u8> {
        disk.bytes(FILE).chunks(512).map(|sector| sector[0]).collect()
    }

    #[test]
    fn what_was_not_synced_may_be_lost_in_any_part() {
        let mut disk = disk();
        disk.write(FILE, 0, &[2; 1024]);
        disk.sync(FILE);
        disk.write(FILE, 512, &[3; 1536]);
        assert_eq!(sectors(&disk), [2, 3, 3, 3]);
        disk.cut_power_where(|_, sector| sector == 2);
        assert_eq!(sectors(&disk), [2, 2, 3, 1]);
    }

    #[test]
    fn what_a_failed_sync_dropped_no_later_one_brings_back() {
        let mut disk = disk();
        disk.write(FILE, 0, &[2; 1024]);
        disk.fail_to_sync(FILE);
        disk.write(FILE, 512, &[3; 512]);
        disk.sync(FILE);
        assert_eq!(sectors(&disk), [2, 3, 1, 1]);
        disk.cut_power_where(|_, _| true);
        assert_eq!(sectors(&disk), [1, 3, 1, 1]);
    }

    #[test]
    fn a_length_that_was_not_synced_may_be_lost() {
        let mut disk = disk();
        disk.grow(FILE, 512, 9);
        disk.write(FILE, 2048, &[4; 512]);
        let mut kept = disk.clone();
        kept.cut_power_where(|_, _| true);
        assert_eq!(sectors(&kept), [1, 1, 1, 1, 4]);
        disk.cut_power_where(|_, _| false);
        assert_eq!(sectors(&disk), [1, 1, 1, 1]);
    }
}
