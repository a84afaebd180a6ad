//! The clock of this process, in the core's terms.

use std::time::Instant as StdInstant;

use glassine_core::Instant;

use crate::sync::OnceLock;

/// Nanoseconds since the first call.
#[must_use]
pub fn now() -> Instant {
    static ORIGIN: OnceLock<StdInstant> = OnceLock::new();
    let origin = ORIGIN.get_or_init(StdInstant::now);
    Instant(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
