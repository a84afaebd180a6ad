//! The request table of a session: what is in flight, with everything each request owns.
//!
//! Entries are reused with their buffers, so a request in steady state allocates nothing. An entry
//! is free again only when its reply is with the kernel and no operation refers to it; ids carry a
//! generation all the same, so that a driver's mistake is caught and not answered.

use alloc::vec::Vec;
use core::ops::Range;

use crate::error::Errno;
use crate::judge::{Bug, planted};
use crate::limits::BLOCK_BYTES;
use crate::map::Entry;
use crate::overlay::{Extent, Grant, Predecessor};
use crate::pin::Epoch;
use crate::slot::{Run, SlotId};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Names a request of one session while operations on it are outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(loom, derive(Default))]
pub struct RequestId {
    pub(crate) index: u16,
    pub(crate) generation: u32,
}

/// What a request does to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Nothing: it only gets a reply.
    Plain,
    Read,
    Flush,
    Write,
    /// TRIM and WRITE_ZEROES.
    Zero,
}

/// A block of a WRITE or WRITE_ZEROES that the request covers only in part.
#[derive(Debug, Clone, Default, Hash)]
pub(crate) struct Edge {
    pub(crate) block: u64,
    /// The bytes of the block that the request sets.
    pub(crate) keep: Range<u32>,
    /// What the rest of the block was merged from, and the pin that keeps it.
    pub(crate) merged_from: Option<Entry>,
    pub(crate) pin: Option<Epoch>,
}

#[derive(Debug, Hash)]
pub(crate) struct Request {
    pub(crate) generation: u32,
    pub(crate) in_use: bool,
    pub(crate) command: Command,
    pub(crate) cookie: u64,
    /// The bytes of the device that are meant.
    pub(crate) bytes: Range<u64>,
    /// FAST_ZERO: refuse rather than be slow.
    pub(crate) fast: bool,
    /// FUA: it is answered when it is durable.
    pub(crate) fua: bool,
    pub(crate) extent: Extent,
    pub(crate) edges: Vec<Edge>,
    /// There were edges, and nothing had to be done at them.
    pub(crate) edges_dropped: bool,
    pub(crate) runs: Vec<Run>,
    pub(crate) grant: Option<Grant>,
    /// The part of the payload that lies in the staging buffer.
    pub(crate) staged: Option<Range<usize>>,
    /// The payload is still arriving in the staging buffer.
    pub(crate) arriving: bool,
    /// Payload bytes that are still to be received straight into the slots.
    pub(crate) direct_left: u64,
    /// The part of the template that has to be made available, while that is under way; afterwards
    /// `fetched` is set.
    pub(crate) fetch: Range<u64>,
    pub(crate) fetched: bool,
    /// Operations of the driver that refer to this request.
    pub(crate) outstanding: u32,
    pub(crate) error: Option<Errno>,
    /// Its payload will never be complete, or nobody is there to be answered.
    pub(crate) abandoned: bool,
}

impl Request {
    fn new() -> Self {
        Self {
            generation: 0,
            in_use: false,
            command: Command::Plain,
            cookie: 0,
            bytes: 0..0,
            fast: false,
            fua: false,
            extent: Extent { blocks: 0..0, zero: 0..0, provision: false },
            edges: Vec::new(),
            edges_dropped: false,
            runs: Vec::new(),
            grant: None,
            staged: None,
            arriving: false,
            direct_left: 0,
            fetch: 0..0,
            fetched: false,
            outstanding: 0,
            error: None,
            abandoned: false,
        }
    }

    /// Payload bytes, of a WRITE.
    pub(crate) fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Notes the blocks of a WRITE: all get slots, those covered in part are edges.
    pub(crate) fn cover_write(&mut self) {
        let blocks = self.bytes.start / BLOCK..self.bytes.end.div_ceil(BLOCK);
        self.extent = Extent { zero: blocks.end..blocks.end, blocks, provision: false };
        self.find_edges();
    }

    /// Notes the blocks of a WRITE_ZEROES: whole blocks become zero by an edit of the map, and those
    /// covered in part are edges. What lies behind the end of the device does not count.
    pub(crate) fn cover_zeroes(&mut self, size_bytes: u64, provision: bool) {
        let blocks = self.bytes.start / BLOCK..self.bytes.end.div_ceil(BLOCK);
        let outward = planted(Bug::ZeroesRoundOutward);
        let zero = if outward { blocks.clone() } else { self.whole_blocks(size_bytes) };
        self.extent = Extent { blocks, zero, provision };
        self.edges_dropped = false;
        self.find_edges();
    }

    /// Makes a WRITE whose payload is zero a WRITE_ZEROES; answers whether it did: not if it has slots or was
    /// refused already, nor if it covers no whole block.
    pub(crate) fn turn_to_zeroes(&mut self, size_bytes: u64) -> bool {
        let partial = planted(Bug::ZeroDetectPartial);
        let is_late = self.grant.is_some() || self.error.is_some();
        if is_late || (self.whole_blocks(size_bytes).is_empty() && !partial) {
            return false;
        }
        self.command = Command::Zero;
        self.edges.clear();
        self.cover_zeroes(size_bytes, false);
        if partial {
            self.extent.zero = self.extent.blocks.clone();
            self.edges.clear();
        }
        true
    }

