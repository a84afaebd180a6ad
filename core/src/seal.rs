//! Seals: frozen moments of a device, and the slots that only they still name.
//!
//! Sealing shares the map ([`Map`] says how) and copies nothing, so it costs the same however much was written.
//! What follows is about slots: one that a seal names stays as it is, though the device has long moved
//! on. Seals are numbered as they are taken. A slot is in every seal that was taken between its publish and
//! its displacement; so when it is displaced, the latest seal held keeps it as an *orphan* if it was
//! published before. When that seal is let go, an orphan goes on to the seal before, if it is in that
//! too, and else is displaced for good. No slot has a count, and no map is ever searched.
//!
//! A seal lives in memory only: a crash leaves none, and frees what none but seals named.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::BLOCK_BYTES;
use crate::map::{Entry, Map, Tally};
use crate::segment::Source;
use crate::slot::{Run, SlotId};

/// A moment of a device, which stays readable until it is handed back to
/// [`Overlay::unseal`](crate::Overlay::unseal). It may be read without the device's lock.
#[derive(Debug, Hash)]
#[must_use = "a seal holds space until it is handed back"]
pub struct Seal {
    pub(crate) number: SealNumber,
    pub(crate) map: Map,
}

/// Seals of a device are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub(crate) struct SealNumber(u32);

impl Seal {
    /// Blocks of the device.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.map.blocks()
    }

    /// Slots that it names, and blocks that have space set aside.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.map.tally()
    }

    /// Where the bytes of `block` are, and up to where those of its neighbours follow. What is in the template may
    /// lie beyond its end: there it is zero.
    #[must_use]
    pub fn run_at(&self, block: u64) -> (Range<u64>, Source) {
        let (run, entry) = self.map.run_at(block);
        let source = match entry {
            Entry::Slot(slot) => Source::Data { offset: slot.offset() },
            Entry::Template => Source::Template { offset: block * u64::from(BLOCK_BYTES) },
            Entry::Zero | Entry::ZeroProvisioned | Entry::ZeroClaimed => Source::Zero,
        };
        (run, source)
    }
}

/// Slots side by side that no live map names any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Orphan {
    pub(crate) run: Run,
    /// Whether a record of the journal may name them.
    pub(crate) recorded: bool,
}

#[derive(Debug, Hash)]
struct Held {
    number: SealNumber,
    orphans: VecDeque<Orphan>,
}

/// All seals of a device.
#[derive(Debug, Default, Hash)]
pub(crate) struct Seals {
    /// The number of the last one.
    last: SealNumber,
    /// Those held, in the order of their numbers.
    held: Vec<Held>,
    /// Orphans of seals that were let go, to be looked at bit by bit.
    released: VecDeque<Held>,
    /// For each slot, the last seal before its publish: it is in none up to that one. Noted while seals
    /// are held only: of one that was let go nobody asks any more. In pages, so that no step is long.
    births: Vec<Option<Box<Page>>>,
}

const PAGE_SLOTS: usize = 1024;
type Page = [SealNumber; PAGE_SLOTS];

impl Seals {
    /// One more moment is to stay as it is.
    pub(crate) fn take(&mut self) -> SealNumber {
        self.last = self.next();
        self.held.push(Held { number: self.last, orphans: VecDeque::new() });
        self.last
    }

    /// The seal that will be taken next: what is displaced now is in none from here on.
    pub(crate) fn next(&self) -> SealNumber {
        SealNumber(self.last.0.checked_add(1).expect("nobody seals four billion times"))
    }

    /// Nobody looks at this moment any more.
    pub(crate) fn release(&mut self, number: SealNumber) {
        let index = self.held.iter().position(|held| held.number == number);
        self.released.push_back(self.held.remove(index.expect("a seal is let go once")));
    }

    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether orphans of a seal that was let go wait to be looked at.
    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// These slots were published while seals are held.
    pub(crate) fn publish(&mut self, run: Run) {
        for index in 0..run.count {
            let slot = run.slot(index).0 as usize;
            let page = slot / PAGE_SLOTS;
            if self.births.len() <= page {
                self.births.resize_with(page + 1, || None);
            }
            let page = self.births[page]
                .get_or_insert_with(|| Box::new([SealNumber::default(); PAGE_SLOTS]));
            page[slot % PAGE_SLOTS] = self.last;
        }
    }

    fn birth(&self, slot: SlotId) -> SealNumber {
        let slot = slot.0 as usize;
        let page = self.births.get(slot / PAGE_SLOTS).and_then(Option::as_ref);
        page.map_or(SealNumber::default(), |page| page[slot % PAGE_SLOTS])
    }

