//! The only place where this crate names locks and other means of synchronisation.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

/// Locks; if another thread died holding the lock, its panic has been reported, and an assertion of
/// ours failed: nothing behind the lock can be trusted any more.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}
