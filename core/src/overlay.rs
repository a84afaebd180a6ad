//! The state of one copy-on-write device: which bytes are where, and which slots may be used.
//!
//! An overlay does no I/O and copies no payload. In production it stands behind one lock, taken once
//! for a batch of requests. It wants of its driver that the data file grows: [`Overlay::poll_growth`] says
//! by how much, [`Overlay::grown`] takes the outcome. A device with a journal hands out [`Overlay::poll_task`]
//! besides; one without is *ephemeral*.
//!
//! A write goes through `reserve` (private slots), then either `publish` (visible as a whole, the
//! old slots displaced) or `release` (as if it had never been). A read goes through `resolve`, which
//! names segments as of one moment; a pin taken at `epoch` in the same step keeps them as they are.

mod durable;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

pub use durable::{Durable, Visible};

use crate::error::Errno;
use crate::journal::Journal;
use crate::judge::{Bug, Mark, mark, planted, used};
use crate::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX, GROWTH_SLOTS_MAX, RECLAIM_SLOTS_PER_STEP};
use crate::map::{Dropped, Entry, Map, SLOTS_MAX, Tally, Uniform};
use crate::pin::{Epoch, PinCell};
use crate::segment::{Segment, Source};
use crate::slot::{Run, SlotCounts, SlotId, SlotState, SlotTable};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a device is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OverlayConfig {
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// Size of the template to the byte; 0 for a blank device. The device reads zero beyond it.
    pub template_bytes: u64,
    /// The most bytes the sheet may hold; `u64::MAX` for no quota. Rounded down to blocks.
    pub quota_bytes: u64,
    /// The first extent by which the data file grows, in slots; it doubles from there. In production
    /// [`crate::limits::GROWTH_SLOTS_MIN`]; the simulator takes fewer, so that growth is often on the way.
    pub growth_slots_min: u32,
}

impl OverlayConfig {
    /// What a block is that nobody ever wrote to.
    pub(crate) fn initial(&self) -> Uniform {
        if self.template_bytes == 0 { Uniform::Zero } else { Uniform::Template }
    }
}

/// How a session is named when it has to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// The blocks a request changes: `zero` becomes zero by an edit of the map, the others get slots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extent {
    /// All of them.
    pub blocks: Range<u64>,
    /// The part that becomes zero; empty for a WRITE. Lies within `blocks`.
    pub zero: Range<u64>,
    /// Whether space is set aside for the zero part, so that a later write to it finds a slot.
    pub provision: bool,
}

impl Extent {
    /// The blocks that get slots: before the zero part, and behind it.
    fn parts(&self) -> [Range<u64>; 2] {
        if self.zero.is_empty() {
            return [self.blocks.clone(), 0..0];
        }
        [self.blocks.start..self.zero.start, self.zero.end..self.blocks.end]
    }

    /// How many slots that makes.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.parts().iter().map(|part| part.end - part.start).sum()
    }
}

/// What was set aside for a request under way; given back by publish or release, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[must_use = "a grant must be given back"]
pub struct Grant {
    /// Blocks the quota was charged.
    charge: u64,
    /// Blocks that had space set aside, which its slots have used up.
    used: u64,
    /// Blocks for which it is about to set space aside.
    setting: u64,
}

/// The outcome of asking for slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Granted.
    Granted(Grant),
    /// The data file has to grow first; the session will be woken.
    Wait,
}

/// A block that a publish may replace only if nobody else did meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predecessor {
    /// The block.
    pub block: u64,
    /// What it was when its bytes were merged.
    pub entry: Entry,
}

/// Why a publish did not happen. The slots are still the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// This block was replaced since its bytes were merged: merge again.
    Replaced(u64),
    /// A trim took what the quota had counted on.
    NoSpace,
    /// A trim freed space that was to stay set aside, and others took it: give back, and ask again.
    Short,
    /// The journal takes in no more at present: wait for it, and publish again.
    Backlog,
    /// The journal has failed: nothing is changed any more.
    Failed,
}

/// The state of one device. See the module.
#[derive(Debug, Hash)]
pub struct Overlay {
    config: OverlayConfig,
    quota_blocks: u64,
    map: Map,
    slots: SlotTable,
    /// The sum of all grants that were not yet given back.
    charged: u64,
    setting: u64,
    epoch: Epoch,
    dropped: VecDeque<(Epoch, Dropped)>,
    cells: Vec<PinCell>,
    growth: Growth,
    waiting: Vec<SessionKey>,
    journal: Option<Journal>,
}

#[derive(Debug, Default, Hash)]
struct Growth {
    /// The driver is growing the data file by this many slots.
    asked: Option<u32>,
    /// Slots that waiting writes cannot do without.
    demand: u64,
    /// The extent to grow by next, while it goes well.
    step: u32,
    /// The last attempt failed: grow by no more than is needed, and not ahead of need.
    failed: bool,
    /// Sessions woken by a failure: they hear of it when they ask again. Anybody else's request
    /// deserves an attempt of its own, since space may have been freed meanwhile.
    denied: Vec<SessionKey>,
    /// It failed, but slots wait for a record: the sessions that wait are woken when this is durable.
    barrier: Option<Epoch>,
}

impl Overlay {
    /// An ephemeral device nobody has written to.
    #[must_use]
    pub fn new(config: OverlayConfig) -> Self {
        assert!(config.size_bytes <= DEVICE_BYTES_MAX, "the driver checks the size");
        assert!(config.template_bytes <= config.size_bytes, "the driver checks the size");
        Self {
            map: Map::new(config.size_bytes.div_ceil(BLOCK), config.initial()),
            quota_blocks: config.quota_bytes / BLOCK,
            slots: SlotTable::default(),
            charged: 0,
            setting: 0,
            epoch: Epoch::FIRST,
            dropped: VecDeque::new(),
            cells: Vec::new(),
            growth: Growth { step: config.growth_slots_min, ..Growth::default() },
            waiting: Vec::new(),
            journal: None,
            config,
        }
    }

