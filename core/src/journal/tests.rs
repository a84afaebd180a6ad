//! The journal and recovery together, over files that keep what they are told.

mod full;
mod going_back;
mod recovery;

use std::collections::BTreeMap;
use std::ops::Range;
use std::vec;
use std::vec::Vec;

use super::frame::{Content, Frame, FrameError, PAGE_BYTES};
use super::recovery::{Damage, Recovered, Recovery, Refusal, Step, blank};
use super::superblock::{Identity, SuperblockError};
use super::{Action, JournalFile, Lane, Task};
use crate::map::Entry;
use crate::overlay::{Conflict, Extent, Grant, Reserve, SessionKey};
use crate::slot::{Run, SlotId};
use crate::{Errno, JournalLimits, Overlay, OverlayConfig, SpaceLimits};

const KEY: SessionKey = SessionKey(1);
const BLOCKS: u64 = 1200;
const SEGMENT_BYTES: u64 = 16 << 12;

fn config() -> OverlayConfig {
    let size_bytes = BLOCKS * 4096;
    let template_bytes = size_bytes;
    OverlayConfig {
        size_bytes,
        template_bytes,
        quota_bytes: u64::MAX,
        space: SpaceLimits::growing_by(16),
    }
}

fn limits() -> JournalLimits {
    JournalLimits {
        queue_entries_max: 500,
        fresh_slots_max: 2000,
        limbo_slots_max: 200,
        section_entries: 50,
        carried_slots_max: 0,
    }
}

/// The files of a sheet, and a byte for each slot of its data file.
#[derive(Clone)]
struct Files {
    files: BTreeMap<JournalFile, Vec<u8>>,
    data: Vec<u8>,
    synced: Vec<u8>,
    /// How often a barrier synced it.
    syncs: u32,
    limits: JournalLimits,
}

impl Files {
    fn new() -> Self {
        Self::with(SEGMENT_BYTES, limits())
    }

    fn with(segment_bytes: u64, limits: JournalLimits) -> Self {
        let identity = Identity {
            sheet: 4711,
            size_bytes: config().size_bytes,
            template_bytes: config().template_bytes,
            template_id: [7; 32],
            segment_bytes,
        };
        let blank = blank(&identity);
        let segment = vec![0; segment_bytes as usize];
        let files = BTreeMap::from([
            (JournalFile::Superblock, blank.superblock),
            (JournalFile::Checkpoint(false), blank.checkpoint),
            (JournalFile::Checkpoint(true), Vec::new()),
            (JournalFile::Segment(false), segment.clone()),
            (JournalFile::Segment(true), segment),
        ]);
        Self { files, data: Vec::new(), synced: Vec::new(), syncs: 0, limits }
    }

    /// Of the data file, nothing is left that was not synced.
    fn cut_power(&mut self) {
        self.data.clone_from(&self.synced);
    }

    fn file(&mut self, file: JournalFile) -> &mut Vec<u8> {
        self.files.get_mut(&file).unwrap()
    }

