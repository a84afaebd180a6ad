//! One client's session: bytes in, requests out, replies out.
//!
//! # How to drive it
//! Tell it what happened with [`Session::handle`]; whenever [`Session::needs_overlay`] says so, call
//! [`Session::advance`] with the device (in production: under its lock); then take every
//! [`Session::poll`] until `None`, and do what it says. At [`Session::deadline`], handle
//! [`Input::Tick`]. Every output that names a request is completed exactly once, by the input of
//! the same name; so are `Receive`, `Send` and `Load`, of which one each is under way at a time.
//! After [`Output::Close`] the session is over, owns nothing, and may be dropped.
//!
//! # What it promises
//! The receiving side never waits for the sending side, nor for storage: only for room. A WRITE is
//! published when its last byte has arrived where it belongs, never earlier. A FLUSH is answered when all
//! that was answered before it came, on whatever connection, is durable; a change with FUA when it is. A READ is resolved at
//! one point in time and pinned until its bytes are sent or copied. A cut or refused payload leaves
//! no trace. One call does work bounded by the requests in flight and the staging buffer.

mod ending;
mod life;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use core::ops::Range;

use crate::error::{CloseReason, Errno};
use crate::export::Catalog;
use crate::handshake::{Handshake, Step};
use crate::judge::{Bug, Mark, mark, planted};
use crate::limits::{Limits, OPTION_BYTES_MAX};
use crate::map::Entry;
use crate::outbox::{Outbox, ReplyBegun, SendPiece};
use crate::overlay::{Conflict, Durable, Overlay, Reserve, SessionKey, Visible};
use crate::pin::{Epoch, PinCell, Pins};
use crate::request::{Command, RequestId, Table, Targets};
use crate::segment::Source;
use crate::staging::Staging;
use crate::sync::Arc;
use crate::time::Instant;
use crate::wire::{self, REQUEST_BYTES, RequestHeader};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// `Receive` brought so many bytes, at least one.
    Received {
        /// How many.
        bytes: usize,
    },
    /// Bytes of the next `Received` could not be put into their slots; they are lost.
    ReceiveFault,
    /// `Receive` found that the client will send no more, or was ended by `StopReceiving`.
    EndOfStream,
    /// `Receive` failed, or was ended by `Shutdown`.
    ReceiveFailed,
    /// `Send` was taken by the kernel so far. More may follow at once.
    Sent {
        /// How many bytes.
        bytes: u64,
    },
    /// `Send` found that the kernel takes no more for now; [`Self::SendReady`] will follow.
    SendBlocked,
    /// The kernel takes bytes again.
    SendReady,
    /// `Send` could not read a segment.
    SendFault,
    /// `Send` failed for good, or was ended by `Shutdown`.
    SendFailed,
    /// `Store` is done.
    Stored {
        /// Which.
        id: RequestId,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// `Merge` is done.
    Merged {
        /// Which.
        id: RequestId,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// `Fetch` is done, or was cancelled (any error will do).
    Fetched {
        /// Which.
        id: RequestId,
        /// How many bytes from the start are available now; fewer than asked for is allowed.
        result: Result<u64, Errno>,
    },
    /// The overlay named this session among those to wake: there is room, or something became durable.
    Wake,
    /// Time has passed.
    Tick,
    /// Finish what is in flight, then close.
    Drain,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// The client chose this export of the catalog: call [`Session::entered`].
    Enter {
        /// Its position in the catalog.
        export: usize,
    },
    /// Receive into [`Session::receive_plan`].
    Receive,
    /// Send [`Session::send_plan`], as much of it as goes.
    Send,
    /// Call [`Session::load`]: the client is slow, and its segments must not stay pinned.
    Load,
    /// Store staged payload in slots: [`Session::staged`] has the bytes, [`Session::targets`] the
    /// places.
    Store {
        /// For whom.
        id: RequestId,
        /// Where the bytes are in the staging buffer.
        staged: Range<usize>,
    },
    /// Complete a block that a request covers only in part.
    Merge {
        /// For whom.
        id: RequestId,
        /// What to do.
        merge: Merge,
    },
    /// Make a part of the template available, so that sending it will not wait.
    Fetch {
        /// For whom.
        id: RequestId,
        /// Byte offset in the template.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Nobody waits for this `Fetch` any more. It is still to be completed.
    CancelFetch {
        /// Which.
        id: RequestId,
    },
    /// Advice: the client will read this range of the device. There is no completion.
    Prefetch {
        /// Byte offset in the device.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Nothing more will be read: complete the `Receive` under way. Sending goes on.
    StopReceiving,
    /// Break the connection: complete what is under way of `Receive` and `Send`.
    Shutdown,
    /// The session is over: close the connection and drop the session.
    Close {
        /// Why.
        reason: CloseReason,
    },
}

/// A block to complete: the bytes of `target` outside `keep` are to become those of `source`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Merge {
    /// Where the other bytes come from.
    pub source: Source,
    /// How many bytes from the start of the block the source has; the rest is zero.
    pub source_bytes: u32,
    /// Byte offset of the slot in the data file.
    pub target: u64,
    /// The bytes of the block that the request sets.
    pub keep: Range<u32>,
    /// Whether the request sets them to zero, which is then part of this; otherwise they are the
    /// payload's, and arrive on their own.
    pub zero_keep: bool,
}

/// Where to receive: payload into slots first, then whatever follows into the staging buffer.
#[derive(Debug)]
pub struct ReceivePlan<'a> {
    /// Pieces of the data file: offset and length.
    pub direct: Targets<'a>,
    /// Room behind them.
    pub staging: &'a mut [u8],
}

/// One client's session. See the module.
#[derive(Debug)]
// The model checker's `Arc` cannot be hashed.
#[cfg_attr(not(loom), derive(Hash))]
pub struct Session {
    key: SessionKey,
    limits: Limits,
    catalog: Arc<Catalog>,
    now: Instant,
    phase: Phase,
    stream: Stream,
    staging: Staging,
    table: Table,
    outbox: Outbox,
    outputs: VecDeque<Output>,
    /// Requests that need the overlay: for slots, to be published, to be resolved, to give back.
    admit: VecDeque<u16>,
    publish: VecDeque<u16>,
    resolve: VecDeque<u16>,
    give_back: VecDeque<u16>,
    flush: VecDeque<u16>,
    /// Requests that wait until something is durable, and what: in rising order.
    durable: VecDeque<(u16, Visible)>,
    /// The overlay will wake us: no use asking for slots before.
    waiting: bool,
    /// The journal will wake us: no use publishing before.
    backlogged: bool,
    /// Since something may have become durable, the overlay was not asked.
    woken: bool,
    /// A `Receive` is under way; with the request into whose slots, if any.
    receiving: Option<Option<u16>>,
    sending: bool,
    /// The kernel takes no more bytes for now.
    blocked: bool,
    loading: Option<LoadKind>,
    outbox_pin: Option<Epoch>,
    ending: Option<Ending>,
    closed: bool,
    /// When the stream last moved, in either direction.
    moved_at: Instant,
}

#[derive(Debug, Hash)]
enum Phase {
    Handshake {
        handshake: Handshake,
        deadline: Instant,
    },
    /// An export is chosen; the driver attaches the device.
    Entering {
        size_bytes: u64,
        read_only: bool,
    },
    Transmission {
        size_bytes: u64,
        read_only: bool,
        pins: Pins,
    },
}

/// Where in the stream of requests the receiving side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stream {
    /// Before a request (or an option, during the handshake).
    Header,
    /// A payload is arriving in the staging buffer, and stays there until it is complete.
    Staged { request: u16 },
    /// The rest of a payload goes straight into its slots, as soon as it has any.
    Direct { request: u16 },
    /// A payload nobody wants (R5). When it has passed, its request is answered.
    Discard { request: u16, left: u64 },
    /// Nothing more is read.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LoadKind {
    /// What may change.
    Mutable,
    /// Everything: sending could not read one of the segments.
    All,
}

