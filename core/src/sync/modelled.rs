//! The primitives under the model checker, and how a model is run.
//!
//! `GLASSINE_WEAKEN=name` runs the models with one deliberate mistake, to prove that they would
//! find it. Two are made here, where production code cannot have them; a few are made in place, by
//! [`weakened`]; and every [`crate::judge::Bug`] is one, by its name.

use std::env;
use std::println;
use std::string::String;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

pub use loom::sync::Arc;
pub use loom::sync::atomic::Ordering;
use loom::thread::{Builder, JoinHandle};

/// The atomic of a pin cell, whose orderings can be weakened.
#[derive(Debug)]
pub struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    /// One with this value.
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    /// Loads.
    pub fn load(&self, order: Ordering) -> u64 {
        self.0.load(if weakened("load-relaxed") { Ordering::Relaxed } else { order })
    }

    /// Stores.
    pub fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, if weakened("store-relaxed") { Ordering::Relaxed } else { order });
    }
}

/// Whether the models run with the deliberate mistake of this name.
#[must_use]
pub fn weakened(name: &str) -> bool {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| env::var("GLASSINE_WEAKEN").ok()).as_deref() == Some(name)
}

/// Starts a thread of a model. The model checker's own default is a stack of 32 KiB.
pub fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let words = 64 << 10;
    Builder::new().stack_size(words).spawn(run).expect("the model checker has no limit but its own")
}

/// Runs a model through every order of events there is, or, with a bound, through those in which
/// threads are interrupted no more than so often; and tells how many executions that made.
pub fn check(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    // Longer executions are an error, not the end of the search.
    builder.max_branches = 100_000;
    // Nothing may cut the search short, whatever the environment says.
    builder.max_permutations = None;
    builder.max_duration = None;
    builder.checkpoint_file = None;
    builder.expect_explicit_explore = false;
    let begin = Instant::now();
    let count = std::sync::Arc::clone(&executions);
    let model = std::sync::Arc::new(model);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let model = std::sync::Arc::clone(&model);
        spawn(move || model()).join().expect("the model reports a panic on its own");
    });
    let executions = executions.load(Ordering::Relaxed);
    assert!(executions > 1, "a model with one execution only shows nothing");
    let bound = preemptions.map_or("none".into(), |bound| std::format!("{bound} preemptions"));
    let seconds = begin.elapsed().as_secs_f64();
    println!("model {name:<44} {executions:>9} iterations {seconds:>6.1} s   bound: {bound}");
}