    /// Size of the device to the byte.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.config.size_bytes
    }

    /// How many slots are in each state.
    #[must_use]
    pub fn counts(&self) -> SlotCounts {
        self.slots.counts()
    }

    /// Slots and reservations of the map.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.map.tally()
    }

    /// Blocks charged to writes under way.
    #[must_use]
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Sessions attached.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.cells.len()
    }

    /// A session begins to use this device.
    pub fn attach(&mut self) -> PinCell {
        let cell = PinCell::new();
        self.cells.push(cell.clone());
        cell
    }

    /// A session has ended; it holds no pin and no slot.
    pub fn detach(&mut self, cell: &PinCell) {
        assert!(cell.oldest().is_none(), "a session that ends holds no pin");
        let index = self.cells.iter().position(|other| other.is_same(cell));
        self.cells.swap_remove(index.expect("a session is attached until it is detached"));
    }

    /// The moment that a pin taken now refers to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Visits the whole device in order, as runs of blocks that are alike (slots come one by one).
    pub fn walk(&self, visit: &mut impl FnMut(Range<u64>, Entry)) {
        self.map.walk(0..self.map.blocks(), visit);
    }

    /// What a block is.
    #[must_use]
    pub fn entry(&self, block: u64) -> Entry {
        self.map.entry(block)
    }

    /// Where the bytes of `block` are.
    #[must_use]
    pub(crate) fn source_of(&self, block: u64, entry: Entry) -> (Source, u32) {
        let start = block * BLOCK;
        match entry {
            Entry::Slot(slot) => (Source::Data { offset: slot.offset() }, BLOCK_BYTES),
            Entry::Template if start < self.config.template_bytes => {
                let there = (self.config.template_bytes - start).min(BLOCK);
                (Source::Template { offset: start }, there as u32)
            }
            Entry::Template | Entry::Zero | Entry::ZeroProvisioned | Entry::ZeroClaimed => {
                (Source::Zero, 0)
            }
        }
    }

    /// Names where the bytes of a range are, at one point in time, as few segments as possible.
    pub fn resolve(&self, bytes: Range<u64>, visit: &mut impl FnMut(Segment)) {
        assert!(bytes.end <= self.config.size_bytes);
        if bytes.is_empty() {
            return;
        }
        let mut last: Option<Segment> = None;
        let mut put = |segment: Segment| {
            if segment.length == 0 {
                return;
            }
            if !last.as_mut().is_some_and(|open| open.absorb(segment))
                && let Some(done) = last.replace(segment)
            {
                visit(done);
            }
        };
        let template_bytes = self.config.template_bytes;
        let end = bytes.end.div_ceil(BLOCK);
        let end = if planted(Bug::TailDropped) { bytes.end / BLOCK } else { end };
        let blocks = bytes.start / BLOCK..end.max(bytes.start / BLOCK);
        self.map.walk(blocks, &mut |run, entry| {
            let start = (run.start * BLOCK).max(bytes.start);
            let end = (run.end * BLOCK).min(bytes.end);
            match entry {
                Entry::Slot(slot) => {
                    let offset = slot.offset() + start % BLOCK;
                    put(Segment { source: Source::Data { offset }, length: end - start });
                }
                Entry::Template => {
                    // A template shorter than the device is followed by zeroes.
                    let there = end.min(template_bytes).max(start);
                    let there = if planted(Bug::ReadPastTemplate) { end } else { there };
                    let source = Source::Template { offset: start };
                    put(Segment { source, length: there - start });
                    put(Segment { source: Source::Zero, length: end - there });
                }
                Entry::Zero | Entry::ZeroProvisioned | Entry::ZeroClaimed => {
                    put(Segment { source: Source::Zero, length: end - start });
                }
            }
        });
        if let Some(open) = last {
            visit(open);
        }
    }

    /// What a request needs before it can be filled: private slots (appended to `runs`), and space
    /// set aside. An error is final; after `Wait` the session named `key` is woken, and asks again.
    pub fn reserve(
        &mut self,
        extent: &Extent,
        key: SessionKey,
        runs: &mut Vec<Run>,
    ) -> Result<Reserve, Errno> {
        if planted(Bug::LockOverSocket) && self.slots.counts().filling > 0 {
            self.waiting.push(key);
            return Ok(Reserve::Wait);
        }
        if self.has_failed() {
            return Err(Errno::Io);
        }
        let count = extent.slots();
        let in_slots = self.tally_of_slots(extent);
        // Blocks with space set aside use that up: their slots come out of it.
        let mut grant =
            Grant { charge: count - in_slots.slots, used: in_slots.reserved, setting: 0 };
        if extent.provision {
            let in_zero = self.map.tally_in(extent.zero.clone());
            let zero = extent.zero.end - extent.zero.start;
            grant.charge += zero - in_zero.provisioned();
            grant.setting = zero - in_zero.reserved;
        }
        self.check_quota(grant.charge - grant.used)?;
        // What is set aside for other blocks must be left alone.
        let spoken_for = self.map.tally().reserved - grant.used + self.setting + grant.setting;
        if (count > 0 || grant.setting > 0) && !self.available(spoken_for + count) {
            mark(Mark::WaitForGrowth);
            return self.ask_growth(spoken_for + count, key).map(|()| Reserve::Wait);
        }
        let count = u32::try_from(count).expect("bounded by the longest payload");
        if !planted(Bug::DeniedForEver) {
            self.growth.denied.retain(|denied| *denied != key);
        }
        if grant.setting > 0 {
            mark(Mark::Provisioned);
        }
        if grant.used > 0 && !planted(Bug::SpaceUsedTwice) {
            mark(Mark::ProvisionUsed);
            self.mark_zero(extent, Entry::ZeroProvisioned, Uniform::ZeroClaimed, u64::MAX);
        }
        self.slots.take(count, runs);
        self.charged += grant.charge;
        self.setting += grant.setting;
        used(self.map.tally().provisioned() + self.charged);
        Ok(Reserve::Granted(grant))
    }

    /// Gives back slots that no map ever named, and what was set aside.
    pub fn release(&mut self, extent: &Extent, runs: &mut Vec<Run>, grant: Grant) {
        for run in runs.drain(..) {
            self.slots.release(run);
        }
        if !planted(Bug::QuotaLeak) {
            self.give_back(grant);
        }
        if grant.used > 0 && !planted(Bug::SpaceUsedTwice) {
            mark(Mark::ProvisionRestored);
            // The slots that came out of what was set aside are free again: set it aside again.
            self.mark_zero(extent, Entry::ZeroClaimed, Uniform::ZeroProvisioned, grant.used);
        }
    }

    /// Turns blocks of an extent that get slots from one kind of zero into the other, `most` of them.
    fn mark_zero(&mut self, extent: &Extent, from: Entry, to: Uniform, mut most: u64) {
        for part in extent.parts() {
            for block in part {
                if most > 0 && self.map.entry(block) == from {
                    let nothing = &mut |_| unreachable!("zero has no slots");
                    self.map.fill(block..block + 1, to, nothing, &mut Dropped::new());
                    most -= 1;
                }
            }
        }
    }

    /// Makes a request visible as a whole: the blocks of `extent` are the slots of `runs` in order,
    /// but for its zero range, which reads zero. What was there is displaced. If a predecessor has
    /// been replaced, nothing happens, and slots and grant are still the caller's. It is visible at the
    /// moment that is answered.
    pub fn publish(
        &mut self,
        extent: &Extent,
        runs: &mut Vec<Run>,
        grant: Grant,
        predecessors: impl Iterator<Item = Predecessor>,
    ) -> Result<Visible, Conflict> {
        if planted(Bug::RecordOfRefused) {
            self.record(extent, runs);
        }
        for predecessor in predecessors {
            let replaced = self.map.entry(predecessor.block) != predecessor.entry;
            if replaced && !planted(Bug::LostHalf) {
                mark(Mark::MergedAgain);
                return Err(Conflict::Replaced(predecessor.block));
            }
        }
        // Blocks may have been trimmed since the quota was charged and space was found.
        let mut added = extent.slots() - self.tally_of_slots(extent).provisioned();
        if extent.provision {
            let zero = extent.zero.end - extent.zero.start;
            let in_zero = self.map.tally_in(extent.zero.clone());
            added += zero - in_zero.provisioned();
            let more = (zero - in_zero.reserved).saturating_sub(grant.setting);
            let spoken_for = self.map.tally().reserved + self.setting;
            if more > 0 && !self.available(spoken_for + more) {
                return Err(Conflict::Short);
            }
        }
        self.may_record(extent, runs)?;
        if added > grant.charge && self.check_quota(added - grant.charge).is_err() {
            mark(Mark::PublishNoSpace);
            return Err(Conflict::NoSpace);
        }
        self.give_back(grant);
        self.epoch.0 += 1;
        if !planted(Bug::RecordOfRefused) {
            self.record(extent, runs);
        }
        self.zero(extent);
        self.flip(extent, runs);
        used(self.map.tally().provisioned() + self.charged);
        Ok(Visible::at(self.epoch))
    }

    /// The zero range of a publish: an edit of the map alone, whatever its length.
    fn zero(&mut self, extent: &Extent) {
        let uniform = if extent.provision { Uniform::ZeroProvisioned } else { Uniform::Zero };
        let falls_through = planted(Bug::TrimFallsThrough) && self.config.template_bytes > 0;
        let uniform = if falls_through { Uniform::Template } else { uniform };
        let epoch = self.epoch;
        let mut dropped = Dropped::new();
        let slots = &mut self.slots;
        let mut limbo = 0;
        let dropped_slots = self.map.fill(
            extent.zero.clone(),
            uniform,
            &mut |slot| {
                if !planted(Bug::TrimKeepsSlot) {
                    limbo += u64::from(slots.displace(slot, epoch));
                }
            },
            &mut dropped,
        );
        if !dropped.is_empty() {
            mark(Mark::SubtreeDropped);
            self.slots.drop_live(dropped_slots);
            self.dropped.push_back((epoch, dropped));
        }
        self.note_limbo(limbo + dropped_slots);
    }

    /// Slots were displaced that a record of the journal may name.
    fn note_limbo(&mut self, slots: u64) {
        if let Some(journal) = &mut self.journal {
            journal.displaced(slots);
        }
    }

    /// The slots of a publish: those before the zero range, and those behind it.
    fn flip(&mut self, extent: &Extent, runs: &mut Vec<Run>) {
        for run in runs.iter() {
            self.slots.publish(*run);
            if self.journal.is_some() {
                self.slots.freshen(*run);
            }
        }
        let epoch = self.epoch;
        let slots = &mut self.slots;
        let mut limbo = 0;
        let displaced = &mut |slot| limbo += u64::from(slots.displace(slot, epoch));
        let mut each = runs.iter().flat_map(|run| (0..run.count).map(|index| run.slot(index)));
        for part in extent.parts() {
            self.map.publish(part, &mut each, displaced);
        }
        assert!(each.next().is_none(), "as many slots as blocks");
        runs.clear();
        self.note_limbo(limbo);
    }

    fn tally_of_slots(&self, extent: &Extent) -> Tally {
        let [before, behind] = extent.parts();
        let (before, behind) = (self.map.tally_in(before), self.map.tally_in(behind));
        Tally { slots: before.slots + behind.slots, reserved: before.reserved + behind.reserved }
    }

    fn give_back(&mut self, grant: Grant) {
        let less = |total: &mut u64, part: u64| {
            *total = total.checked_sub(part).expect("a grant is given back once");
        };
        less(&mut self.charged, grant.charge);
        less(&mut self.setting, grant.setting);
    }

    /// By how many slots the data file should grow now. Asked until it answers `None`; every answer
    /// is completed once, by [`Self::grown`].
    pub fn poll_growth(&mut self) -> Option<u32> {
        if self.growth.asked.is_some() || self.growth.barrier.is_some() {
            return None;
        }
        let counts = self.slots.counts();
        let room = SLOTS_MAX - counts.total;
        let missing = self.growth.demand.saturating_sub(u64::from(counts.free));
        if missing == 0 {
            // What was waited for has become free meanwhile: whoever waited asks again.
            self.growth.demand = 0;
        }
        let wanted = if missing > 0 {
            missing.max(u64::from(if self.growth.failed { 0 } else { self.growth.step }))
        } else if self.runs_low() {
            mark(Mark::GrowthAhead);
            u64::from(self.growth.step)
        } else {
            return None;
        };
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(room);
        self.growth.asked = Some(wanted);
        Some(wanted)
    }

    /// The data file grew by as many slots as asked, or could not. Wake those in
    /// [`Self::take_waiting`].
    pub fn grown(&mut self, ok: bool) {
        let asked = self.growth.asked.take().expect("growth is completed once");
        let missing = self.growth.demand.saturating_sub(u64::from(self.slots.counts().free));
        if ok && asked > 0 {
            self.slots.grow(asked);
            self.growth.failed = false;
            self.growth.step = (self.growth.step * 2).min(GROWTH_SLOTS_MAX);
        } else {
            self.growth.step = self.config.growth_slots_min;
            let was_more_than_needed = u64::from(asked) > missing && missing > 0;
            if was_more_than_needed && !self.growth.failed {
                mark(Mark::GrowthRetried);
                // Try again with only what is needed, before anybody hears of it.
                self.growth.failed = true;
                return;
            }
            mark(Mark::GrowthFailed);
            self.growth.failed = true;
            self.growth.barrier = self.flush_for_space();
            if self.growth.barrier.is_some() {
                return;
            }
            self.growth.denied.clone_from(&self.waiting);
        }
        self.growth.demand = 0;
    }

    /// The sessions to wake, if growth has come to an end.
    pub fn take_waiting(&mut self) -> Vec<SessionKey> {
        if self.growth.demand > 0 {
            return Vec::new();
        }
        if planted(Bug::LostWakeUp) {
            self.waiting.truncate(1);
        }
        core::mem::take(&mut self.waiting)
    }

    /// Whether a place in the data file is private to a write under way: the only places that may be
    /// written to. For tests and the simulator.
    #[must_use]
    pub fn is_private(&self, offset: u64) -> bool {
        self.slots.is_filling(SlotId((offset / BLOCK) as u32))
    }

    /// Whether a place in the data file holds, or held a moment ago, bytes of the device: the only
    /// places that may be read. For tests and the simulator.
    #[must_use]
    pub fn is_readable(&self, offset: u64) -> bool {
        self.slots.is_readable(SlotId((offset / BLOCK) as u32))
    }

    /// Where the slot at a place in the data file is in its life. For tests and the simulator.
    #[must_use]
    pub fn slot_state(&self, offset: u64) -> SlotState {
        self.slots.state(SlotId((offset / BLOCK) as u32))
    }

    /// Checks everything that can be derived twice. For tests and the simulator: it walks all.
    pub fn audit(&self) {
        self.map.audit();
        self.slots.audit();
        let dropped = !self.dropped.is_empty();
        let counts = self.slots.counts();
        assert_eq!(u64::from(counts.live), self.map.tally().slots, "live slots are those mapped");
        assert!(dropped || self.growth.demand == 0 || !self.waiting.is_empty());
        self.map.walk(0..self.map.blocks(), &mut |_, entry| {
            if let Entry::Slot(slot) = entry {
                assert!(self.slots.is_live(slot), "the map names live slots only");
            }
        });
        // An overcommitted reservation would break the promise that a later write finds a slot.
        assert!(
            u64::from(counts.free) + u64::from(counts.displaced) + u64::from(counts.filling)
                >= self.map.tally().reserved
        );
        assert!(self.map.tally().provisioned() <= self.quota_blocks);
        if let Some(journal) = &self.journal {
            journal.audit(self.epoch);
        }
    }

    /// Frees displaced slots nobody looks at any more. A bounded step; the driver may call it when it
    /// has nothing better to do, and every reservation that runs short does.
    pub fn reclaim(&mut self) {
        if self.slots.counts().displaced == 0 {
            return;
        }
        let oldest = self.cells.iter().filter_map(PinCell::oldest).min();
        let unpinned = oldest.unwrap_or(Epoch::LAST);
        let unpinned = if planted(Bug::ReuseWhilePinned) { Epoch::LAST } else { unpinned };
        let durable = self.durable_until();
        let mut budget = RECLAIM_SLOTS_PER_STEP;
        budget -= self.slots.reclaim(unpinned, durable, budget).min(budget);
        if budget > 0 && self.slots.counts().displaced > 0 && oldest.is_some() {
            mark(Mark::PinHoldsSlots);
        }
        // Parts of the map that were cut off may hold slots of either kind.
        let limit = unpinned.min(durable);
        while budget > 0 {
            match self.dropped.front_mut() {
                Some((epoch, dropped)) if *epoch <= limit => {
                    let slots = &mut self.slots;
                    let seen = dropped.step(&mut |slot| {
                        mark(Mark::DroppedFreed);
                        slots.free_dropped(slot);
                    });
                    if dropped.is_empty() {
                        self.dropped.pop_front();
                    }
                    budget = budget.saturating_sub(seen);
                }
                _ => break,
            }
        }
    }

    fn check_quota(&self, more: u64) -> Result<(), Errno> {
        let used = self.map.tally().provisioned() + self.charged;
        if used.saturating_add(more) <= self.quota_blocks {
            return Ok(());
        }
        mark(Mark::QuotaRefused);
        Err(Errno::NoSpace)
    }

    /// Whether so many slots are free, after looking for displaced ones.
    fn available(&mut self, count: u64) -> bool {
        self.reclaim();
        // A dropped terabyte is worth more than one step when slots are short.
        while u64::from(self.slots.counts().free) < count && !self.dropped.is_empty() {
            let before = self.slots.counts().displaced;
            self.reclaim();
            if self.slots.counts().displaced == before {
                break;
            }
        }
        u64::from(self.slots.counts().free) >= count
    }

    fn ask_growth(&mut self, count: u64, key: SessionKey) -> Result<(), Errno> {
        if let Some(index) = self.growth.denied.iter().position(|denied| *denied == key) {
            mark(Mark::Denied);
            self.growth.denied.swap_remove(index);
            return Err(Errno::NoSpace);
        }
        if planted(Bug::StaleDenial) && self.growth.failed {
            return Err(Errno::NoSpace);
        }
        self.growth.demand = self.growth.demand.max(count);
        if !self.waiting.contains(&key) {
            self.waiting.push(key);
        }
        Ok(())
    }

    fn runs_low(&self) -> bool {
        let counts = self.slots.counts();
        let blocks = self.map.blocks().min(self.quota_blocks);
        let spare = u64::from(counts.free) - self.map.tally().reserved.min(u64::from(counts.free));
        counts.total > 0
            && !self.growth.failed
            && u64::from(counts.total) < blocks
            && spare < u64::from(self.growth.step / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const KEY: SessionKey = SessionKey(1);
    const OTHER: SessionKey = SessionKey(2);

    fn overlay(size_bytes: u64, template_bytes: u64, quota_bytes: u64) -> Overlay {
        let growth_slots_min = crate::limits::GROWTH_SLOTS_MIN;
        Overlay::new(OverlayConfig { size_bytes, template_bytes, quota_bytes, growth_slots_min })
    }

    /// Blocks that all get slots.
    fn written(blocks: Range<u64>) -> Extent {
        Extent { zero: blocks.end..blocks.end, blocks, provision: false }
    }

    /// Blocks that become zero.
    fn zeroed(blocks: Range<u64>, provision: bool) -> Extent {
        Extent { blocks: blocks.clone(), zero: blocks, provision }
    }

    /// Reserves; the data file grows as often as it takes.
    fn reserve(overlay: &mut Overlay, extent: &Extent) -> Result<(Vec<Run>, Grant), Errno> {
        let mut runs = Vec::new();
        loop {
            match overlay.reserve(extent, KEY, &mut runs)? {
                Reserve::Granted(grant) => return Ok((runs, grant)),
                Reserve::Wait => {
                    assert!(overlay.poll_growth().is_some());
                    overlay.grown(true);
                    assert_eq!(overlay.take_waiting(), [KEY]);
                }
            }
        }
    }

    fn change(overlay: &mut Overlay, extent: &Extent) -> Result<(), Errno> {
        let (mut runs, grant) = reserve(overlay, extent)?;
        assert!(overlay.publish(extent, &mut runs, grant, [].into_iter()).is_ok());
        overlay.audit();
        Ok(())
    }

    fn segments(overlay: &Overlay, bytes: Range<u64>) -> Vec<Segment> {
        let mut segments = Vec::new();
        overlay.resolve(bytes, &mut |segment| segments.push(segment));
        segments
    }

    #[test]
    fn neighbouring_blocks_in_neighbouring_slots_are_one_segment() {
        let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
        change(&mut overlay, &written(4..20)).unwrap();
        let template = |offset, length| Segment { source: Source::Template { offset }, length };
        let data = |offset, length| Segment { source: Source::Data { offset }, length };
        let expected = [template(100, 16_284), data(0, 65_536), template(81_920, 18_080)];
        assert_eq!(segments(&overlay, 100..100_000), expected);
        // Blocks 10 and 11 get other slots: their old neighbours no longer lie together.
        change(&mut overlay, &written(10..12)).unwrap();
        let expected =
            [data(0, 6 * BLOCK), data(16 * BLOCK, 2 * BLOCK), data(8 * BLOCK, 8 * BLOCK)];
        assert_eq!(segments(&overlay, 4 * BLOCK..20 * BLOCK), expected);
    }

    #[test]
    fn behind_the_end_of_the_template_everything_is_zero() {
        let ragged = overlay(20_000, 5_000, u64::MAX);
        assert_eq!(ragged.size_bytes(), 20_000);
        let expected = [
            Segment { source: Source::Template { offset: 4_000 }, length: 1_000 },
            Segment { source: Source::Zero, length: 15_000 },
        ];
        assert_eq!(segments(&ragged, 4_000..20_000), expected);
        assert_eq!(ragged.source_of(1, Entry::Template), (Source::Template { offset: 4096 }, 904));
        assert_eq!(ragged.source_of(2, Entry::Template), (Source::Zero, 0));
        let whole = overlay(20_000, 8_192, u64::MAX);
        assert_eq!(whole.source_of(1, Entry::Template).1, 4096);
        assert_eq!(whole.source_of(2, Entry::Template), (Source::Zero, 0));
    }

    #[test]
    fn a_trimmed_block_never_shows_the_template_again() {
        let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
        change(&mut overlay, &written(0..8)).unwrap();
        change(&mut overlay, &zeroed(0..16, false)).unwrap();
        let zero = Segment { source: Source::Zero, length: 65_536 };
        assert_eq!(segments(&overlay, 0..65_536), [zero]);
    }

    #[test]
    fn a_terabyte_is_trimmed_at_once_and_its_slots_come_back_bit_by_bit() {
        let mut overlay = overlay(1 << 40, 1 << 40, u64::MAX);
        for block in (0..1u64 << 28).step_by(1 << 20) {
            change_without_audit(&mut overlay, &written(block..block + 3));
        }
        let live = overlay.counts().live;
        assert_eq!(live, 768);
        change_without_audit(&mut overlay, &zeroed(0..1 << 28, false));
        let counts = overlay.counts();
        assert_eq!((counts.live, counts.displaced), (0, live));
        while overlay.counts().displaced > 0 {
            overlay.reclaim();
        }
        assert_eq!(overlay.counts().free, overlay.counts().total);
        overlay.audit();
    }

    fn change_without_audit(overlay: &mut Overlay, extent: &Extent) {
        let (mut runs, grant) = reserve(overlay, extent).unwrap();
        assert!(overlay.publish(extent, &mut runs, grant, [].into_iter()).is_ok());
    }

    #[test]
    fn a_place_is_private_until_the_publish_and_readable_from_then_on() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        let extent = written(0..1);
        change(&mut overlay, &written(7..9)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
        let (first, last) = (2 * BLOCK, 3 * BLOCK - 1);
        assert_eq!(runs[0].first.offset(), first);
        let look = |overlay: &Overlay, at| {
            (overlay.is_private(at), overlay.is_readable(at), overlay.slot_state(at))
        };
        assert_eq!(look(&overlay, first), (true, false, SlotState::Filling));
        assert_eq!(look(&overlay, last), (true, false, SlotState::Filling));
        assert_eq!(overlay.publish(&extent, &mut runs, grant, [].into_iter()).map(drop), Ok(()));
        assert_eq!(look(&overlay, first), (false, true, SlotState::Live));
        assert_eq!(look(&overlay, last + 1), (false, false, SlotState::Free));
    }

    #[test]
    fn a_pinned_slot_is_not_used_again_and_a_released_one_is() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        let mut pins = crate::pin::Pins::new(overlay.attach());
        change(&mut overlay, &written(0..1)).unwrap();
        let before = segments(&overlay, 0..4096);
        let pin = pins.take(overlay.epoch());
        for _ in 0..600 {
            change(&mut overlay, &written(0..1)).unwrap();
            assert_ne!(segments(&overlay, 0..4096), before);
        }
        assert!(overlay.counts().displaced >= 600, "everything displaced since then is held back");
        pins.release(pin);
        overlay.reclaim();
        assert_eq!((overlay.counts().displaced, overlay.sessions()), (0, 1));
        overlay.detach(pins.cell());
        assert_eq!(overlay.sessions(), 0);
    }

    #[test]
    fn a_pin_holds_what_a_trim_cut_off() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let mut pins = crate::pin::Pins::new(overlay.attach());
        change_without_audit(&mut overlay, &written(0..512));
        let pin = pins.take(overlay.epoch());
        change_without_audit(&mut overlay, &zeroed(0..512, false));
        overlay.reclaim();
        assert_eq!(overlay.counts().displaced, 512);
        pins.release(pin);
        overlay.reclaim();
        assert_eq!(overlay.counts().displaced, 0);
    }

    /// Found by fuzzing: the space was there when it was asked for, and a trim and others took it.
    #[test]
    fn no_more_space_is_set_aside_than_there_is() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let zeroes = |provision| Extent { blocks: 0..1, zero: 0..1, provision };
        change(&mut overlay, &zeroes(true)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &zeroes(true)).unwrap();
        change(&mut overlay, &zeroes(false)).unwrap();
        let free = u64::from(overlay.counts().free);
        change(&mut overlay, &written(1..1 + free)).unwrap();
        assert_eq!(overlay.counts().free, 0);
        let outcome = overlay.publish(&zeroes(true), &mut runs, grant, [].into_iter());
        assert_eq!(outcome, Err(Conflict::Short));
        overlay.release(&zeroes(true), &mut runs, grant);
        overlay.audit();
        assert_eq!((overlay.charged(), overlay.tally().reserved), (0, 0));
    }

    #[test]
    fn a_publish_is_refused_when_its_predecessor_was_replaced() {
        let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
        let extent = written(3..4);
        let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
        let merged = Predecessor { block: 3, entry: overlay.entry(3) };
        change(&mut overlay, &extent).unwrap();
        let outcome = overlay.publish(&extent, &mut runs, grant, [merged].into_iter());
        assert_eq!(outcome, Err(Conflict::Replaced(3)));
        assert_eq!(runs.len(), 1, "the slots are still the caller's");
        let merged = Predecessor { block: 3, entry: overlay.entry(3) };
        assert!(overlay.publish(&extent, &mut runs, grant, [merged].into_iter()).is_ok());
        overlay.audit();
    }

    #[test]
    fn a_quota_counts_what_is_written_set_aside_or_under_way() {
        let mut overlay = overlay(1 << 20, 0, 10 * BLOCK);
        change(&mut overlay, &written(0..4)).unwrap();
        change(&mut overlay, &zeroed(4..7, true)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &written(10..13)).unwrap();
        assert_eq!(overlay.charged(), 3);
        assert_eq!(reserve(&mut overlay, &written(20..21)).unwrap_err(), Errno::NoSpace);
        assert_eq!(reserve(&mut overlay, &zeroed(20..21, true)).unwrap_err(), Errno::NoSpace);
        // Overwriting, and writing where space is set aside, needs no more of it.
        change(&mut overlay, &written(0..7)).unwrap();
        overlay.release(&written(10..13), &mut runs, grant);
        change(&mut overlay, &written(20..23)).unwrap();
        change(&mut overlay, &zeroed(0..7, false)).unwrap();
        change(&mut overlay, &written(30..37)).unwrap();
        assert_eq!(overlay.charged(), 0);
    }

    #[test]
    fn space_that_is_set_aside_is_found_whatever_else_there_is() {
        let mut overlay = overlay(1 << 30, 0, 256 * BLOCK);
        change(&mut overlay, &zeroed(0..256, true)).unwrap();
        assert_eq!((overlay.counts().total, overlay.counts().free), (256, 256));
        // Once more costs nothing, and neither quota nor data file need to grow for a write.
        change(&mut overlay, &zeroed(0..256, true)).unwrap();
        change(&mut overlay, &written(0..256)).unwrap();
        assert_eq!((overlay.counts().total, overlay.counts().free), (256, 0));
        assert_eq!(overlay.tally(), Tally { slots: 256, reserved: 0 });
    }

    #[test]
    fn a_write_that_is_given_up_sets_aside_only_what_it_had_used() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        change(&mut overlay, &zeroed(0..2, true)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &written(0..3)).unwrap();
        overlay.release(&written(0..3), &mut runs, grant);
        assert_eq!(overlay.tally().reserved, 2);
    }

    #[test]
    fn zeroes_with_ragged_ends_over_what_is_there_need_no_more_of_the_quota() {
        let ragged = Extent { blocks: 0..4, zero: 1..3, provision: false };
        for set_aside in [false, true] {
            let mut overlay = overlay(1 << 20, 0, 2 * BLOCK);
            for block in [0..1, 3..4] {
                let there = if set_aside { zeroed(block, true) } else { written(block) };
                change(&mut overlay, &there).unwrap();
            }
            change(&mut overlay, &ragged).unwrap();
            assert_eq!(overlay.tally(), Tally { slots: 2, reserved: 0 });
        }
    }

    #[test]
    fn what_a_trim_gave_back_may_be_gone_when_a_write_is_published() {
        for (others, outcome) in [(1, Ok(())), (2, Err(Conflict::NoSpace))] {
            let mut overlay = overlay(1 << 20, 0, 4 * BLOCK);
            change(&mut overlay, &written(0..2)).unwrap();
            let (mut runs, grant) = reserve(&mut overlay, &written(0..3)).unwrap();
            assert_eq!(overlay.charged(), 1, "two of its blocks are there already");
            change(&mut overlay, &zeroed(0..2, false)).unwrap();
            change(&mut overlay, &written(9..9 + others)).unwrap();
            let published = overlay.publish(&written(0..3), &mut runs, grant, [].into_iter());
            assert_eq!(published.map(drop), outcome);
            if outcome.is_err() {
                overlay.release(&written(0..3), &mut runs, grant);
            }
            overlay.audit();
            assert_eq!(overlay.charged(), 0);
        }
    }

    #[test]
    fn zeroes_that_set_space_aside_take_what_a_trim_gave_back_if_it_is_still_there() {
        let extent = zeroed(0..2, true);
        for (there, others, outcome) in [
            (written(0..2), 2, Ok(())),
            (written(0..2), 3, Err(Conflict::NoSpace)),
            (zeroed(0..2, true), 2, Ok(())),
        ] {
            let mut overlay = overlay(1 << 20, 0, 4 * BLOCK);
            change(&mut overlay, &there).unwrap();
            let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
            assert_eq!(overlay.charged(), 0);
            change(&mut overlay, &zeroed(0..2, false)).unwrap();
            change(&mut overlay, &written(9..9 + others)).unwrap();
            let published = overlay.publish(&extent, &mut runs, grant, [].into_iter());
            assert_eq!(published.map(drop), outcome);
            if outcome.is_err() {
                overlay.release(&extent, &mut runs, grant);
            }
            overlay.audit();
        }
    }

    #[test]
    fn space_that_somebody_is_about_to_set_aside_is_left_alone() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let first = zeroed(0..1, true);
        change(&mut overlay, &first).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &first).unwrap();
        change(&mut overlay, &zeroed(0..1, false)).unwrap();
        change(&mut overlay, &written(1..256)).unwrap();
        let second = zeroed(300..301, true);
        let (mut none, setting) = reserve(&mut overlay, &second).unwrap();
        assert_eq!((overlay.counts().total, overlay.counts().free), (256, 1));
        let outcome = overlay.publish(&first, &mut runs, grant, [].into_iter());
        assert_eq!(outcome, Err(Conflict::Short));
        overlay.release(&first, &mut runs, grant);
        assert_eq!(overlay.publish(&second, &mut none, setting, [].into_iter()).map(drop), Ok(()));
        overlay.audit();
    }

    #[test]
    fn slots_are_reclaimed_in_bounded_steps_and_all_of_them_when_they_run_short() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let step = u64::from(RECLAIM_SLOTS_PER_STEP);
        for start in [0, step, 2 * step, 3 * step] {
            change_without_audit(&mut overlay, &written(start..start + step));
        }
        let total = overlay.counts().total;
        let displaced = |overlay: &Overlay| u64::from(overlay.counts().displaced);
        change_without_audit(&mut overlay, &zeroed(0..2 * step, false));
        assert_eq!(displaced(&overlay), 2 * step);
        overlay.reclaim();
        assert_eq!(displaced(&overlay), step);
        // What was displaced one by one goes first, and uses up the step.
        change_without_audit(&mut overlay, &written(2 * step..3 * step));
        change_without_audit(&mut overlay, &zeroed(2 * step..4 * step, false));
        let before = displaced(&overlay);
        overlay.reclaim();
        assert_eq!(displaced(&overlay), before - step);
        let all = u64::from(total);
        for _ in 0..2 {
            change_without_audit(&mut overlay, &written(0..all));
            assert_eq!((overlay.counts().total, overlay.counts().free), (total, 0));
            change_without_audit(&mut overlay, &zeroed(0..all, false));
        }
        overlay.audit();
    }

    #[test]
    fn a_growth_by_what_is_needed_is_not_tried_twice() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let extent = written(0..300);
        assert_eq!(overlay.reserve(&extent, KEY, &mut Vec::new()), Ok(Reserve::Wait));
        assert_eq!(overlay.poll_growth(), Some(300));
        overlay.grown(false);
        assert_eq!(overlay.take_waiting(), [KEY]);
        assert_eq!(overlay.reserve(&extent, KEY, &mut Vec::new()), Err(Errno::NoSpace));
    }

    #[test]
    fn who_finds_room_after_a_growth_failed_may_wait_for_the_next() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let (mut others, grant) = reserve(&mut overlay, &written(0..256)).unwrap();
        let (extent, mut runs) = (written(300..500), Vec::new());
        let third = SessionKey(3);
        for key in [KEY, third] {
            assert_eq!(overlay.reserve(&extent, key, &mut runs), Ok(Reserve::Wait));
        }
        for wanted in [512, 200] {
            assert_eq!(overlay.poll_growth(), Some(wanted));
            overlay.grown(false);
        }
        assert_eq!(overlay.take_waiting(), [KEY, third]);
        overlay.release(&written(0..256), &mut others, grant);
        assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
        let next = written(500..700);
        assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Wait));
        // The other one has not heard of the failure yet.
        assert_eq!(overlay.reserve(&next, third, &mut Vec::new()), Err(Errno::NoSpace));
    }

    #[test]
    fn what_is_set_aside_survives_a_write_that_is_given_up() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        change(&mut overlay, &zeroed(0..4, true)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &written(1..3)).unwrap();
        overlay.release(&written(1..3), &mut runs, grant);
        overlay.audit();
        assert_eq!(overlay.tally(), Tally { slots: 0, reserved: 4 });
    }

    #[test]
    fn what_a_trim_took_is_not_set_aside_again_by_a_write_that_is_given_up() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        change(&mut overlay, &zeroed(0..4, true)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &written(0..4)).unwrap();
        assert_eq!(overlay.tally(), Tally::default());
        assert_eq!(overlay.entry(1), Entry::ZeroClaimed);
        change(&mut overlay, &zeroed(1..2, false)).unwrap();
        overlay.release(&written(0..4), &mut runs, grant);
        overlay.audit();
        assert_eq!(overlay.tally(), Tally { slots: 0, reserved: 3 });
        assert_eq!(overlay.entry(1), Entry::Zero);
    }

    #[test]
    fn who_waits_is_woken_when_slots_become_free_before_the_data_file_grows() {
        let mut overlay = overlay(1 << 20, 0, u64::MAX);
        let all = written(0..256);
        let (mut runs, grant) = reserve(&mut overlay, &all).unwrap();
        let all_taken = overlay.counts().free == 0;
        assert!(all_taken);
        assert_eq!(overlay.reserve(&written(0..9), OTHER, &mut Vec::new()), Ok(Reserve::Wait));
        overlay.release(&all, &mut runs, grant);
        assert_eq!(overlay.poll_growth(), None);
        assert_eq!(overlay.take_waiting(), [OTHER]);
    }

    #[test]
    fn a_full_disk_is_told_to_those_who_waited_and_tried_again_for_others() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        let (extent, mut runs) = (written(0..300), Vec::new());
        assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Wait));
        // First a comfortable extent, then only what is needed, then no.
        for _ in 0..2 {
            if let Some(slots) = overlay.poll_growth() {
                assert!(slots >= 300);
                overlay.grown(false);
            }
        }
        assert_eq!(overlay.take_waiting(), [KEY]);
        assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Err(Errno::NoSpace));
        // Somebody else's request, or the next one: the disk may have room by now.
        for key in [OTHER, KEY] {
            assert_eq!(overlay.reserve(&extent, key, &mut runs), Ok(Reserve::Wait));
        }
        assert!(overlay.poll_growth().is_some());
        overlay.grown(true);
        assert_eq!(overlay.take_waiting(), vec![OTHER, KEY]);
        assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
    }

    #[test]
    fn the_data_file_grows_ahead_of_need_by_extents_that_double() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        assert_eq!(overlay.poll_growth(), None, "a device nobody writes to needs no slots");
        change_without_audit(&mut overlay, &written(0..1));
        assert_eq!(overlay.counts().total, 256);
        let mut next = 1;
        for step in [512, 1024, 2048, 4096, 8192, 16_384, 16_384, 16_384] {
            // As long as a quarter of the next extent is free, there is time.
            let plenty = next + u64::from(overlay.counts().free - step / 4);
            change_without_audit(&mut overlay, &written(next..plenty));
            assert_eq!(overlay.poll_growth(), None);
            change_without_audit(&mut overlay, &written(plenty..plenty + 1));
            next = plenty + 1;
            assert_eq!(overlay.poll_growth(), Some(step));
            assert_eq!(overlay.poll_growth(), None, "one growth at a time");
            overlay.grown(true);
        }
    }

    #[test]
    fn space_set_aside_counts_as_used_when_the_data_file_grows_ahead_of_need() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        change(&mut overlay, &zeroed(0..128, true)).unwrap();
        assert_eq!((overlay.counts().free, overlay.poll_growth()), (256, None));
        change(&mut overlay, &zeroed(128..129, true)).unwrap();
        assert_eq!((overlay.counts().free, overlay.poll_growth()), (256, Some(512)));
    }

    #[test]
    fn the_data_file_does_not_grow_ahead_of_need_beyond_device_or_quota() {
        let largest = 256 * BLOCK;
        for (size_bytes, quota_bytes) in [(largest, u64::MAX), (1 << 30, largest)] {
            let mut overlay = overlay(size_bytes, 0, quota_bytes);
            change(&mut overlay, &written(0..250)).unwrap();
            assert_eq!((overlay.counts().total, overlay.poll_growth()), (256, None));
        }
    }

    #[test]
    fn after_a_growth_that_failed_the_data_file_grows_by_what_is_needed_only() {
        let mut overlay = overlay(1 << 30, 0, u64::MAX);
        change(&mut overlay, &written(0..200)).unwrap();
        assert_eq!(overlay.poll_growth(), Some(512));
        overlay.grown(false);
        assert_eq!(overlay.poll_growth(), None, "nobody needs it");
        assert_eq!(overlay.take_waiting(), []);
        let (extent, mut runs) = (written(200..300), Vec::new());
        assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Wait));
        assert_eq!(overlay.take_waiting(), [], "not before its end is known");
        assert_eq!(overlay.poll_growth(), Some(44));
        overlay.grown(true);
        assert_eq!(overlay.take_waiting(), [KEY]);
        assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
        // It went well: ahead of need again, from the second extent on.
        assert_eq!(overlay.poll_growth(), Some(512));
    }
}