#[derive(Debug, Clone, Copy, Hash)]
struct Ending {
    reason: CloseReason,
    /// Nobody is there any more, or nobody deserves an answer.
    abort: bool,
    /// Until when outstanding requests may be answered.
    deadline: Option<Instant>,
}

impl Session {
    /// A session with a client that has just connected.
    #[must_use]
    pub fn new(key: SessionKey, limits: Limits, catalog: Arc<Catalog>, now: Instant) -> Self {
        let longest_option = wire::OPTION_HEADER_BYTES as u32 + OPTION_BYTES_MAX;
        assert!(limits.staging_bytes >= longest_option, "an option fits the staging buffer");
        assert!(limits.requests_max > 0);
        let mut outbox = Outbox::new(&limits);
        let handshake = Handshake::new(&mut outbox.preface, limits.payload_bytes_max);
        let deadline = now.after(limits.handshake_time_max);
        let capacity = usize::from(limits.requests_max);
        Self {
            key,
            catalog,
            now,
            phase: Phase::Handshake { handshake, deadline },
            stream: Stream::Header,
            staging: Staging::new(limits.staging_bytes),
            table: Table::new(limits.requests_max),
            outbox,
            outputs: VecDeque::with_capacity(capacity * 2),
            admit: VecDeque::with_capacity(capacity),
            publish: VecDeque::with_capacity(capacity),
            resolve: VecDeque::with_capacity(capacity),
            give_back: VecDeque::with_capacity(capacity),
            flush: VecDeque::with_capacity(capacity),
            durable: VecDeque::with_capacity(capacity),
            waiting: false,
            backlogged: false,
            woken: false,
            receiving: None,
            sending: false,
            blocked: false,
            loading: None,
            outbox_pin: None,
            ending: None,
            closed: false,
            moved_at: now,
            limits,
        }
    }

