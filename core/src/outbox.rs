//! What a session has to send: reply headers, and payload segments by reference.
//!
//! Segments in the data file stay as they are only while they are pinned. When the client does not
//! take them, [`Outbox::load`] copies the unsent rest into the *spill*, and the pins can go. The
//! session resolves no further READ while the spill holds anything, which bounds it by the longest
//! payload plus the unsent-bytes limit.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::Errno;
use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::{BLOCK_BYTES, Limits};
use crate::segment::{Segment, Source};
use crate::wire::{SIMPLE_REPLY_BYTES, simple_reply};

/// One piece of what is to be sent.
#[derive(Debug)]
pub enum SendPiece<'a> {
    /// These bytes. They may move once the machine is called again: send or copy them now.
    Bytes(&'a [u8]),
    /// The bytes of this segment; they stay as they are until the send is completed.
    Segment(Segment),
}

#[derive(Debug, Clone, Copy, Hash)]
enum Body {
    /// A reply header, and how much of it was sent.
    Header([u8; SIMPLE_REPLY_BYTES], usize),
    Source(Source),
    /// Copied to the spill, from this byte on.
    Spill(usize),
}

#[derive(Debug, Clone, Copy, Hash)]
struct Piece {
    body: Body,
    length: u64,
    request: u16,
    /// With this piece the request is answered.
    last: bool,
}

#[derive(Debug, Default, Hash)]
pub(crate) struct Outbox {
    /// Handshake bytes; sent before anything else.
    pub(crate) preface: Vec<u8>,
    pieces: VecDeque<Piece>,
    payload_bytes: u64,
    /// Pieces that lie in the data file.
    mutable: usize,
    spilled: usize,
    spill: Vec<u8>,
}

/// A failed read that can no longer be answered with an error: its header is out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplyBegun;

/// A spill is kept for the next slow moment if it is no larger than this: as large as it gets when
/// no payload is longer than 1 MiB.
const SPILL_BYTES_KEPT: usize = 2 << 20;

impl Outbox {
    /// An outbox that needs no more memory while payloads are no longer than the unsent-bytes limit:
    /// that many bytes may wait, and one payload more, each block of them a piece.
    pub(crate) fn new(limits: &Limits) -> Self {
        let blocks = (limits.unsent_bytes_max / BLOCK_BYTES) as usize;
        let pieces = 2 * (blocks + 1) + 2 * usize::from(limits.requests_max);
        Self { pieces: VecDeque::with_capacity(pieces), ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.preface.is_empty() && self.pieces.is_empty()
    }

    /// Payload bytes not yet sent.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    pub(crate) fn has_mutable(&self) -> bool {
        self.mutable > 0
    }

    pub(crate) fn has_spilled(&self) -> bool {
        self.spilled > 0
    }

    /// Memory that the spill takes.
    pub(crate) fn spill_bytes(&self) -> u64 {
        self.spill.capacity() as u64
    }

    /// A mark to come back to with [`Self::cut`].
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Appends a reply without payload.
    pub(crate) fn reply(&mut self, request: u16, cookie: u64, error: Option<Errno>) {
        let header = simple_reply(error.map_or(0, Errno::code), cookie);
        let length = SIMPLE_REPLY_BYTES as u64;
        self.pieces.push_back(Piece { body: Body::Header(header, 0), length, request, last: true });
    }

    /// Appends payload to the reply appended last.
    pub(crate) fn payload(&mut self, segment: Segment) {
        let header = self.pieces.back_mut().expect("a header goes before its payload");
        assert!(core::mem::take(&mut header.last));
        let request = header.request;
        let body = Body::Source(segment.source);
        self.put(Piece { body, length: segment.length, request, last: true });
    }

    fn put(&mut self, piece: Piece) {
        self.payload_bytes += piece.length;
        self.mutable += usize::from(is_mutable(&piece.body));
        self.pieces.push_back(piece);
    }

    /// Takes back what was appended since the outbox had `len` pieces.
    pub(crate) fn cut(&mut self, len: usize) {
        while self.pieces.len() > len {
            let piece = self.pieces.pop_back().expect("longer than len");
            self.forget(&piece);
        }
    }

    fn forget(&mut self, piece: &Piece) {
        match piece.body {
            Body::Header(..) => return,
            Body::Spill(_) => self.spilled -= 1,
            Body::Source(_) => self.mutable -= usize::from(is_mutable(&piece.body)),
        }
        self.payload_bytes -= piece.length;
    }

