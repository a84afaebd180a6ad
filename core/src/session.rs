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
//! published when its last byte has arrived where it belongs, never earlier. A READ is resolved at
//! one point in time and pinned until its bytes are sent or copied. A cut or refused payload leaves
//! no trace. One call does work bounded by the requests in flight and the staging buffer.

use alloc::collections::VecDeque;
use core::ops::Range;

use crate::error::{CloseReason, Errno};
use crate::export::Catalog;
use crate::handshake::{Handshake, Step};
use crate::limits::{BLOCK_BYTES, Limits, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::map::Entry;
use crate::outbox::{Outbox, ReplyBegun, SendPiece};
use crate::overlay::{Conflict, Overlay, Reserve, SessionKey, Source};
use crate::pin::{Epoch, PinCell, Pins};
use crate::request::{Command, RequestId, Table, Targets};
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
    /// The overlay named this session among those to wake.
    Wake,
    /// Time has passed.
    Tick,
    /// Finish what is in flight, then close.
    Drain,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The overlay will wake us: no use asking for slots before.
    waiting: bool,
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

#[derive(Debug)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoadKind {
    /// What may change.
    Mutable,
    /// Everything: sending could not read one of the segments.
    All,
}

#[derive(Debug, Clone, Copy)]
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
        let handshake = Handshake::new(&mut outbox.preface);
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
            waiting: false,
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
                self.table.get_mut(index).error = Some(Errno::Io);
            }
            Input::EndOfStream => {
                self.receive_ended();
                let between = self.stream == Stream::Header && self.staging.unread().is_empty();
                let reason =
                    if between { CloseReason::EndOfStream } else { CloseReason::EndedMidRequest };
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
                self.staging.unhold();
                self.filled(id.index);
            }
            Input::Merged { id, result } => {
                let request = self.table.completed(id);
                request.error = request.error.or(result.err());
                self.filled(id.index);
            }
            Input::Fetched { id, result } => self.fetched(id, result),
            Input::Wake => self.waiting = false,
            Input::Tick => self.tick(),
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
        !self.publish.is_empty()
            || !self.give_back.is_empty()
            || (!self.admit.is_empty() && !self.waiting)
            || (!self.resolve.is_empty() && self.may_resolve())
    }

    /// Does the work that needs the device: gives back, publishes, reserves, resolves. No I/O, no
    /// copying of payload. Drain [`Self::poll`] afterwards.
    pub fn advance(&mut self, overlay: &mut Overlay) {
        while let Some(index) = self.give_back.pop_front() {
            self.give_back(index, overlay);
        }
        while let Some(index) = self.publish.pop_front() {
            self.publish(index, overlay);
        }
        while !self.waiting
            && let Some(index) = self.admit.pop_front()
        {
            self.admit(index, overlay);
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

    /// Where the `Receive` under way may put bytes.
    pub fn receive_plan(&mut self) -> ReceivePlan<'_> {
        let direct = match self.receiving.expect("a Receive is under way") {
            Some(index) => {
                let request = self.table.get(index);
                request.targets(request.length() - request.direct_left, request.direct_left)
            }
            None => Targets::none(),
        };
        ReceivePlan { direct, staging: self.staging.room_mut() }
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

    /// Completes a `Load`: `read` fills a buffer from a segment that starts at the given source.
    pub fn load(&mut self, mut read: impl FnMut(Source, &mut [u8]) -> Result<(), Errno>) {
        let kind = self.loading.take().expect("a Load is under way");
        match self.outbox.load(kind == LoadKind::All, &mut read) {
            Ok(true) => {}
            Ok(false) => self.abort(CloseReason::OutOfMemory),
            Err(ReplyBegun) => self.abort(CloseReason::ReadFailedMidReply),
        }
        self.unpin_outbox();
        self.drop_unanswered();
    }

    // ---- receiving -----------------------------------------------------------------------------

    fn wants_to_receive(&mut self) -> bool {
        match self.stream {
            Stream::Ended => false,
            Stream::Direct { request } => {
                let request = self.table.get(request);
                let admitted = request.grant.is_some();
                if admitted {
                    self.staging.make_room();
                }
                admitted
            }
            Stream::Header if matches!(self.phase, Phase::Entering { .. }) => false,
            Stream::Header if self.table.is_full() => false,
            Stream::Header | Stream::Staged { .. } | Stream::Discard { .. } => {
                self.staging.make_room() > 0
            }
        }
    }

    /// A `Receive` is over; its request no longer has the kernel writing into its slots.
    fn receive_ended(&mut self) -> Option<u16> {
        let index = self.receiving.take().expect("a Receive was under way")?;
        let request = self.table.get_mut(index);
        request.outstanding -= 1;
        if request.abandoned {
            self.drop_if_idle(index);
            return None;
        }
        Some(index)
    }

    fn received(&mut self, bytes: usize) {
        assert!(bytes > 0, "the end of the stream is an input of its own");
        self.moved_at = self.now;
        let mut rest = bytes as u64;
        let direct = self.receive_ended();
        if self.stream == Stream::Ended {
            // The session began to end while the kernel was receiving.
            return;
        }
        if let Some(index) = direct {
            let request = self.table.get_mut(index);
            let direct = rest.min(request.direct_left);
            request.direct_left -= direct;
            rest -= direct;
            if request.direct_left == 0 {
                self.stream = Stream::Header;
                self.filled(index);
            }
        }
        self.staging.received(usize::try_from(rest).expect("no more than received"));
        self.parse();
    }

    /// Takes everything out of the staging buffer that can be taken.
    fn parse(&mut self) {
        loop {
            let go_on = match self.stream {
                Stream::Ended => {
                    let rest = self.staging.unread().len();
                    self.staging.consume(rest);
                    false
                }
                Stream::Header => match self.phase {
                    Phase::Handshake { .. } => self.parse_option(),
                    Phase::Entering { .. } => false,
                    Phase::Transmission { .. } => self.parse_request(),
                },
                Stream::Staged { request } => self.parse_payload(request),
                Stream::Direct { .. } => false,
                Stream::Discard { request, left } => self.discard(request, left),
            };
            if !go_on {
                return;
            }
        }
    }

    fn parse_option(&mut self) -> bool {
        let Phase::Handshake { handshake, .. } = &mut self.phase else { unreachable!() };
        let unread = self.staging.unread();
        let (count, step) = handshake.receive(unread, &self.catalog, &mut self.outbox.preface);
        self.staging.consume(count);
        match step {
            Step::Wait => false,
            Step::Again => true,
            Step::Enter(export) => {
                let chosen = &self.catalog.exports()[export];
                let (size_bytes, read_only) = (chosen.size_bytes, chosen.read_only);
                self.phase = Phase::Entering { size_bytes, read_only };
                self.outputs.push_back(Output::Enter { export });
                false
            }
            Step::Close(reason) => {
                self.finish(reason, Some(self.now.after(self.limits.drain_time_max)));
                false
            }
        }
    }

    fn parse_request(&mut self) -> bool {
        let Some(bytes) = self.staging.unread().first_chunk::<REQUEST_BYTES>() else {
            return false;
        };
        let header = RequestHeader::parse(bytes);
        if header.magic != wire::REQUEST_MAGIC {
            self.abort(CloseReason::BadRequestMagic);
            return false;
        }
        if header.command == wire::CMD_DISC {
            self.staging.consume(REQUEST_BYTES);
            self.finish(CloseReason::Disconnected, None);
            return false;
        }
        if self.table.is_full() {
            return false;
        }
        self.staging.consume(REQUEST_BYTES);
        self.begin(&header);
        true
    }

    /// Judges a request and sets it going.
    fn begin(&mut self, header: &RequestHeader) {
        let Phase::Transmission { size_bytes, read_only, .. } = self.phase else { unreachable!() };
        let length = u64::from(header.length);
        let verdict = judge(header, size_bytes, read_only);
        let bytes = match verdict {
            Ok(Command::Read | Command::Write | Command::Zero) => {
                header.offset..header.offset + length
            }
            // No range is meant, or none that was checked: FLUSH may come with any offset.
            Ok(Command::Plain) | Err(_) => 0..0,
        };
        let command = verdict.unwrap_or(Command::Plain);
        let index = self.table.add(command, header.cookie, bytes);
        if let Err(error) = verdict {
            self.table.get_mut(index).error = Some(error);
            if header.command == wire::CMD_WRITE {
                // NBD R5: an errored WRITE's payload must still be consumed.
                self.stream = Stream::Discard { request: index, left: length };
            } else {
                self.answer(index);
            }
            return;
        }
        let request = self.table.get_mut(index);
        match command {
            Command::Plain => {
                if header.command == wire::CMD_CACHE && length > 0 {
                    let offset = header.offset;
                    self.outputs.push_back(Output::Prefetch { offset, length });
                }
                self.answer(index);
            }
            Command::Read => self.resolve.push_back(index),
            Command::Write => {
                request.cover_write();
                self.admit.push_back(index);
                self.begin_payload(index);
            }
            Command::Zero => {
                if header.command == wire::CMD_TRIM {
                    request.cover_trim(size_bytes);
                } else {
                    request.fast = header.flags & wire::CMD_FLAG_FAST_ZERO != 0;
                    let provision = header.flags & wire::CMD_FLAG_NO_HOLE != 0;
                    request.cover_zeroes(size_bytes, provision);
                }
                self.admit.push_back(index);
            }
        }
    }

    /// Decides where the payload of a WRITE arrives.
    fn begin_payload(&mut self, index: u16) {
        let length = self.table.get(index).length() as usize;
        let here = self.staging.unread().len().min(length);
        let missing = length - here;
        let direct = missing > self.limits.direct_bytes_min as usize || !self.staging.fits(length);
        if missing == 0 || !direct {
            self.table.get_mut(index).arriving = true;
            self.stream = Stream::Staged { request: index };
            return;
        }
        self.table.get_mut(index).direct_left = missing as u64;
        self.stage(index, here);
        self.stream = Stream::Direct { request: index };
    }

    fn parse_payload(&mut self, index: u16) -> bool {
        let length = self.table.get(index).length() as usize;
        if self.staging.unread().len() < length {
            return false;
        }
        self.stage(index, length);
        self.stream = Stream::Header;
        self.table.get_mut(index).arriving = false;
        let request = self.table.get(index);
        if request.error.is_some() && request.grant.is_none() {
            // Refused while its payload was arriving.
            self.let_go_of_payload(index);
            self.answer(index);
        } else if request.grant.is_some() {
            self.store(index);
        }
        true
    }

    /// Notes `count` unread bytes as (part of) the payload of a request, and keeps them in place.
    fn stage(&mut self, index: u16, count: usize) {
        let staged = self.staging.consume(count);
        if count > 0 {
            self.staging.hold();
            self.table.get_mut(index).staged = Some(staged);
        }
    }

    fn let_go_of_payload(&mut self, index: u16) {
        if self.table.get_mut(index).staged.take().is_some() {
            self.staging.unhold();
        }
    }

    fn discard(&mut self, index: u16, left: u64) -> bool {
        let count = (self.staging.unread().len() as u64).min(left);
        self.staging.consume(count as usize);
        let left = left - count;
        if left > 0 {
            self.stream = Stream::Discard { request: index, left };
            return false;
        }
        self.stream = Stream::Header;
        self.answer(index);
        true
    }

    // ---- the life of a request -----------------------------------------------------------------

    fn answer(&mut self, index: u16) {
        let request = self.table.get(index);
        if self.is_aborting() {
            self.table.remove(index);
            return;
        }
        self.outbox.reply(index, request.cookie, request.error);
    }

    /// Asks for slots; then the payload can go where it belongs.
    fn admit(&mut self, index: u16, overlay: &mut Overlay) {
        let request = self.table.get_mut(index);
        // WRITE_ZEROES: edges that are zero already need nothing. All or none: what is left out here
        // takes effect now, and must not do so before the rest.
        if request.command == Command::Zero && !request.extent.provision {
            let is_zero = |entry| matches!(entry, Entry::Zero | Entry::ZeroProvisioned);
            if request.edges.iter().all(|edge| is_zero(overlay.entry(edge.block))) {
                request.drop_edges();
            }
        }
        if request.fast && !request.edges.is_empty() {
            // NBD z2: merging a block is no faster than writing it.
            request.error = Some(Errno::NotSupported);
            self.answer(index);
            return;
        }
        match overlay.reserve(&request.extent, self.key, &mut request.runs) {
            Ok(Reserve::Granted(grant)) => request.grant = Some(grant),
            Ok(Reserve::Wait) => {
                self.waiting = true;
                self.admit.push_front(index);
                return;
            }
            Err(error) => {
                request.error = Some(error);
                self.refuse(index);
                return;
            }
        }
        for position in 0..self.table.get(index).edges.len() {
            self.merge(index, position, overlay);
        }
        if self.table.get(index).staged.is_some() {
            self.store(index);
        }
        let request = self.table.get(index);
        if request.command == Command::Zero && request.is_filled() {
            self.publish(index, overlay);
        }
    }

    /// A WRITE gets no slots: what is still to come of its payload is discarded.
    fn refuse(&mut self, index: u16) {
        match self.stream {
            Stream::Staged { request } if request == index => {}
            Stream::Direct { request } if request == index => {
                let left = core::mem::take(&mut self.table.get_mut(index).direct_left);
                self.let_go_of_payload(index);
                self.stream = Stream::Discard { request: index, left };
            }
            _ => {
                self.let_go_of_payload(index);
                self.answer(index);
            }
        }
    }

    fn store(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        let staged = request.staged.clone().expect("there is something to store");
        request.outstanding += 1;
        self.outputs.push_back(Output::Store { id, staged });
    }

    /// Completes an edge from what its block is now.
    fn merge(&mut self, index: u16, position: usize, overlay: &Overlay) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { unreachable!() };
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        let block = request.edges[position].block;
        let entry = overlay.entry(block);
        let (source, source_bytes) = overlay.source_of(block, entry);
        let target = request.slot_of(block).offset();
        let zero_keep = request.command == Command::Zero;
        let edge = &mut request.edges[position];
        // The pin stays until the publish: while it does, an entry that looks the same is the same.
        if let Some(epoch) = edge.pin.take() {
            pins.release(epoch);
        }
        if matches!(entry, Entry::Slot(_)) {
            edge.pin = Some(pins.take(overlay.epoch()));
        }
        edge.merged_from = Some(entry);
        let merge = Merge { source, source_bytes, target, keep: edge.keep.clone(), zero_keep };
        request.outstanding += 1;
        self.outputs.push_back(Output::Merge { id, merge });
    }

    /// Something a request waited for is done.
    fn filled(&mut self, index: u16) {
        let request = self.table.get(index);
        if request.abandoned {
            self.drop_if_idle(index);
        } else if request.is_filled() {
            self.publish.push_back(index);
        }
    }

    fn publish(&mut self, index: u16, overlay: &mut Overlay) {
        let request = self.table.get_mut(index);
        let grant = request.grant.expect("only what was admitted is published");
        let mut runs = core::mem::take(&mut request.runs);
        let outcome = if request.error.is_some() {
            overlay.release(&request.extent, &mut runs, grant);
            Ok(())
        } else {
            overlay.publish(&request.extent, &mut runs, grant, request.predecessors())
        };
        request.runs = runs;
        match outcome {
            Ok(()) => {}
            Err(Conflict::NoSpace) => {
                request.error = Some(Errno::NoSpace);
                overlay.release(&request.extent, &mut request.runs, grant);
            }
            Err(Conflict::Replaced(_)) => {
                // Another client wrote its part of the block meanwhile. Both must win.
                for position in 0..self.table.get(index).edges.len() {
                    let edge = &self.table.get(index).edges[position];
                    if edge.merged_from != Some(overlay.entry(edge.block)) {
                        self.merge(index, position, overlay);
                    }
                }
                return;
            }
        }
        self.table.get_mut(index).grant = None;
        self.unpin_edges(index);
        self.answer(index);
    }

    fn resolve(&mut self, index: u16, overlay: &Overlay) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { unreachable!() };
        let request = self.table.get_mut(index);
        let before = self.outbox.len();
        let mut template: Option<Range<u64>> = None;
        self.outbox.reply(index, request.cookie, None);
        overlay.resolve(request.bytes.clone(), &mut |segment| {
            if let Source::Template { offset } = segment.source {
                let end = offset + segment.length;
                template = Some(template.as_ref().map_or(offset, |range| range.start)..end);
            }
            self.outbox.payload(segment);
        });
        if let Some(range) = template
            && !request.fetched
        {
            // A block that shows the template now may be written meanwhile, but none that does not
            // will ever show it again: what is fetched is all that will be needed.
            self.outbox.cut(before);
            request.fetch = range;
            self.fetch(index);
            return;
        }
        if self.outbox.has_mutable() && self.outbox_pin.is_none() {
            self.outbox_pin = Some(pins.take(overlay.epoch()));
        }
    }

    fn fetch(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        request.outstanding += 1;
        let Range { start: offset, end } = request.fetch;
        self.outputs.push_back(Output::Fetch { id, offset, length: end - offset });
    }

    fn fetched(&mut self, id: RequestId, result: Result<u64, Errno>) {
        let request = self.table.completed(id);
        if request.abandoned {
            self.drop_if_idle(id.index);
            return;
        }
        match result {
            Ok(count) if count >= request.fetch.end - request.fetch.start => {
                request.fetched = true;
                self.resolve.push_back(id.index);
            }
            Ok(count) if count > 0 => {
                request.fetch.start += count;
                self.fetch(id.index);
            }
            Ok(_) | Err(_) => {
                request.error = Some(result.err().unwrap_or(Errno::Io));
                self.answer(id.index);
            }
        }
    }

    fn unpin_edges(&mut self, index: u16) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { return };
        for edge in &mut self.table.get_mut(index).edges {
            if let Some(epoch) = edge.pin.take() {
                pins.release(epoch);
            }
        }
    }

    // ---- sending -------------------------------------------------------------------------------

    /// A READ may be resolved while few bytes are unsent, and none had to be copied for a slow
    /// client: this is what bounds pins, and the memory behind [`Outbox::load`].
    fn may_resolve(&self) -> bool {
        !self.blocked
            && self.loading.is_none()
            && !self.outbox.has_spilled()
            && self.outbox.payload_bytes() < u64::from(self.limits.unsent_bytes_max)
    }

    fn sent(&mut self, bytes: u64) {
        assert!(core::mem::take(&mut self.sending), "a Send was under way");
        if bytes > 0 {
            self.moved_at = self.now;
        }
        let table = &mut self.table;
        self.outbox.sent(bytes, &mut |index| table.remove(index));
        self.unpin_outbox();
        self.parse();
    }

    fn unpin_outbox(&mut self) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { return };
        if !self.outbox.has_mutable()
            && let Some(epoch) = self.outbox_pin.take()
        {
            pins.release(epoch);
        }
    }

    fn start_load(&mut self, kind: LoadKind) {
        if self.is_aborting() {
            return;
        }
        self.loading = Some(kind);
        self.outputs.push_back(Output::Load);
    }

    // ---- ending --------------------------------------------------------------------------------

    fn is_aborting(&self) -> bool {
        self.ending.is_some_and(|ending| ending.abort)
    }

    fn is_done(&self) -> bool {
        let idle = self.receiving.is_none() && !self.sending && self.loading.is_none();
        idle && self.outbox.is_empty() && self.table.in_flight() == 0 && self.give_back.is_empty()
    }

    /// Reads nothing more, answers what is in flight, then closes.
    fn finish(&mut self, reason: CloseReason, deadline: Option<Instant>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending { reason, abort: false, deadline });
        self.moved_at = self.now;
        let arriving = match core::mem::replace(&mut self.stream, Stream::Ended) {
            Stream::Staged { request }
            | Stream::Direct { request }
            | Stream::Discard { request, .. } => Some(request),
            Stream::Header | Stream::Ended => None,
        };
        if let Some(index) = arriving {
            self.abandon(index);
        }
        self.parse();
        if self.receiving.is_some() {
            self.outputs.push_back(Output::StopReceiving);
        }
    }

    /// Answers nothing more, waits for the operations under way, then closes.
    fn abort(&mut self, reason: CloseReason) {
        if self.is_aborting() {
            return;
        }
        let reason = match self.ending {
            // The client got all it could; that it is gone now is how such a session ends.
            Some(ending) if reason == CloseReason::ConnectionLost => ending.reason,
            _ => reason,
        };
        self.ending = Some(Ending { reason, abort: true, deadline: None });
        self.stream = Stream::Ended;
        self.parse();
        if self.receiving.is_some() || self.sending {
            self.outputs.push_back(Output::Shutdown);
        }
    }

    /// While aborting: replies are dropped once no send or load reads them, requests abandoned.
    fn drop_unanswered(&mut self) {
        if !self.is_aborting() || self.sending || self.loading.is_some() {
            return;
        }
        let table = &mut self.table;
        self.outbox.clear(&mut |index| table.remove(index));
        self.unpin_outbox();
        for index in 0..self.limits.requests_max {
            if self.table.get(index).in_use && !self.table.get(index).abandoned {
                self.abandon(index);
            }
        }
    }

    /// Nobody will be answered: once no operation refers to the request, it is taken apart.
    fn abandon(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        request.abandoned = true;
        request.direct_left = 0;
        if request.command == Command::Read && request.outstanding > 0 {
            self.outputs.push_back(Output::CancelFetch { id });
        }
        for queue in [&mut self.admit, &mut self.publish, &mut self.resolve] {
            queue.retain(|other| *other != index);
        }
        self.drop_if_idle(index);
    }

    fn drop_if_idle(&mut self, index: u16) {
        let request = self.table.get(index);
        if request.outstanding > 0 {
            return;
        }
        self.let_go_of_payload(index);
        self.unpin_edges(index);
        if self.table.get(index).grant.is_some() {
            self.give_back.push_back(index);
        } else {
            self.table.remove(index);
        }
    }

    fn give_back(&mut self, index: u16, overlay: &mut Overlay) {
        let request = self.table.get_mut(index);
        let grant = request.grant.take().expect("something to give back");
        overlay.release(&request.extent, &mut request.runs, grant);
        self.table.remove(index);
    }

    /// When a client that neither sends nor takes is given up: only in the middle of something.
    fn stall_deadline(&self) -> Option<Instant> {
        let mid_request = match self.stream {
            Stream::Header => !self.staging.unread().is_empty() && !self.table.is_full(),
            Stream::Staged { .. } | Stream::Direct { .. } | Stream::Discard { .. } => true,
            Stream::Ended => self.blocked,
        };
        let waits_for_client = self.receiving.is_some() || self.blocked;
        (mid_request && waits_for_client).then(|| self.moved_at.after(self.limits.stall_time_max))
    }

    fn tick(&mut self) {
        if self.deadline().is_none_or(|deadline| deadline > self.now) {
            return;
        }
        let reason = match (&self.phase, self.ending) {
            (_, Some(Ending { reason: CloseReason::Drained, .. })) => CloseReason::DrainTimedOut,
            (_, Some(ending)) => ending.reason,
            (Phase::Handshake { .. }, None) => CloseReason::HandshakeTimedOut,
            _ => CloseReason::Stalled,
        };
        self.abort(reason);
    }

    /// Checks everything that can be derived twice. For tests and the simulator.
    pub fn audit(&self) {
        for index in self.table.indices() {
            let request = self.table.get(index);
            assert!(request.grant.is_some() || request.runs.is_empty());
            let slots: u64 = request.runs.iter().map(|run| u64::from(run.count)).sum();
            assert!(slots == 0 || slots == request.extent.slots());
        }
        assert!(self.outbox_pin.is_some() || !self.outbox.has_mutable(), "segments are pinned");
        if let Phase::Transmission { pins, .. } = &self.phase {
            assert!(!self.closed || pins.is_empty(), "a session that is over pins nothing");
        }
        let spill_max = u64::from(self.limits.unsent_bytes_max) + u64::from(PAYLOAD_BYTES_MAX);
        assert!(self.outbox.payload_bytes() <= spill_max, "unsent replies are bounded");
    }
}

