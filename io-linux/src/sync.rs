//! The only place where this crate names locks and other means of synchronisation, so that a checker can
//! replace them in one stroke. `--cfg loom` does, in `tests/loom` (see `docs/loom.md`), and
//! `--cfg glassine_tsan`, in `tests/sanitize thread` (see `docs/sanitizers.md`).

use std::time::Duration;

pub use std::sync::OnceLock;
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::thread;

/// What the control socket and the command wait with. No model has them: they serve no client.
#[cfg(not(loom))]
pub use {
    std::sync::mpsc,
    tokio::sync::{Semaphore, oneshot, watch},
};

/// What a worker sleeps on.
#[cfg(not(loom))]
pub use crate::sys::EventFd as Waker;

#[cfg(loom)]
mod modelled;
#[cfg(loom)]
pub use modelled::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Waker, thread,
};

/// Lets time pass, for whoever looks again and again.
#[cfg(not(loom))]
pub fn sleep(time: Duration) {
    thread::sleep(time);
}

/// The same for the model checker, which has no time: others go on.
#[cfg(loom)]
pub fn sleep(_time: Duration) {
    thread::yield_now();
}

/// Locks; if another thread died holding the lock, its panic has been reported, and an assertion of
/// ours failed: nothing behind the lock can be trusted any more.
#[cfg(not(glassine_tsan))]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}

/// Waits until notified, or so long; answers whether the time is up. It may also return for no reason.
#[cfg(not(glassine_tsan))]
pub fn wait<'a, T>(
    condvar: &Condvar,
    _mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> (MutexGuard<'a, T>, bool) {
    let (guard, timeout) =
        condvar.wait_timeout(guard, time).expect("no thread panicked while it held this lock");
    (guard, timeout.timed_out())
}

/// The same for ThreadSanitizer: a contended `lock` happens inside the standard library, which is not
/// instrumented, so that every lock would be reported as a race. `try_lock` is compiled with us.
#[cfg(glassine_tsan)]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(std::sync::TryLockError::WouldBlock) => std::thread::yield_now(),
            Err(error) => panic!("no thread panicked while it held this lock: {error}"),
        }
    }
}

/// The same for ThreadSanitizer: always returns soon, and for no reason.
#[cfg(glassine_tsan)]
pub fn wait<'a, T>(
    _condvar: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> (MutexGuard<'a, T>, bool) {
    drop(guard);
    std::thread::sleep(time.min(Duration::from_millis(1)));
    (lock(mutex), false)
}