    /// What is to be sent, in order.
    pub(crate) fn plan(&self) -> impl Iterator<Item = SendPiece<'_>> {
        let preface = (!self.preface.is_empty()).then_some(SendPiece::Bytes(&self.preface));
        preface.into_iter().chain(self.pieces.iter().map(|piece| match &piece.body {
            Body::Header(bytes, sent) => SendPiece::Bytes(&bytes[*sent..]),
            Body::Spill(at) => SendPiece::Bytes(&self.spill[*at..*at + piece.length as usize]),
            Body::Source(source) => {
                SendPiece::Segment(Segment { source: *source, length: piece.length })
            }
        }))
    }

    /// The first `count` bytes of the plan were sent; `answered` hears of each request whose reply
    /// is out in full.
    pub(crate) fn sent(&mut self, count: u64, answered: &mut impl FnMut(u16)) {
        let first = count.min(self.preface.len() as u64);
        self.preface.drain(..first as usize);
        let mut left = count - first;
        while let Some(piece) = self.pieces.front_mut() {
            if left < piece.length {
                piece.length -= left;
                match &mut piece.body {
                    Body::Header(_, sent) => *sent += left as usize,
                    Body::Spill(_) if planted(Bug::SpillRestarts) => {}
                    Body::Spill(at) => {
                        mark(Mark::SpillShort);
                        *at += left as usize;
                    }
                    Body::Source(Source::Zero) => {}
                    Body::Source(Source::Template { offset } | Source::Data { offset }) => {
                        *offset += left;
                    }
                }
                if !matches!(piece.body, Body::Header(..)) {
                    self.payload_bytes -= left;
                }
                return;
            }
            left -= piece.length;
            let piece = self.pieces.pop_front().expect("just seen");
            self.forget(&piece);
            if piece.last {
                answered(piece.request);
            }
            if self.spilled == 0 {
                self.drop_spill();
            }
        }
        assert!(left == 0, "the driver sent more than there was");
    }

    fn drop_spill(&mut self) {
        if self.spill.capacity() > SPILL_BYTES_KEPT {
            self.spill = Vec::new();
        } else {
            self.spill.clear();
        }
    }

    /// Copies the unsent rest of segments into the spill: those in the data file, or with `all` the
    /// template's as well. A segment that cannot be read turns its reply into EIO, if no byte of
    /// that was sent. Answers whether `room` bytes were enough, and memory was there.
    pub(crate) fn load(
        &mut self,
        all: bool,
        room: u64,
        read: &mut impl FnMut(Source, &mut [u8]) -> Result<(), Errno>,
    ) -> Result<bool, ReplyBegun> {
        let wanted = |piece: &Piece| {
            let Body::Source(source) = piece.body else { return None };
            (is_mutable(&piece.body) || (all && source != Source::Zero)).then_some(source)
        };
        let pieces = self.pieces.iter().filter(|piece| wanted(piece).is_some());
        let total: u64 = pieces.map(|piece| piece.length).sum();
        // Few sizes, so that a client which is slow again and again costs no further allocation.
        let rounded = (total as usize).next_power_of_two().min(SPILL_BYTES_KEPT);
        let reserve = rounded.max(total as usize);
        if total > room || self.spill.try_reserve_exact(reserve).is_err() {
            mark(Mark::OutOfMemory);
            return Ok(false);
        }
        for index in 0..self.pieces.len() {
            let piece = &mut self.pieces[index];
            let Some(source) = wanted(piece) else { continue };
            let at = self.spill.len();
            let length = piece.length as usize;
            self.spill.resize(at + length, 0);
            if let Err(error) = read(source, &mut self.spill[at..]) {
                self.spill.truncate(at);
                self.fail(index, error)?;
                // What follows has moved up; start over, nothing is loaded twice.
                return self.load(all, room, read);
            }
            self.mutable -= usize::from(is_mutable(&piece.body));
            self.spilled += 1;
            piece.body = Body::Spill(at);
        }
        Ok(true)
    }

    /// Turns the reply that piece `index` belongs to into an error.
    fn fail(&mut self, index: usize, error: Errno) -> Result<(), ReplyBegun> {
        let request = self.pieces[index].request;
        let is_header = |piece: &Piece| matches!(piece.body, Body::Header(..));
        let header = (0..index).rev().find(|at| is_header(&self.pieces[*at]));
        let Some(header) = header else {
            mark(Mark::ReplyBegun);
            return Err(ReplyBegun);
        };
        let Body::Header(bytes, 0) = &mut self.pieces[header].body else {
            mark(Mark::ReplyBegun);
            return Err(ReplyBegun);
        };
        mark(Mark::LoadFailed);
        bytes[4..8].copy_from_slice(&error.code().to_be_bytes());
        self.pieces[header].last = true;
        let first = header + 1;
        let more = self.pieces.range(first..).take_while(|piece| !is_header(piece)).count();
        let removed: Vec<Piece> = self.pieces.drain(first..first + more).collect();
        for piece in &removed {
            assert!(piece.request == request);
            self.forget(piece);
        }
        Ok(())
    }

    /// Nobody is there to be answered: everything is dropped.
    pub(crate) fn clear(&mut self, answered: &mut impl FnMut(u16)) {
        self.preface.clear();
        while let Some(piece) = self.pieces.pop_front() {
            self.forget(&piece);
            if piece.last {
                answered(piece.request);
            }
        }
        self.spill = Vec::new();
    }
}

