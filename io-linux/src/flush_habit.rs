//! Whether a small write goes through the mapping of its file, or by a system call.
//!
//! A store through the mapping costs a sixth of a `pwrite` on ext4, where its page may be written already. A
//! sync takes that right from every page it writes out, with an interrupt of every core that uses the mapping,
//! and the next store there is a page fault. On the virtual machine where this was measured, the sync of 512
//! scattered blocks takes 54 ms after stores through the mapping, and 12 ms after calls. So whoever flushes
//! after a few writes has calls, and whoever seldom flushes has the mapping.

use crate::sync::{AtomicU64, Ordering};

/// More small writes than these between two flushes are no longer few: there the two cost the same.
const FEW: u64 = 4096;

/// How many small writes there are between two flushes.
#[derive(Debug, Default)]
pub(crate) struct FlushHabit {
    /// Since the last flush; counted a little beyond [`FEW`].
    written: AtomicU64,
    /// So many of them go by call.
    by_call: AtomicU64,
}

impl FlushHabit {
    /// Notes writes of so many blocks; answers whether they should go by a system call.
    pub(crate) fn goes_by_call(&self, blocks: u64) -> bool {
        let written = self.written.load(Ordering::Relaxed);
        // Further on nobody writes here, so that no core waits for another.
        if written > FEW {
            return false;
        }
        self.written.fetch_add(blocks, Ordering::Relaxed);
        written < self.by_call.load(Ordering::Relaxed)
    }

    /// A flush begins: until the next one, there should be about as many writes as until this one, or one of
    /// those before it, since of flushes that come together the first has all the writes.
    pub(crate) fn flushed(&self) {
        let written = self.written.swap(0, Ordering::Relaxed);
        let before = self.by_call.load(Ordering::Relaxed);
        let by_call = if written <= FEW { (2 * written).max(before / 8 * 7) } else { 0 };
        self.by_call.store(by_call, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls_of(habit: &FlushHabit, writes: u64) -> usize {
        let calls = (0..writes).filter(|_| habit.goes_by_call(1)).count();
        habit.flushed();
        calls
    }

    #[test]
    fn whoever_flushes_after_a_few_writes_has_calls_from_the_second_time_on() {
        let habit = FlushHabit::default();
        for (writes, calls) in [(10, 0), (15, 15), (100, 30), (FEW, 200), (FEW, FEW)] {
            assert_eq!(calls_of(&habit, writes), calls as usize, "of {writes}");
        }
    }

    #[test]
    fn flushes_without_writes_between_them_change_little() {
        let habit = FlushHabit::default();
        assert_eq!(calls_of(&habit, 32), 0);
        for _ in 0..10 {
            habit.flushed();
            habit.flushed();
            assert_eq!(calls_of(&habit, 32), 32);
        }
    }

    #[test]
    fn whoever_seldom_flushes_has_the_mapping() {
        let habit = FlushHabit::default();
        assert_eq!(calls_of(&habit, 100), 0);
        // One load that begins, and does not flush any more.
        assert_eq!(calls_of(&habit, 10 * FEW), 200);
        assert_eq!(calls_of(&habit, 10 * FEW), 0);
        assert_eq!(calls_of(&habit, 1), 0);
    }
}
