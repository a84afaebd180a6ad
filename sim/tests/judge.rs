//! The judge of mutations: what can be said of a core in a few seconds. `tests/mutants` runs it for every
//! change that a tool can think of, and a change that it does not notice is one that no test speaks of.

use sim::exhaust::{self, SmallWorld};
use sim::sweep::{Options, sweep};

const SEEDS: u64 = 600;

#[test]
fn the_core_holds() {
    let judged = sweep(0..SEEDS, Options::default(), |_| {});
    if let Some((seed, failure)) = judged.failures.first_key_value() {
        panic!("seed {seed} failed\n{failure}");
    }
    let never: Vec<_> = judged.never_hit().collect();
    assert!(never.len() <= 3, "{SEEDS} seeds do not take these paths: {never:?}");
    let worlds: Vec<SmallWorld> = [
        "template staged steady read-middle write-part",
        "slots direct resets write-both read-middle",
        "slots staged steady write-part zero-part",
    ]
    .map(|world| world.parse().expect("it is one"))
    .to_vec();
    if let Err(failed) = exhaust::explore_all(&worlds, None, |_, _| {}) {
        panic!("{} on path {:?}\n{}", failed.small, failed.path, failed.failure);
    }
}
