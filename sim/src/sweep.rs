//! Many seeds on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glassine_core::judge::{self, Bug, Mark};

use crate::choice::Tape;
use crate::scenario::{self, Failure};
use crate::trace::Trace;

/// What to do with every seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Run it twice and compare.
    pub twice: bool,
    /// Go on after a failure.
    pub all: bool,
    /// A mistake to plant.
    pub plant: Option<Bug>,
    /// Spoil one byte of a reply in every hundredth seed.
    pub canary: bool,
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Seeds that were run.
    pub seeds: u64,
    /// Requests answered.
    pub answered: u64,
    /// Steps taken.
    pub steps: u64,
    /// Crashes survived.
    pub crashes: u64,
    /// How long it took.
    pub time: Duration,
    /// Seeds that failed, and how.
    pub failures: BTreeMap<u64, Box<Failure>>,
    /// How many seeds hit each mark.
    pub marks: BTreeMap<Mark, u64>,
}

impl Sweep {
    /// Marks that no seed hit.
    pub fn never_hit(&self) -> impl Iterator<Item = Mark> {
        Mark::ALL.iter().copied().filter(|mark| !self.marks.contains_key(mark))
    }

    /// Failures by the check that found them: how many, and the first seed.
    #[must_use]
    pub fn by_check(&self) -> BTreeMap<&str, (u64, u64)> {
        let mut checks = BTreeMap::new();
        for (seed, failure) in &self.failures {
            checks.entry(failure.check.as_str()).or_insert((0, *seed)).0 += 1;
        }
        checks
    }

    fn add(&mut self, seed: u64, outcome: Result<scenario::Report, Box<Failure>>, marks: u128) {
        self.seeds += 1;
        judge::marks(marks).for_each(|mark| *self.marks.entry(mark).or_default() += 1);
        match outcome {
            Ok(report) => {
                self.answered += report.answered;
                self.steps += report.steps;
                self.crashes += report.crashes;
            }
            Err(failure) => {
                self.failures.insert(seed, failure);
            }
        }
    }
}

/// How many threads run at a time.
#[must_use]
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a seed is one of those that a canary spoils.
#[must_use]
pub fn is_canary(seed: u64) -> bool {
    seed % 100 == 37
}

/// Runs one seed on this thread, as the options say; answers the marks it hit as well.
pub fn run_seed(seed: u64, options: Options) -> (Result<scenario::Report, Box<Failure>>, u128) {
    judge::plant(options.plant);
    let _ = judge::take_marks();
    let outcome = if options.canary && is_canary(seed) {
        scenario::run_spoiled(Tape::seeded(seed), Trace::default()).outcome
    } else if options.twice {
        scenario::run_twice(seed)
    } else {
        scenario::run(Tape::seeded(seed))
    };
    judge::plant(None);
    (outcome, judge::take_marks())
}

/// Runs a range of seeds on all cores. `progress` hears of every seed that is done, and how many that
/// makes.
pub fn sweep(seeds: Range<u64>, options: Options, progress: impl Fn(u64) + Sync) -> Sweep {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sweep::default());
    thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (outcome, marks) = run_seed(seed, options);
                    if outcome.is_err() && !options.all {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut sum = sum.lock().expect("no panic");
                    sum.add(seed, outcome, marks);
                    progress(sum.seeds);
                }
            });
        }
    });
    let mut sum = sum.into_inner().expect("no panic");
    sum.time = began.elapsed();
    sum
}