    fn write(&mut self, file: JournalFile, offset: u64, bytes: &[u8]) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let file = self.file(file);
        file.resize(file.len().max(end), 0);
        file[start..end].copy_from_slice(bytes);
    }

    fn recover(&mut self) -> Result<(Overlay, Recovered), Refusal> {
        self.recover_as(config())
    }

    fn recover_as(&mut self, config: OverlayConfig) -> Result<(Overlay, Recovered), Refusal> {
        let (slots, limits) = (self.data.len() as u32, self.limits.clone());
        self.run(Recovery::new(config, [7; 32], slots, limits))
    }

    fn run(&mut self, mut recovery: Recovery) -> Result<(Overlay, Recovered), Refusal> {
        while let Some(step) = recovery.poll() {
            let mut read = Vec::new();
            match step {
                Step::Read { file, offset, length } => {
                    let bytes = self.file(file);
                    let start = bytes.len().min(offset as usize);
                    let end = bytes.len().min(start + length as usize);
                    read = bytes[start..end].to_vec();
                }
                Step::Write { file, offset, bytes } => self.write(file, offset, &bytes),
                Step::Sync { .. } => {}
                Step::WriteData { offset, bytes } => {
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    self.data[offset as usize / 4096] = bytes[0];
                }
            }
            recovery.handle(Ok(&read))?;
        }
        Ok(recovery.finish())
    }

    /// Does what the journal wants, until it wants nothing more.
    fn work(&mut self, overlay: &mut Overlay) {
        while let Some(mut task) = overlay.poll_task() {
            self.perform(&mut task);
            overlay.finished(task, Ok(()));
        }
        while overlay.poll_woken().is_some() {}
    }

    /// Does what barriers want. The task of a checkpoint is never done.
    fn work_on_barriers(&mut self, overlay: &mut Overlay) {
        while let Some(mut task) = overlay.poll_task() {
            if task.lane() == Lane::Barrier {
                self.perform(&mut task);
                overlay.finished(task, Ok(()));
            }
        }
    }

    fn perform(&mut self, task: &mut Task) {
        let read = |offset: u64, bytes: &mut [u8]| {
            for (index, block) in bytes.chunks_mut(4096).enumerate() {
                block.fill(self.data[offset as usize / 4096 + index]);
            }
            Ok::<_, Errno>(())
        };
        task.carry(read).unwrap();
        if task.action == Action::SyncData {
            self.synced.clone_from(&self.data);
            self.syncs += u32::from(task.lane() == Lane::Barrier);
        }
        if let Action::Write { file, offset, bytes } = &task.action {
            self.write(*file, *offset, bytes);
        }
    }

    /// Slots for a change; the data file grows if there are not enough.
    fn reserve(&mut self, overlay: &mut Overlay, extent: &Extent, runs: &mut Vec<Run>) -> Grant {
        loop {
            match overlay.reserve(extent, KEY, runs).unwrap() {
                Reserve::Granted(grant) => return grant,
                Reserve::Wait => {
                    let slots = overlay.poll_growth().unwrap();
                    self.data.resize(self.data.len() + slots.count as usize, 0);
                    overlay.grown(true);
                    overlay.take_waiting();
                }
            }
        }
    }

    fn change(&mut self, overlay: &mut Overlay, extent: &Extent) {
        let mut runs = Vec::new();
        let grant = self.reserve(overlay, extent, &mut runs);
        while overlay.publish(extent, &mut runs, grant, [].into_iter()).is_err() {
            overlay.wait_for_journal(KEY);
            self.work(overlay);
        }
    }
}

/// A sheet whose records carry so many slots.
fn carrying(carried_slots_max: u32) -> Files {
    Files::with(SEGMENT_BYTES, JournalLimits { carried_slots_max, ..limits() })
}

/// A sheet that nothing was written to, and the size of its device, for tests of others.
pub(crate) fn blank_sheet() -> (Overlay, u64) {
    let (overlay, _) = Files::new().recover().expect("it is as it was made");
    assert!(overlay.has_journal());
    (overlay, config().size_bytes)
}

fn written(blocks: Range<u64>) -> Extent {
    Extent { zero: blocks.end..blocks.end, blocks, provision: false }
}

fn zeroed(blocks: Range<u64>, provision: bool) -> Extent {
    Extent { blocks: blocks.clone(), zero: blocks, provision }
}

/// By what each block in a slot is known.
fn shown(overlay: &Overlay, data: &[u8]) -> Vec<u8> {
    let shown = |entry| match entry {
        Entry::Slot(slot) => data[slot.0 as usize],
        _ => 0,
    };
    (0..BLOCKS).map(|block| shown(overlay.entry(block))).collect()
}

fn map_of(overlay: &Overlay) -> Vec<Entry> {
    (0..BLOCKS).map(|block| overlay.entry(block)).collect()
}

#[test]
fn what_was_flushed_is_there_again_and_what_was_not_is_not() {
    let mut files = Files::new();
    let (mut overlay, report) = files.recover().unwrap();
    assert_eq!(report, Recovered { sections: 1, ..Recovered::default() });
    files.change(&mut overlay, &written(3..90));
    files.change(&mut overlay, &zeroed(10..700, false));
    files.change(&mut overlay, &zeroed(800..900, true));
    files.change(&mut overlay, &Extent { blocks: 20..30, zero: 22..28, provision: false });
    let all = overlay.visible();
    assert_eq!(overlay.durable(all, KEY), Ok(None));
    files.work(&mut overlay);
    assert!(overlay.durable(all, KEY).unwrap().is_some());
    let flushed = map_of(&overlay);
    files.change(&mut overlay, &written(0..5));
    let (again, report) = files.recover().unwrap();
    assert!(map_of(&again) == flushed);
    assert_eq!((report.records, report.edits, report.cut), (1, 6, false));
    again.audit();
    assert_eq!(again.counts().live, 11);
}