    /// The driver attached the device that [`Output::Enter`] named.
    pub fn entered(&mut self, cell: PinCell) {
        let Phase::Entering { size_bytes, read_only } = self.phase else {
            panic!("only after Output::Enter");
        };
        self.phase = Phase::Transmission { size_bytes, read_only, pins: Pins::new(cell) };
        self.parse();
    }

    /// The pin cell to detach from the overlay once the session is over.
    #[must_use]
    pub fn pin_cell(&self) -> Option<&PinCell> {
        match &self.phase {
            Phase::Transmission { pins, .. } => Some(pins.cell()),
            _ => None,
        }
    }

    /// Requests whose reply is not yet with the kernel.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    /// Something happened at `now`. Drain [`Self::poll`] afterwards.
    pub fn handle(&mut self, now: Instant, input: Input) {
        assert!(!self.closed, "the session is over");
        self.now = now;
        match input {
            Input::Received { bytes } => self.received(bytes),
            Input::ReceiveFault => {
                let direct = self.receiving.expect("a Receive is under way");
                let index = direct.expect("only slots are storage");
                mark(Mark::ReceiveFault);
                self.table.get_mut(index).error = Some(Errno::Io);
            }
            Input::EndOfStream => {
                self.receive_ended();
                let reason = if self.is_between_requests() {
                    CloseReason::EndOfStream
                } else {
                    CloseReason::EndedMidRequest
                };
                self.finish(reason, None);
            }
            Input::ReceiveFailed => {
                self.receive_ended();
                self.abort(CloseReason::ConnectionLost);
            }
            Input::Sent { bytes } => self.sent(bytes),
            Input::SendBlocked => {
                assert!(core::mem::take(&mut self.sending), "a Send was under way");
                self.blocked = true;
                if self.outbox.has_mutable() {
                    self.start_load(LoadKind::Mutable);
                }
            }
            Input::SendReady => self.blocked = false,
            Input::SendFault => {
                assert!(core::mem::take(&mut self.sending), "a Send was under way");
                self.start_load(LoadKind::All);
            }
            Input::SendFailed => {
                assert!(core::mem::take(&mut self.sending), "a Send was under way");
                self.abort(CloseReason::ConnectionLost);
            }
            Input::Stored { id, result } => {
                let request = self.table.completed(id);
                request.error = request.error.or(result.err());
                request.staged = None;
                if !planted(Bug::BufferEarly) {
                    self.staging.unhold();
                }
                if result.is_err() {
                    mark(Mark::StoreFailed);
                }
                self.filled(id.index);
                if result.is_err() && planted(Bug::ErrorEndsSession) {
                    self.abort(CloseReason::ConnectionLost);
                }
            }
            Input::Merged { id, result } => {
                let request = self.table.completed(id);
                request.error = request.error.or(result.err());
                if result.is_err() {
                    mark(Mark::MergeFailed);
                }
                self.filled(id.index);
            }
            Input::Fetched { id, result } => self.fetched(id, result),
            Input::Wake => (self.waiting, self.backlogged, self.woken) = (false, false, true),
            Input::Tick => self.tick(),
            Input::Drain if planted(Bug::DrainDrops) => self.abort(CloseReason::Drained),
            Input::Drain => {
                let deadline = Some(now.after(self.limits.drain_time_max));
                self.finish(CloseReason::Drained, deadline);
            }
        }
        self.drop_unanswered();
    }

