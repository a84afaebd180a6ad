//! Snapshots under way, and the last of those that have ended.
//!
//! Each is taken by a thread of its own. What takes them is a parameter, so that tests need no disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::device::Device;
use crate::snapshot::{Done, Progress, Request};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, Ordering, lock, thread, wait};

/// Snapshots that may be under way at a time.
pub const RUNNING_MAX: usize = 8;
/// Snapshots that have ended and are remembered; of more, the oldest are forgotten.
pub const ENDED_MAX: usize = 64;
/// How long to sleep at a time while snapshots end; whoever ends last wakes the sleeper.
const FINISH_TIME: Duration = Duration::from_secs(10);

/// Where a snapshot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = SnapshotState)]
pub enum JobState {
    /// Under way.
    Running,
    /// The layer is there.
    Done,
    /// There is no layer; the error says why.
    Failed,
    /// There is no layer, as was asked for.
    Cancelled,
}

/// A snapshot, as its clients see it. What is not known yet is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// By what it is asked for.
    pub id: u64,
    /// The device it is of.
    pub export: String,
    /// The file of the layer, on the server's side.
    #[schema(value_type = String)]
    pub out: PathBuf,
    /// Whether it is under way.
    pub state: JobState,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes there are to do; 0 until that is known.
    pub total_bytes: u64,
    /// The name of the layer's content.
    pub layer_id: Option<String>,
    /// Bytes of data in the layer.
    pub data_bytes: Option<u64>,
    /// Bytes that it says are zero.
    pub zero_bytes: Option<u64>,
    /// Bytes of the file.
    pub file_bytes: Option<u64>,
    /// For how many microseconds the device stood still.
    pub seal_micros: Option<u64>,
    /// How long it took in all.
    pub seconds: Option<f64>,
    /// Why it failed, and what to do.
    pub error: Option<String>,
}

/// Why a snapshot is not begun.
#[derive(Debug)]
pub enum Refusal {
    /// This one writes the same file.
    SameFile(u64),
    /// Too many are under way.
    TooMany,
    /// The server ends.
    Finishing,
    /// There is no thread for it.
    NoThread(std::io::Error),
}

/// What takes a snapshot.
type Take = dyn Fn(&Arc<Device>, &Request, &Progress) -> anyhow::Result<Done> + Send + Sync;

/// All snapshots of a server that it knows of.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Tells the one who finishes that a snapshot has ended.
    ended: Condvar,
    take: Box<Take>,
}

#[derive(Default)]
struct State {
    /// In the order in which they began.
    jobs: VecDeque<Job>,
    last_id: u64,
    finishing: bool,
}

struct Job {
    id: u64,
    export: String,
    out: PathBuf,
    progress: Arc<Progress>,
    /// Absent while it is under way.
    outcome: Option<Outcome>,
}

enum Outcome {
    Done(Done),
    Failed(String),
    Cancelled,
}

impl Jobs {
    /// No snapshots yet; `take` is to take them.
    pub fn new(
        take: impl Fn(&Arc<Device>, &Request, &Progress) -> anyhow::Result<Done> + Send + Sync + 'static,
    ) -> Self {
        let (state, ended) = (Mutex::default(), Condvar::new());
        Self { inner: Arc::new(Inner { state, ended, take: Box::new(take) }) }
    }

    /// Begins a snapshot.
    pub fn start(&self, device: Arc<Device>, request: Request) -> Result<Snapshot, Refusal> {
        let mut state = self.lock();
        let running = || state.jobs.iter().filter(|job| job.outcome.is_none());
        if state.finishing {
            return Err(Refusal::Finishing);
        }
        if let Some(job) = running().find(|job| job.out == request.out) {
            return Err(Refusal::SameFile(job.id));
        }
        if running().count() >= RUNNING_MAX {
            return Err(Refusal::TooMany);
        }
        let id = state.last_id + 1;
        let progress = Arc::new(Progress::default());
        let job = Job {
            id,
            export: device.export.name.clone(),
            out: request.out.clone(),
            progress: Arc::clone(&progress),
            outcome: None,
        };
        let inner = Arc::clone(&self.inner);
        // The thread reports under the lock that is held here: it finds its job.
        thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || inner.run(id, device, &request, &progress))
            .map_err(Refusal::NoThread)?;
        state.last_id = id;
        let snapshot = job.look();
        state.jobs.push_back(job);
        Ok(snapshot)
    }

    /// A snapshot, if it is remembered.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Snapshot> {
        self.lock().jobs.iter().find(|job| job.id == id).map(Job::look)
    }

    /// All that are remembered, in the order in which they began.
    #[must_use]
    pub fn list(&self) -> Vec<Snapshot> {
        self.lock().jobs.iter().map(Job::look).collect()
    }

    /// The snapshot of an export that is under way.
    #[must_use]
    pub fn running(&self, export: &str) -> Option<u64> {
        let state = self.lock();
        let is_it = |job: &&Job| job.outcome.is_none() && job.export == export;
        state.jobs.iter().find(is_it).map(|job| job.id)
    }

    /// Cancels a snapshot that is under way: it ends soon, though it may be done by then. One that has ended is
    /// forgotten. Answers what it was.
    #[must_use]
    pub fn remove(&self, id: u64) -> Option<Snapshot> {
        let mut state = self.lock();
        let index = state.jobs.iter().position(|job| job.id == id)?;
        let job = &state.jobs[index];
        let snapshot = job.look();
        if job.outcome.is_none() {
            job.progress.cancelled.store(true, Ordering::Relaxed);
        } else {
            state.jobs.remove(index);
        }
        Some(snapshot)
    }

    /// Begins no more, cancels those under way, and waits until they have ended.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.finishing = true;
        for job in &state.jobs {
            job.progress.cancelled.store(true, Ordering::Relaxed);
        }
        while state.jobs.iter().any(|job| job.outcome.is_none()) {
            (state, _) = wait(&self.inner.ended, &self.inner.state, state, FINISH_TIME);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }
}