#[test]
fn a_barrier_begins_by_itself_when_many_slots_wait_for_one() {
    // Overwritten, trimmed in a leaf of the map, and trimmed as a whole leaf. The bound is 200 and an eighth of what is live.
    let changes = [
        (written(0..264), false),
        (written(0..265), true),
        (zeroed(0..234, false), false),
        (zeroed(0..236, false), true),
        (zeroed(0..512, false), true),
    ];
    for (change, begins) in changes {
        let mut files = Files::new();
        let (mut overlay, _) = files.recover().unwrap();
        files.change(&mut overlay, &written(0..512));
        overlay.flush();
        files.work(&mut overlay);
        files.change(&mut overlay, &change);
        assert_eq!(overlay.poll_task().is_some(), begins, "{change:?}");
    }
}

#[test]
fn a_barrier_begins_by_itself_when_three_quarters_of_the_room_are_taken() {
    // Of 400 edits or 800 slots: so many publishes of so many blocks each, with one block between two of them.
    for (publishes, blocks, begins) in
        [(300, 1, false), (301, 1, true), (1, 600, false), (1, 601, true)]
    {
        let limits = JournalLimits { queue_entries_max: 400, fresh_slots_max: 800, ..limits() };
        let mut files = Files::with(SEGMENT_BYTES, limits);
        let (mut overlay, _) = files.recover().unwrap();
        for publish in 0..publishes {
            let block = publish * (blocks + 1);
            files.change(&mut overlay, &written(block..block + blocks));
        }
        assert_eq!(overlay.poll_task().is_some(), begins, "{publishes} of {blocks}");
    }
}

#[test]
fn no_more_slots_wait_for_a_record_than_may() {
    let limits = JournalLimits { fresh_slots_max: 1000, ..limits() };
    for (before, waits) in [(0, false), (1, true)] {
        let mut files = Files::with(SEGMENT_BYTES, limits.clone());
        let (mut overlay, _) = files.recover().unwrap();
        files.change(&mut overlay, &written(1100..1100 + before));
        files.change(&mut overlay, &written(0..1000));
        // The harness works for the journal when a publish has to wait.
        let (_, report) = files.recover().unwrap();
        assert_eq!(report.records, u64::from(waits));
    }
}

#[test]
fn no_publish_is_taken_in_that_may_not_fit_the_queue() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    let mut trims = (0..BLOCKS).step_by(2).map(|block| zeroed(block..block + 1, false));
    let taken_in = trims.position(|extent| {
        let mut runs = Vec::new();
        let Reserve::Granted(grant) = overlay.reserve(&extent, KEY, &mut runs).unwrap() else {
            panic!("a trim needs no slots");
        };
        let outcome = overlay.publish(&extent, &mut runs, grant, [].into_iter());
        assert!(matches!(outcome, Ok(_) | Err(Conflict::Backlog)));
        outcome.is_err()
    });
    // Each is one edit, but might be two.
    assert_eq!(taken_in, Some(499));
}

#[test]
fn a_block_that_is_written_over_and_over_takes_one_edit_and_two_slots() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..2));
    for block in [7, 9].repeat(20) {
        files.change(&mut overlay, &written(block..block + 1));
        overlay.reclaim();
    }
    // What no record ever named is free at once.
    assert_eq!((overlay.counts().live, overlay.counts().displaced), (4, 0));
    overlay.flush();
    files.work(&mut overlay);
    let (again, report) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay));
    assert_eq!((report.records, report.edits), (1, 3));
    // From here on the old slots wait until the next record is durable.
    files.change(&mut overlay, &written(7..8));
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 1);
}

