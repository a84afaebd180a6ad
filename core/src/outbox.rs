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
