//! The only place where this crate names locks and other means of synchronisation, so that a model
//! checker can replace them in one stroke: `--cfg loom` does (see `docs/loom.md`).

pub use std::sync::OnceLock;
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::thread;

/// What a worker sleeps on.
#[cfg(not(loom))]
pub use crate::sys::EventFd as Waker;

#[cfg(loom)]
mod modelled;
#[cfg(loom)]
pub use modelled::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Waker, thread,
};

/// Locks; if another thread died holding the lock, its panic has been reported, and an assertion of
/// ours failed: nothing behind the lock can be trusted any more.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}
