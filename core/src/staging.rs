//! The receive buffer of a session: headers, and payloads short enough to arrive with them.
//!
//! Payloads stay where they were received until they are stored, so bytes move only when nothing
//! in the buffer is *held* and no receive is under way into it.

use alloc::vec;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::ops::Range;

#[derive(Debug)]
pub(crate) struct Staging {
    bytes: Vec<u8>,
    /// Received and not yet consumed: `bytes[head..tail]`.
    head: usize,
    tail: usize,
    /// Payloads before `head` that are still to be stored.
    held: usize,
}

/// What was never received does not count.
impl Hash for Staging {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.head, self.tail, self.held).hash(state);
        self.bytes[..self.tail].hash(state);
    }
}

impl Staging {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { bytes: vec![0; capacity as usize], head: 0, tail: 0, held: 0 }
    }

    /// Received and not yet consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// Consumes bytes; answers where they stay.
    pub(crate) fn consume(&mut self, count: usize) -> Range<usize> {
        assert!(count <= self.tail - self.head);
        let range = self.head..self.head + count;
        self.head = range.end;
        range
    }

    /// Keeps consumed bytes in place until as many calls of [`Self::unhold`].
    pub(crate) fn hold(&mut self) {
        self.held += 1;
    }

    pub(crate) fn unhold(&mut self) {
        self.held = self.held.checked_sub(1).expect("what is held is let go once");
    }

    /// Held or unread bytes.
    pub(crate) fn at(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Whether `count` unread bytes can lie in the buffer in one piece.
    pub(crate) fn fits(&self, count: usize) -> bool {
        let start = if self.held == 0 { 0 } else { self.head };
        count <= self.bytes.len() - start
    }

    /// Makes as much room at the end as may be; answers how much there is. Never call it once bytes of a
    /// receive have landed.
    pub(crate) fn make_room(&mut self) -> usize {
        if self.held == 0 && self.head > 0 {
            let unread = self.tail - self.head;
            // Moving a few bytes is cheaper than a receive that ends at the edge of the buffer.
            if unread == 0 || self.tail == self.bytes.len() || unread <= self.head.min(4096) {
                self.bytes.copy_within(self.head..self.tail, 0);
                (self.head, self.tail) = (0, unread);
            }
        }
        self.room()
    }

    pub(crate) fn room(&self) -> usize {
        self.bytes.len() - self.tail
    }

    pub(crate) fn room_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.tail..]
    }

    pub(crate) fn received(&mut self, count: usize) {
        assert!(count <= self.room(), "the driver received more than there was room for");
        self.tail += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that has received the first bytes of this.
    fn received(capacity: u32, count: usize) -> Staging {
        let mut staging = Staging::new(capacity);
        (0..count).for_each(|index| staging.room_mut()[index] = index as u8);
        staging.received(count);
        staging
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut staging = received(20, 10);
        assert_eq!((staging.unread(), staging.room()), (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..], 10));
        assert_eq!(staging.consume(3), 0..3);
        assert_eq!((staging.at(1..3), staging.unread().len()), (&[1, 2][..], 7));
        staging.room_mut()[..2].fill(70);
        staging.received(2);
        assert_eq!((staging.unread(), staging.room()), (&[3, 4, 5, 6, 7, 8, 9, 70, 70][..], 8));
        assert_eq!(staging.room_mut().len(), 8);
    }

    #[test]
    fn what_is_held_stays_where_it_is() {
        let mut staging = received(20, 10);
        staging.hold();
        staging.hold();
        assert_eq!(staging.consume(10), 0..10);
        assert!(staging.fits(10) && !staging.fits(11));
        assert_eq!(staging.make_room(), 10);
        staging.unhold();
        assert_eq!((staging.make_room(), staging.at(0..2)), (10, &[0, 1][..]));
        staging.unhold();
        assert!(staging.fits(20) && !staging.fits(21));
        assert_eq!((staging.make_room(), staging.unread().len()), (20, 0));
    }

    #[test]
    fn unread_bytes_move_when_they_are_few_or_there_is_no_other_room() {
        // Received, consumed of it, and the room there is then.
        for (count, consumed, room) in
            [(10, 4, 10), (10, 5, 15), (10, 9, 19), (20, 1, 1), (20, 0, 0), (10, 0, 10)]
        {
            let mut staging = received(20, count);
            staging.consume(consumed);
            assert_eq!(staging.make_room(), room, "{count} {consumed}");
            assert_eq!(staging.unread()[0], consumed as u8);
            assert_eq!(staging.unread().len(), count - consumed);
        }
        // Few is a page at most.
        for (unread, room) in [(4096, 20_000 - 4096), (4097, 5000)] {
            let mut staging = received(20_000, 15_000);
            staging.consume(15_000 - unread);
            assert_eq!(staging.make_room(), room);
        }
    }
}
