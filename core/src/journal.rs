//! The journal of one device: which edits of the map survive a crash.
//!
//! Every publish queues its edits in the step that makes them visible, so the order of the journal is
//! the order of publishes. A *barrier* makes all that is queued durable, as one record: it syncs the data
//! file, writes the record, syncs the segment. One barrier is under way at a time; whoever needs one
//! meanwhile waits for the next (group commit).
//!
//! A record that names few slots *carries* their blocks, and needs no sync of the data file: one sync is half
//! the time of two. Recovery puts the blocks back where they belong. Only the data file's length must
//! have been synced since it last grew.
//!
//! There are two segments and two checkpoints, used in turn. When a segment is half full, the next barrier
//! moves on to the other one and a *checkpoint* begins: the map as it is, read bit by bit while edits go
//! on. An edit that a section has already seen is in the new segment as well, and edits say what a block
//! is, not how it changes; so the checkpoint and the new segment together give the map, once everything
//! that the checkpoint may have seen is durable. Then the data file is synced, since what the old segment
//! carries goes with it; the superblock names the checkpoint, and the old segment is free.
//!
//! # How to drive it
//! The overlay hands out [`Task`]s, at most one in each [`Lane`]; each is handed back once, with its
//! outcome. The first failure is final: nothing becomes durable any more. Only a section of a checkpoint that
//! finds the disk full costs nothing: the checkpoint is begun again with the next tick, and meanwhile
//! publishes are refused once the segment in use is full.
//!
//! # Its bounds
//! A barrier encodes at most [`JournalLimits::queue_entries_max`] edits of 16 bytes under the device's lock
//! and settles [`JournalLimits::fresh_slots_max`] slots; a publish that would need more waits. A section
//! of a checkpoint looks at [`JournalLimits::section_entries`] runs of the map. Neither copies payload.

pub mod frame;
pub mod recovery;
pub mod superblock;
#[cfg(test)]
pub(crate) mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::error::Errno;
use crate::judge::{Bug, Mark, mark, planted};
pub use crate::limits::SEGMENT_BYTES_MAX;
use crate::limits::{BLOCK_BYTES, JournalLimits};
use crate::map::{Entry as MapEntry, Map};
use crate::overlay::SessionKey;
use crate::pin::Epoch;
use crate::slot::SlotTable;
use frame::{Content, Entry, FRAME_BYTES_MAX, FrameBuffer, FrameHeader, FrameKind, frame_bytes};
use superblock::{Identity, Superblock};

/// A device that never rests is made durable with every so many ticks.
const BUSY_TICKS_MAX: u32 = 6;

/// The files of a sheet beside its data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JournalFile {
    /// Both copies of the superblock.
    Superblock,
    /// The checkpoint of even (`false`) or odd generations.
    Checkpoint(bool),
    /// The journal segment of even (`false`) or odd generations.
    Segment(bool),
}

impl JournalFile {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Superblock,
        Self::Checkpoint(false),
        Self::Checkpoint(true),
        Self::Segment(false),
        Self::Segment(true),
    ];
}

impl fmt::Display for JournalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Checkpoint(false) => "checkpoint.0",
            Self::Checkpoint(true) => "checkpoint.1",
            Self::Segment(false) => "journal.0",
            Self::Segment(true) => "journal.1",
        })
    }
}

/// What goes on by itself. Each lane has one task under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Makes publishes durable. Clients wait for it.
    Barrier,
    /// Writes checkpoints. Nobody waits for it as a rule.
    Checkpoint,
}

/// What a task is to do, in full or not at all.
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Everything that was written to the data file so far, and its size, becomes durable.
    SyncData,
    /// These bytes go to this place of this file, once [`Task::carry`] has completed them.
    Write {
        /// Which file.
        file: JournalFile,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Everything that was written to this file so far becomes durable.
    Sync {
        /// Which file.
        file: JournalFile,
    },
}

/// Something to do for the journal. Hand it back, with its outcome, to
/// [`Overlay::finished`](crate::Overlay::finished).
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a task is handed back"]
pub struct Task {
    lane: Lane,
    /// What to do.
    pub action: Action,
}

impl Task {
    /// Which lane it is of.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Whether its failure costs nothing but time: nobody counts on a checkpoint that is being written.
    #[must_use]
    pub fn may_fail_with(&self, error: Errno) -> bool {
        let is_section =
            matches!(self.action, Action::Write { file: JournalFile::Checkpoint(_), .. });
        is_section && error == Errno::NoSpace && !planted(Bug::FullCheckpointFinal)
    }

