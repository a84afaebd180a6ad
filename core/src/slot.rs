//! The slots of a data file: which are free, and the life of each.
//!
//! `Free → Filling → Live → Displaced → Free`, with a stay as `Sealed` before `Displaced` if a seal names
//! the slot when the map no longer does, and as `Hole` while a free one has no space. Every transition asserts where the slot comes from.
//! Allocation recycles before it grows, and prefers whole runs, so that neighbouring blocks lie in
//! neighbouring slots and go to the kernel in one piece.

mod free;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::hint::black_box;

use crate::journal::Place;
use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::BLOCK_BYTES;
use crate::map::{Entry, Map};
use crate::pin::Epoch;
use crate::seal::{SealNumber, Seals};
use free::{FreeRuns, split_found, split_groups};

/// The number of a slot: its place in the data file is this times 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl SlotId {
    /// Where the slot begins in the data file.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) * u64::from(BLOCK_BYTES)
    }
}

/// Slots that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// The first of them.
    pub first: SlotId,
    /// How many there are.
    pub count: u32,
}

impl Run {
    fn range(self) -> core::ops::Range<usize> {
        self.first.0 as usize..(self.first.0 + self.count) as usize
    }

    /// The slot `index` places into the run.
    #[must_use]
    pub fn slot(self, index: u32) -> SlotId {
        debug_assert!(index < self.count);
        SlotId(self.first.0 + index)
    }
}

/// Where a slot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// Ready to be filled.
    Free,
    /// Private to a write under way: only such slots may be written to.
    Filling,
    /// Named by the map.
    Live,
    /// No longer named by the map, but by a seal.
    Sealed,
    /// No longer named, perhaps still looked at by a pin.
    Displaced,
    /// Its space was given back to the file system, or may have been.
    Hole,
}

use SlotState as State;

/// How many slots are in each state. Conservation: the six always add up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SlotCounts {
    /// Slots of the data file.
    pub total: u32,
    /// Ready to be filled.
    pub free: u32,
    /// Private to a write under way.
    pub filling: u32,
    /// Named by the map, and perhaps by seals as well.
    pub live: u32,
    /// Named by seals only.
    pub sealed: u32,
    /// No longer named, perhaps still looked at by a pin.
    pub displaced: u32,
    /// Without space, or perhaps without.
    pub holes: u32,
}

impl SlotCounts {
    /// Whether no slot was lost or counted twice.
    #[must_use]
    pub fn conserved(&self) -> bool {
        let sum = u64::from(self.free)
            + u64::from(self.filling)
            + u64::from(self.live)
            + u64::from(self.sealed)
            + u64::from(self.displaced)
            + u64::from(self.holes);
        sum == u64::from(self.total)
    }
}

/// What a slot waits for, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
struct Fresh(u32);

impl Fresh {
    /// Nothing: a record names it, or will never do.
    const NOT: Self = Self(0);
    /// A record, where it is one of several of its edit.
    const ONE_OF_MANY: Self = Self(1);

    /// A record, where it has an edit of its own.
    fn at(place: Place) -> Self {
        Self(place.0 + 2)
    }

    fn place(self) -> Option<Place> {
        self.0.checked_sub(2).map(Place)
    }
}

/// Slots without space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hole {
    pub(crate) run: Run,
    /// Whether it was punched, or space for it was refused. After a restart, nobody knows.
    pub(crate) certain: bool,
}

/// Every slot of one data file.
#[derive(Debug, Default, Hash)]
pub struct SlotTable {
    states: Vec<State>,
    counts: SlotCounts,
    free: FreeRuns,
    /// Whole groups of slots, or what there is of the file's last one. Those that are uncertain are last, and are
    /// taken first: they may have space.
    holes: VecDeque<Hole>,
    /// Changes whenever slots get space.
    growths: u64,
    /// Displaced runs with the epoch that displaced them, in rising order: those that the journal may
    /// name, and those that it never did.
    displaced: VecDeque<(Epoch, Run)>,
    unnamed: VecDeque<(Epoch, Run)>,
    /// For each slot, whether it is live and no record of the journal names it yet, and where its edit waits.
    /// Empty where there is no journal.
    fresh: Vec<Fresh>,
    seals: Seals,
}

