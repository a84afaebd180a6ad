//! Threads for what may block: cold template reads, merges from them, growing data files, and journals.
//!
//! Threads are started as jobs wait, up to a bound, and end when there is nothing to do. Jobs of one
//! slow template can take them all only up to the bound, which is well above what a host's disks do
//! at a time.
//!
//! A job holds its device. A server that ends therefore waits for the jobs ([`Pool::finish`]): else
//! the process could be gone before the last handle, whose drop removes the sheet's data.

use std::collections::VecDeque;
use std::time::Duration;

use glassine_core::Errno;
use glassine_core::journal::Task;
use glassine_core::request::RequestId;
use glassine_core::session::{Input, Merge};
use glassine_core::slot::Run;
use glassine_core::sync::weakened;

use crate::device::{After, Device};
use crate::router::{ConnectionId, Mail, Router};
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering, lock, thread, wait};

// The model checker has room for few.
const THREADS_MAX: usize = if cfg!(loom) { 2 } else { 32 };
const IDLE_TIME: Duration = Duration::from_secs(10);
/// What a barrier takes: sync the data, write the record, sync it.
const BARRIER_TASKS: usize = 3;

/// Something that may block.
#[derive(Debug)]
pub enum Job {
    /// Bring a part of the template into the page cache.
    Fetch {
        /// The device whose template it is.
        device: Arc<Device>,
        /// Whom to tell.
        connection: ConnectionId,
        /// For which request.
        id: RequestId,
        /// Byte offset in the template.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Nobody waits any more.
        cancelled: Arc<AtomicBool>,
    },
    /// Complete a block from a cold part of the template.
    Merge {
        /// The device.
        device: Arc<Device>,
        /// Whom to tell.
        connection: ConnectionId,
        /// For which request.
        id: RequestId,
        /// What to do.
        merge: Merge,
    },
    /// Get space for slots, as the overlay asked.
    Grow {
        /// The device.
        device: Arc<Device>,
        /// Which slots.
        run: Run,
    },
    /// Give space of the data file back, as the overlay asked.
    Punch {
        /// The device.
        device: Arc<Device>,
        /// Which slots.
        run: Run,
    },
    /// Work for the journal, as the overlay asked.
    Journal {
        /// The device.
        device: Arc<Device>,
        /// What to do.
        task: Task,
    },
}

/// A handle to the pool.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    /// Tells the one who finishes that no thread is left.
    ended: Condvar,
    router: Arc<Router>,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    finishing: bool,
}

impl Pool {
    /// A pool that reports to the workers behind `router`.
    #[must_use]
    pub fn new(router: Arc<Router>) -> Self {
        let (more, ended) = (Condvar::new(), Condvar::new());
        Self { shared: Arc::new(Shared { state: Mutex::default(), more, ended, router }) }
    }

    /// Adds a job.
    pub fn submit(&self, job: Job) {
        let mut state = lock(&self.shared.state);
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= THREADS_MAX {
            self.shared.more.notify_one();
            return;
        }
        let pool = self.clone();
        let started = thread::Builder::new().name("pool".into()).spawn(move || pool.run());
        match started {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads > 0 => {
                tracing::warn!(%error, threads = state.threads, "cannot start another pool thread");
                self.shared.more.notify_one();
            }
            Err(error) => {
                // There is nobody to do it later: better slow than never.
                tracing::warn!(%error, "cannot start a pool thread; blocking work stalls a worker");
                let job = state.jobs.pop_back().expect("just added");
                drop(state);
                self.perform_all(job);
            }
        }
    }

    /// Sees to what a use of a device left to be done.
    pub fn settle(&self, device: &Arc<Device>, after: After) {
        self.wake(&after);
        for job in jobs(device, after) {
            self.perform_quick(job);
        }
    }

    /// Does what takes no time, and what that leads to; whatever may block is left to the threads. So is
    /// what others ask for meanwhile: they could keep this thread from its own clients for ever.
    fn perform_quick(&self, job: Job) {
        let mut next = Some(job);
        for _ in 0..BARRIER_TASKS {
            next = match next {
                None => return,
                Some(Job::Journal { device, task }) if device.is_quick(&task) => {
                    self.perform(Job::Journal { device, task })
                }
                Some(_) => break,
            };
        }
        next.into_iter().for_each(|job| self.submit(job));
    }