    /// Notes the blocks of a TRIM: rounded inward, so that no neighbour is touched.
    pub(crate) fn cover_trim(&mut self, size_bytes: u64) {
        let outward = planted(Bug::TrimRoundsOutward);
        let blocks = self.bytes.start / BLOCK..self.bytes.end.div_ceil(BLOCK);
        let zero = if outward { blocks } else { self.whole_blocks(size_bytes) };
        self.extent = Extent { blocks: zero.clone(), zero, provision: false };
    }

    fn whole_blocks(&self, size_bytes: u64) -> Range<u64> {
        let start = self.bytes.start.div_ceil(BLOCK);
        let end = if self.bytes.end == size_bytes {
            size_bytes.div_ceil(BLOCK)
        } else {
            self.bytes.end / BLOCK
        };
        // An empty range lies at the end of what there is, so that it cuts nothing in two.
        if start < end {
            start..end
        } else {
            self.bytes.end.div_ceil(BLOCK)..self.bytes.end.div_ceil(BLOCK)
        }
    }

    fn find_edges(&mut self) {
        if [self.bytes.start, self.bytes.end].iter().all(|at| at.is_multiple_of(BLOCK)) {
            // What most requests are: whole blocks.
            return;
        }
        let Range { start: first, end } = self.extent.blocks;
        for block in [first, end - 1] {
            let from = self.bytes.start.max(block * BLOCK) - block * BLOCK;
            let to = self.bytes.end.min((block + 1) * BLOCK) - block * BLOCK;
            let whole = self.extent.zero.contains(&block) || (from, to) == (0, BLOCK);
            let known = self.edges.last().is_some_and(|edge| edge.block == block);
            let forgotten = planted(Bug::OnlyFirstEdge) && block != first;
            if !whole && !known && !forgotten {
                let keep = from as u32..to as u32;
                self.edges.push(Edge { block, keep, merged_from: None, pin: None });
            }
        }
    }

    /// Leaves only the zero part: nothing has to be done at the edges.
    pub(crate) fn drop_edges(&mut self) {
        self.edges_dropped = !self.edges.is_empty();
        self.edges.clear();
        self.extent.blocks = self.extent.zero.clone();
    }

    /// The slot that one of the blocks of this request will be.
    pub(crate) fn slot_of(&self, block: u64) -> SlotId {
        let zero = &self.extent.zero;
        let mut index = block - self.extent.blocks.start;
        if !zero.is_empty() && block >= zero.end {
            index -= zero.end - zero.start;
        }
        for run in &self.runs {
            if index < u64::from(run.count) {
                return run.slot(index as u32);
            }
            index -= u64::from(run.count);
        }
        unreachable!("a slot for every block");
    }

    /// Where `length` payload bytes from `position` on go in the data file.
    pub(crate) fn targets(&self, position: u64, length: u64) -> Targets<'_> {
        let skip = self.bytes.start % BLOCK + position;
        Targets { runs: &self.runs, skip, left: length }
    }

    pub(crate) fn predecessors(&self) -> impl Iterator<Item = Predecessor> {
        self.edges.iter().map(|edge| Predecessor {
            block: edge.block,
            entry: edge.merged_from.expect("an edge is merged before it is published"),
        })
    }

    /// Whether everything has arrived where it belongs.
    pub(crate) fn is_filled(&self) -> bool {
        let early = self.direct_left > 0 && planted(Bug::PublishEarly);
        let answers = self.error.is_some() && planted(Bug::LateWriteLands);
        let arrived = (self.direct_left == 0 || early) && !self.arriving;
        self.grant.is_some() && (self.outstanding == 0 || answers) && arrived
    }
}

/// The pieces of a payload's place in the data file: offset and length of each.
#[derive(Debug, Clone)]
pub struct Targets<'a> {
    runs: &'a [Run],
    skip: u64,
    left: u64,
}

impl Targets<'_> {
    pub(crate) fn none() -> Self {
        Self { runs: &[], skip: 0, left: 0 }
    }
}

impl Iterator for Targets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        while self.left > 0 {
            let (run, rest) = self.runs.split_first().expect("slots for the whole payload");
            self.runs = rest;
            let bytes = u64::from(run.count) * BLOCK;
            if self.skip >= bytes {
                self.skip -= bytes;
                continue;
            }
            let length = (bytes - self.skip).min(self.left);
            let offset = run.first.offset() + self.skip;
            self.skip = 0;
            self.left -= length;
            return Some((offset, length));
        }
        None
    }
}

/// All entries of a session. Their number is the bound on requests in flight.
#[derive(Debug, Hash)]
pub(crate) struct Table {
    entries: Vec<Request>,
    free: Vec<u16>,
}