impl Inner {
    fn run(&self, id: u64, device: Arc<Device>, request: &Request, progress: &Progress) {
        let result = (self.take)(&device, request, progress);
        let outcome = match result {
            Ok(done) => Outcome::Done(done),
            Err(_) if progress.cancelled.load(Ordering::Relaxed) => Outcome::Cancelled,
            // Every cause on one line, as everywhere.
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        let (export, out) = (&device.export.name, request.out.display());
        match &outcome {
            Outcome::Done(done) => {
                let Done { layer_id, file_bytes, seal_micros, seconds, .. } = done;
                tracing::info!(id, export, %out, layer_id, file_bytes, seal_micros, seconds, "snapshot done");
            }
            Outcome::Failed(error) => tracing::warn!(id, export, %out, "snapshot failed: {error}"),
            Outcome::Cancelled => tracing::info!(id, export, %out, "snapshot cancelled"),
        }
        // Before it counts as ended: whoever hears of that may close the device.
        drop(device);
        let mut state = lock(&self.state);
        let job = state.jobs.iter_mut().find(|job| job.id == id);
        job.expect("only what has ended is forgotten").outcome = Some(outcome);
        let ended = |job: &Job| job.outcome.is_some();
        if state.jobs.iter().filter(|job| ended(job)).count() > ENDED_MAX
            && let Some(oldest) = state.jobs.iter().position(ended)
        {
            state.jobs.remove(oldest);
        }
        self.ended.notify_all();
    }
}

impl Job {
    fn look(&self) -> Snapshot {
        let (state, done, error) = match &self.outcome {
            None => (JobState::Running, None, None),
            Some(Outcome::Done(done)) => (JobState::Done, Some(done), None),
            Some(Outcome::Failed(error)) => (JobState::Failed, None, Some(error.clone())),
            Some(Outcome::Cancelled) => (JobState::Cancelled, None, None),
        };
        Snapshot {
            id: self.id,
            export: self.export.clone(),
            out: self.out.clone(),
            state,
            done_bytes: self.progress.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.progress.total_bytes.load(Ordering::Relaxed),
            layer_id: done.map(|done| done.layer_id.clone()),
            data_bytes: done.map(|done| done.data_bytes),
            zero_bytes: done.map(|done| done.zero_bytes),
            file_bytes: done.map(|done| done.file_bytes),
            seal_micros: done.map(|done| done.seal_micros),
            seconds: done.map(|done| done.seconds),
            error,
        }
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Jobs").field(&self.list()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::{anyhow, bail};

    use super::*;
    use crate::config::DeviceConfig;
    use crate::sync::mpsc::{Receiver, Sender, channel};

    fn device(export: &str) -> Arc<Device> {
        let config = DeviceConfig {
            export: export.to_owned(),
            size_bytes: Some(1 << 20),
            read_only: true,
            ..DeviceConfig::default()
        };
        Arc::new(Device::open(&config, None).unwrap())
    }

    fn request(out: &str) -> Request {
        Request { out: out.into(), flush: false, compress: None }
    }

    fn done() -> Done {
        Done {
            layer_id: "l".to_owned(),
            data_bytes: 1,
            zero_bytes: 2,
            file_bytes: 3,
            seal_micros: 4,
            seconds: 5.0,
        }
    }

    type Results = Sender<anyhow::Result<Done>>;

    /// Snapshots that end when they are told how, or notice that they are cancelled.
    fn told() -> (Jobs, Results) {
        let (results, told): (Results, Receiver<_>) = channel();
        let told = Mutex::new(told);
        let jobs = Jobs::new(move |_, _, progress| {
            progress.total_bytes.store(100, Ordering::Relaxed);
            progress.done_bytes.store(40, Ordering::Relaxed);
            loop {
                if let Ok(result) = lock(&told).try_recv() {
                    return result;
                }
                if progress.cancelled.load(Ordering::Relaxed) {
                    bail!("it was cancelled");
                }
                thread::yield_now();
            }
        });
        (jobs, results)
    }

    fn wait_for(jobs: &Jobs, id: u64, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            let snapshot = jobs.get(id).unwrap();
            if is_so(&snapshot) {
                return snapshot;
            }
            thread::yield_now();
        }
    }