impl SlotTable {
    /// No slots, of a data file that gives space back by groups of so many; 0 for never.
    pub(crate) fn new(group: u32) -> Self {
        Self { free: FreeRuns::new(group), ..Self::default() }
    }

    /// How many slots are in each state.
    #[must_use]
    pub fn counts(&self) -> SlotCounts {
        self.counts
    }

    /// The data file has grown by `count` slots.
    pub(crate) fn grow(&mut self, count: u32) {
        let first = self.counts.total;
        let total = first.checked_add(count).expect("growth is bounded by the slot numbers");
        self.states.resize(total as usize, State::Free);
        self.growths += 1;
        self.counts.total = total;
        self.counts.free += count;
        if count > 0 {
            self.free.put(Run { first: SlotId(first), count });
        }
    }

    /// The slots of a data file with `total` of them, after a restart: those that the map names are live,
    /// all others are free, or holes if they may have been punched. Fails at a slot that the map names twice.
    pub(crate) fn recovered(total: u32, map: &Map, group: u32) -> Result<Self, SlotId> {
        let mut table = Self { growths: 1, ..Self::new(group) };
        table.states.resize(total as usize, State::Free);
        table.counts = SlotCounts { total, free: total, ..SlotCounts::default() };
        let mut twice = None;
        map.walk(0..map.blocks(), &mut |_, entry| {
            let Entry::Slot(slot) = entry else { return };
            let state = &mut table.states[slot.0 as usize];
            if core::mem::replace(state, State::Live) == State::Live {
                twice = Some(slot);
            }
            table.counts.free -= 1;
            table.counts.live += 1;
        });
        if let Some(slot) = twice {
            return Err(slot);
        }
        // The lowest are put last, and taken first.
        let mut end = total;
        while end > 0 {
            let free = table.states[..end as usize].iter().rev();
            let count = free.take_while(|state| **state == State::Free).count() as u32;
            if count > 0 {
                let run = Run { first: SlotId(end - count), count };
                let group = if planted(Bug::HoleForgotten) { 0 } else { group };
                let [before, holes, behind] = if planted(Bug::LastHoleForgotten) {
                    split_groups(run, group)
                } else {
                    split_found(run, group, total)
                };
                [behind, before].into_iter().flatten().for_each(|run| table.free.put(run));
                if let Some(run) = holes {
                    table.states[run.range()].fill(State::Hole);
                    table.counts.free -= run.count;
                    table.counts.holes += run.count;
                    table.put_hole(Hole { run, certain: false });
                }
            }
            end = (end - count).saturating_sub(1);
        }
        Ok(table)
    }

    /// Moves `count` free slots to `runs`, as few runs as possible. There must be as many.
    pub(crate) fn take(&mut self, count: u32, runs: &mut Vec<Run>) {
        assert!(count <= self.counts.free, "reserve before you take");
        let mut missing = count;
        while missing > 0 {
            let run = self.free.pop(missing);
            let taken = Run { first: run.first, count: run.count.min(missing) };
            if taken.count < run.count {
                mark(Mark::RunSplit);
                let early = u32::from(planted(Bug::TwoOwners));
                self.free.put(Run {
                    first: SlotId(run.first.0 + taken.count - early),
                    count: run.count - taken.count,
                });
            }
            self.shift(taken, State::Free, State::Filling);
            missing -= taken.count;
            match runs.last_mut() {
                Some(last) if last.first.0 + last.count == taken.first.0 => {
                    last.count += taken.count;
                }
                last => {
                    if last.is_some() {
                        mark(Mark::RunsSeveral);
                    }
                    runs.push(taken);
                }
            }
        }
        self.counts.free -= count;
        self.counts.filling += count;
    }

    /// A write under way gives its slots back unseen.
    pub(crate) fn release(&mut self, run: Run) {
        self.shift(run, State::Filling, State::Free);
        self.counts.filling -= run.count;
        self.counts.free += run.count;
        self.free.put(run);
    }

