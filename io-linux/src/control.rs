//! The control socket: a server is asked about, and told, by HTTP and JSON on a unix socket.
//!
//! It has a thread of its own, and no part in serving clients: it holds a device's lock for as long as it takes
//! to read some counters, and whatever takes longer has a thread for itself. Only the server's own user, and
//! root, can connect. Still nobody can use up more than a few connections, each for a bounded time, with
//! requests of a bounded size.
//!
//! What can be asked for is in `api`, snapshots under way are in `jobs`, and the side of the command line is
//! in `client`.

pub mod api;
pub mod client;
pub mod jobs;

use std::io;
use std::os::unix::net::UnixListener as BlockingListener;
use std::pin::pin;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::listener::Listener;
use crate::shared::Shared;
use crate::snapshot;
use crate::sync::{Arc, Condvar, Mutex, Semaphore, lock, wait, watch};
use jobs::Jobs;

/// Connections at a time; others wait until one of these ends.
const CONNECTIONS_MAX: usize = 32;
/// How long the header of a request may take, and how long a connection may be idle.
const HEADER_TIME_MAX: Duration = Duration::from_secs(5);
/// After this time a connection ends, once the request that it is at has been answered …
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
/// … if that does not take longer than this. It is more than the longest answer takes.
const LAST_REPLY_TIME_MAX: Duration = Duration::from_secs(25);
/// The same at the end of the server.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);
/// How much of a request is buffered before it is understood: a header that is longer is refused.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long to sleep at a time while devices are closed; whoever is done wakes the sleeper.
const FINISH_TIME: Duration = Duration::from_secs(10);

/// A control socket being served.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// What requests work on.
pub struct State {
    /// The server.
    shared: Arc<Shared>,
    snapshots: Jobs,
    closing: Closing,
    /// Has the whole server drain.
    drain: Box<dyn Fn() + Send + Sync>,
}

/// Devices that are being closed.
#[derive(Debug, Default)]
struct Closing {
    state: Mutex<ClosingState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct ClosingState {
    exports: Vec<String>,
    finishing: bool,
}

impl Control {
    /// Begins to serve a control socket. `drain` is to have the whole server drain, and not to wait for it.
    pub fn start(
        listener: Listener,
        shared: Arc<Shared>,
        drain: impl Fn() + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let storage = shared.storage.clone();
        let take = move |device: &_, request: &_, progress: &_| {
            snapshot::take(device, &storage, request, progress)
        };
        Self::serve(listener, State::new(shared, Jobs::new(take), drain))
    }

    fn serve(listener: Listener, state: State) -> anyhow::Result<Self> {
        let state = Arc::new(state);
        let router = api::router(Arc::clone(&state));
        let socket = blocking(&listener).context("cannot use the control socket")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot serve the control socket")?;
        let (stop, stopped) = watch::channel(false);
        let run = move || runtime.block_on(serve(socket, router, stopped));
        let thread = thread::Builder::new().name("control".into()).spawn(run);
        let thread = thread.context("cannot start a thread")?;
        Ok(Self { listener, state, stop, thread })
    }

    /// Cancels snapshots, waits until devices that are being closed are closed, and ends. For a server that
    /// drains.
    pub fn finish(self) {
        self.state.snapshots.finish();
        self.state.closing.finish();
        // It listens until it is joined.
        let _ = self.stop.send(true);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        // Not before: to tokio, a socket that was shut down looks as if there were always a client to accept.
        self.listener.stop();
    }
}

impl State {
    fn new(shared: Arc<Shared>, snapshots: Jobs, drain: impl Fn() + Send + Sync + 'static) -> Self {
        Self { shared, snapshots, closing: Closing::default(), drain: Box::new(drain) }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { snapshots, closing, .. } = self;
        f.debug_struct("State")
            .field("snapshots", snapshots)
            .field("closing", closing)
            .finish_non_exhaustive()
    }
}

impl Closing {
    /// Notes that an export is being closed; `false` if the server ends, and does that by itself.
    fn begin(&self, export: &str) -> bool {
        let mut state = lock(&self.state);
        if !state.finishing {
            state.exports.push(export.to_owned());
        }
        !state.finishing
    }

    fn end(&self, export: &str) {
        lock(&self.state).exports.retain(|other| other != export);
        self.ended.notify_all();
    }

    fn contains(&self, export: &str) -> bool {
        lock(&self.state).exports.iter().any(|other| other == export)
    }

    fn finish(&self) {
        let mut state = lock(&self.state);
        state.finishing = true;
        while !state.exports.is_empty() {
            (state, _) = wait(&self.ended, &self.state, state, FINISH_TIME);
        }
    }
}

/// A second handle to the socket, for the event loop.
fn blocking(listener: &Listener) -> io::Result<BlockingListener> {
    let socket = BlockingListener::from(listener.fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Accepts clients until stopped, then lets those there are have their replies.
async fn serve(socket: BlockingListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let socket = match UnixListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%error, "the control socket cannot be served; restart to have one");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place.expect("never closed"), socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((client, _)) => {
                let (router, stopped) = (router.clone(), stopped.clone());
                tokio::spawn(async move {
                    converse(client, router, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors or memory: it passes, and no client is lost by waiting.
                tracing::warn!(%error, "cannot accept a control connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let all = u32::try_from(CONNECTIONS_MAX).expect("few");
    // Whoever is still there is cut off.
    let _ = timeout(GOODBYE_TIME_MAX, places.acquire_many(all)).await;
}

/// One client. Whatever is wrong with it is its own affair.
async fn converse(client: UnixStream, router: Router, mut stopped: watch::Receiver<bool>) {
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(client), service)
    );
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(CONNECTION_TIME_MAX) => {}
        _ = stopped.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_REPLY_TIME_MAX, connection).await;
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use hyper::Method;

    use super::api::NewSnapshot;
    use super::api::tests::{blank, server};
    use super::client::Client;
    use super::jobs::{JobState, Snapshot};
    use super::*;
    use crate::command::follow;
    use crate::sync::{AtomicBool, Ordering};

    #[test]
    fn whoever_waits_for_a_snapshot_sees_its_end_and_cancels_it_when_interrupted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("x");
        let snapshots = Jobs::new(|_, request, progress| {
            while request.out.ends_with("long") && !progress.cancelled.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            bail!("it has ended")
        });
        let state = State::new(server(&[blank("a", false)]), snapshots, || {});
        let control = Control::serve(Listener::bind_private(&socket).unwrap(), state).unwrap();
        let client = Client::new(&socket).unwrap();
        for (out, interrupted, expected) in
            [("/long", true, JobState::Cancelled), ("/short", false, JobState::Failed)]
        {
            let (export, out) = ("a".to_owned(), out.into());
            let body = NewSnapshot { export, out, flush: false, compress: None };
            let begun: Snapshot = client.send(Method::POST, "/v1/snapshots", &body).unwrap();
            let ended = follow(&client, begun, &AtomicBool::new(interrupted)).unwrap();
            assert_eq!(ended.state, expected);
        }
        // One that is under way when the server ends is cancelled.
        let body = NewSnapshot {
            export: "a".to_owned(),
            out: "/long".into(),
            flush: false,
            compress: None,
        };
        let begun: Snapshot = client.send(Method::POST, "/v1/snapshots", &body).unwrap();
        control.finish();
        let error = follow(&client, begun, &AtomicBool::new(false)).unwrap_err();
        assert!(format!("{error:#}").contains("cannot reach"), "{error:#}");
    }
}
