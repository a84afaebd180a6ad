//! Every sequence of a few operations on two blocks, with a crash at every point.
//!
//! Operations and tasks of the journal take turns in every order. In each state that comes of it, the
//! power is cut: whatever was not synced is lost in every combination of its pieces, and recovery must
//! find the device as it was after some publish, not older than the last FLUSH that was acknowledged.
//! Then recovery is broken off and repeated, the device goes on, and the power is cut again. The generation
//! before the newest must have the same device, as long as it is there.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use glassine_core::journal::recovery::{Recovery, Refusal, Step};
use glassine_core::journal::superblock::{Identity, Superblock};
use glassine_core::journal::{Action, JournalFile, Task};
use glassine_core::overlay::{Extent, Reserve, SessionKey, Visible};
use glassine_core::{JournalLimits, Overlay, OverlayConfig, Source, SpaceLimits};

use crate::disk::{Disk, DiskFile};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2;
/// Half of a segment is room for one record, and what it carries: so a checkpoint begins with the second.
fn segment_bytes(carried_slots_max: u32) -> u64 {
    2 * BLOCK * u64::from(1 + carried_slots_max)
}
const KEY: SessionKey = SessionKey(1);
/// Up to so many pieces, every combination is lost; beyond, none, all, each alone, and all but each.
const PIECES_MAX: usize = 6;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Writes the first block.
    WriteFirst,
    /// Writes both.
    WriteBoth,
    /// Trims the first.
    TrimFirst,
    /// Zeroes both, with space set aside.
    ZeroBoth,
    /// A flush; others may go on before it is answered.
    Flush,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::WriteFirst, Self::WriteBoth, Self::TrimFirst, Self::ZeroBoth, Self::Flush];

    fn extent(self) -> Extent {
        let zero = |blocks: std::ops::Range<u64>, provision| Extent {
            blocks: blocks.clone(),
            zero: blocks,
            provision,
        };
        match self {
            Self::WriteFirst => Extent { blocks: 0..1, zero: 1..1, provision: false },
            Self::WriteBoth => Extent { blocks: 0..2, zero: 2..2, provision: false },
            Self::TrimFirst => zero(0..1, false),
            Self::ZeroBoth => zero(0..2, true),
            Self::Flush => unreachable!("it changes nothing"),
        }
    }
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Operate(Operation),
    /// The first or the second of the tasks under way is done.
    Task(usize),
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Different states in which the power was cut.
    pub states: u64,
    /// Power cuts in them, each with another part lost.
    pub cuts: u64,
    /// Steps from one state to the next.
    pub steps: u64,
    /// Checkpoints that were done in one of them.
    pub generations_max: u64,
}

/// A failure: what happened, and what was found.
#[derive(Debug)]
pub struct Found {
    /// What led there.
    pub path: String,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}: {}", self.path, self.text)
    }
}

/// By which bytes each block is known.
type Shown = [u8; BLOCKS as usize];

/// A device, its files, and what it must be after a crash.
struct Device {
    carried_slots_max: u32,
    overlay: Overlay,
    disk: Disk,
    tasks: Vec<Task>,
    /// What it was after each publish since the one that is certain.
    history: Vec<Shown>,
    /// Publishes before those in `history`.
    certain: usize,
    /// Flushes under way: how many publishes each covers.
    flushes: Vec<(Visible, usize)>,
    operations: usize,
}

/// What the template holds.
const TEMPLATE: u8 = 0xee;

fn config() -> OverlayConfig {
    let size_bytes = BLOCKS * BLOCK;
    let template_bytes = size_bytes;
    OverlayConfig {
        size_bytes,
        template_bytes,
        quota_bytes: u64::MAX,
        space: SpaceLimits::growing_by(4),
    }
}

fn recover(
    disk: &mut Disk,
    carried_slots_max: u32,
    steps: usize,
) -> Result<Option<Overlay>, String> {
    run(recovery(disk, carried_slots_max), disk, steps).map_err(|refusal| refusal.to_string())
}

fn recovery(disk: &Disk, carried_slots_max: u32) -> Recovery {
    let limits = JournalLimits {
        queue_entries_max: 60,
        fresh_slots_max: 100,
        limbo_slots_max: 100,
        section_entries: 1,
        carried_slots_max,
    };
    let slots = disk.bytes(DiskFile::Data).len() as u64 / BLOCK;
    Recovery::new(config(), [0; 32], slots as u32, limits)
}