    /// The map now names these slots.
    pub(crate) fn publish(&mut self, run: Run) {
        self.shift(run, State::Filling, State::Live);
        self.counts.filling -= run.count;
        self.counts.live += run.count;
        if self.seals.held() > 0 {
            self.seals.publish(run);
        }
    }

    /// All live slots are to stay as they are until this is let go.
    pub(crate) fn seal(&mut self) -> SealNumber {
        self.seals.take()
    }

    /// A seal is let go; what only it named is displaced bit by bit, by [`Self::unseal_step`].
    pub(crate) fn unseal(&mut self, number: SealNumber) {
        self.seals.release(number);
    }

    /// The seal that will be taken next.
    pub(crate) fn next_seal(&self) -> SealNumber {
        self.seals.next()
    }

    /// How many seals are held.
    pub(crate) fn seals(&self) -> usize {
        self.seals.held()
    }

    /// Whether [`Self::unseal_step`] has something to do.
    pub(crate) fn is_unsealing(&self) -> bool {
        self.seals.has_released()
    }

    /// Displaces slots at `epoch` that only a seal named which was let go. Looks at one run of them;
    /// answers at how many slots, and how many of the displaced a record may name.
    pub(crate) fn unseal_step(&mut self, epoch: Epoch) -> (u32, u64) {
        let mut seals = core::mem::take(&mut self.seals);
        let mut limbo = 0;
        let seen = seals.step(&mut |slot, recorded| {
            mark(Mark::OrphanDisplaced);
            self.shift(Run { first: slot, count: 1 }, State::Sealed, State::Displaced);
            self.counts.sealed -= 1;
            self.counts.displaced += 1;
            let epoch = if planted(Bug::OrphanFreedAtOnce) { Epoch::FIRST } else { epoch };
            self.wait(slot, epoch, recorded);
            limbo += u64::from(recorded);
        });
        self.seals = seals;
        (seen, limbo)
    }

    /// No record of the journal names these live slots yet. If it is one, its edit waits at `place`.
    pub(crate) fn freshen(&mut self, run: Run, place: Option<Place>) {
        self.fresh.resize(self.states.len(), Fresh::NOT);
        let place = place.filter(|_| run.count == 1);
        let fresh = place.map_or(Fresh::ONE_OF_MANY, Fresh::at);
        for index in run.range() {
            assert!(self.states[index] == State::Live, "only live slots are fresh");
            self.fresh[index] = fresh;
        }
    }

    /// Looks at the state of a slot; answers with its [`Self::place`].
    pub(crate) fn foresee(&self, slot: SlotId) -> Option<Place> {
        black_box(self.states[slot.0 as usize]);
        self.place(slot)
    }

    /// Where the edit waits that named this live slot, if it names no other.
    pub(crate) fn place(&self, slot: SlotId) -> Option<Place> {
        self.fresh.get(slot.0 as usize)?.place()
    }

    /// A record names these slots from now on, if they are still live.
    pub(crate) fn settle(&mut self, run: Run) {
        if !planted(Bug::EditPlaceStale) {
            self.fresh[run.range()].fill(Fresh::NOT);
        }
    }

    /// Whether no record of the journal names the slot; it does not count as fresh any more.
    fn take_fresh(&mut self, slot: SlotId) -> bool {
        let fresh = self.fresh.get_mut(slot.0 as usize).map(core::mem::take);
        fresh.unwrap_or_default() != Fresh::NOT
    }

    /// The map no longer names this slot, since `epoch` began. Answers whether it waits for a record.
    pub(crate) fn displace(&mut self, slot: SlotId, epoch: Epoch) -> bool {
        let recorded = !self.take_fresh(slot);
        let run = Run { first: slot, count: 1 };
        self.counts.live -= 1;
        if self.seals.held() > 0 && self.seals.keep(slot, recorded, self.seals.next()) {
            mark(Mark::Orphaned);
            self.shift(run, State::Live, State::Sealed);
            self.counts.sealed += 1;
            return false;
        }
        self.shift(run, State::Live, State::Displaced);
        self.counts.displaced += 1;
        self.wait(slot, epoch, recorded);
        recorded
    }

