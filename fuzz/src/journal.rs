//! A sheet's files: written by the core as a sequence of operations says, then damaged, then recovered.
//!
//! What was flushed must be there; what was damaged must be refused, or leave the device as it was after
//! some publish; and damage of the newest checkpoint alone is repaired without a loss. With its checksum made to fit, a damaged frame may say anything that frames can say: then
//! recovery must neither panic nor take more memory than the device's size explains.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::Range;

use crc::{CRC_32_ISCSI, Crc};
use glassine_core::journal::frame::{Frame, FrameBuffer, HEADER_BYTES, PAGE_BYTES};
use glassine_core::journal::recovery::{Recovery, Refusal, Step, blank};
use glassine_core::journal::superblock::{Identity, Superblock};
use glassine_core::journal::{Action, JournalFile};
use glassine_core::map::Entry;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::{JournalLimits, Overlay, OverlayConfig, SpaceLimits};

use crate::input::Choices;

const KEY: SessionKey = SessionKey(1);
const TEMPLATE_ID: [u8; 32] = [5; 32];
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Some blocks are written.
    Write,
    /// Some are made zero.
    Zero,
    /// Some are made zero, with space set aside.
    Provision,
    /// All that is visible becomes durable.
    Flush,
    /// The device is closed, and recovered.
    Reopen,
    /// A few bytes of a file change.
    Damage,
    /// A page of a file is written over another one.
    Copy,
    /// A file ends earlier.
    Cut,
    /// The checksum of a page is made to fit.
    Forge,
}

impl Op {
    /// All of them, in the order of the bytes that name them: the usual ones several times.
    pub const ALL: [Self; 16] = [
        Self::Write,
        Self::Flush,
        Self::Zero,
        Self::Write,
        Self::Flush,
        Self::Provision,
        Self::Write,
        Self::Flush,
        Self::Reopen,
        Self::Write,
        Self::Flush,
        Self::Reopen,
        Self::Damage,
        Self::Copy,
        Self::Cut,
        Self::Forge,
    ];
}

/// How far the files are from what the core wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Whole,
    Damaged,
    Forged,
}

struct Sheet {
    config: OverlayConfig,
    limits: JournalLimits,
    files: BTreeMap<JournalFile, Vec<u8>>,
    /// By what each slot of the data file is known; and what of that is synced.
    data: Vec<u64>,
    synced: Vec<u64>,
    overlay: Overlay,
    /// The map after each publish, and by what its slots were known; what was before the first.
    states: Vec<Vec<(Entry, u64)>>,
    /// All states from this one on may be what recovery finds.
    flushed: usize,
    trust: Trust,
    /// The files that were damaged.
    damaged: BTreeSet<JournalFile>,
}

/// Any sequence of operations on a sheet. The first bytes say what it is made of.
pub fn journal(bytes: &[u8]) {
    parse_anything(bytes);
    let mut choices = Choices::new(bytes);
    let blocks = choices.pick(&[3, 40, 600]);
    let size_bytes = blocks * 4096;
    let template_bytes = choices.pick(&[0, size_bytes]);
    let config = OverlayConfig {
        size_bytes,
        template_bytes,
        quota_bytes: u64::MAX,
        space: SpaceLimits::growing_by(4),
    };
    let limits = JournalLimits {
        queue_entries_max: 100,
        fresh_slots_max: choices.pick(&[1000, 5]),
        limbo_slots_max: choices.pick(&[1000, 5]),
        section_entries: choices.pick(&[1020, 1]),
        carried_slots_max: choices.pick(&[3, 0, 1, 32]),
    };
    let segment_bytes = choices.pick(&[16, 4, 2]) * PAGE_BYTES as u64;
    let template_id = TEMPLATE_ID;
    let identity = Identity { sheet: 9, size_bytes, template_bytes, template_id, segment_bytes };
    let made = blank(&identity);
    let segment = vec![0; segment_bytes as usize];
    let contents = [made.superblock, made.checkpoint, Vec::new(), segment.clone(), segment];
    let mut files: BTreeMap<_, _> = JournalFile::ALL.into_iter().zip(contents).collect();
    let mut data = Vec::new();
    let overlay = recover(&config, &limits, &mut data, &mut files, false);
    let overlay = overlay.expect("a blank sheet is whole");
    let states = vec![map_of(&overlay, &data)];
    let mut sheet = Sheet {
        config,
        limits,
        files,
        data,
        synced: Vec::new(),
        overlay,
        states,
        flushed: 0,
        trust: Trust::Whole,
        damaged: BTreeSet::new(),
    };
    while !choices.is_empty() && sheet.step(&mut choices) {}
    sheet.reopen();
}

