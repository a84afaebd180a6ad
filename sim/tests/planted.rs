//! Whether the checkers work: every bug that can be planted is found, in a fixed search.

use std::fs;
use std::path::Path;

use glassine_core::judge::Bug;
use sim::choice::Script;
use sim::planted::{self, Search};
use sim::shrink;
use sim::trace::Trace;

/// The smoke form of `sim planted`: one search for each bug.
#[test]
fn every_planted_bug_is_found() {
    let search = Search { trials: 1, seeds_max: 20_000 };
    let bugs: Vec<_> = planted::drawn().collect();
    let all = planted::search(&bugs, search, |found| println!("{found}"));
    assert_eq!(all.len(), Bug::ALL.len() - planted::ELSEWHERE.len());
    let missed: Vec<_> =
        all.iter().filter(|found| !found.always()).map(|found| found.bug.id()).collect();
    assert!(missed.is_empty(), "not found within {} seeds: {missed:?}", search.seeds_max);
}

/// Shrunk failures, one file for a bug of the same name. They hold on the core as it is; with their
/// bug planted they still fail, or else they have lost their meaning.
#[test]
fn kept_tapes_hold_and_still_show_their_bugs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tapes");
    let mut tapes = 0;
    for entry in fs::read_dir(folder).expect("there are tapes") {
        let path = entry.expect("it can be listed").path();
        let script: Script = fs::read_to_string(&path).expect("it can be read").parse().unwrap();
        let honest = shrink::run_script(&script, None, Trace::default()).outcome;
        assert!(honest.is_ok(), "{}: {}", path.display(), honest.unwrap_err());
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap();
        let bug = Bug::ALL.iter().find(|bug| bug.id() == name).expect("named like a bug");
        assert!(
            shrink::run_script(&script, Some(*bug), Trace::default()).outcome.is_err(),
            "{} does not show its bug any more; make it anew: `sim run --plant {name} --seeds \
             20000`, then `sim shrink` with the seed that it prints",
            path.display()
        );
        tapes += 1;
    }
    assert!(tapes > 0);
}

/// A torn reply becomes a tape that a person can follow: one of the first three that are found.
#[test]
fn a_torn_reply_shrinks_to_a_few_choices() {
    let plant = Some(Bug::TornReply);
    let failing = (0..2000).filter_map(|seed| {
        let tape = sim::choice::Tape::seeded(seed).recording();
        glassine_core::judge::plant(plant);
        let run = sim::scenario::run_whole(tape, Trace::default());
        glassine_core::judge::plant(None);
        run.outcome.is_err().then(|| run.tape.recorded().cloned())?
    });
    let choices = failing
        .take(3)
        .map(|script| shrink::shrink(script, plant, 40_000).expect("it fails").script.choices());
    let least = choices.min().expect("it is found");
    assert!(least < 40, "{least} choices are left");
}