    /// A slot that was displaced waits until nobody looks at it, and for the journal if a record may name it.
    fn wait(&mut self, slot: SlotId, epoch: Epoch, recorded: bool) {
        let queue = if recorded { &mut self.displaced } else { &mut self.unnamed };
        match queue.back_mut() {
            Some((last, run)) if *last == epoch && run.first.0 + run.count == slot.0 => {
                run.count += 1;
            }
            last => {
                let rises = last.is_none_or(|(last, _)| *last <= epoch);
                assert!(rises || planted(Bug::OrphanFreedAtOnce), "epochs only rise");
                queue.push_back((epoch, Run { first: slot, count: 1 }));
            }
        }
    }

    /// A dropped part of the map named `count` slots: they count as displaced from now on, although
    /// each is looked at only when [`Self::free_dropped`] comes by.
    pub(crate) fn drop_live(&mut self, count: u64) {
        let count = u32::try_from(count).expect("no more slots than there are");
        self.counts.live -= count;
        self.counts.displaced += count;
    }

    /// Frees a slot that a part of the map named which was dropped before the seal `before` was taken,
    /// unless a seal names it.
    pub(crate) fn free_dropped(&mut self, slot: SlotId, before: SealNumber) {
        let run = Run { first: slot, count: 1 };
        let recorded = !self.take_fresh(slot);
        self.counts.displaced -= 1;
        if !planted(Bug::DroppedSealFreed) && self.seals.keep(slot, recorded, before) {
            mark(Mark::Orphaned);
            self.shift(run, State::Live, State::Sealed);
            self.counts.sealed += 1;
            return;
        }
        self.shift(run, State::Live, State::Free);
        self.counts.free += 1;
        self.free.put_one(slot);
    }

    /// Frees displaced slots that nobody looks at any more: those displaced at or before `unpinned`, and
    /// of those that a record may name, only what was displaced at or before `durable` as well. Looks at
    /// no more than about `budget` slots; answers how many it freed.
    pub(crate) fn reclaim(&mut self, unpinned: Epoch, durable: Epoch, budget: u32) -> u32 {
        let mut freed = 0;
        while freed < budget {
            let first = |queue: &VecDeque<(Epoch, Run)>, limit| {
                queue.front().filter(|(epoch, _)| *epoch <= limit).map(|(_, run)| *run)
            };
            let run = if let Some(run) = first(&self.unnamed, unpinned) {
                mark(Mark::FreshFreed);
                self.unnamed.pop_front();
                run
            } else if let Some(run) = first(&self.displaced, unpinned.min(durable)) {
                self.displaced.pop_front();
                run
            } else {
                break;
            };
            self.shift(run, State::Displaced, State::Free);
            self.counts.displaced -= run.count;
            self.counts.free += run.count;
            self.free.put(run);
            freed += run.count;
        }
        freed
    }

    /// When the last slot was displaced that a record may name.
    pub(crate) fn displaced_last(&self) -> Option<Epoch> {
        self.displaced.back().map(|(epoch, _)| *epoch)
    }

    /// Takes free slots, to be punched: whole groups, of those that were freed longest ago, no more slots than `most`. A
    /// bounded step: a run of none is a reason to ask again.
    pub(crate) fn punch(&mut self, most: u32) -> Option<Run> {
        if planted(Bug::PunchTooEarly)
            && self.free.has_group(most)
            && let Some((_, run)) = self.displaced.pop_front()
        {
            self.shift(run, State::Displaced, State::Free);
            self.counts.displaced -= run.count;
            self.counts.free += run.count;
            self.free.put_cold(run);
        }
        let run = self.free.take_groups(most)?;
        self.shift(run, State::Free, State::Hole);
        self.counts.free -= run.count;
        self.counts.holes += run.count;
        Some(run)
    }

    /// Slots whose space nobody knows of, no more than `most`: they are to be punched, so that it is certain.
    pub(crate) fn punch_uncertain(&mut self, most: u32) -> Option<Run> {
        self.has_uncertain_holes().then(|| self.take_hole(most)).flatten().map(|hole| hole.run)
    }