#[test]
fn a_record_of_few_slots_carries_them_and_they_are_put_back() {
    let mut files = carrying(4);
    let (mut overlay, _) = files.recover().unwrap();
    let flushed = |files: &mut Files, overlay: &mut Overlay, extent: &Extent, version: u8| {
        let before = files.syncs;
        files.change(overlay, extent);
        for block in extent.blocks.clone() {
            if let Entry::Slot(slot) = overlay.entry(block) {
                files.data[slot.0 as usize] = version;
            }
        }
        overlay.flush();
        files.work(overlay);
        files.syncs == before
    };
    // The data file has just grown: its length must be synced, and the bytes are with it.
    assert!(!flushed(&mut files, &mut overlay, &written(0..2), 1));
    assert!(flushed(&mut files, &mut overlay, &written(1..5), 2));
    assert!(flushed(&mut files, &mut overlay, &zeroed(900..903, true), 3));
    assert!(flushed(&mut files, &mut overlay, &written(3..4), 4));
    // More than a record carries.
    assert!(!flushed(&mut files, &mut overlay, &written(10..15), 5));
    assert!(flushed(&mut files, &mut overlay, &written(11..12), 6));
    let (map, before) = (map_of(&overlay), shown(&overlay, &files.data));
    files.cut_power();
    assert!(shown(&overlay, &files.data) != before);
    let (mut again, report) = files.recover().unwrap();
    assert_eq!((report.generation, report.records, report.restored), (1, 3, 2));
    assert!(map_of(&again) == map && shown(&again, &files.data) == before);
    assert_eq!(before[..5], [1, 2, 2, 4, 2]);
    assert_eq!(before[10..15], [5, 6, 5, 5, 5]);
    // Not one bit of what is carried may change.
    let mut damaged = files.clone();
    let segment = damaged.file(JournalFile::Segment(true));
    let last = segment.iter().rposition(|byte| *byte == 6).unwrap();
    segment[last] ^= 1;
    let (_, report) = damaged.recover().unwrap();
    assert_eq!((report.records, report.cut), (2, true));
    // Whoever has just begun does not know whether the length is durable that he found.
    let total = again.counts().total;
    assert!(!flushed(&mut files, &mut again, &written(20..21), 7));
    assert!(flushed(&mut files, &mut again, &written(21..22), 8));
    assert_eq!(again.counts().total, total);
}

#[test]
fn what_nobody_flushes_becomes_durable_when_the_device_is_quiet_or_in_the_end() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    let mut ticks = |overlay: &mut Overlay, writes: bool| {
        (1..).find(|tick| {
            if writes {
                files.change(overlay, &written(tick % BLOCKS..tick % BLOCKS + 1));
            }
            overlay.tick();
            let begins = overlay.poll_task();
            let has_begun = begins.is_some();
            if let Some(task) = begins {
                overlay.finished(task, Ok(()));
                files.work(overlay);
            }
            has_begun
        })
    };
    assert_eq!(ticks(&mut overlay, true), Some(6));
    assert_eq!(ticks(&mut overlay, true), Some(6));
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..3));
    overlay.tick();
    assert!(overlay.poll_task().is_none(), "it was written a moment ago");
    overlay.tick();
    files.work(&mut overlay);
    files.cut_power();
    assert_eq!(files.recover().unwrap().0.counts().live, 3);
}

#[test]
fn a_sheet_comes_back_under_a_quota_that_it_exceeds_and_a_trim_makes_room() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..10));
    overlay.flush();
    files.work(&mut overlay);
    let config = OverlayConfig { quota_bytes: 4 * 4096, ..config() };
    let (mut overlay, _) = files.recover_as(config).unwrap();
    overlay.audit();
    let refused = overlay.reserve(&written(10..11), KEY, &mut Vec::new());
    assert_eq!(refused, Err(crate::Errno::NoSpace));
    files.change(&mut overlay, &written(0..10));
    files.change(&mut overlay, &zeroed(0..7, false));
    files.change(&mut overlay, &written(10..11));
    overlay.audit();
}

#[test]
fn what_a_record_carries_counts_in_the_half_of_a_segment() {
    let mut files = carrying(4);
    let (mut overlay, _) = files.recover().unwrap();
    // A page without blocks, since the file has just grown; then five pages, and five that are too many for the half.
    for (blocks, generation) in [(0..8, 0), (0..4, 0), (4..8, 1)] {
        files.change(&mut overlay, &written(blocks));
        overlay.flush();
        files.work(&mut overlay);
        assert_eq!(overlay.generation(), generation);
    }
    let (_, report) = files.recover().unwrap();
    assert_eq!((report.records, report.restored), (1, 4));
}

