//! The bounded sweep, and the seeds that once failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::scenario;

const SEEDS: u64 = 1000;

fn check(seed: u64) {
    if let Err(failure) = scenario::run_twice(seed) {
        panic!(
            "seed {seed} failed\n{failure}\nto see it again: cargo run -p sim --release -- replay --seed {seed}"
        );
    }
}

/// Every seed runs twice: without failure, and with equal hashes.
#[test]
fn a_thousand_seeds_hold_and_repeat() {
    let next = AtomicU64::new(0);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    check(seed);
                    let report = scenario::run(sim::choice::Tape::seeded(seed), false);
                    answered.fetch_add(report.expect("it just held").answered, Ordering::Relaxed);
                }
            });
        }
    });
    // A sweep in which nobody asks anything would prove nothing.
    assert!(answered.into_inner() > SEEDS * 20);
}

#[test]
fn seeds_that_once_failed_hold() {
    for (seed, _sentence) in [
        (
            349,
            "a growth that failed long ago refused a write that nobody had tried to make room for",
        ),
        (716, "a session whose write had found room after all was refused its next one"),
        (
            76792,
            "two writes to one block with space set aside both used it up, and a third found none",
        ),
        (11961, "a merge that ended after an abort published a write whose payload was not there"),
    ] {
        check(seed);
    }
}