    /// A hole that is to get space again, or is to be punched: no longer than `most`, a multiple of a group.
    pub(crate) fn take_hole(&mut self, most: u32) -> Option<Hole> {
        let Hole { run, certain } = self.holes.pop_back()?;
        let taken = Run { first: run.first, count: run.count.min(most) };
        if taken.count < run.count {
            let first = SlotId(taken.first.0 + taken.count);
            let rest = Run { first, count: run.count - taken.count };
            self.holes.push_back(Hole { run: rest, certain });
        }
        Some(Hole { run: taken, certain })
    }

    /// A hole stays, or has become one.
    pub(crate) fn put_hole(&mut self, hole: Hole) {
        if hole.certain {
            self.holes.push_front(hole);
        } else {
            self.holes.push_back(hole);
        }
    }

    /// Whether there are holes which perhaps are none.
    pub(crate) fn has_uncertain_holes(&self) -> bool {
        self.holes.back().is_some_and(|hole| !hole.certain)
    }

    /// How many slots are in those. For audits.
    pub(crate) fn uncertain_holes(&self) -> u32 {
        self.holes.iter().rev().take_while(|hole| !hole.certain).map(|hole| hole.run.count).sum()
    }

    /// A hole that was taken has space again.
    pub(crate) fn fill_hole(&mut self, run: Run) {
        self.shift(run, State::Hole, State::Free);
        self.growths += 1;
        self.counts.holes -= run.count;
        self.counts.free += run.count;
        self.free.put(run);
    }

    /// A number that changes whenever slots get space.
    pub(crate) fn growths(&self) -> u64 {
        self.growths
    }

    fn shift(&mut self, run: Run, from: State, to: State) {
        for state in &mut self.states[run.range()] {
            assert!(*state == from, "a slot leaves {from:?} for {to:?} but is {state:?}");
            *state = to;
        }
    }

    /// Checks everything that can be derived twice. For tests and the simulator: it walks all slots.
    pub fn audit(&self) {
        assert!(self.counts.conserved(), "slots are conserved: {:?}", self.counts);
        let free: u64 = self.free.runs().map(|run| u64::from(run.count)).sum();
        assert_eq!(free, u64::from(self.counts.free), "the free runs hold every free slot");
        let mut seen = alloc::vec![false; self.states.len()];
        for run in self.free.runs() {
            for index in run.range() {
                assert!(self.states[index] == State::Free, "slot {index} is listed as free");
                assert!(!core::mem::replace(&mut seen[index], true), "slot {index} is free twice");
            }
        }
        for hole in &self.holes {
            for index in hole.run.range() {
                assert!(self.states[index] == State::Hole, "slot {index} is listed as a hole");
                assert!(
                    !core::mem::replace(&mut seen[index], true),
                    "slot {index} is a hole twice"
                );
            }
        }
        let in_state = |state| self.states.iter().filter(|other| **other == state).count();
        let (filling, sealed) = (in_state(State::Filling), in_state(State::Sealed));
        let holes = in_state(State::Hole);
        assert_eq!(holes, self.counts.holes as usize, "the states agree with the counts");
        assert_eq!(filling, self.counts.filling as usize, "the states agree with the counts");
        assert_eq!(sealed, self.counts.sealed as usize, "the states agree with the counts");
        let orphans: u64 = self.seals.orphans().map(|run| u64::from(run.count)).sum();
        assert_eq!(orphans, u64::from(self.counts.sealed), "each is kept by one seal");
    }

    /// Where a slot is in its life.
    pub(crate) fn state(&self, slot: SlotId) -> SlotState {
        self.states[slot.0 as usize]
    }

    /// Whether the slot is private to a write under way.
    pub(crate) fn is_filling(&self, slot: SlotId) -> bool {
        self.states[slot.0 as usize] == State::Filling
    }

    /// Whether the slot is named by the map or a seal, or was and is not free yet.
    pub(crate) fn is_readable(&self, slot: SlotId) -> bool {
        matches!(self.states[slot.0 as usize], State::Live | State::Sealed | State::Displaced)
    }

    /// Whether the slot is named by the map.
    #[must_use]
    pub fn is_live(&self, slot: SlotId) -> bool {
        self.states[slot.0 as usize] == State::Live
    }
}
