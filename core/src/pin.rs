//! Pins: how a session keeps slots it has resolved from being reused, and lets go without a lock.
//!
//! The overlay counts *epochs*: every step that displaces slots begins a new one and marks them with
//! it. A session that resolves segments notes the epoch of that moment in its [`PinCell`], under the
//! overlay's lock; slots displaced later than the oldest noted epoch stay as they are. To let go,
//! the session overwrites its cell, without the lock. One word per session replaces a counter per
//! slot, so a read costs no atomic operation however many slots it touches.

use alloc::collections::VecDeque;
use core::hash::{Hash, Hasher};

use crate::judge::{Mark, mark};
use crate::sync::{Arc, AtomicU64, Ordering};

/// A moment in the life of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before anything was published.
    pub(crate) const FIRST: Self = Self(1);
    /// After everything that will ever be.
    pub(crate) const LAST: Self = Self(u64::MAX);
}

const IDLE: u64 = u64::MAX;

/// The oldest epoch one session still looks at; shared between the session and the overlay.
#[derive(Debug, Clone)]
pub struct PinCell(Arc<AtomicU64>);

impl PinCell {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(IDLE)))
    }

    /// The oldest epoch pinned, if any. Acquire: what the session did with the slots before it let
    /// go happens before whatever is done to them after this load.
    pub(crate) fn oldest(&self) -> Option<Epoch> {
        let value = self.0.load(Ordering::Acquire);
        (value != IDLE).then_some(Epoch(value))
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn store(&self, epoch: Option<Epoch>) {
        self.0.store(epoch.map_or(IDLE, |epoch| epoch.0), Ordering::Release);
    }
}

/// What it shows: two worlds are alike if everything they hold shows the same.
impl Hash for PinCell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.load(Ordering::Relaxed).hash(state);
    }
}

/// A session's outstanding pins. Epochs are taken in rising order; the cell shows the oldest.
#[derive(Debug, Hash)]
pub struct Pins {
    cell: PinCell,
    held: VecDeque<(Epoch, u32)>,
}

impl Pins {
    /// Nothing pinned yet; the overlay sees it in this cell.
    #[must_use]
    pub fn new(cell: PinCell) -> Self {
        Self { cell, held: VecDeque::with_capacity(8) }
    }

    /// The cell that the overlay sees.
    #[must_use]
    pub fn cell(&self) -> &PinCell {
        &self.cell
    }

    /// Whether nothing is pinned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Pins everything resolved at `now`, the overlay's present epoch. Call under its lock.
    pub fn take(&mut self, now: Epoch) -> Epoch {
        match self.held.back_mut() {
            Some((epoch, count)) if *epoch == now => *count += 1,
            last => {
                assert!(last.is_none_or(|(epoch, _)| *epoch < now), "epochs only rise");
                self.held.push_back((now, 1));
                if self.held.len() == 1 {
                    self.cell.store(Some(now));
                }
            }
        }
        now
    }

    /// Lets go of one pin taken at `epoch`; needs no lock.
    pub fn release(&mut self, epoch: Epoch) {
        let at = self.held.binary_search_by_key(&epoch, |(epoch, _)| *epoch);
        let (_, count) = &mut self.held[at.expect("only held pins are released")];
        *count = count.checked_sub(1).expect("a pin is released once");
        let oldest = self.held.front().map(|(epoch, _)| *epoch);
        while self.held.front().is_some_and(|(_, count)| *count == 0) {
            self.held.pop_front();
        }
        let now = self.held.front().map(|(epoch, _)| *epoch);
        if now == oldest && oldest < Some(epoch) {
            mark(Mark::PinsOutOfOrder);
        }
        if now != oldest {
            self.cell.store(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cell_shows_the_oldest_pin_whatever_the_order_of_release() {
        let cell = PinCell::new();
        let mut pins = Pins::new(cell.clone());
        assert_eq!(cell.oldest(), None);
        pins.take(Epoch(1));
        pins.take(Epoch(1));
        pins.take(Epoch(4));
        pins.take(Epoch(9));
        pins.release(Epoch(4));
        assert!(!pins.is_empty());
        assert_eq!(cell.oldest(), Some(Epoch(1)));
        pins.release(Epoch(1));
        assert_eq!(cell.oldest(), Some(Epoch(1)));
        pins.release(Epoch(1));
        assert_eq!(cell.oldest(), Some(Epoch(9)));
        pins.release(Epoch(9));
        assert_eq!(cell.oldest(), None);
        assert!(pins.is_empty());
    }
}