#[test]
fn a_record_that_would_be_longer_than_a_frame_carries_nothing() {
    let limits = JournalLimits { carried_slots_max: 600, ..limits() };
    let mut files = Files::with(16 << 20, limits);
    let (mut overlay, _) = files.recover().unwrap();
    // The file grows twice; then the slots of the first record are used again.
    for (blocks, syncs) in [(0..600, 1), (0..600, 2), (0..511, 2), (0..512, 3)] {
        files.change(&mut overlay, &written(blocks.clone()));
        overlay.flush();
        files.work(&mut overlay);
        assert_eq!(files.syncs, syncs, "{blocks:?}");
    }
}

#[test]
fn a_record_longer_than_half_an_empty_segment_stays_in_it() {
    let limits = JournalLimits { queue_entries_max: 4092, fresh_slots_max: 1 << 20, ..limits() };
    let mut files = Files::with(SEGMENT_BYTES, limits);
    let (mut overlay, _) = files.recover().unwrap();
    for _ in 0..2100 {
        files.change(&mut overlay, &written(0..2));
    }
    overlay.flush();
    files.work(&mut overlay);
    assert_eq!(overlay.generation(), 0);
    let (again, report) = files.recover().unwrap();
    assert!(report.edits > 2044 && map_of(&again) == map_of(&overlay));
}

/// Flushes until a checkpoint has been written.
fn complete_checkpoint(files: &mut Files, overlay: &mut Overlay) {
    let before = overlay.generation();
    while overlay.generation() == before {
        files.change(overlay, &written(BLOCKS - 1..BLOCKS));
        overlay.flush();
        files.work(overlay);
    }
}

#[test]
fn a_checkpoint_is_written_in_sections_of_joined_runs() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    // All of it alike, and more than a leaf of the map has.
    files.change(&mut overlay, &zeroed(0..1100, false));
    complete_checkpoint(&mut files, &mut overlay);
    let (_, report) = files.recover().unwrap();
    assert_eq!((report.sections, report.checkpoint_entries), (1, 2));
    // A run for each of 120 blocks and what is between them: 50 of them for each section.
    for block in 0..120 {
        files.change(&mut overlay, &written(2 * block..2 * block + 1));
    }
    complete_checkpoint(&mut files, &mut overlay);
    let (again, report) = files.recover().unwrap();
    assert_eq!(report.sections, 5);
    assert!(map_of(&again) == map_of(&overlay));
}

#[test]
fn entries_are_joined_if_they_are_one_run() {
    let slots =
        |block, count, first| super::Entry { block, count, content: Content::Slots(SlotId(first)) };
    let alike = |block, count, content| super::Entry { block, count, content };
    for (next, joined) in [
        (slots(2, 4, 5), Some(6)),
        (slots(3, 4, 5), None),
        (slots(2, 4, 6), None),
        (alike(2, 4, Content::Zero), None),
    ] {
        let mut entry = slots(0, 2, 3);
        assert_eq!(entry.absorb(&next), joined.is_some());
        assert_eq!(entry, slots(0, joined.unwrap_or(2), 3));
    }
    let mut zero = alike(7, 2, Content::Zero);
    assert!(!zero.absorb(&alike(9, 1, Content::ZeroProvisioned)));
    assert!(zero.absorb(&alike(9, 1, Content::Zero)));
    assert_eq!(zero, alike(7, 3, Content::Zero));
}

#[test]
fn space_that_a_write_has_only_claimed_is_set_aside_after_a_crash() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &zeroed(0..4, true));
    overlay.flush();
    files.work(&mut overlay);
    let mut runs = Vec::new();
    let claimed = overlay.reserve(&written(0..4), KEY, &mut runs).unwrap();
    assert!(matches!(claimed, Reserve::Granted(_)));
    assert_eq!(overlay.entry(0), Entry::ZeroClaimed);
    complete_checkpoint(&mut files, &mut overlay);
    let (again, _) = files.recover().unwrap();
    assert_eq!([0, 3].map(|block| again.entry(block)), [Entry::ZeroProvisioned; 2]);
}