    /// Whether there is work that needs the device.
    #[must_use]
    pub fn needs_overlay(&self) -> bool {
        (!self.publish.is_empty() && !self.backlogged)
            || !self.give_back.is_empty()
            || !self.flush.is_empty()
            || (!self.durable.is_empty() && self.woken)
            || (!self.admit.is_empty() && !self.waiting)
            || (!self.resolve.is_empty() && self.may_resolve())
    }

    /// Does the work that needs the device: gives back, publishes, reserves, asks what is durable,
    /// resolves. No I/O, no copying of payload. Drain [`Self::poll`] afterwards.
    pub fn advance(&mut self, overlay: &mut Overlay) {
        if planted(Bug::FreeOnDisconnect) {
            self.free_abandoned(overlay);
        }
        while let Some(index) = self.give_back.pop_front() {
            self.give_back(index, overlay);
        }
        while !self.backlogged
            && let Some(index) = self.publish.pop_front()
        {
            self.publish(index, overlay);
        }
        // For one request alone there is nothing to overlap.
        if !self.waiting && self.admit.len() > 1 {
            let first_block = |index: &u16| self.table.get(*index).extent.blocks.clone().next();
            overlay.foresee(self.admit.iter().filter_map(first_block));
        }
        while !self.waiting
            && let Some(index) = self.admit.pop_front()
        {
            self.admit(index, overlay);
        }
        while let Some(index) = self.flush.pop_front() {
            self.await_durable(index, overlay.visible(), overlay);
        }
        if core::mem::take(&mut self.woken) {
            self.answer_durable(overlay);
        }
        while self.may_resolve()
            && let Some(index) = self.resolve.pop_front()
        {
            self.resolve(index, overlay);
        }
        self.parse();
    }

    /// The next thing to do, if any. Take all of them after every call of the other methods.
    #[must_use]
    pub fn poll(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if self.closed {
            return None;
        }
        if !self.sending && !self.blocked && self.loading.is_none() && !self.outbox.is_empty() {
            self.sending = true;
            return Some(Output::Send);
        }
        if self.receiving.is_none() && self.wants_to_receive() {
            let direct = match self.stream {
                Stream::Direct { request } => Some(request),
                _ => None,
            };
            if let Some(index) = direct {
                self.table.get_mut(index).outstanding += 1;
            }
            self.receiving = Some(direct);
            return Some(Output::Receive);
        }
        let reason = self.ending?.reason;
        if !self.is_done() {
            return None;
        }
        self.closed = true;
        Some(Output::Close { reason })
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        if let Some(ending) = self.ending {
            return if ending.abort { None } else { ending.deadline.or(self.stall_deadline()) };
        }
        match &self.phase {
            Phase::Handshake { deadline, .. } => Some(*deadline),
            _ => self.stall_deadline(),
        }
    }

