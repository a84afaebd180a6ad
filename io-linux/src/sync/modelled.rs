//! The primitives under the model checker, where its own are not enough.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::LockResult;
use std::time::Duration;

pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub use loom::sync::{Arc, Mutex, MutexGuard};
pub use loom::thread;

/// A condition variable whose timed waits do end: when [`Self::let_time_pass`] is called.
#[derive(Debug)]
pub struct Condvar {
    inner: loom::sync::Condvar,
    ticks: AtomicUsize,
}

/// Whether a wait ended because its time was up.
#[derive(Debug)]
pub struct Timeout(bool);

impl Timeout {
    /// Whether it did.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: loom::sync::Condvar::new(), ticks: AtomicUsize::new(0) }
    }

    /// Wakes one thread that waits.
    pub fn notify_one(&self) {
        self.inner.notify_one();
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        self.inner.notify_all();
    }

    /// Waits.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.inner.wait(guard)
    }

    /// Waits until notified, or until time passes. As in reality, both may happen at once.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, Timeout)> {
        let before = self.ticks.load(Ordering::SeqCst);
        let guard = self.inner.wait(guard).expect("the model checker ends when a thread panics");
        let timeout = Timeout(self.ticks.load(Ordering::SeqCst) != before);
        Ok((guard, timeout))
    }

    /// The time of every timed wait of this moment is up.
    pub fn let_time_pass(&self) {
        self.ticks.fetch_add(1, Ordering::SeqCst);
        self.inner.notify_all();
    }
}

/// An eventfd in an edge-triggered epoll: what was signalled is reported once, and only if it was
/// not taken back meanwhile.
///
/// (The model checker's own `Notify` does not go together with its condition variables: there a
/// thread that is about to notify counts as woken.)
#[derive(Debug)]
pub struct Waker {
    state: Mutex<Signal>,
    more: loom::sync::Condvar,
}

#[derive(Debug, Default)]
struct Signal {
    counted: bool,
    edge: bool,
    waits: bool,
}

impl Waker {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), more: loom::sync::Condvar::new() })
    }

    /// There is no descriptor: a model waits with [`Self::wait`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        unreachable!("a model has no epoll")
    }

    /// Wakes the waiter.
    pub fn signal(&self) {
        let mut state = super::lock(&self.state);
        (state.counted, state.edge) = (true, true);
        if state.waits {
            self.more.notify_one();
        }
    }

    /// Takes the signal back.
    pub fn clear(&self) {
        super::lock(&self.state).counted = false;
    }

    /// Waits as epoll would.
    pub fn wait(&self) {
        let mut state = super::lock(&self.state);
        while !(std::mem::take(&mut state.edge) && state.counted) {
            state.waits = true;
            state = self.more.wait(state).expect("the model checker ends when a thread panics");
            state.waits = false;
        }
    }
}
