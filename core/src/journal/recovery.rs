//! Recovery: from the files of a sheet to the device as it was after some publish, none older than what
//! was acknowledged as durable.
//!
//! The superblock names a generation. Its checkpoint is the map as it was when its segment began, or a
//! little newer; the records of the segment follow, and those of the next segment if a checkpoint was
//! under way. Where the records end, everything behind must be a tail that a crash cut: a record of the
//! same life behind a hole means that the medium lost something, and nobody guesses what. So does an end before
//! a record that was durable when the superblock was written: the checkpoint may have half of what it says.
//!
//! The last record may have been read from a cache, and never have reached the medium. So it is written
//! once more as it is, like both copies of the superblock, and synced; only then is the map taken for durable. Then blocks
//! that records carry go to their slots: each as the last record that names its slot has it, unless that
//! one found the slot synced. Nothing else is written, so that recovery can be broken off and begun again at
//! any point.
//!
//! A newer generation overwrites the files of the one before the last. Until then a sheet can *go back* to
//! the generation before: its checkpoint, its records and those since then give the same device. That
//! helps if the newer checkpoint is damaged, and loses nothing: all of the records must be there.
//!
//! # How to drive it
//! Take [`Recovery::poll`], do what it says, and tell [`Recovery::handle`] how it went, until there is
//! nothing more to do; then [`Recovery::finish`]. After a refusal the machine is over.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::frame::{
    FRAME_BYTES_MAX, Frame, FrameBuffer, FrameError, FrameHeader, FrameKind, PAGE_BYTES,
    frame_bytes,
};
use super::superblock::{Identity, SUPERBLOCK_FILE_BYTES, Superblock, SuperblockError};
use super::{Journal, JournalFile, Position, checkpoint_file, segment_file};
use crate::error::Errno;
use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::{BLOCK_BYTES, JournalLimits};
use crate::map::{self, Dropped, Map};
use crate::overlay::{Overlay, OverlayConfig};
use crate::slot::{Run, SlotId, SlotTable};

/// Bytes of a checkpoint that are read at a time; no section is longer.
const READ_BYTES: u64 = FRAME_BYTES_MAX as u64;

/// The files of a sheet that was just made. The segments are zero, and all of it must be durable before
/// anybody counts on it.
#[derive(Debug)]
pub struct Blank {
    /// The superblock's file.
    pub superblock: Vec<u8>,
    /// The checkpoint of generation 0.
    pub checkpoint: Vec<u8>,
}

/// A sheet that nobody has written to.
#[must_use]
pub fn blank(identity: &Identity) -> Blank {
    let superblock =
        Superblock { identity: *identity, generation: 0, number: 0, chain: 0, needs: 0 };
    let mut file = superblock.encode().to_vec();
    file.resize(SUPERBLOCK_FILE_BYTES, 0);
    let header = FrameHeader {
        kind: FrameKind::LastSection,
        sheet: identity.sheet,
        generation: 0,
        number: 0,
        chain: 0,
    };
    Blank { superblock: file, checkpoint: FrameBuffer::default().finish(&header).0 }
}

