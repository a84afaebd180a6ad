//! Shrinking: from a tape that fails to the plainest one that fails in the same way.
//!
//! A script says how a run differs from the plainest run of all, choice by choice. Making it plainer
//! means to set choices to 0, to drop them (what follows moves up), and to lower them. Whatever still
//! fails by the same check is kept, until nothing helps any more or the budget is spent.

use std::ops::Range;

use glassine_core::judge::{self, Bug};

use crate::choice::{Lane, Script, Tape};
use crate::scenario::{self, Failure, Run};
use crate::trace::Trace;

/// A shrunk failure.
#[derive(Debug)]
pub struct Shrunk {
    /// The choices left.
    pub script: Script,
    /// How it fails.
    pub failure: Box<Failure>,
    /// Runs it took.
    pub runs: u64,
}

struct Shrinker {
    plant: Option<Bug>,
    best: Script,
    failure: Box<Failure>,
    runs: u64,
    runs_max: u64,
}

/// How hard a failure is to follow: the steps that lead there, who takes part, and what is odd.
fn effort(script: &Script, failure: &Failure) -> u64 {
    failure.steps + 150 * failure.connections + 20 * script.choices() as u64
}

/// Runs a script with a bug planted, or none.
pub fn run_script(script: &Script, plant: Option<Bug>, trace: Trace) -> Run {
    judge::plant(plant);
    let run = scenario::run_whole(Tape::script(script.clone()).recording(), trace);
    judge::plant(None);
    run
}

/// Shrinks a script that fails, in at most so many runs; `None` if it does not fail.
#[must_use]
pub fn shrink(script: Script, plant: Option<Bug>, runs_max: u64) -> Option<Shrunk> {
    let failure = run_script(&script, plant, Trace::default()).outcome.err()?;
    let mut shrinker = Shrinker { plant, best: script, failure, runs: 1, runs_max };
    loop {
        let before = effort(&shrinker.best, &shrinker.failure);
        shrinker.cut_tails();
        // A plain configuration makes short runs, and with them everything else quick.
        shrinker.chunks(Lane::Swarm, |choices, chunk| choices[chunk].fill(0));
        shrinker.lower(Lane::Swarm);
        for lane in [Lane::Client, Lane::Backend, Lane::Net, Lane::Schedule] {
            // A chunk is plain; or it is gone, and what follows moves up.
            shrinker.chunks(lane, |choices, chunk| choices[chunk].fill(0));
            shrinker.chunks(lane, |choices, chunk| drop(choices.drain(chunk)));
        }
        for lane in [Lane::Client, Lane::Backend, Lane::Net, Lane::Schedule] {
            shrinker.lower(lane);
        }
        if effort(&shrinker.best, &shrinker.failure) >= before || shrinker.runs >= runs_max {
            break;
        }
    }
    let Shrinker { best: script, failure, runs, .. } = shrinker;
    Some(Shrunk { script, failure, runs })
}

impl Shrinker {
    /// Whether a script still fails in the same way, and is no harder to follow; if so, it is the best
    /// one now.
    fn accept(&mut self, script: Script) -> bool {
        if self.runs >= self.runs_max || script == self.best {
            return false;
        }
        self.runs += 1;
        match run_script(&script, self.plant, Trace::default()).outcome {
            Err(failure)
                if failure.check == self.failure.check
                    && effort(&script, &failure) <= effort(&self.best, &self.failure) =>
            {
                self.best = script;
                self.failure = failure;
                true
            }
            _ => false,
        }
    }

    /// Behind some point, everything is plain.
    fn cut_tails(&mut self) {
        for lane in Lane::ALL.map(|lane| lane as usize) {
            let mut keep = self.best.lanes[lane].len();
            let mut step = keep;
            while step > 0 {
                let mut script = self.best.clone();
                script.lanes[lane].truncate(keep.saturating_sub(step));
                if self.accept(script) {
                    keep = self.best.lanes[lane].len();
                    step = step.min(keep);
                } else {
                    step /= 2;
                }
            }
        }
    }

    /// Edits chunks: large ones first, then ever smaller ones.
    fn chunks(&mut self, lane: Lane, edit: fn(&mut Vec<u64>, Range<usize>)) {
        let lane = lane as usize;
        let mut width = self.best.lanes[lane].len().next_power_of_two() / 2;
        while width > 0 {
            let mut at = 0;
            while at < self.best.lanes[lane].len() {
                let end = (at + width).min(self.best.lanes[lane].len());
                let mut script = self.best.clone();
                if script.lanes[lane][at..end].iter().any(|choice| *choice != 0) {
                    edit(&mut script.lanes[lane], at..end);
                    let before = self.best.lanes[lane].len();
                    self.accept(script);
                    if self.best.lanes[lane].len() < before {
                        continue;
                    }
                }
                at = end;
            }
            width /= 2;
        }
    }

    /// Every choice that is left becomes as small as may be.
    fn lower(&mut self, lane: Lane) {
        let lane = lane as usize;
        for at in 0..self.best.lanes[lane].len() {
            while self.best.lanes[lane].get(at).is_some_and(|choice| *choice > 1) {
                let choice = self.best.lanes[lane][at];
                let lower = |to: u64| {
                    let mut script = self.best.clone();
                    script.lanes[lane][at] = to;
                    script
                };
                let steps = [choice / 2, choice - choice / 4, choice - choice / 16, choice - 1];
                let tries = steps.map(lower);
                // Steps of one would take for ever to lower a large number.
                let useful = if choice < 64 { 4 } else { 3 };
                if !tries.into_iter().take(useful).any(|script| self.accept(script)) {
                    break;
                }
            }
        }
    }
}
