//! The slots of a data file: which are free, and the life of each.
//!
//! `Free → Filling → Live → Displaced → Free`, with a stay as `Sealed` before `Displaced` if a seal names
//! the slot when the map no longer does. Every transition asserts where the slot comes from.
//! Allocation recycles before it grows, and prefers whole runs, so that neighbouring blocks lie in
//! neighbouring slots and go to the kernel in one piece.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::hint::black_box;

use crate::journal::Place;
use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::BLOCK_BYTES;
use crate::map::{Entry, Map};
use crate::pin::Epoch;
use crate::seal::{SealNumber, Seals};

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

/// Runs at least this long are kept for large writes.
const LARGE_RUN_SLOTS: u32 = 16;
/// Free runs that are looked at in one step when space is to be given back.
const PUNCH_RUNS_PER_STEP: u32 = 16;

/// The whole groups in a run, and what is before and behind them; no groups if there are none of them at all.
fn split_groups(run: Run, group: u32) -> [Option<Run>; 3] {
    let (start, end) = (run.first.0, run.first.0 + run.count);
    // None for groups of none, and behind the last whole group that a slot number can name.
    let from = start.checked_next_multiple_of(group).unwrap_or(end);
    let to = end.checked_div(group).map_or(0, |groups| groups * group);
    if from >= to {
        return [Some(run), None, None];
    }
    let between =
        |from: u32, to: u32| (from < to).then_some(Run { first: SlotId(from), count: to - from });
    [between(start, from), between(from, to), between(to, end)]
}