/// What recovery needs done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read so many bytes of a file, fewer only at its end.
    Read {
        /// Which file.
        file: JournalFile,
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Write these bytes.
    Write {
        /// Which file.
        file: JournalFile,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Make what was written durable.
    Sync {
        /// Which file.
        file: JournalFile,
    },
    /// Write these bytes to the data file.
    WriteData {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
}

/// Why a sheet cannot be served. Nothing of it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A file could not be read, written or synced.
    Storage {
        /// Which.
        file: JournalFile,
        /// Why.
        error: Errno,
    },
    /// A block that a record carries could not be written to the data file.
    Restore {
        /// Where.
        offset: u64,
        /// Why.
        error: Errno,
    },
    /// There is no superblock to go by.
    Superblock(SuperblockError),
    /// The sheet is of a device of another size.
    DeviceSize {
        /// The size it is for.
        expected: u64,
    },
    /// The sheet was made over another template.
    Template,
    /// The segments are too small for the longest payload of this server.
    SegmentTooSmall,
    /// Bytes that must be there are not, or are not what was written.
    Damaged {
        /// In which file.
        file: JournalFile,
        /// From where on.
        offset: u64,
        /// What is wrong with them.
        damage: Damage,
    },
    /// The data file is shorter than the map needs.
    DataShort {
        /// Slots that it must have.
        needed: u64,
        /// Slots that it has.
        there: u64,
    },
    /// The map names a slot twice.
    SlotTwice(SlotId),
    /// There is no way back: the records of the generation before do not lead to the next one.
    NotAllThere {
        /// Where they were.
        file: JournalFile,
    },
}

/// What is wrong with bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Damage {
    /// They are no frame.
    Frame(FrameError),
    /// They are a frame of another sheet, generation or place.
    Foreign,
    /// An entry lies beyond the end of the device.
    BeyondDevice,
    /// They are not a whole record, but behind them comes one.
    Hole {
        /// Where that is.
        next: u64,
    },
    /// They are not a whole record, but the checkpoint counts on one.
    Missing,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage { file, error } => write!(f, "{file}: storage failed ({error:?})"),
            Self::Restore { offset, error } => {
                write!(f, "data: a block could not be put back at byte {offset} ({error:?})")
            }
            Self::Superblock(error) => write!(f, "superblock: {error}"),
            Self::DeviceSize { expected } => {
                write!(f, "the sheet is of a device of {expected} bytes")
            }
            Self::Template => f.write_str("the sheet was made over another template"),
            Self::SegmentTooSmall => f.write_str("the journal is too small for the longest write"),
            Self::Damaged { file, offset, damage } => {
                write!(f, "{file}: damaged at byte {offset}: {damage}")
            }
            Self::DataShort { needed, there } => {
                write!(f, "the data file has {there} slots, but the map needs {needed}")
            }
            Self::SlotTwice(slot) => write!(f, "two blocks are in slot {}", slot.0),
            Self::NotAllThere { file } => {
                write!(f, "{file}: the records of the generation before are not all there any more")
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => write!(f, "{error}"),
            Self::Foreign => f.write_str("a frame of another place"),
            Self::BeyondDevice => f.write_str("an entry beyond the end of the device"),
            Self::Hole { next } => {
                write!(f, "no whole record is here, but there is one behind it, at byte {next}")
            }
            Self::Missing => f.write_str("no whole record is here, but the checkpoint needs one"),
        }
    }
}

/// What recovery found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Recovered {
    /// The generation whose checkpoint it began with.
    pub generation: u64,
    /// Sections of the checkpoint, and the entries in them.
    pub sections: u64,
    /// Entries of the checkpoint.
    pub checkpoint_entries: u64,
    /// Records behind it.
    pub records: u64,
    /// Edits in them.
    pub edits: u64,
    /// Whether the last record was cut: it was never acknowledged.
    pub cut: bool,
    /// Blocks that records carried, and that went to the data file.
    pub restored: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Superblock {
        goes_back: bool,
    },
    Checkpoint,
    Segment {
        is_next: bool,
    },
    WriteSuperblock,
    SyncSuperblock,
    WriteRecord,
    SyncRecord,
    /// Blocks go back to their slots.
    Restore,
    Done,
}

/// See the module.
#[derive(Debug)]
pub struct Recovery {
    config: OverlayConfig,
    template_id: [u8; 32],
    limits: JournalLimits,
    data_slots: u32,
    stage: Stage,
    superblock: Option<Superblock>,
    /// Both copies, as they are to be written.
    superblocks: Vec<u8>,
    /// What the superblock of the generation says that is given up.
    given_up: Option<Superblock>,
    map: Map,
    /// The next section of the checkpoint.
    section: Position,
    offset: u64,
    /// The segment in use, by its generation; where it begins, and how much of it is used.
    segment: u64,
    first: Position,
    used: u64,
    /// The next record.
    next: Position,
    /// The last one: its file, its place, its bytes.
    last: Option<(JournalFile, u64, Vec<u8>)>,
    /// Blocks that go to their slots.
    carried: BTreeMap<SlotId, Vec<u8>>,
    /// The slots, once the map is known.
    slots: Option<SlotTable>,
    report: Recovered,
}

