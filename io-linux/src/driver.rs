//! One connection: a session of the core, and what its outputs mean in system calls.
//!
//! [`Connection::turn`] is the drain loop. It works in batches: whatever one receive brought goes to
//! the overlay under one lock, to the data file in as few writes as the slots allow, and the replies
//! leave in one send.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::request::RequestId;
use glassine_core::session::{Input, Output};
use glassine_core::{Catalog, CloseReason, Errno, Instant, Segment, Session, Source};

use crate::clock;
use crate::device::Device;
use crate::pool::Job;
use crate::router::ConnectionId;
use crate::shared::{SPILL_BYTES_MAX, Shared};
use crate::sync::{Arc, AtomicBool, OnceLock, Ordering, lock};
use crate::sys::{self, IOVECS_MAX, IoVec, Ready};

/// Receives in one turn, before other connections of the worker get theirs.
const RECEIVES_PER_TURN: u32 = 4;
/// So many bytes that lie together are written by one system call; fewer are copied, which is faster where
/// the pages have been written before. Pages that were not are mostly neighbours.
const TOGETHER_BYTES_MIN: u64 = 16 << 10;
/// A segment of the template with at least so many bytes is sent without being copied.
const UNMOVED_BYTES_MIN: u64 = 64 << 10;
/// What is received at a time that does not go straight into its slots.
const ASIDE_BYTES: usize = 64 << 10;

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    socket: OwnedFd,
    peer: String,
    session: Session,
    /// What the client chooses from.
    catalog: Arc<Catalog>,
    device: Option<Arc<Device>>,
    /// A receive would bring something, as far as we know.
    readable: bool,
    /// The client will send no more; what it sent is still to be received.
    ended: bool,
    writable: bool,
    /// The session wants a receive that is still to be tried, or found nothing yet.
    receiving: bool,
    /// The session wants a send that is still to be tried.
    sending: bool,
    /// The session was told that the kernel takes no more.
    blocked: bool,
    /// Template reads in the pool.
    fetches: HashMap<RequestId, Arc<AtomicBool>>,
    /// What this connection has added to the sum of all spills.
    spilled: u64,
    /// The peer may be handed pages of the template.
    trusted: bool,
    opened_at: Instant,
    /// When the session last heard of something.
    now: Instant,
}

/// Buffers of a worker, lent to the connection whose turn it is.
#[derive(Debug, Default)]
pub struct Scratch {
    iovecs: Vec<IoVec>,
    stores: Vec<Store>,
    pieces: Vec<StorePiece>,
    completed: Vec<Input>,
}

/// A `Store` that waits for the others of its batch.
#[derive(Debug)]
struct Store {
    id: RequestId,
    result: Result<(), Errno>,
}

/// A piece of a `Store`: bytes of the staging buffer, their place, and whose they are.
#[derive(Debug, Clone)]
struct StorePiece {
    offset: u64,
    staged: Range<usize>,
    store: usize,
}

/// What a turn left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more to do until something happens.
    Waiting,
    /// There is more to receive.
    More,
    /// The connection is over.
    Closed(CloseReason),
}