    /// A slot was displaced before the seal `before` was taken. If one that is held names it, that keeps
    /// it; otherwise it is free to go.
    pub(crate) fn keep(&mut self, slot: SlotId, recorded: bool, before: SealNumber) -> bool {
        if self.held.is_empty() || planted(Bug::SealedSlotFreed) {
            return false;
        }
        let birth = self.birth(slot);
        // Whoever was published after this seal was published after all before it.
        let latest = self.held.iter_mut().rfind(|held| held.number < before);
        let Some(held) = latest.filter(|held| birth < held.number) else { return false };
        match held.orphans.back_mut() {
            Some(last)
                if last.recorded == recorded && last.run.first.0 + last.run.count == slot.0 =>
            {
                last.run.count += 1;
            }
            _ => {
                let run = Run { first: slot, count: 1 };
                held.orphans.push_back(Orphan { run, recorded });
            }
        }
        true
    }

    /// Slots that a seal kept which was let go, and those that no other one keeps of them.
    pub(crate) fn step(&mut self, displaced: &mut impl FnMut(SlotId, bool)) -> u32 {
        let Some(held) = self.released.front_mut() else { return 0 };
        let before = held.number;
        let Some(Orphan { run, recorded }) = held.orphans.pop_front() else {
            self.released.pop_front();
            return 1;
        };
        for index in 0..run.count {
            let slot = run.slot(index);
            if !planted(Bug::OlderSealForgotten) && self.keep(slot, recorded, before) {
                mark(Mark::OrphanPassedOn);
            } else {
                displaced(slot, recorded);
            }
        }
        run.count
    }

    /// Orphans of all seals. For audits.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = Run> {
        let all = self.held.iter().chain(&self.released);
        all.flat_map(|held| held.orphans.iter().map(|orphan| orphan.run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: usize, count: u32) -> Run {
        Run { first: SlotId(first as u32), count }
    }

    /// Whether a seal keeps a slot that is displaced now.
    fn keep(seals: &mut Seals, slot: usize) -> bool {
        let now = seals.next();
        seals.keep(SlotId(slot as u32), true, now)
    }

    /// What comes of all that was kept by seals which were let go.
    fn displaced(seals: &mut Seals) -> Vec<(u32, bool)> {
        let mut all = Vec::new();
        while seals.has_released() {
            seals.step(&mut |slot, recorded| all.push((slot.0, recorded)));
        }
        all
    }

    #[test]
    fn a_seal_keeps_what_was_published_before_it_and_nothing_else() {
        let mut seals = Seals::default();
        assert!(!keep(&mut seals, 0), "there is no seal");
        let first = seals.take();
        // Slots of three pages, the same places in each.
        for page in [0, PAGE_SLOTS, 2 * PAGE_SLOTS] {
            seals.publish(run(page + 2, 2));
            let kept = [1, 2, 3, 4].map(|slot| keep(&mut seals, page + slot));
            assert_eq!(kept, [true, false, false, true]);
        }
        seals.publish(run(PAGE_SLOTS - 1, 2));
        assert!(!keep(&mut seals, PAGE_SLOTS - 1) && !keep(&mut seals, PAGE_SLOTS));
        assert!(keep(&mut seals, 7 * PAGE_SLOTS), "of a page that nobody wrote to");
        // What the first one does not keep, the second does.
        let second = seals.take();
        assert!(keep(&mut seals, 2));
        assert_eq!(seals.held(), 2);
        seals.release(first);
        seals.release(second);
        assert_eq!((seals.held(), displaced(&mut seals).len()), (0, 8));
    }

    #[test]
    fn what_was_cut_off_before_a_seal_is_not_in_it() {
        let mut seals = Seals::default();
        let before_all = seals.next();
        let first = seals.take();
        let before_second = seals.next();
        let second = seals.take();
        assert!(!seals.keep(SlotId(1), true, before_all));
        assert!(seals.keep(SlotId(2), true, before_second));
        seals.release(second);
        assert_eq!(displaced(&mut seals), [], "the first one keeps it");
        seals.release(first);
        assert_eq!(displaced(&mut seals), [(2, true)]);
    }

    #[test]
    fn an_orphan_goes_on_to_the_seal_before_if_it_is_in_that_too() {
        let mut seals = Seals::default();
        let first = seals.take();
        seals.publish(run(5, 1));
        let second = seals.take();
        assert!(keep(&mut seals, 4) && keep(&mut seals, 5));
        assert_eq!(seals.orphans().count(), 1);
        seals.release(second);
        assert_eq!(displaced(&mut seals), [(5, true)]);
        seals.release(first);
        assert_eq!(displaced(&mut seals), [(4, true)]);
    }

    #[test]
    fn neighbours_of_one_kind_are_one_orphan() {
        let mut seals = Seals::default();
        seals.take();
        for (slot, recorded) in [(2, true), (3, true), (4, false), (5, false), (7, false)] {
            assert!(seals.keep(SlotId(slot), recorded, SealNumber(2)));
        }
        let orphans: Vec<_> = seals.orphans().collect();
        assert_eq!(orphans, [run(2, 2), run(4, 2), run(7, 1)]);
    }
}