impl Recovery {
    /// Begins the recovery of a device whose data file has so many slots. `template_id` is what the driver
    /// knows its template by.
    #[must_use]
    pub fn new(
        config: OverlayConfig,
        template_id: [u8; 32],
        data_slots: u32,
        limits: JournalLimits,
    ) -> Self {
        let longest = limits.queue_entries_max.max(limits.section_entries);
        assert!(frame_bytes(longest as usize) <= FRAME_BYTES_MAX, "what is written can be read");
        let start = Position { number: 0, chain: 0 };
        Self {
            map: Map::new(config.size_bytes.div_ceil(u64::from(BLOCK_BYTES)), config.initial()),
            config,
            template_id,
            limits,
            data_slots,
            stage: Stage::Superblock { goes_back: false },
            superblock: None,
            superblocks: Vec::new(),
            given_up: None,
            section: start,
            offset: 0,
            segment: 0,
            first: start,
            used: 0,
            next: start,
            last: None,
            carried: BTreeMap::new(),
            slots: None,
            report: Recovered::default(),
        }
    }

    /// Begins with the generation before the newest, and gives that one up.
    #[must_use]
    pub fn going_back(self) -> Self {
        Self { stage: Stage::Superblock { goes_back: true }, ..self }
    }

    fn superblock(&self) -> &Superblock {
        self.superblock.as_ref().expect("it is read first")
    }

    /// What to do next; nothing when recovery is done.
    #[must_use]
    pub fn poll(&self) -> Option<Step> {
        Some(match &self.stage {
            Stage::Superblock { .. } => Step::Read {
                file: JournalFile::Superblock,
                offset: 0,
                length: SUPERBLOCK_FILE_BYTES as u64,
            },
            Stage::Checkpoint => Step::Read {
                file: checkpoint_file(self.superblock().generation),
                offset: self.offset,
                length: READ_BYTES,
            },
            Stage::Segment { .. } => Step::Read {
                file: self.segment_read(),
                offset: 0,
                length: self.superblock().identity.segment_bytes,
            },
            Stage::WriteSuperblock => Step::Write {
                file: JournalFile::Superblock,
                offset: 0,
                bytes: self.superblocks.clone(),
            },
            Stage::SyncSuperblock => Step::Sync { file: JournalFile::Superblock },
            Stage::WriteRecord => {
                let (file, offset, bytes) = self.last.as_ref()?;
                Step::Write { file: *file, offset: *offset, bytes: bytes.clone() }
            }
            Stage::SyncRecord => Step::Sync { file: self.last.as_ref()?.0 },
            Stage::Restore => {
                let (slot, bytes) = self.carried.first_key_value()?;
                Step::WriteData { offset: slot.offset(), bytes: bytes.clone() }
            }
            Stage::Done => return None,
        })
    }

    fn segment_read(&self) -> JournalFile {
        let generation = self.superblock().generation;
        let is_next = self.stage == Stage::Segment { is_next: true };
        segment_file(generation + u64::from(is_next))
    }

    /// How the last step went: the bytes of a read, nothing of the others.
    pub fn handle(&mut self, outcome: Result<&[u8], Errno>) -> Result<(), Refusal> {
        let step = self.poll().expect("there was something to do");
        let file = match step {
            Step::Read { file, .. } | Step::Write { file, .. } | Step::Sync { file } => file,
            Step::WriteData { offset, .. } => {
                outcome.map_err(|error| Refusal::Restore { offset, error })?;
                self.carried.pop_first();
                self.stage = self.restore();
                return Ok(());
            }
        };
        let bytes = outcome.map_err(|error| Refusal::Storage { file, error })?;
        self.stage = match self.stage {
            Stage::Superblock { goes_back } => self.read_superblock(bytes, goes_back)?,
            Stage::Checkpoint => self.read_checkpoint(file, bytes)?,
            Stage::Segment { is_next } => self.read_segment(file, bytes, is_next)?,
            Stage::WriteSuperblock => Stage::SyncSuperblock,
            Stage::SyncSuperblock if self.last.is_some() => Stage::WriteRecord,
            Stage::WriteRecord => Stage::SyncRecord,
            Stage::SyncSuperblock | Stage::SyncRecord => self.restore(),
            Stage::Restore | Stage::Done => unreachable!("it is no step of a journal's file"),
        };
        Ok(())
    }