/// Recovers in at most so many steps; nothing if there are more.
fn run(
    mut recovery: Recovery,
    disk: &mut Disk,
    mut steps: usize,
) -> Result<Option<Overlay>, Refusal> {
    while let Some(step) = recovery.poll() {
        if steps == 0 {
            return Ok(None);
        }
        steps -= 1;
        let mut read = Vec::new();
        match step {
            Step::Read { file, offset, length } => {
                read = disk.read(DiskFile::Journal(file), offset, length).to_vec();
            }
            Step::Write { file, offset, bytes } => {
                disk.write(DiskFile::Journal(file), offset, &bytes);
            }
            Step::Sync { file } => disk.sync(DiskFile::Journal(file)),
            Step::WriteData { offset, bytes } => disk.write(DiskFile::Data, offset, &bytes),
        }
        recovery.handle(Ok(&read))?;
    }
    let (overlay, _) = recovery.finish();
    overlay.audit();
    Ok(Some(overlay))
}

impl Device {
    fn new(carried_slots_max: u32) -> Self {
        let identity = Identity {
            sheet: 1,
            size_bytes: config().size_bytes,
            template_bytes: config().template_bytes,
            template_id: [0; 32],
            segment_bytes: segment_bytes(carried_slots_max),
        };
        let mut disk = Disk::new(true);
        disk.put_blank(&identity);
        let overlay = recover(&mut disk, carried_slots_max, usize::MAX);
        let overlay = overlay.expect("it is whole").expect("to the end");
        let mut device = Self {
            carried_slots_max,
            overlay,
            disk,
            tasks: Vec::new(),
            history: vec![[TEMPLATE; BLOCKS as usize]],
            certain: 0,
            flushes: Vec::new(),
            operations: 12,
        };
        if carried_slots_max > 0 {
            // Nothing is carried before the length of the data file is certain.
            for operation in [Operation::WriteFirst, Operation::Flush] {
                assert!(device.happen(Event::Operate(operation)));
            }
            while !device.tasks.is_empty() {
                device.happen(Event::Task(0));
            }
        }
        device.operations = 0;
        device
    }

    /// What may happen next.
    fn events(&self, operations_max: usize) -> impl Iterator<Item = Event> {
        let operations = Operation::ALL.into_iter().map(Event::Operate);
        let operations = operations.filter(move |_| self.operations < operations_max);
        operations.chain((0..self.tasks.len()).map(Event::Task))
    }

    /// Answers whether it could happen.
    fn happen(&mut self, event: Event) -> bool {
        let went = match event {
            Event::Operate(operation) => {
                self.operations += 1;
                self.operate(operation)
            }
            Event::Task(index) => {
                let mut task = self.tasks.remove(index);
                perform(&mut self.disk, &mut task);
                self.overlay.finished(task, Ok(()));
                true
            }
        };
        self.tasks.extend(std::iter::from_fn(|| self.overlay.poll_task()));
        while self.overlay.poll_woken().is_some() {}
        self.hear_of_flushes();
        went
    }

    fn operate(&mut self, operation: Operation) -> bool {
        if operation == Operation::Flush {
            let covered = self.certain + self.history.len() - 1;
            self.flushes.push((self.overlay.visible(), covered));
            return true;
        }
        let extent = operation.extent();
        let mut runs = Vec::new();
        let grant = loop {
            match self.overlay.reserve(&extent, KEY, &mut runs) {
                Ok(Reserve::Granted(grant)) => break grant,
                Ok(Reserve::Wait) => {
                    let slots = self.overlay.poll_growth().expect("somebody waits");
                    self.disk.grow(DiskFile::Data, slots.count as usize * BLOCK as usize, 0xdd);
                    self.overlay.grown(true);
                    self.overlay.take_waiting();
                }
                Err(_) => return false,
            }
        };
        let version = self.operations as u8;
        let mut shown = *self.history.last().expect("there is always one");
        let slots = runs.iter().flat_map(|run| (0..run.count).map(|index| run.slot(index)));
        let slots: Vec<_> = slots.collect();
        for block in extent.blocks.clone() {
            shown[block as usize] = 0;
            if let Some(slot) = slots.get((block - extent.blocks.start) as usize) {
                shown[block as usize] = version << 4 | block as u8;
                let bytes = [shown[block as usize]; BLOCK as usize];
                self.disk.write(DiskFile::Data, slot.offset(), &bytes);
            }
        }
        let went = self.overlay.publish(&extent, &mut runs, grant, [].into_iter()).is_ok();
        if went {
            self.history.push(shown);
        } else {
            // The journal has no room before a task is done: it happens then, on another path.
            self.overlay.release(&mut runs, grant);
        }
        went
    }

