//! A sheet's files: written by the core as a sequence of operations says, then damaged, then recovered.
//!
//! What was flushed must be there; what was damaged must be refused, or leave the device as it was after
//! some publish. With its checksum made to fit, a damaged frame may say anything that frames can say: then
//! recovery must neither panic nor take more memory than the device's size explains.

use std::collections::BTreeMap;
use std::ops::Range;

use crc::{CRC_32_ISCSI, Crc};
use glassine_core::journal::frame::{Frame, FrameBuffer, HEADER_BYTES, PAGE_BYTES};
use glassine_core::journal::recovery::{Recovery, Refusal, Step, blank};
use glassine_core::journal::superblock::{Identity, Superblock};
use glassine_core::journal::{Action, JournalFile};
use glassine_core::map::Entry;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::{JournalLimits, Overlay, OverlayConfig};

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
    slots: u32,
    overlay: Overlay,
    /// The map after each publish; what was before the first.
    states: Vec<Vec<Entry>>,
    /// All states from this one on may be what recovery finds.
    flushed: usize,
    trust: Trust,
}

/// Any sequence of operations on a sheet. The first bytes say what it is made of.
pub fn journal(bytes: &[u8]) {
    parse_anything(bytes);
    let mut choices = Choices::new(bytes);
    let blocks = choices.pick(&[3, 40, 600]);
    let size_bytes = blocks * 4096;
    let template_bytes = choices.pick(&[0, size_bytes]);
    let config =
        OverlayConfig { size_bytes, template_bytes, quota_bytes: u64::MAX, growth_slots_min: 4 };
    let limits = JournalLimits {
        queue_entries_max: 100,
        fresh_slots_max: choices.pick(&[1000, 5]),
        limbo_slots_max: choices.pick(&[1000, 5]),
        section_entries: choices.pick(&[1020, 1]),
    };
    let segment_bytes = choices.pick(&[16, 4, 2]) * PAGE_BYTES as u64;
    let template_id = TEMPLATE_ID;
    let identity = Identity { sheet: 9, size_bytes, template_bytes, template_id, segment_bytes };
    let made = blank(&identity);
    let segment = vec![0; segment_bytes as usize];
    let contents = [made.superblock, made.checkpoint, Vec::new(), segment.clone(), segment];
    let mut files: BTreeMap<_, _> = JournalFile::ALL.into_iter().zip(contents).collect();
    let overlay = recover(&config, &limits, 0, &mut files).expect("a blank sheet is whole");
    let states = vec![map_of(&overlay)];
    let (flushed, trust, slots) = (0, Trust::Whole, 0);
    let mut sheet = Sheet { config, limits, files, slots, overlay, states, flushed, trust };
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
            let (written, _) = buffer.finish(&frame.header);
            let end = HEADER_BYTES + entries.len() * 16;
            assert!(written[..end] == frame.bytes[..end] || frame.bytes[end..] != written[end..]);
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
    frame[44..48].fill(0);
    let checksum = CRC.checksum(frame);
    frame[44..48].copy_from_slice(&checksum.to_le_bytes());
}

fn forge_superblock(bytes: &mut [u8]) {
    let checksum = CRC.checksum(&bytes[..PAGE_BYTES - 4]);
    bytes[PAGE_BYTES - 4..PAGE_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

fn map_of(overlay: &Overlay) -> Vec<Entry> {
    (0..overlay.size_bytes() / 4096).map(|block| overlay.entry(block)).collect()
}

fn recover(
    config: &OverlayConfig,
    limits: &JournalLimits,
    slots: u32,
    files: &mut BTreeMap<JournalFile, Vec<u8>>,
) -> Result<Overlay, Refusal> {
    let mut recovery = Recovery::new(config.clone(), TEMPLATE_ID, slots, limits.clone());
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
                let place = offset as usize..offset as usize + bytes.len();
                assert!(files[&file][place] == bytes, "recovery writes what is there");
            }
            Step::Sync { .. } => {}
        }
        recovery.handle(Ok(read))?;
    }
    let (overlay, _) = recovery.finish()?;
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
            Op::Flush => {
                self.overlay.flush();
                self.work();
                self.flushed = self.states.len() - 1;
            }
            Op::Reopen => return self.reopen(),
            Op::Damage => {
                let (value, (file, at)) = (choices.byte(), self.place(choices));
                if let Some(byte) = self.file(file).get_mut(at) {
                    *byte ^= value;
                    self.distrust(Trust::Damaged);
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
                    self.distrust(Trust::Damaged);
                }
            }
            Op::Cut => {
                let (file, at) = self.place(choices);
                self.file(file).truncate(at);
                self.distrust(Trust::Damaged);
            }
            Op::Forge => {
                let (file, at) = self.place(choices);
                let start = at / PAGE_BYTES * PAGE_BYTES;
                let bytes = &mut self.file(file)[start.min(at)..];
                if bytes.len() >= PAGE_BYTES {
                    let is_superblock = file == JournalFile::Superblock;
                    let forge = if is_superblock { forge_superblock } else { forge_frame };
                    forge(bytes);
                    self.distrust(Trust::Forged);
                }
            }
        }
        true
    }

    fn distrust(&mut self, trust: Trust) {
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

    /// Some place of a file: headers as a rule.
    fn place(&self, choices: &mut Choices<'_>) -> (JournalFile, usize) {
        let file = choices.pick(&JournalFile::ALL);
        let pages = (self.files[&file].len() / PAGE_BYTES) as u32;
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
                    self.slots += self.overlay.poll_growth().expect("somebody waits");
                    self.overlay.grown(true);
                    self.overlay.take_waiting();
                }
            }
        };
        while self.overlay.publish(extent, &mut runs, grant, [].into_iter()).is_err() {
            self.overlay.wait_for_journal(KEY);
            self.work();
        }
        self.states.push(map_of(&self.overlay));
    }

    /// Does what the journal wants.
    fn work(&mut self) {
        while let Some(task) = self.overlay.poll_task() {
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

    fn reopen(&mut self) -> bool {
        let recovered = recover(&self.config, &self.limits, self.slots, &mut self.files);
        let is_one_of = |states: &[Vec<Entry>], overlay: &Overlay| {
            let map = map_of(overlay);
            states.iter().rposition(|state| *state == map)
        };
        let overlay = match (self.trust, recovered) {
            (Trust::Forged, _) | (Trust::Damaged, Err(_)) => return false,
            (Trust::Whole, Err(refusal)) => panic!("a whole sheet is refused: {refusal}"),
            (Trust::Damaged, Ok(overlay)) => {
                let state = is_one_of(&self.states, &overlay);
                assert!(state.is_some(), "damage was taken for something that never was");
                return false;
            }
            (Trust::Whole, Ok(overlay)) => overlay,
        };
        let state = is_one_of(&self.states[self.flushed..], &overlay);
        assert!(state.is_some(), "what was flushed is not there");
        self.states.push(map_of(&overlay));
        self.flushed = self.states.len() - 1;
        self.overlay = overlay;
        self.work();
        true
    }
}
