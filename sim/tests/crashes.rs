//! Every short sequence of operations, with a power cut at every point.

use glassine_core::judge::{self, Bug};
use sim::crashes;

#[test]
fn every_sequence_of_four_survives_a_power_cut_at_every_point() {
    for carried_slots_max in [0, 2] {
        match crashes::explore(4, carried_slots_max) {
            Ok(all) => {
                println!("{all:?}");
                // Fewer would mean that something is not tried any more.
                let enough = all.states > 2000 && all.cuts > 15_000 && all.generations_max > 0;
                assert!(enough, "{all:?}");
            }
            Err(found) => panic!("records that carry {carried_slots_max} blocks: {found}"),
        }
    }
}

/// The mistakes that two blocks are large enough for are found in them, whatever the odds.
#[test]
fn mistakes_of_the_journal_are_found_for_certain() {
    for (bug, carried_slots_max) in [
        (Bug::RecordBeforeBytes, 0),
        (Bug::ReuseBeforeDurable, 0),
        (Bug::ReplyBeforeSync, 0),
        (Bug::StaleSegment, 0),
        (Bug::OrderSwapped, 0),
        (Bug::TrimForgotten, 0),
        (Bug::ReplayTwice, 0),
        (Bug::FlushTooEarly, 0),
        (Bug::CheckpointRaces, 0),
        (Bug::CarriedLost, 2),
        (Bug::CarriedOutlives, 2),
        (Bug::CarriedBeyondLength, 2),
        (Bug::CarriedUnchecked, 2),
        (Bug::CarriedNotRestored, 2),
    ] {
        judge::plant(Some(bug));
        let found = crashes::explore(4, carried_slots_max);
        judge::plant(None);
        assert!(found.is_err(), "{} is not found", bug.id());
    }
}