    /// Brings the blocks of the data file into a record that are to be in it: `read` fills bytes from an
    /// offset of the data file on. To be called once, before a write is done; a failure is one of the task.
    pub fn carry<E>(&mut self, read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<(), E> {
        match &mut self.action {
            Action::Write { bytes, .. } if self.lane == Lane::Barrier => frame::carry(bytes, read),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum BarrierStage {
    Idle,
    SyncData,
    Write,
    Sync,
}

#[derive(Debug, Hash)]
struct Barrier {
    stage: BarrierStage,
    busy: bool,
    /// Where the record goes.
    offset: u64,
    /// The record, until it is written; and afterwards the memory of the next.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CheckpointStage {
    Idle,
    /// A section found the disk full: all of it is begun again with the next tick.
    Waits,
    Walk,
    Sync,
    /// Everything that the checkpoint may have seen must become durable.
    Close,
    /// So must the blocks which only the old segment carries.
    SyncData,
    WriteSuperblock,
    SyncSuperblock,
}

#[derive(Debug, Hash)]
struct Checkpoint {
    stage: CheckpointStage,
    busy: bool,
    /// The first block that no section has seen.
    cursor: u64,
    /// The next section: its number, its place, and the checksum of the one before.
    number: u64,
    offset: u64,
    chain: u32,
    /// The last edit that a section may have seen.
    seen: Epoch,
    spare: Vec<u8>,
}

/// The position of an edit in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place(pub(crate) u32);

/// The next record: its number, and the checksum of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) chain: u32,
}

/// See the module.
#[derive(Debug, Hash)]
pub(crate) struct Journal {
    limits: JournalLimits,
    identity: Identity,
    /// What the superblock says.
    generation: u64,
    /// The segment in use is that of this generation: the superblock's, or the next one while a
    /// checkpoint is being written.
    segment: u64,
    /// Bytes of it that are spoken for.
    used: u64,
    next: Position,
    /// The number behind the last record that is durable.
    recorded: u64,
    /// Where the segment in use begins.
    first: Position,
    /// Edits that are visible and in no record.
    queue: FrameBuffer,
    /// Entries of the last publish in it.
    last_publish: usize,
    /// Slots that no record names yet, and slots displaced since the last capture that wait for one.
    fresh: u64,
    limbo: u64,
    /// The growth of the data file that is durable, and will be by the sync under way: [`SlotTable::growths`].
    synced_growths: u64,
    syncing_growths: u64,
    barrier: Barrier,
    checkpoint: Checkpoint,
    /// Publishes up to here are durable; in a record; to become durable. Each at least the one before.
    durable: Epoch,
    captured: Epoch,
    wanted: Epoch,
    /// Publishes up to here were there at the last tick; ticks since something was wanted.
    last_tick: Epoch,
    busy_ticks: u32,
    failed: bool,
    waiting: Vec<SessionKey>,
    woken: Vec<SessionKey>,
}

impl Journal {
    /// A journal behind its last record. All of the map at `now` is durable.
    fn resumed(
        limits: JournalLimits,
        superblock: &Superblock,
        segment: u64,
        [first, next]: [Position; 2],
        used: u64,
    ) -> Self {
        let Superblock { identity, generation, .. } = *superblock;
        let now = Epoch::FIRST;
        let mut journal = Self {
            generation,
            segment,
            used,
            next,
            recorded: next.number,
            first,
            queue: FrameBuffer::default(),
            last_publish: 0,
            fresh: 0,
            limbo: 0,
            // The file may have got its length in the moments before a process died: nobody synced that.
            synced_growths: 0,
            syncing_growths: 0,
            barrier: Barrier {
                stage: BarrierStage::Idle,
                busy: false,
                offset: 0,
                bytes: Vec::new(),
            },
            checkpoint: Checkpoint {
                stage: CheckpointStage::Idle,
                busy: false,
                cursor: 0,
                number: 0,
                offset: 0,
                chain: 0,
                seen: now,
                spare: Vec::new(),
            },
            durable: now,
            captured: now,
            wanted: now,
            last_tick: now,
            busy_ticks: 0,
            failed: false,
            waiting: Vec::new(),
            woken: Vec::new(),
            limits,
            identity,
        };
        if journal.is_checkpointing() {
            // A crash cut the checkpoint short that the segment in use belongs to.
            mark(Mark::CheckpointResumed);
            journal.begin_checkpoint();
        }
        journal
    }

    pub(crate) fn durable(&self) -> Epoch {
        self.durable
    }

    pub(crate) fn captured(&self) -> Epoch {
        self.captured
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is_checkpointing(&self) -> bool {
        self.segment != self.generation
    }

    /// Bytes that the segment still takes to which the queue will go.
    fn room(&self) -> u64 {
        let used = if self.is_checkpointing() { self.used } else { 0 };
        self.identity.segment_bytes - used
    }

    /// Whether a publish of so many edits and slots may be queued. What is queued always fits the segment
    /// it will go to, so that no barrier ever waits for a checkpoint which waits for it.
    pub(crate) fn has_room(&self, entries: usize, slots: u64) -> bool {
        let entries = self.queue.entries() + entries;
        entries <= self.limits.queue_entries_max as usize
            && frame_bytes(entries) as u64 <= self.room()
            && (self.fresh == 0 || self.fresh + slots <= u64::from(self.limits.fresh_slots_max))
    }

    /// Whether a publish that found no room finds none however long it waits for a barrier: the segment in use
    /// is full, and the checkpoint that would free the other one finds no space.
    pub(crate) fn is_full(&self) -> bool {
        self.checkpoint_waits() && self.queue.entries() == 0
    }

    pub(crate) fn checkpoint_waits(&self) -> bool {
        self.checkpoint.stage == CheckpointStage::Waits
    }

    /// A checkpoint that found the disk full may try again.
    pub(crate) fn try_again(&mut self) {
        if self.checkpoint_waits() {
            self.begin_checkpoint();
        }
    }

    /// A publish of one block, whose last edit is still queued: the new one takes its place. All of a record
    /// applies at once, so nobody can tell; and a block that is written over and over takes one entry.
    pub(crate) fn record_again(&mut self, place: Place, entry: &Entry) {
        mark(Mark::EditReplaced);
        self.queue.replace(place.0 as usize, entry);
    }

    /// Looks at the edit at a place.
    pub(crate) fn foresee(&self, place: Place) {
        self.queue.foresee(place.0 as usize);
    }

    /// One publish queues its edits. Answers where, if it is one.
    pub(crate) fn record(&mut self, entries: impl Iterator<Item = Entry>) -> Option<Place> {
        let before = self.queue.entries();
        for entry in entries {
            if let Content::Slots(_) = entry.content {
                self.fresh += entry.count;
            }
            self.queue.push(&entry);
        }
        let count = self.queue.entries() - before;
        if planted(Bug::OrderSwapped) {
            self.queue.rotate_last(count, self.last_publish);
        }
        self.last_publish = count;
        (count == 1).then_some(Place(before as u32))
    }

    /// A slot that a record names was displaced.
    pub(crate) fn displaced(&mut self, slots: u64) {
        self.limbo += slots;
    }

    /// Everything up to `epoch` is to become durable.
    pub(crate) fn want(&mut self, epoch: Epoch) {
        self.wanted = self.wanted.max(epoch);
    }

    /// For every few seconds: everything is to become durable once nothing was published since the last call,
    /// and with every [`BUSY_TICKS_MAX`]th call whatever happens.
    pub(crate) fn want_when_quiet(&mut self, now: Epoch) {
        let is_quiet = core::mem::replace(&mut self.last_tick, now) == now;
        self.busy_ticks += 1;
        if is_quiet || self.busy_ticks == BUSY_TICKS_MAX {
            self.busy_ticks = 0;
            self.want(now);
        }
    }

    /// The session hears of the next step forward.
    pub(crate) fn wait(&mut self, key: SessionKey) {
        if !self.waiting.contains(&key) {
            self.waiting.push(key);
        }
    }

    pub(crate) fn poll_woken(&mut self) -> Option<SessionKey> {
        self.woken.pop()
    }

    fn wake(&mut self) {
        self.woken.append(&mut self.waiting);
    }

    /// The next thing to do. `now` is the epoch of the last publish.
    pub(crate) fn poll(&mut self, now: Epoch, map: &Map, slots: &mut SlotTable) -> Option<Task> {
        if self.failed {
            return None;
        }
        let lane = Lane::Barrier;
        if let Some(action) = self.poll_barrier(now, slots) {
            assert!(!core::mem::replace(&mut self.barrier.busy, true));
            return Some(Task { lane, action });
        }
        let lane = Lane::Checkpoint;
        let action = self.poll_checkpoint(now, map)?;
        assert!(!core::mem::replace(&mut self.checkpoint.busy, true));
        Some(Task { lane, action })
    }

    fn poll_barrier(&mut self, now: Epoch, slots: &mut SlotTable) -> Option<Action> {
        if self.barrier.busy {
            return None;
        }
        if self.barrier.stage == BarrierStage::Idle && self.wants_barrier(slots) {
            self.capture(now, slots);
        }
        let file = segment_file(self.segment);
        match self.barrier.stage {
            BarrierStage::Idle => None,
            BarrierStage::SyncData => {
                self.syncing_growths = slots.growths();
                Some(Action::SyncData)
            }
            BarrierStage::Write => {
                let bytes = core::mem::take(&mut self.barrier.bytes);
                Some(Action::Write { file, offset: self.barrier.offset, bytes })
            }
            BarrierStage::Sync => Some(Action::Sync { file }),
        }
    }

    fn wants_barrier(&self, slots: &SlotTable) -> bool {
        // What is left is room for what is published until it is done.
        let queue_most = self.limits.queue_entries_max / 4 * 3;
        let fresh_most = self.limits.fresh_slots_max / 4 * 3;
        let by_itself = self.queue.entries() > queue_most as usize
            || self.fresh > u64::from(fresh_most)
            || self.limbo > u64::from(self.limits.limbo_slots_max + slots.counts().live / 8);
        if by_itself {
            mark(Mark::BarrierByItself);
        }
        by_itself || self.wanted > self.captured
    }

    /// All that is queued becomes one record.
    fn capture(&mut self, now: Epoch, slots: &mut SlotTable) {
        assert_eq!(self.durable, self.captured, "one barrier at a time");
        self.captured = now;
        self.limbo = 0;
        let entries = self.queue.entries();
        if entries == 0 {
            // Nothing was changed by what was published.
            self.settle();
            return;
        }
        let bytes = frame_bytes(entries) as u64;
        let knows_length =
            slots.growths() == self.synced_growths || planted(Bug::CarriedBeyondLength);
        let few = self.fresh <= u64::from(self.limits.carried_slots_max);
        let mut carried = if few && knows_length { self.fresh } else { 0 };
        let half = self.identity.segment_bytes / 2;
        let needed = |carried: u64| bytes + carried * u64::from(BLOCK_BYTES);
        let is_half_full = self.used > 0 && self.used + needed(carried) > half;
        if self.segment == self.generation && is_half_full {
            self.segment += 1;
            self.used = 0;
            self.first = self.next;
            self.begin_checkpoint();
        }
        // What is left of a segment is for edits, while a checkpoint is under way.
        if self.used + needed(carried) > half || needed(carried) > FRAME_BYTES_MAX as u64 {
            carried = 0;
        }
        let needs_data = self.fresh > carried || !knows_length;
        assert!(self.used + bytes <= self.identity.segment_bytes, "what is queued fits");
        for entry in self.queue.iter() {
            if let Some(run) = entry.run() {
                slots.settle(run);
            }
        }
        self.fresh = 0;
        self.last_publish = 0;
        let header = FrameHeader {
            kind: FrameKind::Record,
            sheet: self.identity.sheet,
            generation: self.segment,
            number: self.next.number,
            chain: self.next.chain,
        };
        let spare = FrameBuffer::reusing(core::mem::take(&mut self.barrier.bytes));
        let queue = core::mem::replace(&mut self.queue, spare);
        let (bytes, checksum) = queue.finish_carrying(&header, carried as u32);
        self.barrier.offset = self.used;
        self.used += bytes.len() as u64;
        self.next = Position { number: self.next.number + 1, chain: checksum };
        self.barrier.bytes = bytes;
        if carried > 0 {
            mark(Mark::BlocksCarried);
        }
        let early = !needs_data || planted(Bug::RecordBeforeBytes);
        self.barrier.stage = if early { BarrierStage::Write } else { BarrierStage::SyncData };
    }

    /// What was captured is durable.
    fn settle(&mut self) {
        assert!(self.captured >= self.durable);
        self.durable = self.captured;
        self.recorded = self.next.number;
        self.barrier.stage = BarrierStage::Idle;
        self.wake();
    }

    fn begin_checkpoint(&mut self) {
        let checkpoint = &mut self.checkpoint;
        assert!(matches!(checkpoint.stage, CheckpointStage::Idle | CheckpointStage::Waits));
        assert!(!checkpoint.busy);
        checkpoint.stage = CheckpointStage::Walk;
        (checkpoint.cursor, checkpoint.number, checkpoint.offset, checkpoint.chain) = (0, 0, 0, 0);
    }

    fn poll_checkpoint(&mut self, now: Epoch, map: &Map) -> Option<Action> {
        if self.checkpoint.busy {
            return None;
        }
        let is_closed = self.durable >= self.checkpoint.seen;
        if self.checkpoint.stage == CheckpointStage::Close && is_closed {
            self.checkpoint.stage = CheckpointStage::SyncData;
        }
        if self.checkpoint.stage == CheckpointStage::SyncData && planted(Bug::CarriedLost) {
            self.checkpoint.stage = CheckpointStage::WriteSuperblock;
        }
        let file = checkpoint_file(self.segment);
        match self.checkpoint.stage {
            CheckpointStage::Idle | CheckpointStage::Waits | CheckpointStage::Close => None,
            CheckpointStage::Walk => {
                let offset = self.checkpoint.offset;
                let bytes = self.section(now, map);
                Some(Action::Write { file, offset, bytes })
            }
            CheckpointStage::Sync => Some(Action::Sync { file }),
            CheckpointStage::SyncData => Some(Action::SyncData),
            CheckpointStage::WriteSuperblock => {
                let superblock = Superblock {
                    identity: self.identity,
                    generation: self.segment,
                    number: self.first.number,
                    chain: self.first.chain,
                    needs: self.recorded,
                };
                let mut bytes = core::mem::take(&mut self.checkpoint.spare);
                bytes.clear();
                bytes.extend_from_slice(&superblock.encode());
                let (file, offset) = (JournalFile::Superblock, Superblock::offset(self.segment));
                Some(Action::Write { file, offset, bytes })
            }
            CheckpointStage::SyncSuperblock => Some(Action::Sync { file: JournalFile::Superblock }),
        }
    }

    /// The next part of the map, as it is now.
    fn section(&mut self, now: Epoch, map: &Map) -> Vec<u8> {
        let checkpoint = &mut self.checkpoint;
        let mut buffer = FrameBuffer::reusing(core::mem::take(&mut checkpoint.spare));
        let unwritten = map.initial();
        let mut open: Option<Entry> = None;
        let mut left = self.limits.section_entries;
        while checkpoint.cursor < map.blocks() && left > 0 {
            let (run, entry) = map.run_at(checkpoint.cursor);
            let (block, count) = (run.start, run.end - run.start);
            checkpoint.cursor = run.end;
            left -= 1;
            if entry == MapEntry::from(unwritten) {
                continue;
            }
            let content = match entry {
                MapEntry::Slot(slot) => Content::Slots(slot),
                // The write that claims the space is not published: a crash would take it.
                MapEntry::ZeroClaimed if !planted(Bug::ClaimForgotten) => Content::ZeroProvisioned,
                MapEntry::ZeroProvisioned => Content::ZeroProvisioned,
                MapEntry::Zero | MapEntry::ZeroClaimed | MapEntry::Template => Content::Zero,
            };
            let entry = Entry { block, count, content };
            if !open.as_mut().is_some_and(|open| open.absorb(&entry))
                && let Some(done) = open.replace(entry)
            {
                buffer.push(&done);
            }
        }
        if let Some(done) = open {
            buffer.push(&done);
        }
        let is_last = checkpoint.cursor == map.blocks();
        if is_last {
            checkpoint.seen = now;
        }
        let header = FrameHeader {
            kind: if is_last { FrameKind::LastSection } else { FrameKind::Section },
            sheet: self.identity.sheet,
            generation: self.segment,
            number: checkpoint.number,
            chain: checkpoint.chain,
        };
        let (bytes, checksum) = buffer.finish(&header);
        checkpoint.number += 1;
        checkpoint.offset += bytes.len() as u64;
        checkpoint.chain = checksum;
        if !is_last {
            mark(Mark::SectionsSeveral);
        }
        bytes
    }

    /// A task is done.
    pub(crate) fn finished(&mut self, task: Task, result: Result<(), Errno>, map: &Map) {
        let busy = match task.lane {
            Lane::Barrier => &mut self.barrier.busy,
            Lane::Checkpoint => &mut self.checkpoint.busy,
        };
        assert!(core::mem::take(busy), "a task is handed back once");
        let retries = matches!(task.action, Action::SyncData | Action::Sync { .. });
        if result.is_err() && retries && planted(Bug::SyncRetried) {
            return;
        }
        let is_delayed = result.is_err_and(|error| task.may_fail_with(error));
        if let Action::Write { bytes, .. } = task.action {
            match task.lane {
                Lane::Barrier => self.barrier.bytes = bytes,
                Lane::Checkpoint => self.checkpoint.spare = bytes,
            }
        }
        if is_delayed && !self.failed {
            return self.delay_checkpoint(map);
        }
        if result.is_err() || self.failed {
            // What a failed sync dropped, no later sync brings back: so the first failure is final.
            mark(Mark::JournalFailed);
            self.failed = true;
            self.wake();
            return;
        }
        match task.lane {
            Lane::Barrier => self.barrier_went_on(),
            Lane::Checkpoint => self.checkpoint_went_on(map),
        }
    }

    fn barrier_went_on(&mut self) {
        self.barrier.stage = match self.barrier.stage {
            BarrierStage::Idle => unreachable!("no task was under way"),
            BarrierStage::SyncData => {
                self.synced_growths = self.syncing_growths;
                BarrierStage::Write
            }
            BarrierStage::Write if planted(Bug::ReplyBeforeSync) => return self.settle(),
            BarrierStage::Write => BarrierStage::Sync,
            BarrierStage::Sync => return self.settle(),
        };
    }

    /// A section found the disk full: all of it is written again, when there may be space.
    fn delay_checkpoint(&mut self, map: &Map) {
        mark(Mark::CheckpointDelayed);
        if planted(Bug::SectionLost) {
            return self.checkpoint_went_on(map);
        }
        self.checkpoint.stage = CheckpointStage::Waits;
        // Whoever waits for room in the segment may wait in vain.
        self.wake();
    }

    fn checkpoint_went_on(&mut self, map: &Map) {
        self.checkpoint.stage = match self.checkpoint.stage {
            CheckpointStage::Idle | CheckpointStage::Waits | CheckpointStage::Close => {
                unreachable!("no task was under way")
            }
            CheckpointStage::Walk if self.checkpoint.cursor < map.blocks() => CheckpointStage::Walk,
            CheckpointStage::Walk => CheckpointStage::Sync,
            CheckpointStage::Sync if planted(Bug::CheckpointRaces) => {
                CheckpointStage::WriteSuperblock
            }
            CheckpointStage::Sync => {
                self.want(self.checkpoint.seen);
                CheckpointStage::Close
            }
            CheckpointStage::SyncData => CheckpointStage::WriteSuperblock,
            CheckpointStage::WriteSuperblock if !planted(Bug::SegmentFreedEarly) => {
                CheckpointStage::SyncSuperblock
            }
            CheckpointStage::WriteSuperblock | CheckpointStage::SyncSuperblock => {
                mark(Mark::CheckpointDone);
                self.generation += 1;
                assert_eq!(self.generation, self.segment, "a segment a generation");
                // Whoever waited for room in the segment has a new one.
                self.wake();
                CheckpointStage::Idle
            }
        };
    }

    /// Checks everything that can be derived twice.
    pub(crate) fn audit(&self, now: Epoch) {
        assert!(self.durable <= self.captured && self.captured <= now);
        assert!(self.wanted <= now, "nobody waits for what was not published");
        assert!(self.segment - self.generation <= 1);
        assert!(self.used <= self.identity.segment_bytes);
        let queued = self.queue.entries();
        assert!(queued == 0 || frame_bytes(queued) as u64 <= self.room(), "what is queued fits");
        let idle = self.barrier.stage == BarrierStage::Idle;
        assert!(self.failed || idle == (self.durable == self.captured));
        let walking = self.checkpoint.stage != CheckpointStage::Idle;
        assert_eq!(walking, self.is_checkpointing(), "a segment ahead has its checkpoint");
    }
}

impl Entry {
    /// Becomes one entry with its neighbour, if they are alike.
    fn absorb(&mut self, next: &Self) -> bool {
        let is_same = match (self.content, next.content) {
            (Content::Slots(first), Content::Slots(slot)) => {
                u64::from(first.0) + self.count == u64::from(slot.0)
            }
            (one, other) => one == other,
        };
        let joins = is_same && self.block + self.count == next.block;
        self.count += if joins { next.count } else { 0 };
        joins
    }
}

fn segment_file(generation: u64) -> JournalFile {
    JournalFile::Segment(generation % 2 == 1)
}

fn checkpoint_file(generation: u64) -> JournalFile {
    JournalFile::Checkpoint(generation % 2 == 1)
}