/// Parsers take any bytes; and what they take for whole, they would write in the same way.
fn parse_anything(bytes: &[u8]) {
    let mut page = bytes.to_vec();
    page.resize(bytes.len().next_multiple_of(PAGE_BYTES).max(PAGE_BYTES), 0);
    for forge in [false, true] {
        if forge {
            forge_frame(&mut page);
        }
        if let Ok(frame) = Frame::parse(&page)
            && let Ok(entries) = frame.entries().collect::<Result<Vec<_>, _>>()
        {
            let mut buffer = FrameBuffer::default();
            entries.iter().for_each(|entry| buffer.push(entry));
            let blocks = frame.carried();
            let count = (blocks.len() / PAGE_BYTES) as u32;
            let (written, checksum) = buffer.finish_carrying(&frame.header, count);
            // What pads it may be anything; the checksum of what it carries is brought in with that.
            let end = HEADER_BYTES + entries.len() * 16;
            let padding = end..frame.bytes.len() - blocks.len();
            let is_padded = frame.bytes[padding].iter().any(|byte| *byte != 0);
            assert!(is_padded || (written[..52] == frame.bytes[..52]));
            assert!(is_padded || (written[56..end] == frame.bytes[56..end]));
            assert!(is_padded || checksum == frame.checksum);
        }
    }
    forge_superblock(&mut page);
    if let Ok(superblock) = Superblock::parse(&page) {
        assert!(superblock.encode()[..] == page[..PAGE_BYTES]);
    }
}

/// Makes the checksum of the frame at the start of some bytes fit, if it has a length that does.
fn forge_frame(bytes: &mut [u8]) {
    let length = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let Some(frame) = bytes.get_mut(..length).filter(|frame| frame.len() >= HEADER_BYTES) else {
        return;
    };
    let number = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let carried = (number(48) as usize).saturating_mul(PAGE_BYTES);
    let head = length.checked_sub(carried).filter(|head| *head >= HEADER_BYTES).unwrap_or(length);
    frame[44..48].fill(0);
    frame[52..56].fill(0);
    let checksum = CRC.checksum(&frame[..head]);
    let carried = if head == length { 0 } else { CRC.checksum(&frame[head..]) };
    frame[44..48].copy_from_slice(&checksum.to_le_bytes());
    frame[52..56].copy_from_slice(&carried.to_le_bytes());
}