    fn restore(&self) -> Stage {
        let is_done = self.carried.is_empty() || planted(Bug::CarriedNotRestored);
        if is_done { Stage::Done } else { Stage::Restore }
    }

    fn read_superblock(&mut self, bytes: &[u8], goes_back: bool) -> Result<Stage, Refusal> {
        self.superblocks = bytes.to_vec();
        let superblock = if goes_back {
            let [newest, before] = Superblock::last_two(bytes).map_err(Refusal::Superblock)?;
            self.given_up = Some(newest);
            if !planted(Bug::GivenUpKept) {
                let offset = Superblock::offset(newest.generation) as usize;
                self.superblocks[offset..][..PAGE_BYTES].fill(0);
            }
            before
        } else {
            Superblock::newest(bytes).map_err(Refusal::Superblock)?
        };
        let Identity { size_bytes, template_bytes, template_id, segment_bytes, .. } =
            superblock.identity;
        if size_bytes != self.config.size_bytes {
            return Err(Refusal::DeviceSize { expected: size_bytes });
        }
        if template_bytes != self.config.template_bytes || template_id != self.template_id {
            return Err(Refusal::Template);
        }
        if frame_bytes(self.limits.queue_entries_max as usize) as u64 > segment_bytes {
            return Err(Refusal::SegmentTooSmall);
        }
        self.next = superblock.first();
        self.first = self.next;
        self.segment = superblock.generation;
        self.report.generation = superblock.generation;
        self.superblock = Some(superblock);
        Ok(Stage::Checkpoint)
    }

    /// Takes the sections that are whole in `bytes`.
    fn read_checkpoint(&mut self, file: JournalFile, bytes: &[u8]) -> Result<Stage, Refusal> {
        let Superblock { identity, generation, .. } = *self.superblock();
        let mut at = 0;
        loop {
            let offset = self.offset + at as u64;
            let damaged = |damage| Refusal::Damaged { file, offset, damage };
            let frame = match Frame::parse(&bytes[at..]) {
                Ok(frame) => frame,
                Err(FrameError::Short) if at > 0 => {
                    self.offset = offset;
                    return Ok(Stage::Checkpoint);
                }
                Err(error) => return Err(damaged(Damage::Frame(error))),
            };
            let FrameHeader { kind, sheet, .. } = frame.header;
            let found = (sheet, frame.header.generation, frame.header.number, frame.header.chain);
            let expected = (identity.sheet, generation, self.section.number, self.section.chain);
            if found != expected || kind == FrameKind::Record {
                return Err(damaged(Damage::Foreign));
            }
            let applied = apply(&mut self.map, &mut self.carried, &frame);
            self.report.checkpoint_entries += applied.map_err(damaged)?;
            self.report.sections += 1;
            self.section = Position { number: self.section.number + 1, chain: frame.checksum };
            at += frame.bytes.len();
            if kind == FrameKind::LastSection {
                return Ok(Stage::Segment { is_next: false });
            }
        }
    }

