//! Time as an argument: the core never reads a clock.

use core::time::Duration;

/// Nanoseconds since an origin that the driver chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `span` after this one; saturates at the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_neither_ends_nor_runs_backwards() {
        let (one, two) = (Instant(1_000_000_001), Instant(3_000_000_003));
        assert_eq!(two.since(one), Duration::new(2, 2));
        assert_eq!(one.since(two), Duration::ZERO);
        assert_eq!(one.after(Duration::new(2, 2)), two);
        assert_eq!(one.after(Duration::MAX), Instant(u64::MAX));
        assert_eq!(Instant(u64::MAX - 1).after(Duration::from_nanos(2)), Instant(u64::MAX));
    }
}