impl Table {
    pub(crate) fn new(count: u16) -> Self {
        Self {
            entries: (0..count).map(|_| Request::new()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// A fresh entry; there must be one.
    pub(crate) fn add(&mut self, command: Command, cookie: u64, bytes: Range<u64>) -> u16 {
        let index = self.free.pop().expect("the session looks before it adds");
        let request = &mut self.entries[usize::from(index)];
        assert!(!request.in_use && request.outstanding == 0 && request.runs.is_empty());
        request.in_use = true;
        request.command = command;
        request.cookie = cookie;
        request.bytes = bytes;
        index
    }

    /// The request is over: nothing of it is left.
    pub(crate) fn remove(&mut self, index: u16) {
        let request = &mut self.entries[usize::from(index)];
        assert!(request.in_use && request.outstanding == 0, "no operation refers to it");
        assert!(request.runs.is_empty() && request.grant.is_none(), "its slots were given on");
        assert!(request.staged.is_none(), "its payload was let go");
        assert!(request.edges.iter().all(|edge| edge.pin.is_none()), "its pins were let go");
        request.generation = request.generation.wrapping_add(1);
        request.in_use = false;
        request.fast = false;
        request.fua = false;
        request.edges.clear();
        request.edges_dropped = false;
        request.arriving = false;
        request.direct_left = 0;
        request.fetched = false;
        request.error = None;
        request.abandoned = false;
        self.free.push(index);
    }

    pub(crate) fn get(&self, index: u16) -> &Request {
        &self.entries[usize::from(index)]
    }

    pub(crate) fn get_mut(&mut self, index: u16) -> &mut Request {
        &mut self.entries[usize::from(index)]
    }

    pub(crate) fn id(&self, index: u16) -> RequestId {
        RequestId { index, generation: self.get(index).generation }
    }

    /// The entry a driver's completion is about.
    pub(crate) fn completed(&mut self, id: RequestId) -> &mut Request {
        let request = &mut self.entries[usize::from(id.index)];
        assert!(
            request.in_use && request.generation == id.generation && request.outstanding > 0,
            "every operation is completed once: {id:?}"
        );
        request.outstanding -= 1;
        request
    }

    /// Positions of all requests in flight.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u16> {
        let in_use = self.entries.iter().zip(0u16..).filter(|(request, _)| request.in_use);
        in_use.map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn request(bytes: Range<u64>) -> Request {
        Request { bytes, ..Request::new() }
    }

    fn keeps(request: &Request) -> Vec<(u64, Range<u32>)> {
        request.edges.iter().map(|edge| (edge.block, edge.keep.clone())).collect()
    }

    #[test]
    fn a_write_knows_the_blocks_it_covers_in_part() {
        let mut aligned = request(8192..16384);
        aligned.cover_write();
        assert_eq!(keeps(&aligned), []);
        let mut ragged = request(100..8193);
        ragged.cover_write();
        assert_eq!(keeps(&ragged), [(0, 100..4096), (2, 0..1)]);
        let mut inner = request(4100..4200);
        inner.cover_write();
        assert_eq!(keeps(&inner), [(1, 4..104)]);
    }

    #[test]
    fn zeroes_round_inward_and_keep_ragged_ends_as_edges() {
        let mut ragged = request(100..12289);
        ragged.cover_zeroes(1 << 20, false);
        assert_eq!(ragged.extent.zero, 1..3);
        assert_eq!(keeps(&ragged), [(0, 100..4096), (3, 0..1)]);
        assert_eq!(ragged.extent.slots(), 2);
        let mut inner = request(4100..4200);
        inner.cover_zeroes(1 << 20, false);
        assert_eq!(keeps(&inner), [(1, 4..104)]);
        assert_eq!(inner.extent.slots(), 1);
        let mut across = request(100..4200);
        across.cover_zeroes(1 << 20, false);
        assert_eq!(across.extent.zero, 2..2, "no whole block: nothing is cut in two");
        assert_eq!(keeps(&across), [(0, 100..4096), (1, 0..104)]);
    }

    #[test]
    fn the_last_block_of_a_ragged_device_counts_as_whole() {
        let mut trim = request(4096..10_000);
        trim.cover_trim(10_000);
        assert_eq!(trim.extent.blocks, 1..3);
        let mut not_to_the_end = request(4096..9_999);
        not_to_the_end.cover_trim(10_000);
        assert_eq!(not_to_the_end.extent.blocks, 1..2);
    }

    #[test]
    fn a_payload_goes_to_its_slots_in_order_behind_the_ragged_start() {
        let mut write = request(100..8193);
        write.cover_write();
        write.runs.push(Run { first: SlotId(7), count: 1 });
        write.runs.push(Run { first: SlotId(3), count: 2 });
        let all: Vec<_> = write.targets(0, write.length()).collect();
        assert_eq!(all, [(7 * 4096 + 100, 3996), (3 * 4096, 4097)]);
        let rest: Vec<_> = write.targets(4000, 93).collect();
        assert_eq!(rest, [(3 * 4096 + 4, 93)]);
        assert_eq!(write.slot_of(2), SlotId(4));
    }
}