    fn end(jobs: &Jobs, id: u64) -> Snapshot {
        wait_for(jobs, id, |snapshot| snapshot.state != JobState::Running)
    }

    #[test]
    fn a_snapshot_runs_and_is_done() {
        let (jobs, results) = told();
        let begun = jobs.start(device("a"), request("/out")).unwrap();
        assert_eq!((begun.id, begun.state), (1, JobState::Running));
        assert_eq!(jobs.running("a"), Some(1));
        let running = wait_for(&jobs, 1, |snapshot| snapshot.done_bytes == 40);
        assert_eq!((running.state, running.total_bytes), (JobState::Running, 100));
        results.send(Ok(done())).unwrap();
        let ended = end(&jobs, 1);
        assert_eq!((ended.state, ended.error), (JobState::Done, None));
        assert_eq!(ended.layer_id.as_deref(), Some("l"));
        assert_eq!((ended.data_bytes, ended.zero_bytes), (Some(1), Some(2)));
        assert_eq!((ended.file_bytes, ended.seal_micros), (Some(3), Some(4)));
        assert_eq!((ended.seconds, jobs.running("a")), (Some(5.0), None));
    }

    #[test]
    fn a_failure_says_all_its_causes() {
        let (jobs, results) = told();
        jobs.start(device("a"), request("/out")).unwrap();
        results.send(Err(anyhow!("disk full").context("cannot write /out"))).unwrap();
        let ended = end(&jobs, 1);
        assert_eq!(ended.state, JobState::Failed);
        assert_eq!(ended.error.as_deref(), Some("cannot write /out: disk full"));
    }

    #[test]
    fn what_runs_is_cancelled_and_what_has_ended_is_forgotten() {
        let (jobs, _results) = told();
        jobs.start(device("a"), request("/out")).unwrap();
        assert_eq!(jobs.remove(1).unwrap().state, JobState::Running);
        let ended = end(&jobs, 1);
        assert_eq!((ended.state, ended.error), (JobState::Cancelled, None));
        assert_eq!(jobs.remove(1).unwrap().state, JobState::Cancelled);
        assert_eq!((jobs.get(1), jobs.remove(1)), (None, None));
        // A name is never given twice.
        assert_eq!(jobs.start(device("a"), request("/out")).unwrap().id, 2);
        jobs.finish();
    }

    #[test]
    fn what_is_done_before_it_notices_the_cancel_is_done() {
        let jobs = Jobs::new(|_, _, progress| {
            while !progress.cancelled.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            Ok(done())
        });
        jobs.start(device("a"), request("/out")).unwrap();
        let _ = jobs.remove(1);
        assert_eq!(end(&jobs, 1).state, JobState::Done);
    }

    #[test]
    fn one_at_a_time_for_a_file_and_few_in_all() {
        let (jobs, results) = told();
        for index in 0..RUNNING_MAX {
            jobs.start(device(&format!("{index}")), request(&format!("/{index}"))).unwrap();
        }
        let refusal = |export, out| jobs.start(device(export), request(out)).unwrap_err();
        assert!(matches!(refusal("0", "/1"), Refusal::SameFile(2)));
        assert!(matches!(refusal("other", "/other"), Refusal::TooMany));
        assert_eq!(jobs.list().len(), RUNNING_MAX);
        results.send(Ok(done())).unwrap();
        while jobs.list().iter().all(|snapshot| snapshot.state == JobState::Running) {
            thread::yield_now();
        }
        jobs.start(device("other"), request("/other")).unwrap();
        jobs.finish();
        assert!(matches!(refusal("new", "/new"), Refusal::Finishing));
    }

    #[test]
    fn of_those_that_ended_the_oldest_are_forgotten_and_none_that_runs() {
        let jobs = Jobs::new(|_, request, progress| {
            let is_long = request.out == Path::new("/long");
            while is_long && !progress.cancelled.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            bail!("ended")
        });
        jobs.start(device("long"), request("/long")).unwrap();
        for _ in 0..ENDED_MAX + 10 {
            let id = jobs.start(device("a"), request("/out")).unwrap().id;
            end(&jobs, id);
        }
        let all = jobs.list();
        assert_eq!(all.len(), 1 + ENDED_MAX);
        assert_eq!((all[0].id, all[0].state, all[1].id), (1, JobState::Running, 12));
        jobs.finish();
    }

    #[test]
    fn a_snapshot_holds_its_device_no_longer_than_it_runs() {
        let (jobs, results) = told();
        let mut device = device("a");
        jobs.start(Arc::clone(&device), request("/out")).unwrap();
        assert!(Arc::get_mut(&mut device).is_none());
        results.send(Ok(done())).unwrap();
        end(&jobs, 1);
        assert!(Arc::get_mut(&mut device).is_some());
    }
}
