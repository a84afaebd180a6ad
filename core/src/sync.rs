//! The only place where synchronisation primitives are named, so that a model checker can replace
//! them in one stroke.

pub use alloc::sync::Arc;
pub use core::sync::atomic::{AtomicU64, Ordering};