/// The lowest `count` bits; there is at least one.
fn ones(count: u32) -> u64 {
    u64::MAX >> (u64::BITS - count)
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
    /// Space is given back by whole groups of so many slots, a power of two of no more than 64; 0 for never.
    group: u32,
    /// Free runs, most recently freed last: those pages are warm, so they go first.
    small: VecDeque<Run>,
    large: VecDeque<Run>,
    /// Free slots that were looked at since space is to be given back, and whose groups are not whole: of each group,
    /// a bit for each slot.
    cold: BTreeMap<u32, u64>,
    /// Whole groups of slots. Those that are uncertain are last, and are taken first: they may have space.
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
        assert!(group == 0 || group.is_power_of_two() && group <= u64::BITS, "a group has a mask");
        Self { group, ..Self::default() }
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
            self.put_free(Run { first: SlotId(first), count });
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
                let [before, holes, behind] =
                    split_groups(run, if planted(Bug::HoleForgotten) { 0 } else { group });
                [behind, before].into_iter().flatten().for_each(|run| table.put_free(run));
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
            let prefer_large = missing >= LARGE_RUN_SLOTS;
            let (first, second) = if prefer_large {
                (&mut self.large, &mut self.small)
            } else {
                (&mut self.small, &mut self.large)
            };
            let run = first.pop_back().or_else(|| second.pop_back()).unwrap_or_else(|| self.thaw());
            let taken = Run { first: run.first, count: run.count.min(missing) };
            if taken.count < run.count {
                mark(Mark::RunSplit);
                let early = u32::from(planted(Bug::TwoOwners));
                self.put_free(Run {
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
        self.put_free(run);
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
        let grows = |last: &&mut Run| last.first.0 + last.count == slot.0;
        if let Some(last) = self.large.back_mut().filter(grows) {
            last.count += 1;
        } else if let Some(last) = self.small.back_mut().filter(grows) {
            last.count += 1;
            if last.count == LARGE_RUN_SLOTS {
                let run = self.small.pop_back().expect("it is there");
                self.large.push_back(run);
            }
        } else {
            self.put_free(run);
        }
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
            self.put_free(run);
            freed += run.count;
        }
        freed
    }

    /// When the last slot was displaced that a record may name.
    pub(crate) fn displaced_last(&self) -> Option<Epoch> {
        self.displaced.back().map(|(epoch, _)| *epoch)
    }

    fn put_free(&mut self, run: Run) {
        if run.count >= LARGE_RUN_SLOTS {
            self.large.push_back(run);
        } else {
            self.small.push_back(run);
        }
    }

    /// Takes free slots, to be punched: whole groups, of those that were freed longest ago, no more slots than `most`. A
    /// bounded step: a run of none is a reason to ask again.
    pub(crate) fn punch(&mut self, most: u32) -> Option<Run> {
        if self.group == 0 || most < self.group {
            return None;
        }
        if planted(Bug::PunchTooEarly)
            && let Some((_, run)) = self.displaced.pop_front()
        {
            self.shift(run, State::Displaced, State::Free);
            self.counts.displaced -= run.count;
            self.counts.free += run.count;
            self.large.push_front(run);
        }
        for _ in 0..PUNCH_RUNS_PER_STEP {
            let run = self.large.pop_front().or_else(|| self.small.pop_front())?;
            let [before, groups, behind] = split_groups(run, self.group);
            [before, behind].into_iter().flatten().for_each(|run| self.cool(run));
            if let Some(Run { first, count }) = groups {
                let taken = Run { first, count: count.min(most / self.group * self.group) };
                if taken.count < count {
                    let first = SlotId(first.0 + taken.count);
                    self.large.push_front(Run { first, count: count - taken.count });
                }
                self.shift(taken, State::Free, State::Hole);
                self.counts.free -= taken.count;
                self.counts.holes += taken.count;
                return Some(taken);
            }
        }
        Some(Run { first: SlotId(0), count: 0 })
    }

    /// Free slots join others of their group, until it is whole.
    fn cool(&mut self, mut run: Run) {
        while run.count > 0 {
            let (number, within) = (run.first.0 / self.group, run.first.0 % self.group);
            let count = run.count.min(self.group - within);
            let mask = self.cold.entry(number).or_default();
            *mask |= ones(count) << within;
            if *mask == ones(self.group) {
                mark(Mark::GroupWhole);
                self.cold.remove(&number);
                let whole = Run { first: SlotId(number * self.group), count: self.group };
                match self.large.front_mut() {
                    Some(next) if next.first.0 + next.count == whole.first.0 => {
                        next.count += whole.count;
                    }
                    _ => self.large.push_front(whole),
                }
            }
            run = Run { first: SlotId(run.first.0 + count), count: run.count - count };
        }
    }

    /// Free slots that lie side by side in one group which is not whole. There must be some.
    fn thaw(&mut self) -> Run {
        mark(Mark::GroupThawed);
        let mut entry = self.cold.first_entry().expect("counted as free");
        let within = entry.get().trailing_zeros();
        let count = (entry.get() >> within).trailing_ones();
        let first = SlotId(entry.key() * self.group + within);
        *entry.get_mut() &= !(ones(count) << within);
        if *entry.get() == 0 {
            entry.remove();
        }
        Run { first, count }
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
        self.put_free(run);
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
        let cold = self.cold.iter().flat_map(|(number, mask)| {
            let bits = (0..self.group).filter(move |bit| mask >> bit & 1 == 1);
            bits.map(move |bit| Run { first: SlotId(number * self.group + bit), count: 1 })
        });
        let runs = || self.small.iter().chain(&self.large).copied().chain(cold.clone());
        let free: u64 = runs().map(|run| u64::from(run.count)).sum();
        assert_eq!(free, u64::from(self.counts.free), "the free runs hold every free slot");
        let mut seen = alloc::vec![false; self.states.len()];
        for run in runs() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count: u32) -> SlotTable {
        let mut table = SlotTable::default();
        table.grow(count);
        table
    }

    #[test]
    fn a_large_write_gets_one_run() {
        let mut table = table(1024);
        let mut runs = Vec::new();
        table.take(1000, &mut runs);
        assert_eq!(runs, [Run { first: SlotId(0), count: 1000 }]);
        table.audit();
    }

    #[test]
    fn a_displaced_slot_is_free_only_after_its_epoch_is_let_go() {
        let mut table = table(4);
        let mut runs = Vec::new();
        table.take(1, &mut runs);
        table.publish(runs[0]);
        table.displace(SlotId(0), Epoch(5));
        assert_eq!(table.reclaim(Epoch(4), Epoch::LAST, 100), 0);
        assert_eq!(table.reclaim(Epoch(5), Epoch(4), 100), 0);
        assert_eq!(table.reclaim(Epoch(5), Epoch(5), 100), 1);
        assert_eq!(table.counts().free, 4);
        table.audit();
    }

    #[test]
    fn a_slot_that_no_record_ever_named_waits_for_none() {
        let mut table = table(4);
        let mut runs = Vec::new();
        table.take(3, &mut runs);
        table.publish(runs[0]);
        table.freshen(runs[0], None);
        assert!(!table.displace(SlotId(0), Epoch(5)));
        table.settle(Run { first: SlotId(1), count: 1 });
        assert!(table.displace(SlotId(1), Epoch(6)));
        assert_eq!(table.reclaim(Epoch::LAST, Epoch(1), 100), 1);
        assert_eq!(table.counts().displaced, 1);
        table.audit();
    }

    #[test]
    fn the_slot_freed_last_is_taken_first() {
        let mut table = table(64);
        let mut runs = Vec::new();
        table.take(8, &mut runs);
        let run = runs.pop().unwrap();
        table.release(Run { first: run.slot(3), count: 1 });
        table.take(1, &mut runs);
        assert_eq!(runs, [Run { first: run.slot(3), count: 1 }]);
    }

    fn run(first: u32, count: u32) -> Run {
        Run { first: SlotId(first), count }
    }

    fn taken(table: &mut SlotTable, count: u32) -> Vec<Run> {
        let mut runs = Vec::new();
        table.take(count, &mut runs);
        runs
    }

    #[test]
    fn large_runs_are_kept_for_large_writes() {
        let mut table = table(15);
        table.grow(LARGE_RUN_SLOTS);
        assert_eq!(table.small, [run(0, 15)]);
        assert_eq!(table.large, [run(15, 16)]);
        assert_eq!(taken(&mut table, 1), [run(0, 1)]);
        assert_eq!(taken(&mut table, LARGE_RUN_SLOTS), [run(15, 16)]);
        table.grow(100);
        // What is not large takes what lies about first; neighbours become one run again.
        assert_eq!(taken(&mut table, LARGE_RUN_SLOTS - 1), [run(1, 14), run(31, 1)]);
        table.release(run(13, 2));
        table.release(run(11, 2));
        assert_eq!(taken(&mut table, 4), [run(11, 4)]);
        assert_eq!(table.small, []);
        table.audit();
    }

    #[test]
    fn no_run_is_empty() {
        let mut table = table(0);
        assert_eq!((table.small.len(), table.large.len()), (0, 0));
        table.grow(4);
        assert_eq!(taken(&mut table, 4), [run(0, 4)]);
        assert_eq!((table.small.len(), table.large.len()), (0, 0));
    }

    #[test]
    fn neighbours_that_are_displaced_or_dropped_together_are_one_run() {
        let mut table = table(16);
        let live = taken(&mut table, 10)[0];
        table.publish(live);
        for (slot, epoch) in [(0, 5), (1, 5), (3, 5), (4, 6), (5, 6)] {
            table.displace(SlotId(slot), Epoch(epoch));
        }
        let expected =
            [(5, run(0, 2)), (5, run(3, 1)), (6, run(4, 2))].map(|(at, run)| (Epoch(at), run));
        assert_eq!(table.displaced, expected);
        // A step ends with the run that reaches its budget.
        assert_eq!(table.reclaim(Epoch(9), Epoch::LAST, 0), 0);
        assert_eq!(table.reclaim(Epoch(9), Epoch::LAST, 2), 2);
        assert_eq!(table.reclaim(Epoch(9), Epoch::LAST, 2), 3);
        let before = table.small.len();
        table.drop_live(4);
        for slot in [7, 8, 6, 2] {
            table.free_dropped(SlotId(slot), table.next_seal());
        }
        assert!(table.small.iter().skip(before).eq(&[run(7, 2), run(6, 1), run(2, 1)]));
        assert_eq!(
            table.counts(),
            SlotCounts { total: 16, free: 15, live: 1, ..Default::default() }
        );
    }

    #[test]
    fn what_a_seal_names_of_a_dropped_part_of_the_map_stays_until_the_seal_is_let_go() {
        let mut table = table(8);
        let live = taken(&mut table, 5)[0];
        table.publish(run(live.first.0, 4));
        table.freshen(run(2, 1), None);
        let seal = table.seal();
        table.publish(run(4, 1));
        table.drop_live(5);
        for slot in 0..5 {
            table.free_dropped(SlotId(slot), table.next_seal());
        }
        assert_eq!(
            table.counts(),
            SlotCounts { total: 8, free: 4, sealed: 4, ..Default::default() }
        );
        table.audit();
        table.unseal(seal);
        let (mut seen, mut recorded) = (0, 0);
        while table.is_unsealing() {
            let step = table.unseal_step(Epoch(9));
            seen += step.0;
            recorded += step.1;
        }
        // All but slot 2 wait for a record. The step that ends it looks at none.
        assert_eq!((seen, recorded), (5, 3));
        assert_eq!(table.reclaim(Epoch(9), Epoch(8), 100), 1);
        assert_eq!(table.reclaim(Epoch(9), Epoch(9), 100), 3);
        table.audit();
    }

    #[test]
    fn only_the_one_slot_of_an_edit_has_a_place_and_until_a_record_names_it() {
        let mut table = table(4);
        let live = taken(&mut table, 4)[0];
        table.publish(live);
        let place = Some(Place(7));
        table.freshen(run(0, 1), place);
        table.freshen(run(1, 1), place);
        table.freshen(run(2, 2), place);
        assert_eq!([0, 1, 2, 3].map(|slot| table.place(SlotId(slot))), [place, place, None, None]);
        assert_eq!(table.foresee(SlotId(1)), place);
        table.settle(run(0, 1));
        table.displace(SlotId(1), Epoch(1));
        assert_eq!([0, 1].map(|slot| table.place(SlotId(slot))), [None, None]);
    }

    /// The groups that give their space back, if nobody needs any.
    fn punched(table: &mut SlotTable) -> Vec<Run> {
        let mut all = Vec::new();
        while let Some(run) = table.punch(u32::MAX) {
            all.extend((run.count > 0).then_some(run));
            table.audit();
        }
        all
    }

    #[test]
    fn scattered_free_slots_are_given_back_when_they_make_up_a_group() {
        let mut table = SlotTable::new(4);
        table.grow(32);
        let live = taken(&mut table, 32)[0];
        table.publish(live);
        // Every other slot, then those between: all of the first three groups, most of the fourth.
        let slots = (0..16).step_by(2).chain((1..14).step_by(2));
        for slot in slots {
            table.displace(SlotId(slot), Epoch(1));
        }
        table.reclaim(Epoch(1), Epoch(1), 100);
        assert_eq!(punched(&mut table), [run(0, 4), run(4, 4), run(8, 4)]);
        assert_eq!((table.counts().holes, table.counts().free), (12, 3));
        // What is left of the fourth is free like any other.
        assert_eq!(taken(&mut table, 3), [run(12, 3)]);
        table.audit();
    }

    #[test]
    fn the_last_slots_there_can_be_are_no_whole_group() {
        let first = u32::MAX - 20;
        for alone in [run(first, 5), run(u32::MAX - 10, 10)] {
            assert_eq!(split_groups(alone, 16), [Some(alone), None, None]);
        }
        let [before, groups, behind] = split_groups(run(first - 16, 36), 16);
        let split =
            [before, groups, behind].map(|run| run.map(|run| (run.first.0 % 16, run.count)));
        assert_eq!(split, [Some((11, 5)), Some((0, 16)), Some((0, 15))]);
        assert_eq!(split_groups(run(0, 32), 0), [Some(run(0, 32)), None, None]);
    }

    #[test]
    fn no_more_is_given_back_than_may_be_and_in_whole_groups() {
        let mut table = SlotTable::new(4);
        table.grow(30);
        assert_eq!([0, 3].map(|most| table.punch(most)), [None, None]);
        assert_eq!(table.punch(11), Some(run(0, 8)));
        assert_eq!(punched(&mut table), [run(8, 20)]);
        assert_eq!((table.counts().holes, table.counts().free), (28, 2));
        assert_eq!(SlotTable::new(0).punch(100), None);
    }

    #[test]
    fn holes_that_may_have_space_are_asked_for_first() {
        let mut table = SlotTable::new(4);
        table.grow(16);
        let [one, other] = [8, 8].map(|most| table.punch(most).unwrap());
        assert_eq!((one, other), (run(0, 8), run(8, 8)));
        table.put_hole(Hole { run: one, certain: true });
        table.put_hole(Hole { run: other, certain: false });
        assert_eq!((table.uncertain_holes(), table.punch_uncertain(4)), (8, Some(run(8, 4))));
        assert_eq!(table.take_hole(100), Some(Hole { run: run(12, 4), certain: false }));
        assert_eq!((table.uncertain_holes(), table.punch_uncertain(4)), (0, None));
        assert_eq!(table.take_hole(4), Some(Hole { run: run(0, 4), certain: true }));
        let growths = table.growths();
        table.fill_hole(run(0, 4));
        assert_ne!(table.growths(), growths, "somebody has to sync that");
        assert_eq!(taken(&mut table, 4), [run(0, 4)]);
    }

    #[test]
    fn a_slot_may_be_written_while_it_is_filling_and_read_until_it_is_free() {
        let mut table = table(1);
        let slot = SlotId(0);
        let mut seen = Vec::new();
        let mut look = |table: &SlotTable| {
            assert!(table.counts().conserved());
            seen.push((table.is_filling(slot), table.is_readable(slot), table.is_live(slot)));
        };
        look(&table);
        let filling = taken(&mut table, 1)[0];
        look(&table);
        table.publish(filling);
        look(&table);
        table.displace(slot, Epoch(1));
        look(&table);
        table.reclaim(Epoch(1), Epoch::LAST, 1);
        look(&table);
        let none = (false, false, false);
        let expected =
            [none, (true, false, false), (false, true, true), (false, true, false), none];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_lost_slot_is_noticed() {
        let lost = SlotCounts { total: 4, free: 1, filling: 1, live: 1, ..Default::default() };
        assert!(!lost.conserved());
    }

    #[test]
    #[should_panic(expected = "a slot leaves Filling for Live but is Live")]
    fn a_slot_is_published_once() {
        let mut table = table(1);
        let mut runs = Vec::new();
        table.take(1, &mut runs);
        table.publish(runs[0]);
        table.publish(runs[0]);
    }
}