    fn read_segment(
        &mut self,
        file: JournalFile,
        bytes: &[u8],
        is_next: bool,
    ) -> Result<Stage, Refusal> {
        let Superblock { identity, generation, needs, .. } = *self.superblock();
        if (bytes.len() as u64) < identity.segment_bytes {
            let (offset, damage) = (bytes.len() as u64, Damage::Frame(FrameError::Short));
            return Err(Refusal::Damaged { file, offset, damage });
        }
        let place = Place { sheet: identity.sheet, generation: generation + u64::from(is_next) };
        let first = self.next;
        let log = replay(bytes, place, &mut self.next, &mut self.map, &mut self.carried)
            .map_err(|(offset, damage)| Refusal::Damaged { file, offset: offset as u64, damage })?;
        self.report.records += log.records;
        self.report.edits += log.edits;
        self.report.cut |= log.is_cut;
        if let Some(last) = log.last {
            self.last = Some((file, last.start as u64, bytes[last].to_vec()));
        }
        if is_next && log.records > 0 {
            mark(Mark::SegmentsBoth);
            self.segment = place.generation;
            self.first = first;
        }
        if !is_next || log.records > 0 {
            self.used = if planted(Bug::ReplayTwice) { 0 } else { log.end as u64 };
        }
        if !is_next && self.given_up.is_some_and(|newest| newest.first() != self.next) {
            return Err(Refusal::NotAllThere { file });
        }
        let needs = if is_next { self.given_up.map_or(0, |newest| newest.needs) } else { needs };
        if self.next.number < needs && !planted(Bug::NeedsIgnored) {
            let (offset, damage) = (log.end as u64, Damage::Missing);
            return Err(Refusal::Damaged { file, offset, damage });
        }
        if !is_next && (self.given_up.is_none() || !planted(Bug::RepairForgets)) {
            return Ok(Stage::Segment { is_next: true });
        }
        self.check()?;
        if self.given_up.is_some() {
            mark(Mark::WentBack);
        }
        Ok(Stage::WriteSuperblock)
    }

    /// Before anything is written: whether the map fits the data file.
    fn check(&mut self) -> Result<(), Refusal> {
        let (needed, there) = (u64::from(highest_slot(&self.map)), u64::from(self.data_slots));
        let needed = needed.max(self.map.tally().provisioned());
        if needed > there {
            return Err(Refusal::DataShort { needed, there });
        }
        let hole_slots = self.config.space.hole_slots;
        let slots = SlotTable::recovered(self.data_slots, &self.map, hole_slots);
        let slots = slots.map_err(Refusal::SlotTwice)?;
        self.carried.retain(|slot, _| slot.0 < self.data_slots && slots.is_live(*slot));
        if !self.carried.is_empty() {
            mark(Mark::BlocksRestored);
        }
        self.report.restored = self.carried.len() as u64;
        self.slots = Some(slots);
        Ok(())
    }

    /// The device, and what was found.
    #[must_use]
    pub fn finish(self) -> (Overlay, Recovered) {
        assert!(self.stage == Stage::Done, "recovery is done");
        let superblock = self.superblock.expect("it was read");
        let slots = self.slots.expect("the map was checked");
        let places = [self.first, self.next];
        let journal = Journal::resumed(self.limits, &superblock, self.segment, places, self.used);
        (Overlay::recovered(self.config, self.map, slots, journal), self.report)
    }
}

/// The life of a segment.
#[derive(Debug, Clone, Copy)]
struct Place {
    sheet: u64,
    generation: u64,
}

/// The records of a segment.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    records: u64,
    edits: u64,
    /// Where the last record lies.
    last: Option<Range<usize>>,
    /// Where the records end.
    end: usize,
    /// What follows was to be a record, and is not.
    is_cut: bool,
}

/// Applies the records of a segment in order. Fails where one is missing, or says what cannot be.
fn replay(
    bytes: &[u8],
    place: Place,
    next: &mut Position,
    map: &mut Map,
    carried: &mut BTreeMap<SlotId, Vec<u8>>,
) -> Result<Log, (usize, Damage)> {
    let mut log = Log { records: 0, edits: 0, last: None, end: 0, is_cut: false };
    while log.end < bytes.len() {
        let at = log.end;
        let frame = match Frame::parse(&bytes[at..]) {
            Ok(frame) if belongs(&frame, place, *next) => frame,
            other => {
                log.is_cut = other.is_err_and(|error| error == FrameError::Checksum);
                let Some(hole) = later_record(&bytes[at..], place, *next) else { break };
                if planted(Bug::HoleSkipped) {
                    log.end += hole;
                    let frame = Frame::parse(&bytes[log.end..]).expect("just seen");
                    *next = Position { number: frame.header.number, chain: frame.header.chain };
                    continue;
                }
                return Err((at, Damage::Hole { next: (at + hole) as u64 }));
            }
        };
        log.edits += apply(map, carried, &frame).map_err(|damage| (at, damage))?;
        log.records += 1;
        log.end += frame.bytes.len();
        log.last = Some(at..log.end);
        *next = Position { number: frame.header.number + 1, chain: frame.checksum };
    }
    if log.is_cut {
        mark(Mark::TailCut);
    }
    Ok(log)
}

