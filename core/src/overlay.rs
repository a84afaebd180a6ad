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
mod growth;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

pub use durable::{Durable, Visible};
use growth::{Growth, Punching};

use crate::error::Errno;
use crate::journal::{Journal, Place};
use crate::judge::{Bug, Mark, mark, planted, used};
use crate::limits::{BLOCK_BYTES, DEVICE_BYTES_MAX, SpaceLimits};
use crate::map::{Dropped, Entry, Map, Tally, Uniform};
use crate::pin::{Epoch, PinCell};
use crate::seal::{Seal, SealNumber};
use crate::segment::{Segment, Source};
use crate::slot::{Run, SlotCounts, SlotId, SlotState, SlotTable};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks that are looked at together ahead of need: a usual batch.
const FORESEEN: usize = 32;

/// What a device is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OverlayConfig {
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// Size of the template to the byte; 0 for a blank device. The device reads zero beyond it.
    pub template_bytes: u64,
    /// The most bytes the sheet may hold; `u64::MAX` for no quota. Rounded down to blocks.
    pub quota_bytes: u64,
    /// How it gets space, and gives it back.
    pub space: SpaceLimits,
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
    /// Names these blocks among [`Overlay::claims`].
    claim: u64,
    /// Blocks for which it is about to set space aside.
    setting: u64,
}

/// Blocks whose space was set aside, and is used by the slots of a write under way. If it is given up, they are set
/// aside again, and no others: writes may overlap.
#[derive(Debug, Hash)]
struct Claim {
    name: u64,
    blocks: Range<u64>,
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
    /// A trim took what the quota had counted on; or the journal is full, and the disk as well.
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
    /// No more is ever used: the quota, or what was used already when the quota became less than that.
    used_blocks_max: u64,
    map: Map,
    slots: SlotTable,
    /// The sum of all grants that were not yet given back.
    charged: u64,
    setting: u64,
    claims: Vec<Claim>,
    /// The name of the last one.
    claimed: u64,
    epoch: Epoch,
    dropped: VecDeque<DroppedAt>,
    cells: Vec<PinCell>,
    growth: Growth,
    punching: Punching,
    waiting: Vec<SessionKey>,
    journal: Option<Journal>,
    /// With a bug planted, the map as it was before the last publish.
    before: Option<Map>,
}

/// A part of the map that was cut off.
#[derive(Debug, Hash)]
struct DroppedAt {
    epoch: Epoch,
    /// It is in no seal from this one on.
    seal: SealNumber,
    nodes: Dropped,
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
            used_blocks_max: config.quota_bytes / BLOCK,
            slots: SlotTable::new(config.space.hole_slots),
            charged: 0,
            setting: 0,
            claims: Vec::new(),
            claimed: 0,
            epoch: Epoch::FIRST,
            dropped: VecDeque::new(),
            cells: Vec::new(),
            growth: Growth::new(config.space.growth_slots_min),
            punching: Punching::default(),
            waiting: Vec::new(),
            journal: None,
            before: None,
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

    /// The most bytes the sheet may hold; `u64::MAX` for no quota.
    #[must_use]
    pub fn quota_bytes(&self) -> u64 {
        self.config.quota_bytes
    }

