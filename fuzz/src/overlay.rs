//! A device by itself: any sequence of reservations, publishes, releases, reads, pins, seals, reclaims
//! and growths, against a list of what each block must be.

use std::collections::BTreeSet;
use std::ops::Range;

use glassine_core::map::Entry;
use glassine_core::overlay::{Conflict, Extent, Grant, Predecessor, Reserve, SessionKey};
use glassine_core::pin::{Epoch, Pins};
use glassine_core::slot::{Run, SlotCounts};
use glassine_core::{Errno, Overlay, OverlayConfig, Seal, Segment, Source, SpaceLimits};

use crate::input::Choices;

const BLOCK: u64 = 4096;

/// What a block of the device shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    Template,
    Zero,
    /// Zero, with space set aside.
    SetAside,
    /// Zero; a write uses the space that was set aside.
    Claimed,
    /// What this write put there.
    Write(u64),
}

impl Shows {
    fn is_charged(self) -> bool {
        matches!(self, Self::SetAside | Self::Write(_))
    }
}

/// A write that has its slots.
struct Writer {
    extent: Extent,
    runs: Vec<Run>,
    grant: Grant,
    version: u64,
    /// Blocks of the quota that it was charged, in the model.
    charge: u64,
    /// Blocks that had space set aside, which it uses up.
    used: Vec<u64>,
    predecessor: Option<Predecessor>,
}

/// A read that is not over: nothing of it may change.
struct View {
    reader: usize,
    pin: Epoch,
    segments: Vec<(u64, Segment, Vec<Shows>)>,
}

/// A seal that is held, and what the device showed when it was taken.
struct Sealed {
    seal: Seal,
    shows: Vec<Shows>,
}

fn slots(run: Run) -> Range<u32> {
    run.first.0..run.first.0 + run.count
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Slots for some blocks are asked for, to write them, or to make all or the inner ones zero.
    Reserve,
    /// One of the writes becomes visible.
    Publish,
    /// One of the writes is given up.
    Release,
    /// Some bytes are read, and stay pinned.
    Read,
    /// One of the reads is over.
    Unpin,
    /// Displaced slots are freed, and space is given back if there is more than enough.
    Reclaim,
    /// The data file grows, or cannot.
    Grow,
    /// A reader leaves, and another one comes.
    Rejoin,
    /// A write is reserved and published at once.
    Write,
    /// The device is sealed.
    Seal,
    /// One of the seals is let go.
    Unseal,
}

impl Op {
    /// All of them, in the order of the bytes that name them.
    pub const ALL: [Self; 11] = [
        Self::Reserve,
        Self::Publish,
        Self::Release,
        Self::Read,
        Self::Unpin,
        Self::Reclaim,
        Self::Grow,
        Self::Rejoin,
        Self::Write,
        Self::Seal,
        Self::Unseal,
    ];
}

const READERS: usize = 2;
const SEALS_MAX: usize = 4;

struct Device {
    overlay: Overlay,
    config: OverlayConfig,
    blocks: Vec<Shows>,
    /// How many of them count against the quota.
    charged: u64,
    /// By which write each slot was filled last, and for which block.
    data: Vec<(u64, u64)>,
    /// Slots without space.
    holes: BTreeSet<u32>,
    writers: Vec<Writer>,
    readers: [Pins; READERS],
    views: Vec<View>,
    seals: Vec<Sealed>,
    /// Who waits for growth, and who was woken since it failed.
    waiting: BTreeSet<SessionKey>,
    denied: BTreeSet<SessionKey>,
    versions: u64,
    steps: usize,
}