#[test]
fn checkpoints_bound_the_journal_whatever_is_written() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    let mut state = 1u64;
    for round in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let block = (state >> 33) % (BLOCKS - 9);
        let blocks = block..block + 1 + (state >> 60) % 8;
        match state >> 20 & 7 {
            0 => files.change(&mut overlay, &zeroed(blocks, state >> 50 & 1 == 1)),
            _ => files.change(&mut overlay, &written(blocks)),
        }
        if round % 3 == 0 {
            overlay.flush();
            files.work(&mut overlay);
        }
        overlay.audit();
        if round % 50 == 0 {
            files.work(&mut overlay);
            let (again, report) = files.recover().unwrap();
            assert!(map_of(&again) == map_of(&overlay) || round % 3 != 0);
            assert!(report.records <= 32, "{report:?}");
            again.audit();
            // The next life goes on where this one ended.
            overlay = again;
        }
    }
    assert!(overlay.generation() > 20, "{}", overlay.generation());
}

#[test]
fn a_slot_that_the_durable_map_names_waits_for_the_record_that_displaces_it() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..4));
    overlay.flush();
    files.work(&mut overlay);
    files.change(&mut overlay, &written(0..4));
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 4);
    // Those that no record ever named are free at once.
    files.change(&mut overlay, &written(0..4));
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 4);
    overlay.flush();
    files.work(&mut overlay);
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 0);
}

#[test]
fn a_full_disk_is_told_only_after_a_barrier_even_one_with_nothing_to_record() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..16));
    overlay.flush();
    files.work(&mut overlay);
    let seal = overlay.seal();
    files.change(&mut overlay, &written(0..16));
    overlay.flush();
    files.work(&mut overlay);
    // This changes nothing, but nobody knows yet whether it is durable.
    files.change(&mut overlay, &written(0..0));
    drop(overlay.unseal(seal));
    let (next, mut runs) = (written(100..100 + u64::from(overlay.counts().free) + 1), Vec::new());
    assert_eq!(overlay.reserve(&next, KEY, &mut runs), Ok(Reserve::Wait));
    assert_eq!(overlay.counts().displaced, 16);
    while overlay.poll_growth().is_some() {
        overlay.grown(false);
    }
    assert_eq!(overlay.take_waiting(), [], "there are slots to be had by a barrier");
    assert!(overlay.poll_task().is_none());
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert!(matches!(overlay.reserve(&next, KEY, &mut runs), Ok(Reserve::Granted(_))));
    overlay.audit();
}

/// Found by the simulator: the space was given back, and the write that it was set aside for refused on a full disk.
#[test]
fn space_set_aside_before_a_restart_has_its_space_before_any_is_given_back() {
    let space = SpaceLimits { hole_slots: 4, punch_slots_max: 16, ..SpaceLimits::growing_by(4) };
    let config = || OverlayConfig { space: space.clone(), ..config() };
    let mut files = Files::new();
    let (mut overlay, _) = files.recover_as(config()).unwrap();
    files.change(&mut overlay, &written(0..20));
    files.change(&mut overlay, &zeroed(0..20, false));
    files.change(&mut overlay, &zeroed(100..107, true));
    overlay.flush();
    files.work(&mut overlay);
    let (mut overlay, _) = files.recover_as(config()).unwrap();
    overlay.audit();
    overlay.tick();
    assert_eq!((overlay.counts().free, overlay.tally().reserved), (0, 7));
    assert_eq!(overlay.poll_punch(), None);
    while overlay.poll_growth().is_some() {
        assert_eq!(overlay.poll_punch(), None);
        overlay.grown(true);
    }
    assert!(overlay.counts().free >= 7);
    while overlay.poll_punch().is_some() {
        overlay.punched(true);
        overlay.audit();
    }
    assert!(overlay.counts().free >= 7);
}

#[test]
fn the_first_failure_is_final() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &written(0..4));
    let visible = overlay.visible();
    assert_eq!(overlay.durable(visible, KEY), Ok(None));
    let task = overlay.poll_task().unwrap();
    assert_eq!(task.action, Action::SyncData);
    overlay.finished(task, Err(Errno::Io));
    assert_eq!(overlay.poll_woken(), Some(KEY));
    assert_eq!(overlay.durable(visible, KEY), Err(Errno::Io));
    assert_eq!(overlay.reserve(&written(0..1), KEY, &mut Vec::new()), Err(Errno::Io));
    assert!(overlay.poll_task().is_none() && overlay.has_failed());
}