/// Whether a frame is the record that must come next.
fn belongs(frame: &Frame<'_>, place: Place, next: Position) -> bool {
    let header = FrameHeader {
        kind: FrameKind::Record,
        sheet: place.sheet,
        generation: place.generation,
        number: next.number,
        chain: next.chain,
    };
    let stale = frame.header.sheet == place.sheet && planted(Bug::StaleSegment);
    frame.header == header || stale
}

/// Where a whole record of the same life lies which was written later.
fn later_record(bytes: &[u8], place: Place, next: Position) -> Option<usize> {
    (0..bytes.len()).step_by(PAGE_BYTES).find(|at| {
        let Ok(frame) = Frame::parse(&bytes[*at..]) else { return false };
        let FrameHeader { kind, sheet, generation, number, .. } = frame.header;
        let same_life = (sheet, generation) == (place.sheet, place.generation);
        kind == FrameKind::Record && same_life && number >= next.number
    })
}

/// Applies the entries of a frame, all or none; answers how many. What it carries is from now on in
/// `carried`; what it names and does not carry is not, for that was synced.
fn apply(
    map: &mut Map,
    carried: &mut BTreeMap<SlotId, Vec<u8>>,
    frame: &Frame<'_>,
) -> Result<u64, Damage> {
    let (mut count, mut slots) = (0, 0);
    for entry in frame.entries() {
        let entry = entry.map_err(Damage::Frame)?;
        if entry.blocks().end > map.blocks() {
            return Err(Damage::BeyondDevice);
        }
        slots += entry.run().map_or(0, |run| u64::from(run.count));
        count += 1;
    }
    let mut blocks = frame.carried().chunks_exact(BLOCK_BYTES as usize);
    if blocks.len() > 0 && blocks.len() as u64 != slots {
        return Err(Damage::Frame(FrameError::Length));
    }
    let ignore = &mut |_: SlotId| {};
    let mut runs: Vec<Run> = Vec::new();
    let mut entries = frame.entries().map(|entry| entry.expect("just checked")).peekable();
    while let Some(entry) = entries.next() {
        let mut range = entry.blocks();
        if let Some(uniform) = entry.uniform() {
            // What a map that nobody uses drops is just gone.
            let _ = map.fill(range, uniform, ignore, &mut Dropped::new());
            continue;
        }
        // Neighbours go into the map in one step.
        runs.clear();
        runs.extend(entry.run());
        while let Some(next) =
            entries.next_if(|next| next.block == range.end && next.run().is_some())
        {
            range.end += next.count;
            runs.extend(next.run());
        }
        let mut slots = runs.iter().flat_map(|run| (0..run.count).map(|index| run.slot(index)));
        map.publish(range, &mut slots, ignore);
        for run in &runs {
            let slots = (0..run.count).map(|index| run.slot(index));
            if blocks.len() > 0 {
                carried.extend(slots.zip(blocks.by_ref().map(<[u8]>::to_vec)));
            } else if !carried.is_empty() && !planted(Bug::CarriedOutlives) {
                forget(carried, *run);
            }
        }
    }
    Ok(count)
}

/// What these slots hold was synced.
fn forget(carried: &mut BTreeMap<SlotId, Vec<u8>>, run: Run) {
    let synced = run.first..SlotId(run.first.0 + run.count);
    while let Some((slot, _)) = carried.range(synced.clone()).next() {
        let slot = *slot;
        carried.remove(&slot);
    }
}

/// One more than the highest slot that a map names; 0 if it names none.
fn highest_slot(map: &Map) -> u32 {
    let mut highest = 0;
    map.walk(0..map.blocks(), &mut |_, entry| {
        if let map::Entry::Slot(slot) = entry {
            highest = highest.max(slot.0 + 1);
        }
    });
    highest
}