    /// Flushes that are acknowledged by now make what they cover certain.
    fn hear_of_flushes(&mut self) {
        let Self { overlay, flushes, certain, .. } = self;
        let mut acknowledged = 0;
        flushes.retain(|(visible, covered)| {
            let durable = overlay.durable(*visible, KEY).expect("nothing fails");
            if durable.is_some() {
                acknowledged = acknowledged.max(*covered);
            }
            durable.is_none()
        });
        let gone = acknowledged.saturating_sub(*certain);
        self.history.drain(..gone);
        self.certain += gone;
        self.tasks.extend(std::iter::from_fn(|| self.overlay.poll_task()));
        while self.overlay.poll_woken().is_some() {}
    }

    /// A number that two states share if they have the same future.
    fn hash(&self) -> u64 {
        let mut state = FixedState::with_seed(0).build_hasher();
        self.overlay.hash(&mut state);
        self.disk.hash(&mut state);
        self.disk.unsynced().collect::<Vec<_>>().hash(&mut state);
        (&self.tasks, &self.history, &self.flushes, self.operations).hash(&mut state);
        state.finish()
    }
}

fn perform(disk: &mut Disk, task: &mut Task) {
    let read = |offset: u64, bytes: &mut [u8]| {
        bytes.copy_from_slice(disk.read(DiskFile::Data, offset, bytes.len() as u64));
        Ok::<_, Infallible>(())
    };
    task.carry(read).expect("it cannot fail");
    match &task.action {
        Action::SyncData => disk.sync(DiskFile::Data),
        Action::Sync { file } => disk.sync(DiskFile::Journal(*file)),
        Action::Write { file, offset, bytes } => {
            disk.write(DiskFile::Journal(*file), *offset, bytes);
        }
    }
}

/// What each block shows; fails if it shows a mixture.
fn shown(overlay: &Overlay, disk: &Disk) -> Result<Shown, String> {
    let mut shown = [0; BLOCKS as usize];
    let mut failure = None;
    for block in 0..BLOCKS {
        overlay.resolve(block * BLOCK..(block + 1) * BLOCK, &mut |segment| {
            shown[block as usize] = match segment.source {
                Source::Zero => 0,
                Source::Template { .. } => TEMPLATE,
                Source::Data { offset } => {
                    let bytes = disk.read(DiskFile::Data, offset, BLOCK);
                    if bytes.iter().any(|byte| *byte != bytes[0]) {
                        failure = Some(format!("block {block} is a mixture"));
                    }
                    bytes[0]
                }
            };
        });
    }
    failure.map_or(Ok(shown), Err)
}

/// Parts of what is not synced that are kept or lost as one: a slot; of anything else, the first sector
/// of a page, and the rest of it.
fn pieces(disk: &Disk) -> Vec<(DiskFile, u64, bool)> {
    let mut pieces: Vec<_> = disk.unsynced().map(|(file, sector)| piece(file, sector)).collect();
    pieces.sort_unstable();
    pieces.dedup();
    pieces
}

fn piece(file: DiskFile, sector: u64) -> (DiskFile, u64, bool) {
    let is_head = sector.is_multiple_of(8) && file != DiskFile::Data;
    (file, sector / 8, is_head)
}

/// Which pieces are kept, as a set of their positions, for every cut that is tried.
fn kept(pieces: usize) -> Vec<u64> {
    let all = (1u64 << pieces) - 1;
    if pieces <= PIECES_MAX {
        return (0..=all).collect();
    }
    let alone = (0..pieces).flat_map(|piece| [1 << piece, all & !(1 << piece)]);
    [0, all].into_iter().chain(alone).collect()
}