/// Any sequence of operations on an overlay. The first bytes say what it is made of.
pub fn overlay(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let blocks = choices.pick(&[5, 40, 600, 1100]);
    let tail = choices.pick(&[0, 1, 4095]);
    let size_bytes = blocks * BLOCK - tail;
    let template_bytes = choices.pick(&[0, size_bytes, size_bytes / 2, 4097]);
    let quota_bytes = choices.pick(&[u64::MAX, 3 * BLOCK, blocks * BLOCK / 2]);
    let (growth_slots_min, hole_slots) =
        choices.pick(&[(1, 0), (4, 0), (256, 0), (1, 1), (4, 4), (256, 16)]);
    let punch_slots_max = 4 * hole_slots;
    let growth_slots_max = 4 * growth_slots_min;
    let space = SpaceLimits {
        growth_slots_min,
        growth_slots_max,
        hole_slots,
        punch_slots_max,
        spare_slots: 8,
        quiet_ticks: 1,
    };
    let config = OverlayConfig { size_bytes, template_bytes, quota_bytes, space };
    let mut overlay = Overlay::new(config.clone());
    let first = if template_bytes == 0 { Shows::Zero } else { Shows::Template };
    let mut device = Device {
        blocks: vec![first; blocks as usize],
        charged: 0,
        steps: 0,
        data: Vec::new(),
        holes: BTreeSet::new(),
        writers: Vec::new(),
        readers: std::array::from_fn(|_| Pins::new(overlay.attach())),
        views: Vec::new(),
        seals: Vec::new(),
        waiting: BTreeSet::new(),
        denied: BTreeSet::new(),
        versions: 0,
        overlay,
        config,
    };
    while !choices.is_empty() {
        device.step(&mut choices);
        device.check_counts();
    }
    device.run_out();
}

