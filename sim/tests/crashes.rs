//! Every short sequence of operations, with a power cut at every point.

use glassine_core::judge::{self, Bug};
use sim::crashes;

#[test]
fn every_sequence_of_four_survives_a_power_cut_at_every_point() {
    match crashes::explore(4) {
        Ok(all) => {
            println!("{all:?}");
            // Fewer would mean that something is not tried any more.
            assert!(all.states > 2000 && all.cuts > 15_000 && all.generations_max > 0, "{all:?}");
        }
        Err(found) => panic!("{found}"),
    }
}

/// The mistakes that two blocks are large enough for are found in them, whatever the odds.
#[test]
fn mistakes_of_the_journal_are_found_for_certain() {
    for bug in [
        Bug::RecordBeforeBytes,
        Bug::ReuseBeforeDurable,
        Bug::ReplyBeforeSync,
        Bug::StaleSegment,
        Bug::OrderSwapped,
        Bug::TrimForgotten,
        Bug::ReplayTwice,
        Bug::FlushTooEarly,
        Bug::CheckpointRaces,
    ] {
        judge::plant(Some(bug));
        let found = crashes::explore(4);
        judge::plant(None);
        assert!(found.is_err(), "{} is not found", bug.id());
    }
}