/// Cuts the power in every way and looks at what is left; answers how many ways there are.
fn cut_everywhere(device: &Device) -> Result<u64, String> {
    let pieces = pieces(&device.disk);
    let sets = kept(pieces.len());
    for set in &sets {
        let mut disk = device.disk.clone();
        disk.cut_power_where(|file, sector| {
            let at = pieces.binary_search(&piece(file, sector));
            at.is_ok_and(|at| set >> at & 1 == 1)
        });
        let lost: Vec<_> = (0..pieces.len()).filter(|at| set >> at & 1 == 0).collect();
        after_cut(device, disk).map_err(|text| {
            let lost: Vec<_> = lost.iter().map(|at| pieces[*at]).collect();
            format!("{text}; lost: {lost:?}")
        })?;
    }
    Ok(sets.len() as u64)
}

/// The generation before the newest has the same device, unless the next was begun over it.
fn go_back(device: &Device, mut disk: Disk) -> Result<(), String> {
    let recovery = recovery(&disk, device.carried_slots_max).going_back();
    let superblock = DiskFile::Journal(JournalFile::Superblock);
    let newest = Superblock::newest(disk.bytes(superblock)).expect("one copy is whole").generation;
    let is_next_begun = newest == device.overlay.generation() && device.overlay.is_checkpointing();
    let overlay = match run(recovery, &mut disk, usize::MAX) {
        Ok(overlay) => overlay.expect("to the end"),
        Err(_) if newest == 0 || is_next_begun => return Ok(()),
        Err(refusal) => return Err(format!("there is no way back: {refusal}")),
    };
    let found = shown(&overlay, &disk)?;
    match device.history.contains(&found) {
        true => Ok(()),
        false => Err(format!("going back, {found:x?} is none of {:x?}", device.history)),
    }
}

fn after_cut(device: &Device, mut disk: Disk) -> Result<(), String> {
    go_back(device, disk.clone())?;
    // Recovery is broken off where it has written but not synced, and all of that is lost.
    let carried_slots_max = device.carried_slots_max;
    for steps in [5, 7, 9] {
        recover(&mut disk, carried_slots_max, steps)?;
        disk.cut_power_where(|_, _| false);
    }
    let overlay = recover(&mut disk, carried_slots_max, usize::MAX)?.expect("to the end");
    let found = shown(&overlay, &disk)?;
    if !device.history.contains(&found) {
        let text = format!("{found:x?} is none of {:x?}", device.history);
        return Err(text);
    }
    // It goes on, and what is flushed then survives the next cut.
    let (history, certain, operations) = (vec![found], 0, 14);
    let (tasks, flushes) = (Vec::new(), Vec::new());
    let mut next =
        Device { carried_slots_max, overlay, disk, tasks, history, certain, flushes, operations };
    next.tasks.extend(std::iter::from_fn(|| next.overlay.poll_task()));
    for operation in [Operation::WriteFirst, Operation::Flush] {
        while !next.happen(Event::Operate(operation)) {
            next.operations -= 1;
            next.happen(Event::Task(0));
        }
        while !next.flushes.is_empty() {
            next.happen(Event::Task(0));
        }
    }
    next.disk.cut_power_where(|_, _| false);
    let overlay = recover(&mut next.disk, carried_slots_max, usize::MAX)?.expect("to the end");
    let found = shown(&overlay, &next.disk)?;
    if [found] != next.history[..] {
        return Err(format!("in its second life, {found:x?} is not {:x?}", next.history));
    }
    Ok(())
}

/// Runs every sequence of up to so many operations, with a crash at every point of each. Records carry the
/// blocks of up to `carried_slots_max` slots.
pub fn explore(operations_max: usize, carried_slots_max: u32) -> Result<Counted, Found> {
    let mut counted = Counted::default();
    let mut seen = HashSet::new();
    let mut paths: Vec<Vec<Event>> = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let mut device = Device::new(carried_slots_max);
        let went = path.iter().all(|event| device.happen(*event));
        counted.steps += 1;
        if !went || !seen.insert(device.hash()) {
            continue;
        }
        let found = |text| Found { path: format!("{path:?}"), text };
        counted.cuts += cut_everywhere(&device).map_err(found)?;
        counted.states += 1;
        counted.generations_max = counted.generations_max.max(device.overlay.generation());
        paths.extend(device.events(operations_max).map(|event| {
            let mut longer = path.clone();
            longer.push(event);
            longer
        }));
    }
    Ok(counted)
}