/// What a request asks for, or the error it gets (R4, R6, R7, R8, Z1).
fn judge(header: &RequestHeader, size_bytes: u64, read_only: bool) -> Result<Command, Errno> {
    let zero_flags = wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO;
    let (command, more_flags) = match header.command {
        wire::CMD_READ => (Command::Read, 0),
        wire::CMD_WRITE => (Command::Write, 0),
        wire::CMD_TRIM => (Command::Zero, 0),
        wire::CMD_WRITE_ZEROES => (Command::Zero, zero_flags),
        wire::CMD_FLUSH | wire::CMD_CACHE => (Command::Plain, 0),
        _ => return Err(Errno::Invalid),
    };
    // R4: FUA is accepted on every command, since SEND_FUA is always set.
    if header.flags & !(wire::CMD_FLAG_FUA | more_flags) != 0 {
        return Err(Errno::Invalid);
    }
    let changes = matches!(command, Command::Write | Command::Zero);
    if changes && read_only {
        return Err(Errno::Perm);
    }
    let has_payload = matches!(command, Command::Read | Command::Write);
    if has_payload && header.length > PAYLOAD_BYTES_MAX {
        return Err(Errno::Invalid);
    }
    if header.command == wire::CMD_FLUSH {
        // FLUSH covers no range; what a client puts there has no meaning.
        return Ok(Command::Plain);
    }
    let end = header.offset.checked_add(u64::from(header.length));
    if end.is_none_or(|end| end > size_bytes) {
        let grows = matches!(header.command, wire::CMD_WRITE | wire::CMD_WRITE_ZEROES);
        return Err(if grows { Errno::NoSpace } else { Errno::Invalid });
    }
    // R6: nothing to do is done.
    Ok(if header.length == 0 { Command::Plain } else { command })
}

const _: () = assert!(BLOCK_BYTES as u64 <= PAYLOAD_BYTES_MAX as u64);