impl Device {
    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.pick(&Op::ALL) {
            Op::Reserve => {
                let extent = self.extent(choices);
                let key = SessionKey(u64::from(choices.below(3)));
                self.reserve(extent, key);
            }
            Op::Publish => {
                let which = usize::from(choices.byte());
                self.publish(which);
            }
            Op::Release if !self.writers.is_empty() => {
                let writer = self.take(usize::from(choices.byte()));
                self.release(writer);
            }
            Op::Read => {
                let reader = usize::from(choices.byte()) % READERS;
                let range = self.bytes(choices);
                self.read(reader, range);
            }
            Op::Unpin if !self.views.is_empty() => {
                let which = usize::from(choices.byte()) % self.views.len();
                let view = self.views.swap_remove(which);
                self.unpin(view);
            }
            Op::Reclaim => {
                self.overlay.reclaim();
                while let Some(run) = self.overlay.poll_punch() {
                    self.punch(run, choices.below(8) != 7);
                }
            }
            Op::Grow => self.grow(choices.below(4) != 3),
            Op::Rejoin => {
                let reader = usize::from(choices.byte()) % READERS;
                self.rejoin(reader);
            }
            Op::Write => {
                let extent = self.extent(choices);
                if self.reserve(extent, SessionKey(9)) {
                    self.publish(self.writers.len() - 1);
                }
            }
            Op::Seal if self.seals.len() < SEALS_MAX => {
                let (seal, shows) = (self.overlay.seal(), self.blocks.clone());
                self.seals.push(Sealed { seal, shows });
            }
            Op::Unseal if !self.seals.is_empty() => self.unseal(usize::from(choices.byte())),
            Op::Release | Op::Unpin | Op::Seal | Op::Unseal => {}
        }
    }

    /// Some blocks, few as a rule.
    fn range(&self, choices: &mut Choices<'_>) -> Range<u64> {
        let blocks = self.blocks.len() as u32;
        let first = choices.below(blocks);
        let most = choices.pick(&[3, 1, 20, 1100]).min(blocks - first);
        let first = u64::from(first);
        first..first + 1 + u64::from(choices.below(most))
    }

    fn bytes(&self, choices: &mut Choices<'_>) -> Range<u64> {
        let blocks = self.range(choices);
        let (head, tail) = (choices.below(4096), choices.below(4096));
        let start = blocks.start * BLOCK + u64::from(head);
        let end = blocks.end * BLOCK - u64::from(tail);
        let end = end.min(self.config.size_bytes);
        start.min(end)..end
    }

    fn extent(&self, choices: &mut Choices<'_>) -> Extent {
        let blocks = self.range(choices);
        let kind = choices.below(6);
        let zero = match kind {
            0..=2 => blocks.end..blocks.end,
            3 | 4 => blocks.clone(),
            _ => blocks.start + 1..(blocks.end - 1).max(blocks.start + 1),
        };
        let zero = if zero.is_empty() { blocks.end..blocks.end } else { zero };
        Extent { provision: kind == 4 && !zero.is_empty(), zero, blocks }
    }

    /// The blocks of an extent that get slots, in order.
    fn slot_blocks(extent: &Extent) -> Vec<u64> {
        extent.blocks.clone().filter(|block| !extent.zero.contains(block)).collect()
    }

    fn shows(&self, block: u64) -> Shows {
        self.blocks[block as usize]
    }

    fn show(&mut self, block: u64, shows: Shows) {
        let before = std::mem::replace(&mut self.blocks[block as usize], shows);
        self.charged += u64::from(shows.is_charged());
        self.charged -= u64::from(before.is_charged());
    }

    /// Blocks of the quota that are spoken for.
    fn spoken_for(&self) -> u64 {
        self.charged + self.writers.iter().map(|writer| writer.charge).sum::<u64>()
    }

    fn reserve(&mut self, extent: Extent, key: SessionKey) -> bool {
        let slot_blocks = Self::slot_blocks(&extent);
        let set_aside = |block: &u64| self.shows(*block) == Shows::SetAside;
        let written = |block: &u64| matches!(self.shows(*block), Shows::Write(_));
        let used: Vec<u64> = slot_blocks.iter().copied().filter(set_aside).collect();
        let mut charge = slot_blocks.iter().filter(|block| !written(block)).count() as u64;
        if extent.provision {
            let zero = extent.zero.clone();
            charge += zero.filter(|block| !self.shows(*block).is_charged()).count() as u64;
        }
        let more = charge - used.len() as u64;
        let fits = self.spoken_for() + more <= self.config.quota_bytes / BLOCK;
        let mut runs = Vec::new();
        match self.overlay.reserve(&extent, key, &mut runs) {
            Ok(Reserve::Granted(grant)) => {
                assert!(fits, "granted beyond the quota");
                self.denied.remove(&key);
                self.versions += 1;
                let version = self.versions;
                let count: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
                assert_eq!(count, slot_blocks.len() as u64, "a slot for every block");
                let each = runs.iter().flat_map(|run| slots(*run));
                for (slot, block) in each.zip(&slot_blocks) {
                    assert!(!self.is_shown(slot), "slot {slot} is handed out while it shows");
                    assert!(!self.holes.contains(&slot), "slot {slot} is handed out without space");
                    self.data[slot as usize] = (version, *block);
                }
                for block in &used {
                    self.show(*block, Shows::Claimed);
                }
                let predecessor = slot_blocks
                    .first()
                    .map(|block| Predecessor { block: *block, entry: self.overlay.entry(*block) });
                let predecessor = predecessor.filter(|_| version.is_multiple_of(2));
                let writer = Writer { extent, runs, grant, version, charge, used, predecessor };
                self.writers.push(writer);
                true
            }
            Ok(Reserve::Wait) => {
                assert!(fits, "it waits, but the quota is spent");
                self.waiting.insert(key);
                false
            }
            Err(error) => {
                assert_eq!(error, Errno::NoSpace);
                assert!(!fits || self.denied.remove(&key), "no space, but nothing is short");
                false
            }
        }
    }

    /// Whether a slot holds bytes that the device, a read or a write under way counts on.
    fn is_shown(&self, slot: u32) -> bool {
        let offset = u64::from(slot) * BLOCK;
        let holds = |segment: &Segment| {
            let Source::Data { offset: start } = segment.source else { return false };
            start < offset + BLOCK && offset < start + segment.length
        };
        let (version, block) = self.data[slot as usize];
        let named = version > 0 && self.shows(block) == Shows::Write(version);
        let pinned =
            self.views.iter().any(|view| view.segments.iter().any(|(_, one, _)| holds(one)));
        let mut private = self.writers.iter().flat_map(|writer| &writer.runs);
        let private = private.any(|run| slots(*run).contains(&slot));
        let is_sealed = |one: &Sealed| one.shows[block as usize] == Shows::Write(version);
        let sealed = version > 0 && self.seals.iter().any(is_sealed);
        named || pinned || private || sealed
    }

    /// A seal shows what the device showed when it was taken, and is let go.
    fn unseal(&mut self, which: usize) {
        let Sealed { seal, shows } = self.seals.swap_remove(which % self.seals.len());
        for (block, shows) in (0..).zip(shows) {
            let (run, source) = seal.run_at(block);
            assert!(run.contains(&block));
            let is_same = match (source, shows) {
                (Source::Template { offset }, Shows::Template) => offset == block * BLOCK,
                (Source::Zero, Shows::Zero | Shows::SetAside | Shows::Claimed) => true,
                (Source::Data { offset }, Shows::Write(version)) => {
                    self.data[(offset / BLOCK) as usize] == (version, block)
                }
                _ => false,
            };
            assert!(is_same, "block {block} of a seal is {source:?}, but must show {shows:?}");
        }
        assert_eq!(seal.blocks(), self.blocks.len() as u64);
        drop(self.overlay.unseal(seal));
    }

    fn take(&mut self, which: usize) -> Writer {
        let which = which % self.writers.len();
        self.writers.swap_remove(which)
    }

    fn publish(&mut self, which: usize) {
        if self.writers.is_empty() {
            return;
        }
        let mut writer = self.take(which);
        let is_replaced =
            writer.predecessor.is_some_and(|one| self.overlay.entry(one.block) != one.entry);
        let extent = writer.extent.clone();
        // It may look for space, and so free what was displaced.
        let held = |counts: SlotCounts| (counts.total, counts.filling, counts.live);
        let before = held(self.overlay.counts());
        let outcome = self.overlay.publish(
            &extent,
            &mut writer.runs,
            writer.grant,
            writer.predecessor.into_iter(),
        );
        match outcome {
            Ok(_) => {
                assert!(!is_replaced, "published over somebody else's write");
                for block in Self::slot_blocks(&extent) {
                    self.show(block, Shows::Write(writer.version));
                }
                let zero = if extent.provision { Shows::SetAside } else { Shows::Zero };
                for block in extent.zero.clone() {
                    self.show(block, zero);
                }
                assert!(self.spoken_for() <= self.config.quota_bytes / BLOCK, "beyond the quota");
            }
            Err(conflict) => {
                let after = held(self.overlay.counts());
                assert_eq!(after, before, "a publish that fails changes nothing");
                match conflict {
                    Conflict::Replaced(block) => {
                        assert!(is_replaced);
                        // As if it had been merged again.
                        let entry = self.overlay.entry(block);
                        writer.predecessor = Some(Predecessor { block, entry });
                        self.writers.push(writer);
                    }
                    Conflict::NoSpace => {
                        assert!(self.config.quota_bytes != u64::MAX, "no space without a quota");
                        self.release(writer);
                    }
                    Conflict::Short => {
                        assert!(extent.provision, "nothing is to be set aside");
                        self.release(writer);
                    }
                    Conflict::Backlog | Conflict::Failed => unreachable!("there is no journal"),
                }
            }
        }
        self.compare(extent.blocks);
    }

    fn release(&mut self, mut writer: Writer) {
        self.overlay.release(&mut writer.runs, writer.grant);
        assert!(writer.runs.is_empty());
        // As much space is set aside again as was, where nobody changed the block since.
        for block in writer.used {
            if self.shows(block) == Shows::Claimed {
                self.show(block, Shows::SetAside);
            }
        }
        self.compare(writer.extent.blocks);
    }

    /// Holds some blocks of the map against the model.
    fn compare(&self, blocks: Range<u64>) {
        for block in blocks {
            let (entry, shows) = (self.overlay.entry(block), self.shows(block));
            let is_same = match (entry, shows) {
                (Entry::Template, Shows::Template)
                | (Entry::Zero, Shows::Zero)
                | (Entry::ZeroProvisioned, Shows::SetAside)
                | (Entry::ZeroClaimed, Shows::Claimed) => true,
                (Entry::Slot(slot), Shows::Write(version)) => {
                    self.data[slot.0 as usize] == (version, block)
                }
                _ => false,
            };
            assert!(is_same, "block {block} is {entry:?}, but must show {shows:?}");
        }
    }

    fn read(&mut self, reader: usize, bytes: Range<u64>) {
        let mut segments = Vec::new();
        let mut at = bytes.start;
        self.overlay.resolve(bytes.clone(), &mut |segment| {
            assert!(segment.length > 0, "an empty segment");
            let end = at + segment.length;
            let blocks = at / BLOCK..end.div_ceil(BLOCK);
            let shows = blocks.map(|block| self.blocks[block as usize]).collect();
            segments.push((at, segment, shows));
            at = end;
        });
        assert_eq!(at, bytes.end, "a segment for every byte");
        let pin = self.readers[reader].take(self.overlay.epoch());
        let view = View { reader, pin, segments };
        self.check(&view);
        self.views.push(view);
    }

    /// A read shows what it showed when it was resolved.
    fn check(&self, view: &View) {
        for (start, segment, shows) in &view.segments {
            let end = start + segment.length;
            for (block, shows) in (start / BLOCK..).zip(shows) {
                let from = (*start).max(block * BLOCK);
                let to = end.min((block + 1) * BLOCK);
                let is_right = match segment.source {
                    Source::Template { offset } => {
                        let at = offset + (from - start);
                        let here = at == from && at + (to - from) <= self.config.template_bytes;
                        *shows == Shows::Template && here
                    }
                    Source::Zero => match shows {
                        Shows::Template => from >= self.config.template_bytes,
                        Shows::Zero | Shows::SetAside | Shows::Claimed => true,
                        Shows::Write(_) => false,
                    },
                    Source::Data { offset } => {
                        let at = offset + (from - start);
                        let slot = (at / BLOCK) as usize;
                        let (version, filled_for) = self.data[slot];
                        let here = at % BLOCK == from % BLOCK && filled_for == block;
                        here && Shows::Write(version) == *shows
                    }
                };
                assert!(is_right, "bytes {from}..{to} are {segment:?}, but must show {shows:?}");
            }
        }
    }

    fn unpin(&mut self, view: View) {
        self.check(&view);
        self.readers[view.reader].release(view.pin);
    }

    fn rejoin(&mut self, reader: usize) {
        let (its, others) =
            std::mem::take(&mut self.views).into_iter().partition(|view| view.reader == reader);
        self.views = others;
        let its: Vec<View> = its;
        for view in its {
            self.unpin(view);
        }
        assert!(self.readers[reader].is_empty());
        self.overlay.detach(self.readers[reader].cell());
        self.readers[reader] = Pins::new(self.overlay.attach());
    }

    /// Space is given back, or cannot be.
    fn punch(&mut self, run: Run, ok: bool) {
        for slot in slots(run) {
            assert!(!self.is_shown(slot), "slot {slot} loses its space while it shows");
            if ok {
                self.data[slot as usize] = (0, 0);
                self.holes.insert(slot);
            }
        }
        self.overlay.punched(ok);
    }

    /// Growth comes to an end, and whoever waited for it is woken.
    fn grow(&mut self, ok: bool) {
        while let Some(run) = self.overlay.poll_growth() {
            if ok {
                let end = (run.first.0 + run.count) as usize;
                self.data.resize(self.data.len().max(end), (0, 0));
                self.holes.retain(|slot| !slots(run).contains(slot));
            }
            self.overlay.grown(ok);
            if !ok {
                self.denied.extend(&self.waiting);
            }
        }
        let woken: BTreeSet<SessionKey> = self.overlay.take_waiting().into_iter().collect();
        assert_eq!(woken, std::mem::take(&mut self.waiting), "all who wait are woken");
    }

    fn check_counts(&mut self) {
        self.steps += 1;
        let counts = self.overlay.counts();
        assert!(counts.conserved(), "{counts:?}");
        assert_eq!(u64::from(counts.total), self.data.len() as u64);
        let filling: u32 = self.writers.iter().flat_map(|one| &one.runs).map(|run| run.count).sum();
        assert_eq!(counts.filling, filling);
        let (tally, charged) = (self.overlay.tally(), self.overlay.charged());
        assert_eq!(tally.provisioned() + charged, self.spoken_for(), "what the quota is charged");
        // An audit walks all there is.
        if self.blocks.len() <= 40 || self.steps.is_multiple_of(16) {
            self.overlay.audit();
        }
    }

    /// Everything comes to its end: nothing is left but what the device shows.
    fn run_out(mut self) {
        for reader in 0..READERS {
            self.rejoin(reader);
        }
        while !self.writers.is_empty() {
            self.publish(0);
        }
        self.grow(true);
        while !self.seals.is_empty() {
            self.unseal(0);
        }
        let everything = 0..self.config.size_bytes;
        self.read(0, everything);
        self.rejoin(0);
        self.compare(0..self.blocks.len() as u64);
        let unused = |counts: SlotCounts| counts.displaced + counts.sealed;
        while unused(self.overlay.counts()) > 0 {
            let before = self.overlay.counts();
            self.overlay.reclaim();
            let after = unused(self.overlay.counts());
            assert!(after < unused(before), "nobody looks, but slots stay");
        }
        // Nobody writes any more: little space is kept.
        self.overlay.tick();
        self.overlay.tick();
        while let Some(run) = self.overlay.poll_punch() {
            self.punch(run, true);
        }
        self.check_counts();
        self.overlay.audit();
        assert_eq!((self.overlay.counts().filling, self.overlay.charged()), (0, 0));
    }
}
