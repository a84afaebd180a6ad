//! Free slots, as runs: the warm ones for whoever writes next, and the cold ones, whose space may be given back.

use alloc::collections::{BTreeMap, VecDeque};

use super::{Run, SlotId};
use crate::judge::{Mark, mark};

/// Runs at least this long are kept for large writes.
pub(super) const LARGE_RUN_SLOTS: u32 = 16;
/// Free runs that are looked at in one step when space is to be given back.
const PUNCH_RUNS_PER_STEP: u32 = 16;

/// The whole groups in a run, and what is before and behind them; no groups if there are none of them at all.
pub(super) fn split_groups(run: Run, group: u32) -> [Option<Run>; 3] {
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

/// The slots of a free run that may be without space, as a file of `total` slots is found, and those before and behind
/// them: whole groups, and what is left of a last one, whose other slots the file may have lost since.
pub(super) fn split_found(run: Run, group: u32, total: u32) -> [Option<Run>; 3] {
    let end = run.first.0 + run.count;
    let reach = if end == total { end.checked_next_multiple_of(group).unwrap_or(end) } else { end };
    split_groups(Run { count: reach - run.first.0, ..run }, group)
        .map(|part| part.map(|run| Run { count: run.count.min(end - run.first.0), ..run }))
}

/// The lowest `count` bits; there is at least one.
fn ones(count: u32) -> u64 {
    u64::MAX >> (u64::BITS - count)
}

/// The free slots of one data file.
#[derive(Debug, Default, Hash)]
pub(super) struct FreeRuns {
    /// Space is given back by whole groups of so many slots, a power of two of no more than 64; 0 for never.
    group: u32,
    /// Most recently freed last: those pages are warm, so they go first.
    pub(super) small: VecDeque<Run>,
    pub(super) large: VecDeque<Run>,
    /// Slots that were looked at since space is to be given back, and whose groups are not whole: of each group,
    /// a bit for each slot.
    cold: BTreeMap<u32, u64>,
}

impl FreeRuns {
    pub(super) fn new(group: u32) -> Self {
        assert!(group == 0 || group.is_power_of_two() && group <= u64::BITS, "a group has a mask");
        Self { group, ..Self::default() }
    }

    /// A run has become free.
    pub(super) fn put(&mut self, run: Run) {
        if run.count >= LARGE_RUN_SLOTS {
            self.large.push_back(run);
        } else {
            self.small.push_back(run);
        }
    }

    /// A slot has become free, perhaps the neighbour of the last one.
    pub(super) fn put_one(&mut self, slot: SlotId) {
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
            self.put(Run { first: slot, count: 1 });
        }
    }

    /// A run that is the next to give its space back.
    pub(super) fn put_cold(&mut self, run: Run) {
        self.large.push_front(run);
    }

    /// A run for a write that needs `missing` slots. There must be one.
    pub(super) fn pop(&mut self, missing: u32) -> Run {
        let (first, second) = if missing >= LARGE_RUN_SLOTS {
            (&mut self.large, &mut self.small)
        } else {
            (&mut self.small, &mut self.large)
        };
        first.pop_back().or_else(|| second.pop_back()).unwrap_or_else(|| self.thaw())
    }

    /// Whether so many slots may be a group.
    pub(super) fn has_group(&self, slots: u32) -> bool {
        self.group > 0 && slots >= self.group
    }

    /// Takes whole groups out, of those that were freed longest ago, no more slots than `most`. A bounded step: a run
    /// of none is a reason to ask again.
    pub(super) fn take_groups(&mut self, most: u32) -> Option<Run> {
        if !self.has_group(most) {
            return None;
        }
        for _ in 0..PUNCH_RUNS_PER_STEP {
            let run = self.large.pop_front().or_else(|| self.small.pop_front())?;
            let [before, groups, behind] = split_groups(run, self.group);
            [before, behind].into_iter().flatten().for_each(|run| self.cool(run));
            if let Some(Run { first, count }) = groups {
                let taken = Run { first, count: count.min(most / self.group * self.group) };
                if taken.count < count {
                    let first = SlotId(first.0 + taken.count);
                    self.put_cold(Run { first, count: count - taken.count });
                }
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
                    _ => self.put_cold(whole),
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

    /// All of them. For audits.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> {
        let group = self.group;
        let cold = self.cold.iter().flat_map(move |(number, mask)| {
            let bits = (0..group).filter(move |bit| mask >> bit & 1 == 1);
            bits.map(move |bit| Run { first: SlotId(number * group + bit), count: 1 })
        });
        self.small.iter().chain(&self.large).copied().chain(cold)
    }
}
