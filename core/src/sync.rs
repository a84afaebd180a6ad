//! The only place where synchronisation primitives are named, so that a model checker can replace
//! them in one stroke: `--cfg loom` does (see `docs/loom.md`).

#[cfg(not(loom))]
pub use alloc::sync::Arc;
/// What is shared and never changed again: its count is all that threads have in common. The model checker
/// takes that as it is.
pub use alloc::sync::Arc as Shared;
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
mod modelled;
#[cfg(loom)]
pub use modelled::{Arc, AtomicU64, Ordering, check, spawn, weakened};

/// Whether the models run with the deliberate mistake of this name. Outside of models: never.
#[cfg(not(loom))]
#[inline(always)]
#[must_use]
pub const fn weakened(_: &str) -> bool {
    false
}