    /// Where the `Receive` under way may put bytes. Ask right before receiving: payloads that were stored
    /// since the `Receive` was polled have made room, and bytes land where the cache has them.
    pub fn receive_plan(&mut self) -> ReceivePlan<'_> {
        self.staging.make_room();
        let mut staging = self.staging.room_mut();
        let direct = match self.receiving.expect("a Receive is under way") {
            Some(index) => {
                let request = self.table.get(index);
                let left = request.direct_left;
                if left > u64::from(self.limits.direct_bytes_min) && staging.len() > REQUEST_BYTES {
                    // Behind a large payload comes mostly another one, which should go to its slots, too.
                    staging = &mut staging[..REQUEST_BYTES];
                }
                request.targets(request.length() - left, left)
            }
            None => Targets::none(),
        };
        ReceivePlan { direct, staging }
    }

    /// What the `Send` under way is to send.
    pub fn send_plan(&self) -> impl Iterator<Item = SendPiece<'_>> {
        assert!(self.sending, "a Send is under way");
        self.outbox.plan()
    }

    /// The bytes of a `Store`.
    #[must_use]
    pub fn staged(&self, staged: Range<usize>) -> &[u8] {
        self.staging.at(staged)
    }

    /// Where the first `length` payload bytes of a request go in the data file.
    #[must_use]
    pub fn targets(&self, id: RequestId, length: usize) -> Targets<'_> {
        self.table.get(id.index).targets(0, length as u64)
    }

    /// How the client named a request. For tests and the simulator.
    #[must_use]
    pub fn cookie(&self, id: RequestId) -> u64 {
        self.table.get(id.index).cookie
    }

    /// Memory that replies take which the client does not.
    #[must_use]
    pub fn spill_bytes(&self) -> u64 {
        self.outbox.spill_bytes()
    }

    /// Completes a `Load`: `read` fills a buffer from a segment that starts at the given source. It
    /// may take `room` bytes of memory; if that is too little, the client is given up.
    pub fn load(
        &mut self,
        room: u64,
        mut read: impl FnMut(Source, &mut [u8]) -> Result<(), Errno>,
    ) {
        let kind = self.loading.take().expect("a Load is under way");
        match self.outbox.load(kind == LoadKind::All, room, &mut read) {
            Ok(true) => {}
            Ok(false) => self.abort(CloseReason::OutOfMemory),
            Err(ReplyBegun) => self.abort(CloseReason::ReadFailedMidReply),
        }
        self.unpin_outbox();
        self.drop_unanswered();
    }

    /// Checks everything that can be derived twice. For tests and the simulator.
    pub fn audit(&self) {
        for index in self.table.indices() {
            let request = self.table.get(index);
            assert!(request.grant.is_some() || request.runs.is_empty());
            let slots: u64 = request.runs.iter().map(|run| u64::from(run.count)).sum();
            assert!(slots == 0 || slots == request.extent.slots());
            let is_payload = matches!(request.command, Command::Read | Command::Write);
            let payload_max = u64::from(self.limits.payload_bytes_max);
            assert!(!is_payload || request.length() <= payload_max, "payloads are bounded");
        }
        let unpinned = planted(Bug::TornReply) || planted(Bug::NoPin);
        let pinned = self.outbox_pin.is_some() || !self.outbox.has_mutable();
        assert!(pinned || unpinned, "segments are pinned");
        if let Phase::Transmission { pins, .. } = &self.phase {
            assert!(!self.closed || pins.is_empty(), "a session that is over pins nothing");
        }
        let payload_max = u64::from(self.limits.payload_bytes_max);
        let spill_max = u64::from(self.limits.unsent_bytes_max) + payload_max;
        assert!(self.outbox.payload_bytes() <= spill_max, "unsent replies are bounded");
    }
}
