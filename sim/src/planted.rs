//! Whether the checkers work: every bug that can be planted, planted, and how long it takes to be
//! found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use glassine_core::judge::Bug;

use crate::sweep::{self, Options};

/// How hard to look.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Independent searches for each bug.
    pub trials: u64,
    /// Seeds after which one search gives up.
    pub seeds_max: u64,
}

/// What came of all searches for one bug.
#[derive(Debug)]
pub struct Found {
    /// The bug.
    pub bug: Bug,
    /// Searches made.
    pub trials: u64,
    /// Seeds that each successful search took.
    pub seeds: Vec<u64>,
    /// Seconds that each successful search took, on one core.
    pub seconds: Vec<f64>,
    /// Which checks found it, and how often.
    pub checks: BTreeMap<String, u64>,
}

impl Found {
    /// Whether every search found it.
    #[must_use]
    pub fn always(&self) -> bool {
        self.seeds.len() as u64 == self.trials
    }
}

/// The middle one; 0 of none.
fn median<T: Copy + PartialOrd + Default>(figures: &[T]) -> T {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).expect("figures are numbers"));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// One row of the table.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, text) = (self.bug.id(), self.bug.text());
        let mut checks: Vec<_> = self.checks.iter().collect();
        checks.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let checks: Vec<_> =
            checks.iter().map(|(check, count)| format!("{check} {count}")).collect();
        write!(
            f,
            "| {id} | {text} | {}/{} | {} | {:.2} | {} |",
            self.seeds.len(),
            self.trials,
            median(&self.seeds),
            median(&self.seconds),
            checks.join("; ")
        )
    }
}

/// The head of the table.
pub const HEAD: &str = "| bug | mistake | found | median seeds | median seconds | found by the check |\n\
                        |---|---|---|---|---|---|";

/// What drawn worlds show only once in many thousands, if at all, and what finds it for certain.
pub const ELSEWHERE: [(Bug, &str); 11] = [
    (Bug::CheckpointRaces, "`sim crashes`, `sim/tests/crashes.rs`"),
    (Bug::EdgesForgotten, "the kept tape of its name"),
    (Bug::ShortKeepsPins, "the kept tape of its name"),
    (Bug::LastHoleForgotten, "the kept tape of its name"),
    (Bug::SettledUnnoticed, "`sim/tests/space.rs`"),
    (Bug::ClaimForgotten, "the fuzzed body of recovery"),
    (Bug::RepairForgets, "the fuzzed body of recovery"),
    (Bug::DroppedSealFreed, "the fuzzed body of the overlay"),
    (Bug::LayerTail, "the fuzzed body of layers"),
    (Bug::StorageMerge, "the fuzzed body of layers"),
    (Bug::ChecksumSkipped, "the fuzzed body of layers"),
];

/// All bugs that a search of drawn worlds finds.
pub fn drawn() -> impl Iterator<Item = Bug> {
    let elsewhere = |bug: &Bug| ELSEWHERE.iter().any(|(other, _)| other == bug);
    Bug::ALL.iter().copied().filter(move |bug| !elsewhere(bug))
}

/// Searches for each of `bugs`, on all cores; hands each to `done` as it is finished.
pub fn search(bugs: &[Bug], search: Search, done: impl Fn(&Found) + Sync) -> Vec<Found> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..sweep::threads() {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = search_one(*bug, search);
                    done(&found);
                    all.lock().expect("no panic").push(found);
                }
            });
        }
    });
    let mut all = all.into_inner().expect("no panic");
    all.sort_by_key(|found| found.bug);
    all
}

fn search_one(bug: Bug, search: Search) -> Found {
    let mut found = Found {
        bug,
        trials: search.trials,
        seeds: Vec::new(),
        seconds: Vec::new(),
        checks: BTreeMap::new(),
    };
    let options = Options { plant: Some(bug), ..Options::default() };
    for trial in 0..search.trials {
        // Far apart, so that searches share no seed.
        let start = (trial + 1) << 32;
        let began = Instant::now();
        for seed in 0..search.seeds_max {
            let (Err(failure), _) = sweep::run_seed(start + seed, options) else { continue };
            found.seeds.push(seed + 1);
            found.seconds.push(began.elapsed().as_secs_f64());
            *found.checks.entry(failure.check.clone()).or_default() += 1;
            break;
        }
    }
    found
}