fn forge_superblock(bytes: &mut [u8]) {
    let checksum = CRC.checksum(&bytes[..PAGE_BYTES - 4]);
    bytes[PAGE_BYTES - 4..PAGE_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

fn map_of(overlay: &Overlay, data: &[u64]) -> Vec<(Entry, u64)> {
    let entries = (0..overlay.size_bytes() / 4096).map(|block| overlay.entry(block));
    let known = |entry| match entry {
        Entry::Slot(slot) => data[slot.0 as usize],
        _ => 0,
    };
    entries.map(|entry| (entry, known(entry))).collect()
}

/// A block that is known by a number.
fn block_of(known: u64) -> Vec<u8> {
    known.to_le_bytes().repeat(PAGE_BYTES / 8)
}

fn recover(
    config: &OverlayConfig,
    limits: &JournalLimits,
    data: &mut [u64],
    files: &mut BTreeMap<JournalFile, Vec<u8>>,
    goes_back: bool,
) -> Result<Overlay, Refusal> {
    let slots = data.len() as u32;
    let mut recovery = Recovery::new(config.clone(), TEMPLATE_ID, slots, limits.clone());
    if goes_back {
        recovery = recovery.going_back();
    }
    let mut steps = 0;
    while let Some(step) = recovery.poll() {
        steps += 1;
        assert!(steps < 10_000, "recovery ends");
        let mut read: &[u8] = &[];
        match step {
            Step::Read { file, offset, length } => {
                let bytes = &files[&file];
                let start = bytes.len().min(offset as usize);
                read = &bytes[start..bytes.len().min(start.saturating_add(length as usize))];
            }
            Step::Write { file, offset, bytes } => {
                for (at, bytes) in
                    (offset as usize..).step_by(PAGE_BYTES).zip(bytes.chunks(PAGE_BYTES))
                {
                    let there =
                        &mut files.get_mut(&file).expect("all are there")[at..][..bytes.len()];
                    let gives_up = goes_back && file == JournalFile::Superblock;
                    let is_given_up = gives_up && bytes.iter().all(|byte| *byte == 0);
                    assert!(is_given_up || there == bytes, "recovery writes what is there");
                    there.copy_from_slice(bytes);
                }
            }
            Step::Sync { .. } => {}
            Step::WriteData { offset, bytes } => {
                let known = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                data[offset as usize / PAGE_BYTES] = known;
            }
        }
        recovery.handle(Ok(read))?;
    }
    let (overlay, _) = recovery.finish();
    overlay.audit();
    Ok(overlay)
}

impl Sheet {
    /// Answers whether it goes on.
    fn step(&mut self, choices: &mut Choices<'_>) -> bool {
        match choices.pick(&Op::ALL) {
            Op::Write => {
                let blocks = self.range(choices);
                self.change(&Extent { zero: blocks.end..blocks.end, blocks, provision: false });
            }
            op @ (Op::Zero | Op::Provision) => {
                let (blocks, provision) = (self.range(choices), op == Op::Provision);
                self.change(&Extent { zero: blocks.clone(), blocks, provision });
            }
            // What is damaged is written no more.
            Op::Flush if self.trust != Trust::Whole => {}
            Op::Flush => {
                self.overlay.flush();
                self.work();
                self.flushed = self.states.len() - 1;
            }
            Op::Reopen => return self.reopen(),
            Op::Damage => {
                let (value, (file, at)) = (choices.byte(), self.place(choices));
                // Half of them where a number begins.
                let at = if value % 2 == 1 { at / 4 * 4 } else { at };
                if let Some(byte) = self.file(file).get_mut(at) {
                    *byte ^= value;
                    self.distrust(file, Trust::Damaged);
                }
                if choices.below(2) == 0 {
                    return self.reopen();
                }
            }
            Op::Copy => {
                let (from, to) = (self.place(choices), self.place(choices));
                let start = from.1 / PAGE_BYTES * PAGE_BYTES;
                let page = self.files[&from.0].get(start..start + PAGE_BYTES);
                let page = page.map(<[u8]>::to_vec).unwrap_or_default();
                let start = to.1 / PAGE_BYTES * PAGE_BYTES;
                if let Some(place) = self.file(to.0).get_mut(start..start + page.len()) {
                    place.copy_from_slice(&page);
                    self.distrust(to.0, Trust::Damaged);
                }
            }
            Op::Cut => {
                let (file, at) = self.place(choices);
                self.file(file).truncate(at);
                self.distrust(file, Trust::Damaged);
            }
            Op::Forge => {
                let (file, at) = self.place(choices);
                let start = at / PAGE_BYTES * PAGE_BYTES;
                let bytes = &mut self.file(file)[start.min(at)..];
                if bytes.len() >= PAGE_BYTES {
                    let is_superblock = file == JournalFile::Superblock;
                    let forge = if is_superblock { forge_superblock } else { forge_frame };
                    forge(bytes);
                    self.distrust(file, Trust::Forged);
                }
            }
        }
        true
    }

    fn distrust(&mut self, file: JournalFile, trust: Trust) {
        self.damaged.insert(file);
        self.trust = self.trust.max(trust);
    }

    fn file(&mut self, file: JournalFile) -> &mut Vec<u8> {
        self.files.get_mut(&file).expect("all are there")
    }

    /// Some blocks, few as a rule.
    fn range(&self, choices: &mut Choices<'_>) -> Range<u64> {
        let blocks = (self.config.size_bytes / 4096) as u32;
        let first = choices.below(blocks);
        let most = choices.pick(&[3, 1, 20]).min(blocks - first);
        u64::from(first)..u64::from(first + 1 + choices.below(most))
    }

    /// Some place of a file: the beginning of a page that was written, or of the one behind them.
    fn place(&self, choices: &mut Choices<'_>) -> (JournalFile, usize) {
        let file = choices.pick(&JournalFile::ALL);
        let bytes = &self.files[&file];
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at / PAGE_BYTES + 1);
        let pages = (bytes.len() / PAGE_BYTES).min(written + 1) as u32;
        let page = if pages == 0 { 0 } else { choices.below(pages) as usize };
        (file, page * PAGE_BYTES + choices.below(100) as usize)
    }

    fn change(&mut self, extent: &Extent) {
        if self.trust != Trust::Whole {
            return;
        }
        let mut runs = Vec::new();
        let grant = loop {
            match self.overlay.reserve(extent, KEY, &mut runs).expect("there is space") {
                Reserve::Granted(grant) => break grant,
                Reserve::Wait => {
                    let slots = self.overlay.poll_growth().expect("somebody waits");
                    self.data.resize(self.data.len() + slots.count as usize, 0);
                    self.overlay.grown(true);
                    self.overlay.take_waiting();
                }
            }
        };
        for (index, run) in runs.iter().enumerate() {
            let version = (self.states.len() * 1000 + index + 1) as u64;
            let slots = run.first.0 as usize..(run.first.0 + run.count) as usize;
            self.data[slots].fill(version);
        }
        while self.overlay.publish(extent, &mut runs, grant, [].into_iter()).is_err() {
            self.overlay.wait_for_journal(KEY);
            self.work();
        }
        self.states.push(map_of(&self.overlay, &self.data));
    }

    /// Does what the journal wants.
    fn work(&mut self) {
        while let Some(mut task) = self.overlay.poll_task() {
            let read = |offset: u64, bytes: &mut [u8]| {
                for (index, block) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
                    block.copy_from_slice(&block_of(
                        self.data[offset as usize / PAGE_BYTES + index],
                    ));
                }
                Ok::<_, Infallible>(())
            };
            task.carry(read).expect("it cannot fail");
            if task.action == Action::SyncData {
                self.synced.clone_from(&self.data);
            }
            if self.trust == Trust::Whole
                && let Action::Write { file, offset, bytes } = &task.action
            {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                let content = self.file(*file);
                content.resize(content.len().max(end), 0);
                content[start..end].copy_from_slice(bytes);
            }
            self.overlay.finished(task, Ok(()));
        }
        while self.overlay.poll_woken().is_some() {}
    }

    fn recover(&mut self, goes_back: bool) -> Result<Overlay, Refusal> {
        // The power goes: nothing is left in the data file that was not synced.
        self.data.clone_from(&self.synced);
        recover(&self.config, &self.limits, &mut self.data, &mut self.files, goes_back)
    }

    fn reopen(&mut self) -> bool {
        let newest = Superblock::newest(&self.files[&JournalFile::Superblock]);
        let recovered = self.recover(false);
        let overlay = match (self.trust, recovered) {
            (Trust::Forged, _) => return false,
            (Trust::Whole, recovered) => recovered.expect("a whole sheet"),
            (Trust::Damaged, Ok(overlay)) => {
                self.judge_damaged(&overlay);
                return false;
            }
            (Trust::Damaged, Err(_)) => {
                let repaired = self.recover(true);
                let is_checkpoint_alone = newest.is_ok_and(|newest| {
                    newest.generation > 0 && self.damaged.iter().eq(&newest.files()[..1])
                });
                match repaired {
                    Err(refusal) if is_checkpoint_alone => {
                        panic!("there is no way back from a damaged checkpoint: {refusal}");
                    }
                    Err(_) => return false,
                    Ok(overlay) if !is_checkpoint_alone => {
                        self.judge_damaged(&overlay);
                        return false;
                    }
                    Ok(overlay) => {
                        self.trust = Trust::Whole;
                        self.damaged.clear();
                        overlay
                    }
                }
            }
        };
        let map = map_of(&overlay, &self.data);
        assert!(self.states[self.flushed..].contains(&map), "what was flushed is not there");
        self.states.push(map);
        self.flushed = self.states.len() - 1;
        self.overlay = overlay;
        self.work();
        true
    }

    /// What a damaged sheet shows is what some publish left. A record that is taken for cut may have freed
    /// slots which others are in by now.
    fn judge_damaged(&self, overlay: &Overlay) {
        let map = map_of(overlay, &self.data);
        let is_alike =
            |state: &Vec<(Entry, u64)>| state.iter().zip(&map).all(|(one, other)| one.0 == other.0);
        assert!(self.states.iter().any(is_alike), "damage was taken for something that never was");
    }
}