    /// Waits until all jobs are done, their devices let go, and the threads about to end. For when
    /// nobody is left to submit any.
    pub fn finish(&self) {
        let mut state = lock(&self.shared.state);
        state.finishing = true;
        self.shared.more.notify_all();
        while state.threads > 0 {
            (state, _) = wait(&self.shared.ended, &self.shared.state, state, IDLE_TIME);
        }
    }

    fn run(&self) {
        while let Some(job) = self.shared.next() {
            self.perform_all(job);
        }
    }

    /// A job, and what it leads to.
    fn perform_all(&self, job: Job) {
        let mut next = Some(job);
        while let Some(job) = next {
            next = self.perform(job);
        }
    }

    fn wake(&self, after: &After) {
        for key in &after.woken {
            self.shared.router.send(ConnectionId(key.0), Mail::Completed(Input::Wake));
        }
    }

    /// Does a job, and answers with the first thing that it led to: somebody waits for it, and it is done
    /// right here.
    fn perform(&self, job: Job) -> Option<Job> {
        let (device, after) = match job {
            Job::Fetch { device, connection, id, offset, length, cancelled } => {
                let result = if cancelled.load(Ordering::Relaxed) {
                    Err(Errno::Io)
                } else {
                    device.template().fetch(offset, length).map(|()| length)
                };
                self.shared.router.send(connection, Mail::Completed(Input::Fetched { id, result }));
                return None;
            }
            Job::Merge { device, connection, id, merge } => {
                let result = device.merge(&merge);
                self.shared.router.send(connection, Mail::Completed(Input::Merged { id, result }));
                return None;
            }
            Job::Grow { device, run } => {
                let outcome = device.grow(run);
                if let Err(error) = &outcome {
                    let (export, bytes) = (&device.export.name, u64::from(run.count) * 4096);
                    tracing::warn!(export, bytes, %error, "cannot grow the sheet; free some disk space");
                }
                let after = device.with_overlay(|overlay| overlay.grown(outcome.is_ok()));
                (device, after)
            }
            Job::Punch { device, run } => {
                let outcome = device.data().punch(run);
                if let Err(error) = &outcome {
                    let export = &device.export.name;
                    tracing::warn!(
                        export, %error,
                        "cannot give space back to the file system: what is trimmed stays with the sheet"
                    );
                }
                let after = device.with_overlay(|overlay| overlay.punched(outcome.is_ok()));
                (device, after)
            }
            Job::Journal { device, mut task } => {
                let outcome = device.perform(&mut task);
                let after = device.with_overlay(|overlay| overlay.finished(task, outcome));
                (device, after)
            }
        };
        self.wake(&after);
        let mut jobs = jobs(&device, after);
        let first = jobs.next();
        jobs.for_each(|job| self.submit(job));
        first
    }
}

#[cfg(loom)]
impl Pool {
    /// Whoever is idle now has been so for long.
    pub fn let_time_pass(&self) {
        self.shared.more.let_time_pass();
    }
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        let mut is_late = false;
        loop {
            let leaves_work = is_late && weakened("idle-leaves-work");
            if !leaves_work && let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if is_late || state.finishing {
                state.threads -= 1;
                if state.threads == 0 {
                    self.ended.notify_all();
                }
                return None;
            }
            state.idle += 1;
            let (woken, timed_out) = wait(&self.more, &self.state, state, IDLE_TIME);
            state = woken;
            state.idle -= 1;
            is_late = timed_out;
        }
    }
}

/// What a use of a device left to be done, as jobs.
fn jobs(device: &Arc<Device>, after: After) -> impl Iterator<Item = Job> {
    let grow = after.growth.map(|run| Job::Grow { device: Arc::clone(device), run });
    let punch = after.punch.map(|run| Job::Punch { device: Arc::clone(device), run });
    let journal = |task| Job::Journal { device: Arc::clone(device), task };
    let [one, other] = after.tasks.map(|task| task.map(journal));
    [one, other, grow, punch].into_iter().flatten()
}
