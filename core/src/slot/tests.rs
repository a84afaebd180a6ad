//! Tests of slots.

use super::free::{LARGE_RUN_SLOTS, split_groups};
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
    assert_eq!(table.free.small, [run(0, 15)]);
    assert_eq!(table.free.large, [run(15, 16)]);
    assert_eq!(taken(&mut table, 1), [run(0, 1)]);
    assert_eq!(taken(&mut table, LARGE_RUN_SLOTS), [run(15, 16)]);
    table.grow(100);
    // What is not large takes what lies about first; neighbours become one run again.
    assert_eq!(taken(&mut table, LARGE_RUN_SLOTS - 1), [run(1, 14), run(31, 1)]);
    table.release(run(13, 2));
    table.release(run(11, 2));
    assert_eq!(taken(&mut table, 4), [run(11, 4)]);
    assert_eq!(table.free.small, []);
    table.audit();
}

#[test]
fn no_run_is_empty() {
    let mut table = table(0);
    assert_eq!((table.free.small.len(), table.free.large.len()), (0, 0));
    table.grow(4);
    assert_eq!(taken(&mut table, 4), [run(0, 4)]);
    assert_eq!((table.free.small.len(), table.free.large.len()), (0, 0));
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
    let before = table.free.small.len();
    table.drop_live(4);
    for slot in [7, 8, 6, 2] {
        table.free_dropped(SlotId(slot), table.next_seal());
    }
    let after: Vec<_> = table.free.small.iter().skip(before).copied().collect();
    assert_eq!(after, [run(7, 2), run(6, 1), run(2, 1)]);
    assert_eq!(table.counts(), SlotCounts { total: 16, free: 15, live: 1, ..Default::default() });
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
    assert_eq!(table.counts(), SlotCounts { total: 8, free: 4, sealed: 4, ..Default::default() });
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

/// A table with groups of four, all of them live.
fn all_live(count: u32) -> SlotTable {
    let mut table = SlotTable::new(4);
    table.grow(count);
    let live = taken(&mut table, count)[0];
    table.publish(live);
    table
}

/// Slots that become free one after the other.
fn freed(table: &mut SlotTable, slots: impl IntoIterator<Item = u32>) {
    for slot in slots {
        table.displace(SlotId(slot), Epoch(1));
    }
    table.reclaim(Epoch(1), Epoch(1), u32::MAX);
}

#[test]
fn neighbours_that_become_whole_together_are_given_back_together() {
    let mut table = all_live(16);
    freed(&mut table, [0, 1, 2]);
    assert_eq!(punched(&mut table), []);
    freed(&mut table, [5, 6, 7]);
    assert_eq!(punched(&mut table), []);
    freed(&mut table, [3, 4]);
    assert_eq!(punched(&mut table), [run(0, 8)]);
}

#[test]
fn a_group_that_becomes_whole_joins_no_run_but_its_neighbour() {
    let mut table = all_live(128);
    freed(&mut table, [32]);
    assert_eq!(punched(&mut table), []);
    freed(&mut table, 33..60);
    freed(&mut table, 64..96);
    assert_eq!(punched(&mut table), [run(36, 24), run(32, 4), run(64, 32)]);
}

#[test]
fn a_run_over_the_end_of_a_group_is_part_of_both() {
    let mut table = all_live(16);
    freed(&mut table, [3, 4, 5]);
    assert_eq!(punched(&mut table), []);
    freed(&mut table, [0, 1, 2, 6, 7]);
    assert_eq!(punched(&mut table), [run(0, 4), run(4, 4)]);
}

#[test]
fn the_last_slots_there_can_be_are_no_whole_group() {
    let first = u32::MAX - 20;
    for alone in [run(first, 5), run(u32::MAX - 10, 10)] {
        assert_eq!(split_groups(alone, 16), [Some(alone), None, None]);
    }
    let [before, groups, behind] = split_groups(run(first - 16, 36), 16);
    let split = [before, groups, behind].map(|run| run.map(|run| (run.first.0 % 16, run.count)));
    assert_eq!(split, [Some((11, 5)), Some((0, 16)), Some((0, 15))]);
    assert_eq!(split_groups(run(0, 32), 0), [Some(run(0, 32)), None, None]);
    assert_eq!(split_groups(run(16, 32), 16), [None, Some(run(16, 32)), None]);
}

#[test]
fn no_more_is_given_back_than_may_be_and_in_whole_groups() {
    let mut table = SlotTable::new(4);
    table.grow(30);
    assert_eq!([0, 3].map(|most| table.punch(most)), [None, None]);
    assert_eq!(table.punch(11), Some(run(0, 8)));
    assert_eq!(punched(&mut table), [run(8, 20)]);
    assert_eq!((table.counts().holes, table.counts().free), (28, 2));
    let mut never = SlotTable::new(0);
    never.grow(100);
    assert_eq!([0, 100].map(|most| never.punch(most)), [None, None]);
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
    let expected = [none, (true, false, false), (false, true, true), (false, true, false), none];
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

/// What was free may have been punched in whole groups, by a file that was longer than the one that is found.
#[test]
fn after_a_restart_a_slot_is_a_hole_if_nothing_in_its_group_is_live() {
    for group in [0, 1, 2, 4] {
        for (total, live) in
            (0..=9).flat_map(|total| (0..1_u32 << total).map(move |live| (total, live)))
        {
            let is_live = |slot: u32| live >> slot & 1 == 1;
            let mut map = Map::new(total.into(), crate::map::Uniform::Zero);
            for slot in (0..total).filter(|slot| is_live(*slot)) {
                let block = u64::from(total - 1 - slot);
                map.publish(block..block + 1, &mut [SlotId(slot)].into_iter(), &mut |_| ());
            }
            let table = SlotTable::recovered(total, &map, group).expect("no slot is named twice");
            table.audit();
            for slot in 0..total {
                let first = slot.checked_div(group).map(|number| number * group);
                let may_be_hole = first.is_some_and(|first| {
                    (first..total.min(first + group)).all(|slot| !is_live(slot))
                });
                let expected = match (is_live(slot), may_be_hole) {
                    (true, _) => State::Live,
                    (false, true) => State::Hole,
                    (false, false) => State::Free,
                };
                assert_eq!(
                    table.state(SlotId(slot)),
                    expected,
                    "{slot} of {total}, {live:b}, {group}"
                );
            }
        }
    }
}