fn is_mutable(body: &Body) -> bool {
    matches!(body, Body::Source(Source::Data { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn data(offset: u64, length: u64) -> Segment {
        Segment { source: Source::Data { offset }, length }
    }

    fn template(offset: u64, length: u64) -> Segment {
        Segment { source: Source::Template { offset }, length }
    }

    fn zero(length: u64) -> Segment {
        Segment { source: Source::Zero, length }
    }

    fn outbox() -> Outbox {
        Outbox::new(&Limits::default())
    }

    /// A byte at an offset of the template, and of the data file.
    fn byte_of(source: Source) -> impl Fn(usize) -> u8 {
        let (first, file) = match source {
            Source::Template { offset } => (offset, 100),
            Source::Data { offset } => (offset, 200),
            Source::Zero => unreachable!("nobody reads zeroes"),
        };
        move |index| (first as usize + index) as u8 ^ file
    }

    #[allow(clippy::unnecessary_wraps, reason = "as a driver's reads")]
    fn read(source: Source, bytes: &mut [u8]) -> Result<(), Errno> {
        let byte = byte_of(source);
        bytes.iter_mut().enumerate().for_each(|(index, at)| *at = byte(index));
        Ok(())
    }

    /// All bytes of the plan, whatever they lie in.
    fn bytes_of(outbox: &Outbox) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in outbox.plan() {
            match piece {
                SendPiece::Bytes(bytes) => all.extend(bytes),
                SendPiece::Segment(Segment { source: Source::Zero, length }) => {
                    all.resize(all.len() + length as usize, 0);
                }
                SendPiece::Segment(Segment { source, length }) => {
                    all.extend((0..length as usize).map(byte_of(source)));
                }
            }
        }
        all
    }

    /// A preface; request 1 with all kinds of payload, 2 with none, 3 with data.
    fn sample() -> Outbox {
        let mut outbox = outbox();
        outbox.preface.extend(b"hello");
        outbox.reply(1, 11, None);
        for segment in [data(5, 30), template(9, 20), zero(10), data(70, 1)] {
            outbox.payload(segment);
        }
        outbox.reply(2, 12, Some(Errno::Io));
        outbox.reply(3, 13, None);
        outbox.payload(data(90, 7));
        outbox
    }

    #[test]
    fn replies_go_out_in_order_however_few_bytes_at_a_time() {
        let expected = bytes_of(&sample());
        assert_eq!(expected.len(), 5 + 3 * 16 + 61 + 7);
        assert_eq!(expected[5..21], simple_reply(0, 11));
        assert_eq!(expected[82..98], simple_reply(5, 12));
        for is_loaded in [false, true] {
            for step in [1, 3, 16, 50, expected.len()] {
                let mut outbox = sample();
                if is_loaded {
                    assert_eq!(outbox.load(true, 1000, &mut read), Ok(true));
                }
                let mut answered = Vec::new();
                for at in (0..expected.len()).step_by(step) {
                    assert_eq!(bytes_of(&outbox), expected[at..]);
                    let count = step.min(expected.len() - at) as u64;
                    let end = at as u64 + count;
                    outbox.sent(count, &mut |request| answered.push((request, end)));
                    let unsent = |from: u64, to: u64| to.saturating_sub(end.max(from));
                    assert_eq!(outbox.payload_bytes(), unsent(21, 82) + unsent(114, 121));
                }
                assert!(outbox.is_empty() && !outbox.has_spilled() && !outbox.has_mutable());
                let ends = |end: u64| end.next_multiple_of(step as u64).min(121);
                assert_eq!(answered, [(1, ends(82)), (2, ends(98)), (3, ends(121))]);
            }
        }
    }

    #[test]
    fn an_outbox_has_room_for_as_much_as_may_wait() {
        assert_eq!(outbox().pieces.capacity(), 2 * (256 + 1) + 2 * 256);
    }

    #[test]
    fn what_may_change_is_loaded_and_what_may_not_only_if_all_is() {
        let mut outbox = sample();
        let expected = bytes_of(&outbox);
        assert!(outbox.has_mutable() && !outbox.has_spilled());
        assert_eq!(outbox.load(false, 37, &mut read), Ok(false), "38 bytes are in the data file");
        assert_eq!(outbox.load(false, 38, &mut read), Ok(true));
        assert!(!outbox.has_mutable() && outbox.has_spilled());
        assert_eq!((outbox.spill.len(), outbox.spill_bytes()), (38, 64));
        assert_eq!((outbox.payload_bytes(), bytes_of(&outbox)), (68, expected.clone()));
        // What is there already is not loaded again.
        assert_eq!(outbox.load(true, 20, &mut read), Ok(true));
        assert_eq!((outbox.spill.len(), bytes_of(&outbox)), (58, expected));
        outbox.sent(121 - 1, &mut |_| {});
        assert!(outbox.has_spilled());
        outbox.sent(1, &mut |_| {});
        assert_eq!((outbox.has_spilled(), outbox.spill.len()), (false, 0));
        assert!(outbox.spill_bytes() > 0, "kept for the next time");
    }

    #[test]
    fn a_large_spill_is_given_back_once_it_is_sent() {
        for (length, capacity, kept) in
            [((1 << 20) + 1, 2 << 20, 2 << 20), (2 << 20, 2 << 20, 2 << 20), (3 << 20, 3 << 20, 0)]
        {
            let mut outbox = outbox();
            outbox.reply(1, 1, None);
            outbox.payload(data(0, length));
            assert_eq!(outbox.load(false, length, &mut read), Ok(true));
            assert_eq!(outbox.spill_bytes(), capacity);
            outbox.sent(16 + length, &mut |_| {});
            assert_eq!(outbox.spill_bytes(), kept);
        }
    }

    #[test]
    fn a_segment_that_cannot_be_read_turns_its_reply_into_an_error() {
        let fail_at = |bad: u64| {
            move |source: Source, bytes: &mut [u8]| match source {
                Source::Data { offset } if offset == bad => Err(Errno::Io),
                source => read(source, bytes),
            }
        };
        // The last segment of the first reply: what was loaded of it is dropped.
        let mut failed = sample();
        assert_eq!(failed.load(true, 1000, &mut fail_at(70)), Ok(true));
        let mut expected = outbox();
        expected.preface.extend(b"hello");
        expected.reply(1, 11, Some(Errno::Io));
        expected.reply(2, 12, Some(Errno::Io));
        expected.reply(3, 13, None);
        expected.payload(data(90, 7));
        assert_eq!(bytes_of(&failed), bytes_of(&expected));
        assert_eq!((failed.payload_bytes(), failed.has_mutable()), (7, false));
        let mut answered = Vec::new();
        failed.sent(5 + 3 * 16 + 7, &mut |request| answered.push(request));
        assert_eq!((answered, failed.has_spilled()), (vec![1, 2, 3], false));

        let mut failed = sample();
        assert_eq!(failed.load(false, 1000, &mut fail_at(90)), Ok(true));
        assert_eq!(bytes_of(&failed)[98..], simple_reply(5, 13));
        assert_eq!((failed.payload_bytes(), failed.spilled), (61, 2));

        // Once a byte of its header is out, it is too late; a byte of the preface is not one of them.
        for (sent, is_late) in
            [(4, false), (5, false), (6, true), (20, true), (21, true), (30, true)]
        {
            let mut failed = sample();
            failed.sent(sent, &mut |_| {});
            let loaded = failed.load(false, 1000, &mut fail_at(70));
            assert_eq!(loaded, if is_late { Err(ReplyBegun) } else { Ok(true) }, "{sent}");
        }
    }

    #[test]
    fn what_was_appended_is_taken_back() {
        let mut outbox = sample();
        let expected = bytes_of(&outbox);
        let (len, payload_bytes) = (outbox.len(), outbox.payload_bytes());
        outbox.reply(4, 14, None);
        outbox.payload(data(1, 3));
        outbox.payload(zero(4));
        assert_eq!((outbox.payload_bytes(), outbox.mutable), (payload_bytes + 7, 4));
        outbox.cut(len);
        assert_eq!((outbox.payload_bytes(), outbox.mutable), (payload_bytes, 3));
        assert_eq!(bytes_of(&outbox), expected);
    }

    #[test]
    fn a_client_that_is_gone_is_owed_nothing() {
        let mut outbox = sample();
        assert_eq!(outbox.load(false, 1000, &mut read), Ok(true));
        let mut answered = Vec::new();
        outbox.clear(&mut |request| answered.push(request));
        assert_eq!(answered, [1, 2, 3]);
        assert!(outbox.is_empty() && !outbox.has_spilled() && !outbox.has_mutable());
        assert_eq!((outbox.payload_bytes(), outbox.spill_bytes()), (0, 0));
    }
}