    /// Changes the quota. If more is used already, nothing is lost, and what needs no more space goes on:
    /// overwrites, trims, and writes to which space was granted or for which it is set aside. All else is refused
    /// until there is room below the quota again.
    pub fn set_quota(&mut self, quota_bytes: u64) {
        self.config.quota_bytes = quota_bytes;
        self.quota_blocks = quota_bytes / BLOCK;
        self.used_blocks_max = self.quota_blocks.max(self.used_blocks());
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

    /// Looks at what publishes of these blocks will look at, and does nothing with it. It lies all over the memory:
    /// here all of it is waited for at once, and where each is needed, one by one.
    pub(crate) fn foresee(&self, mut blocks: impl Iterator<Item = u64>) {
        let mut entries = [Entry::Zero; FORESEEN];
        let mut places = [None; FORESEEN];
        loop {
            let pairs = entries.iter_mut().zip(&mut blocks);
            let count = pairs.map(|(entry, block)| *entry = self.map.entry(block)).count();
            if count == 0 {
                return;
            }
            for (place, entry) in places.iter_mut().zip(&entries[..count]) {
                *place = match entry {
                    Entry::Slot(slot) => self.slots.foresee(*slot),
                    _ => None,
                };
            }
            if let Some(journal) = &self.journal {
                places[..count].iter().flatten().for_each(|place| journal.foresee(*place));
            }
        }
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

    /// Everything that is visible now stays readable, whatever is written afterwards, until it is handed
    /// back. Takes the same time for any device.
    pub fn seal(&mut self) -> Seal {
        mark(Mark::Sealed);
        let map = self.before.as_ref().unwrap_or(&self.map).clone();
        Seal { number: self.slots.seal(), map }
    }

    /// A seal is handed back: what only it named is freed in bounded steps, like everything that was
    /// displaced. Dropping the map takes time that grows with what was written since; it is the caller's.
    #[must_use = "drop it where nobody waits"]
    pub fn unseal(&mut self, seal: Seal) -> Map {
        self.slots.unseal(seal.number);
        seal.map
    }

    /// How many seals are held.
    #[must_use]
    pub fn seals(&self) -> usize {
        self.slots.seals()
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
        if !self.punching.woken.is_empty() {
            self.punching.woken.retain(|woken| *woken != key);
        }
        let count = extent.slots();
        let in_slots = self.tally_of_slots(extent);
        // Blocks with space set aside use that up: their slots come out of it.
        let mut grant =
            Grant { charge: count - in_slots.slots, used: in_slots.reserved, claim: 0, setting: 0 };
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
            grant.claim = self.claim(extent);
        }
        self.slots.take(count, runs);
        self.charged += grant.charge;
        self.setting += grant.setting;
        used(self.used_blocks());
        Ok(Reserve::Granted(grant))
    }

    /// Gives back slots that no map ever named, and what was set aside.
    pub fn release(&mut self, runs: &mut Vec<Run>, grant: Grant) {
        for run in runs.drain(..) {
            self.slots.release(run);
        }
        if !planted(Bug::QuotaLeak) {
            self.give_back(grant);
        }
        if grant.claim > 0 {
            mark(Mark::ProvisionRestored);
            self.end_claim(grant.claim, |map, block| {
                if map.entry(block) == Entry::ZeroClaimed {
                    set_zero(map, block, Uniform::ZeroProvisioned);
                }
            });
        }
    }

    /// The slots of a write take the place of what was set aside for its blocks. Answers a name for these.
    #[cold]
    #[inline(never)]
    fn claim(&mut self, extent: &Extent) -> u64 {
        self.claimed += 1;
        let name = self.claimed;
        for block in extent.parts().into_iter().flatten() {
            if self.map.entry(block) != Entry::ZeroProvisioned {
                continue;
            }
            set_zero(&mut self.map, block, Uniform::ZeroClaimed);
            match self.claims.last_mut() {
                Some(last) if last.name == name && last.blocks.end == block => last.blocks.end += 1,
                _ => self.claims.push(Claim { name, blocks: block..block + 1 }),
            }
        }
        name
    }

    /// A write is over that had claimed blocks: visits them.
    #[cold]
    #[inline(never)]
    fn end_claim(&mut self, name: u64, mut visit: impl FnMut(&mut Map, u64)) {
        let mixed_up = if planted(Bug::ClaimsMixedUp) {
            self.claims.iter().map(|claim| claim.blocks.start).min()
        } else {
            None
        };
        let map = &mut self.map;
        self.claims.retain(|claim| {
            let is_over = claim.name == name;
            if is_over {
                let start = mixed_up.unwrap_or(claim.blocks.start);
                let count = claim.blocks.end - claim.blocks.start;
                (start..start + count).for_each(|block| visit(map, block));
            }
            !is_over
        });
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
        let mut place = None;
        if planted(Bug::RecordOfRefused) {
            place = self.record(extent, runs);
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
        if grant.claim > 0 {
            self.end_claim(grant.claim, |_, _| {});
        }
        if planted(Bug::SealMissesAnswered) {
            self.before = Some(self.map.clone());
        }
        self.epoch.0 += 1;
        if !planted(Bug::RecordOfRefused) {
            place = self.record(extent, runs);
        }
        self.zero(extent);
        self.flip(extent, runs, place);
        used(self.used_blocks());
        Ok(Visible::at(self.epoch))
    }

    /// The zero range of a publish: an edit of the map alone, whatever its length.
    fn zero(&mut self, extent: &Extent) {
        if extent.zero.is_empty() {
            return;
        }
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
            let seal = self.slots.next_seal();
            self.dropped.push_back(DroppedAt { epoch, seal, nodes: dropped });
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
    fn flip(&mut self, extent: &Extent, runs: &mut Vec<Run>, place: Option<Place>) {
        for run in runs.iter() {
            self.slots.publish(*run);
            if self.journal.is_some() {
                self.slots.freshen(*run, place);
            }
        }
        let epoch = self.epoch;
        let slots = &mut self.slots;
        let mut limbo = 0;
        let displaced = &mut |slot| limbo += u64::from(slots.displace(slot, epoch));
        let mut each = runs.iter().flat_map(|run| (0..run.count).map(|index| run.slot(index)));
        for part in extent.parts().into_iter().filter(|part| !part.is_empty()) {
            self.map.publish(part, &mut each, displaced);
        }
        assert!(each.next().is_none(), "as many slots as blocks");
        runs.clear();
        self.note_limbo(limbo);
    }

    fn tally_of_slots(&self, extent: &Extent) -> Tally {
        if extent.zero.is_empty() {
            return self.map.tally_in(extent.blocks.clone());
        }
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
        self.map.walk(0..self.map.blocks(), &mut |blocks, entry| {
            if let Entry::Slot(slot) = entry {
                assert!(self.slots.is_live(slot), "the map names live slots only");
            }
            let is_claimed = |block| self.claims.iter().any(|claim| claim.blocks.contains(&block));
            let is_over = entry == Entry::ZeroClaimed && !blocks.clone().all(is_claimed);
            assert!(!is_over, "what nobody claims any more is set aside: {blocks:?}");
        });
        assert!(counts.filling > 0 || self.claims.is_empty(), "whoever claims has slots to fill");
        // An overcommitted reservation would break the promise that a later write finds a slot.
        let there = [counts.free, counts.displaced, counts.filling, self.perhaps_free()];
        assert!(there.into_iter().map(u64::from).sum::<u64>() >= self.map.tally().reserved);
        assert!(self.used_blocks() <= self.used_blocks_max);
        if let Some(journal) = &self.journal {
            journal.audit(self.epoch);
        }
    }

    /// Blocks that count against the quota: written, set aside, or granted to a request under way.
    fn used_blocks(&self) -> u64 {
        self.map.tally().provisioned() + self.charged
    }

    fn check_quota(&self, more: u64) -> Result<(), Errno> {
        // The quota may be less than what is used. To overwrite and to trim is allowed even then.
        if more == 0 || self.used_blocks().saturating_add(more) <= self.quota_blocks {
            return Ok(());
        }
        mark(Mark::QuotaRefused);
        Err(Errno::NoSpace)
    }
}

/// Turns a block that is zero into another kind of zero.
fn set_zero(map: &mut Map, block: u64, to: Uniform) {
    let nothing = &mut |_| unreachable!("zero has no slots");
    map.fill(block..block + 1, to, nothing, &mut Dropped::new());
}