impl Connection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(id: ConnectionId, socket: OwnedFd, peer: String, shared: &Shared) -> Self {
        let now = clock::now();
        let key = SessionKey(id.0);
        let catalog = shared.catalog();
        Self {
            id,
            trusted: sys::is_trusted(socket.as_fd()),
            socket,
            peer,
            session: Session::new(key, shared.limits.clone(), Arc::clone(&catalog), now),
            catalog,
            device: None,
            readable: true,
            ended: false,
            writable: true,
            receiving: false,
            sending: false,
            blocked: false,
            fetches: HashMap::new(),
            spilled: 0,
            opened_at: now,
            now,
        }
    }

    /// The descriptor, for epoll.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Who is at the other end, in words.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The device, once the client chose one.
    #[must_use]
    pub fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// When it began.
    #[must_use]
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// When the session wants to hear of the time.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    /// Epoll found something. A turn is due.
    pub fn ready(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.ended |= ready.ended;
        self.writable |= ready.writable;
    }

    /// Something else happened. A turn is due.
    pub fn tell(&mut self, input: Input) {
        if let Input::Fetched { id, .. } = &input {
            self.fetches.remove(id);
        }
        self.now = clock::now();
        self.session.handle(self.now, input);
    }

    /// Does everything that can be done now.
    ///
    /// The order makes batches: whatever the session says comes first, then the writes and
    /// completions it led to, together; then what is to be sent, with all replies that gave; and
    /// only then the next receive.
    pub fn turn(&mut self, shared: &Shared, scratch: &mut Scratch) -> Turn {
        let mut receives = 0;
        if self.blocked && self.writable {
            self.blocked = false;
            self.tell(Input::SendReady);
        }
        loop {
            if self.session.needs_overlay() {
                self.advance(shared);
            }
            if let Some(output) = self.session.poll() {
                if let Output::Close { reason } = output {
                    self.detach(shared);
                    self.count_spill(shared, 0);
                    return Turn::Closed(reason);
                }
                self.begin(output, shared, scratch);
            } else if !scratch.stores.is_empty() {
                self.store(scratch);
            } else if !scratch.completed.is_empty() {
                self.now = clock::now();
                for input in scratch.completed.drain(..) {
                    self.session.handle(self.now, input);
                }
            } else if self.sending {
                self.send(scratch);
            } else if self.receiving && self.readable {
                if receives == RECEIVES_PER_TURN {
                    return Turn::More;
                }
                receives += 1;
                self.receive(scratch);
            } else {
                self.count_spill(shared, self.session.spill_bytes());
                return Turn::Waiting;
            }
        }
    }

    fn advance(&mut self, shared: &Shared) {
        let device = self.device.as_ref().expect("requests come after an export was chosen");
        shared.with_overlay(device, |overlay| self.session.advance(overlay));
    }

    fn begin(&mut self, output: Output, shared: &Shared, scratch: &mut Scratch) {
        match output {
            Output::Enter { export } => self.enter(shared, export),
            Output::Receive => self.receiving = true,
            Output::Send => self.sending = true,
            Output::Load => self.load(shared),
            Output::Store { id, staged } => {
                gather(scratch, id, staged, &self.session);
            }
            Output::Merge { id, merge } => {
                let device = self.entered();
                if device.is_ready(&merge, self.now) {
                    scratch.completed.push(Input::Merged { id, result: device.merge(&merge) });
                } else {
                    let (device, connection) = (Arc::clone(device), self.id);
                    shared.pool.submit(Job::Merge { device, connection, id, merge });
                }
            }
            Output::Fetch { id, offset, length } => {
                let device = self.entered();
                if device.template().is_ready(offset, length, self.now) {
                    scratch.completed.push(Input::Fetched { id, result: Ok(length) });
                } else {
                    let (device, connection) = (Arc::clone(device), self.id);
                    let cancelled = Arc::new(AtomicBool::new(false));
                    self.fetches.insert(id, Arc::clone(&cancelled));
                    let job = Job::Fetch { device, connection, id, offset, length, cancelled };
                    shared.pool.submit(job);
                }
            }
            Output::CancelFetch { id } => {
                if let Some(cancelled) = self.fetches.get(&id) {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
            Output::Prefetch { offset, length } => self.entered().prefetch(offset, length),
            Output::StopReceiving => {
                if std::mem::take(&mut self.receiving) {
                    self.tell(Input::EndOfStream);
                }
            }
            Output::Shutdown => {
                sys::shut_down(self.socket.as_fd());
                if std::mem::take(&mut self.receiving) {
                    self.tell(Input::ReceiveFailed);
                }
                if std::mem::take(&mut self.sending) {
                    self.tell(Input::SendFailed);
                }
            }
            Output::Close { .. } => unreachable!("handled where the turn ends"),
        }
    }

    fn entered(&self) -> &Arc<Device> {
        self.device.as_ref().expect("requests come after an export was chosen")
    }

    fn enter(&mut self, shared: &Shared, export: usize) {
        let Some(device) = shared.device(&self.catalog.exports()[export].name) else {
            // It was closed while the client was choosing.
            return self.tell(Input::Drain);
        };
        let cell = lock(&device.overlay).attach();
        self.device = Some(device);
        self.session.entered(cell);
    }

    fn detach(&mut self, shared: &Shared) {
        if let (Some(device), Some(cell)) = (&self.device, self.session.pin_cell()) {
            shared.with_overlay(device, |overlay| {
                overlay.detach(cell);
                overlay.reclaim();
            });
        }
    }

    fn load(&mut self, shared: &Shared) {
        let device = Arc::clone(self.entered());
        let room = SPILL_BYTES_MAX.saturating_sub(shared.spilled.load(Ordering::Relaxed));
        self.session.load(room, |source, bytes| device.read(source, bytes));
        self.count_spill(shared, self.session.spill_bytes());
    }

    /// Keeps the sum over all connections.
    fn count_spill(&mut self, shared: &Shared, now: u64) {
        let before = std::mem::replace(&mut self.spilled, now);
        if now != before {
            shared.spilled.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    fn send(&mut self, scratch: &mut Scratch) {
        self.sending = false;
        if !self.writable {
            self.blocked = true;
            return self.tell(Input::SendBlocked);
        }
        let iovecs = &mut scratch.iovecs;
        iovecs.clear();
        let mut unmoved = None;
        for piece in self.session.send_plan() {
            match piece {
                SendPiece::Bytes(bytes) => iovecs.push(IoVec::of(bytes)),
                SendPiece::Segment(segment) if self.goes_unmoved(segment) => {
                    unmoved = Some(segment);
                    break;
                }
                SendPiece::Segment(segment) => self.point(segment, iovecs),
            }
            if iovecs.len() >= IOVECS_MAX {
                break;
            }
        }
        let socket = self.socket.as_fd();
        let sent = match unmoved {
            Some(Segment { source: Source::Template { offset }, length }) if iovecs.is_empty() => {
                self.entered().template().send(socket, offset, length)
            }
            _ => sys::send(socket, &iovecs[..iovecs.len().min(IOVECS_MAX)]),
        };
        let input = match sent {
            // The template became shorter.
            Ok(0) => Input::SendFault,
            Ok(bytes) => Input::Sent { bytes: bytes as u64 },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Input::Sent { bytes: 0 },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                self.blocked = true;
                Input::SendBlocked
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Input::SendFault,
            Err(_) => Input::SendFailed,
        };
        self.tell(input);
    }

    /// Whether a segment is better sent from the page cache, by a call of its own, than copied.
    fn goes_unmoved(&self, segment: Segment) -> bool {
        let is_template = matches!(segment.source, Source::Template { .. });
        self.trusted && is_template && segment.length >= UNMOVED_BYTES_MIN
    }

    /// Appends pointers to the bytes of a segment.
    fn point(&self, segment: Segment, iovecs: &mut Vec<IoVec>) {
        let put = &mut |piece| iovecs.push(piece);
        match segment.source {
            Source::Template { offset } => {
                self.entered().template().pieces(offset, segment.length, put);
            }
            Source::Data { offset } => self.entered().data().pieces(offset, segment.length, put),
            Source::Zero => {
                let zeroes = zeroes();
                let mut left = segment.length;
                while left > 0 && iovecs.len() < IOVECS_MAX {
                    let count = left.min(zeroes.len() as u64);
                    iovecs.push(IoVec::of(&zeroes[..count as usize]));
                    left -= count;
                }
            }
        }
    }

    fn receive(&mut self, scratch: &mut Scratch) {
        self.receiving = false;
        scratch.iovecs.clear();
        let device = self.device.as_ref();
        let data = || device.expect("slots belong to a device").data();
        let plan = self.session.receive_plan();
        let mut slots = plan.direct.peekable();
        let first = slots.peek().map(|(_, length)| *length);
        if first.is_some_and(|length| data().goes_by_call(length.min(ASIDE_BYTES as u64))) {
            return self.receive_aside();
        }
        let direct = first.is_some();
        for (offset, length) in slots {
            data().pieces(offset, length, &mut |piece| scratch.iovecs.push(piece));
            if scratch.iovecs.len() >= IOVECS_MAX {
                break;
            }
        }
        if scratch.iovecs.len() < IOVECS_MAX && !plan.staging.is_empty() {
            scratch.iovecs.push(IoVec::of_mut(plan.staging));
        }
        let count = scratch.iovecs.len().min(IOVECS_MAX);
        let wanted: usize = scratch.iovecs[..count].iter().map(IoVec::length).sum();
        match sys::receive(self.socket.as_fd(), &scratch.iovecs[..count]) {
            Ok(0) => self.tell(Input::EndOfStream),
            Ok(bytes) => {
                // Fewer bytes than there was room for: the socket is empty, and will say when it is
                // not. A fault in a slot also ends a receive early, and gives no such sign.
                self.readable = bytes == wanted || direct || self.ended;
                self.tell(Input::Received { bytes });
            }
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::Interrupted, _) => self.receiving = true,
                (io::ErrorKind::WouldBlock, _) => {
                    self.readable = false;
                    self.receiving = true;
                }
                (_, Some(libc::EFAULT)) if direct => self.receive_aside(),
                _ => self.tell(Input::ReceiveFailed),
            },
        }
    }

    /// Takes payload out of the stream that would go straight into its slot, and writes it by a call: a flush will
    /// follow soon, or the slot cannot be received into (its page is bad, or its disk is). If that fails, its
    /// request hears of it.
    fn receive_aside(&mut self) {
        let mut plan = self.session.receive_plan();
        let Some((offset, length)) = plan.direct.next() else {
            unreachable!("there is payload for a slot");
        };
        let mut bytes = [0; ASIDE_BYTES];
        let room = bytes.len().min(usize::try_from(length).unwrap_or(ASIDE_BYTES));
        match sys::receive(self.socket.as_fd(), &[IoVec::of_mut(&mut bytes[..room])]) {
            Ok(0) => self.tell(Input::EndOfStream),
            Ok(count) => {
                let bytes = &mut [IoVec::of(&bytes[..count])];
                let stored = self.entered().data().write(bytes, offset);
                if let Err(error) = stored {
                    let export = &self.entered().export.name;
                    tracing::error!(export, offset, ?error, "cannot write to the sheet");
                    self.tell(Input::ReceiveFault);
                }
                self.tell(Input::Received { bytes: count });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.receiving = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.receiving = true;
            }
            Err(_) => self.tell(Input::ReceiveFailed),
        }
    }

    /// Writes all gathered payloads: neighbours together if they are many, else one by one.
    fn store(&self, scratch: &mut Scratch) {
        let Scratch { stores, pieces, iovecs, completed } = scratch;
        let data = self.entered().data();
        pieces.sort_unstable_by_key(|piece| piece.offset);
        let mut rest = &pieces[..];
        while let Some(first) = rest.first() {
            iovecs.clear();
            let mut end = first.offset;
            let together = rest.iter().take_while(|piece| {
                let follows = piece.offset == end && iovecs.len() < IOVECS_MAX;
                if follows {
                    let bytes = self.session.staged(piece.staged.clone());
                    iovecs.push(IoVec::of(bytes));
                    end += bytes.len() as u64;
                }
                follows
            });
            let (group, others) = rest.split_at(together.count());
            let written = if end - first.offset < TOGETHER_BYTES_MIN {
                group.iter().try_for_each(|piece| {
                    data.write_bytes(self.session.staged(piece.staged.clone()), piece.offset)
                })
            } else {
                data.write(iovecs, first.offset)
            };
            if let Err(error) = written {
                let (export, offset) = (&self.entered().export.name, first.offset);
                tracing::error!(export, offset, ?error, "cannot write to the sheet");
                for piece in group {
                    stores[piece.store].result = Err(error);
                }
            }
            rest = others;
        }
        pieces.clear();
        let stored = |store: Store| Input::Stored { id: store.id, result: store.result };
        completed.extend(stores.drain(..).map(stored));
    }
}

/// Notes where the bytes of a `Store` go.
fn gather(scratch: &mut Scratch, id: RequestId, staged: Range<usize>, session: &Session) {
    let store = scratch.stores.len();
    scratch.stores.push(Store { id, result: Ok(()) });
    let mut start = staged.start;
    for (offset, length) in session.targets(id, staged.len()) {
        let end = start + length as usize;
        scratch.pieces.push(StorePiece { offset, staged: start..end, store });
        start = end;
    }
    assert!(start == staged.end, "slots for the whole payload");
}

/// Zeroes to send; never written, so they cost no memory of their own.
fn zeroes() -> &'static [u8] {
    static ZEROES: OnceLock<Vec<u8>> = OnceLock::new();
    ZEROES.get_or_init(|| vec![0; 1 << 20])
}
