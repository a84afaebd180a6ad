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
    /// Everything but the configuration may be drawn anew.
    redraws: bool,
}

/// How hard a failure is to follow: the steps that lead there, who takes part, and what is odd.
fn effort(script: &Script, failure: &Failure) -> u64 {
    failure.steps + 150 * failure.connections + 20 * script.choices() as u64
}

/// The same, as long as everything but the configuration is drawn anew.
fn effort_redrawn(script: &Script, failure: &Failure) -> u64 {
    let swarm = &script.lanes[Lane::Swarm as usize];
    let odd = swarm.iter().filter(|choice| **choice != 0).count();
    failure.steps + 150 * failure.connections + 20 * odd as u64
}

/// What was recorded, without the plain choices at the end of each lane.
fn trimmed(tape: &Tape) -> Script {
    let mut script = tape.recorded().expect("it was recorded").clone();
    for lane in &mut script.lanes {
        lane.truncate(lane.iter().rposition(|choice| *choice != 0).map_or(0, |last| last + 1));
    }
    script
}

/// All but the configuration, the ones that most failures can do without first.
const LANES: [Lane; Lane::ALL.len() - 1] = [
    Lane::Checkpoints,
    Lane::Needed,
    Lane::Space,
    Lane::Seals,
    Lane::Records,
    Lane::Client,
    Lane::Backend,
    Lane::Net,
    Lane::Schedule,
];
/// Failures to start from.
const STARTS: u64 = 8;
/// So many times everything but the configuration is drawn anew.
const REDRAWS: u64 = 20;
/// So many choices may be looked at each by itself.
const FEW: usize = 300;

/// Runs a script with a bug planted, or none.
pub fn run_script(script: &Script, plant: Option<Bug>, trace: Trace) -> Run {
    run_planted(Tape::script(script.clone()), plant, trace)
}

fn run_planted(tape: Tape, plant: Option<Bug>, trace: Trace) -> Run {
    judge::plant(plant);
    let run = scenario::run_whole(tape, trace);
    judge::plant(None);
    run
}

/// Shrinks a script that fails, in at most so many runs; `None` if it does not fail.
#[must_use]
pub fn shrink(script: Script, plant: Option<Bug>, runs_max: u64) -> Option<Shrunk> {
    let failure = run_script(&script, plant, Trace::default()).outcome.err()?;
    let mut shrinker =
        Shrinker { plant, best: script, failure, runs: 1, runs_max: runs_max / 3, redraws: true };
    // First the plainest configuration in which it is soon found: that makes short runs, and with them
    // everything else quick.
    shrinker.chunks(Lane::Swarm, |choices, chunk| choices[chunk].fill(0));
    shrinker.lower(Lane::Swarm);
    shrinker.redraws = false;
    // Wherever that ends, it is the plainest of its surroundings only: so several starts, and the best.
    let start = shrinker.best.clone();
    let mut found: Option<(Script, Box<Failure>)> = None;
    for at in 0..STARTS {
        let mut seeds = at * 200..(at + 1) * 200;
        if at > 0 && !seeds.any(|seed| shrinker.start_anew(Tape::redrawn(&start, seed))) {
            continue;
        }
        shrinker.runs_max = shrinker.runs + runs_max / STARTS;
        shrinker.polish();
        let (script, failure) = (&shrinker.best, &shrinker.failure);
        let least = found.as_ref().map_or(u64::MAX, |(script, failure)| effort(script, failure));
        if effort(script, failure) < least {
            found = Some((script.clone(), failure.clone()));
        }
    }
    let (script, failure) = found.expect("the first start fails");
    Some(Shrunk { script, failure, runs: shrinker.runs })
}

impl Shrinker {
    /// Another failure by the same check, if this is one.
    fn start_anew(&mut self, tape: Tape) -> bool {
        self.runs += 1;
        let run = run_planted(tape.recording(), self.plant, Trace::default());
        let Err(failure) = run.outcome else { return false };
        let same = failure.check == self.failure.check;
        if same {
            self.best = trimmed(&run.tape);
            self.failure = failure;
        }
        same
    }

    /// Makes everything plainer until nothing helps any more.
    fn polish(&mut self) {
        loop {
            let before = effort(&self.best, &self.failure);
            self.cut_tails();
            self.chunks(Lane::Swarm, |choices, chunk| choices[chunk].fill(0));
            self.lower(Lane::Swarm);
            for lane in LANES {
                // A chunk is plain; or it is gone, and what follows moves up.
                self.chunks(lane, |choices, chunk| choices[chunk].fill(0));
                self.chunks(lane, |choices, chunk| drop(choices.drain(chunk)));
            }
            // One by one, when there are few left.
            if self.best.choices() < FEW {
                for lane in LANES {
                    self.lower(lane);
                }
            }
            if effort(&self.best, &self.failure) >= before || self.runs >= self.runs_max {
                break;
            }
        }
    }

    /// Whether a script still fails in the same way, and is no harder to follow; if so, it is the best
    /// one now.
    fn accept(&mut self, script: Script) -> bool {
        if script == self.best {
            return false;
        }
        if self.accept_run(Tape::script(script.clone())) {
            return true;
        }
        let redraws = if self.redraws { REDRAWS } else { 0 };
        (0..redraws).any(|seed| self.accept_run(Tape::redrawn(&script, self.runs + seed)))
    }

    fn accept_run(&mut self, tape: Tape) -> bool {
        if self.runs >= self.runs_max {
            return false;
        }
        self.runs += 1;
        let run = run_planted(tape.recording(), self.plant, Trace::default());
        let Err(failure) = run.outcome else { return false };
        let script = trimmed(&run.tape);
        if script == self.best {
            return false;
        }
        let effort = if self.redraws { effort_redrawn } else { effort };
        let plainer = effort(&script, &failure) <= effort(&self.best, &self.failure);
        if failure.check == self.failure.check && plainer {
            self.best = script;
            self.failure = failure;
            return true;
        }
        false
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
        let mut width = self.best.lanes[lane].len().next_power_of_two();
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
