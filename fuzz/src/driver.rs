//! A driver that lets everything wait: each operation is carried out only when the body says so, and
//! as the body says. What is written and read is checked as it happens.

use std::collections::VecDeque;
use std::ops::Range;

use glassine_core::outbox::SendPiece;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::request::RequestId;
use glassine_core::session::{Input, Merge, Output};
use glassine_core::slot::{Run, SlotState};
use glassine_core::sync::Arc;
use glassine_core::{
    Catalog, CloseReason, Errno, Export, Instant, Limits, Overlay, OverlayConfig, Segment, Session,
    Source, SpaceLimits,
};
use sim::client::View;
use sim::model::{Content, fill_template};

use crate::client::{Client, HELLO};
use crate::input::Cuts;

pub(crate) const BLOCK: usize = 4096;
const KEY: SessionKey = SessionKey(1);
const NEIGHBOUR: SessionKey = SessionKey(2);

/// What a device and its session are made of.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) size_bytes: u64,
    pub(crate) template_bytes: u64,
    pub(crate) quota_bytes: u64,
    pub(crate) space: SpaceLimits,
    pub(crate) read_only: bool,
    pub(crate) limits: Limits,
}

impl Setup {
    /// The same with a template of half its size, of all, of none, or of all but a byte.
    pub(crate) fn with_template(mut self, which: u32) -> Self {
        let size = self.size_bytes;
        self.template_bytes = [size / 2, size, 0, size - 1][which as usize];
        self
    }
}

/// How an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Well,
    /// It fails, perhaps after a part of it was done.
    Badly,
    /// A fetch brings so many bytes; a load finds no memory. Everything else goes well.
    Short(u64),
}

/// An operation under way.
#[derive(Debug)]
enum Work {
    Grow { run: Run },
    Wake,
    Load,
    Store { id: RequestId, staged: Range<usize>, targets: Vec<(u64, u64)> },
    Merge { id: RequestId, merge: Merge },
    Fetch { id: RequestId, offset: u64, length: u64, is_cancelled: bool },
}

/// A receive under way, and what has landed in slots.
#[derive(Debug)]
struct Receive {
    targets: Vec<(u64, u64)>,
    landed: Vec<u8>,
    is_stopped: bool,
}

enum Piece {
    Bytes(Vec<u8>),
    Segment(Segment),
}

/// A session, its device, and everything that is under way.
pub(crate) struct Driver {
    session: Session,
    pub(crate) overlay: Overlay,
    pub(crate) client: Client,
    setup: Setup,
    data: Vec<u8>,
    /// Bytes of the template that have come: 1, others: 0.
    available: Vec<u8>,
    /// What the client says, and how much of that was received.
    inbound: Vec<u8>,
    received: usize,
    /// The client has ended its side.
    has_ended: bool,
    is_reset: bool,
    is_shut: bool,
    is_blocked: bool,
    /// A deadline has passed.
    has_ticked: bool,
    /// What was owed when the session was told to drain.
    drained: Option<Vec<u64>>,
    receive: Option<Receive>,
    send: Option<Vec<Piece>>,
    work: VecDeque<Work>,
    time: Instant,
    closed: Option<CloseReason>,
}

impl Driver {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { size_bytes, template_bytes, quota_bytes, ref space, read_only, .. } = setup;
        let (name, description) = (String::new(), String::new());
        let export = Export { name, description, size_bytes, read_only };
        let catalog = Arc::new(Catalog::new(vec![export]));
        let payload_bytes_max = setup.limits.payload_bytes_max;
        let view = View { size_bytes, read_only, payload_bytes_max, now: 1 };
        let config =
            OverlayConfig { size_bytes, template_bytes, quota_bytes, space: space.clone() };
        let mut driver = Self {
            session: Session::new(KEY, setup.limits.clone(), catalog, Instant(1)),
            overlay: Overlay::new(config),
            client: Client::new(view, template_bytes, quota_bytes),
            data: Vec::new(),
            available: vec![0; template_bytes as usize],
            inbound: HELLO.to_vec(),
            received: 0,
            has_ended: false,
            is_reset: false,
            is_shut: false,
            is_blocked: false,
            has_ticked: false,
            drained: None,
            receive: None,
            send: None,
            work: VecDeque::new(),
            time: Instant(1),
            closed: None,
            setup,
        };
        driver.settle();
        driver
    }

    pub(crate) fn is_over(&self) -> bool {
        self.closed.is_some()
    }

    /// The client says something more.
    pub(crate) fn says(&mut self, bytes: &[u8]) {
        if !self.has_ended {
            self.inbound.extend(bytes);
        }
    }

    /// The client will say nothing more.
    pub(crate) fn ends(&mut self) {
        self.has_ended = true;
    }

    /// The connection breaks.
    pub(crate) fn resets(&mut self) {
        self.is_reset = true;
    }

    /// Bytes that the client has said and the kernel has not received.
    fn waiting(&self) -> usize {
        self.inbound.len() - self.received
    }

    /// The next bytes of what the client says.
    fn take(&mut self, count: usize) -> Vec<u8> {
        self.received += count;
        self.inbound[self.received - count..self.received].to_vec()
    }

    fn tell(&mut self, input: Input) {
        self.session.handle(self.time, input);
        self.settle();
    }

    /// Takes everything the session wants.
    fn settle(&mut self) {
        while self.closed.is_none()
            && let Some(output) = self.session.poll()
        {
            match output {
                Output::Enter { .. } => self.session.entered(self.overlay.attach()),
                Output::Receive => {
                    let targets = self.session.receive_plan().direct.collect();
                    self.receive = Some(Receive { targets, landed: Vec::new(), is_stopped: false });
                }
                Output::Send => {
                    let pieces = self.session.send_plan().map(|piece| match piece {
                        SendPiece::Bytes(bytes) => Piece::Bytes(bytes.to_vec()),
                        SendPiece::Segment(segment) => Piece::Segment(segment),
                    });
                    self.send = Some(pieces.collect());
                }
                Output::Load => self.work.push_back(Work::Load),
                Output::Store { id, staged } => {
                    let targets = self.session.targets(id, staged.len()).collect();
                    self.work.push_back(Work::Store { id, staged, targets });
                }
                Output::Merge { id, merge } => self.work.push_back(Work::Merge { id, merge }),
                Output::Fetch { id, offset, length } => {
                    assert!(offset + length <= self.setup.template_bytes, "past the template");
                    let is_cancelled = false;
                    self.work.push_back(Work::Fetch { id, offset, length, is_cancelled });
                }
                Output::CancelFetch { id: which } => {
                    for work in &mut self.work {
                        if let Work::Fetch { id, is_cancelled, .. } = work {
                            *is_cancelled |= *id == which;
                        }
                    }
                }
                Output::Prefetch { offset, length } => {
                    assert!(offset + length <= self.setup.size_bytes, "past the device");
                }
                Output::StopReceiving => {
                    if let Some(receive) = &mut self.receive {
                        receive.is_stopped = true;
                    }
                }
                Output::Shutdown => self.is_shut = true,
                Output::Close { reason } => self.close(reason),
            }
        }
        self.session.audit();
    }

    /// The session is over: for a reason there was, with nothing owed and nothing left.
    fn close(&mut self, reason: CloseReason) {
        self.closed = Some(reason);
        assert!(self.receive.is_none() && self.send.is_none(), "nothing is under way");
        let left = |work: &Work| !matches!(work, Work::Grow { .. } | Work::Wake);
        assert!(!self.work.iter().any(left), "nothing is under way: {:?}", self.work);
        if let Some(cell) = self.session.pin_cell() {
            self.overlay.detach(cell);
        }
        let failed = self.client.faults.storage.is_some();
        let is_explained = match reason {
            CloseReason::ConnectionLost => self.is_reset,
            CloseReason::Drained => self.drained.is_some(),
            CloseReason::Stalled | CloseReason::HandshakeTimedOut => self.has_ticked,
            CloseReason::DrainTimedOut => self.has_ticked && self.drained.is_some(),
            CloseReason::ReadFailedMidReply | CloseReason::OutOfMemory => failed,
            CloseReason::EndOfStream | CloseReason::EndedMidRequest => {
                self.has_ended && self.client.end() == reason
            }
            _ => self.client.end() == reason,
        };
        assert!(is_explained, "closed without need: {reason}");
        // A session that was given up answers nothing more.
        let given_up = matches!(
            reason,
            CloseReason::BadRequestMagic
                | CloseReason::ReadFailedMidReply
                | CloseReason::OutOfMemory
        );
        let broken = given_up || self.is_reset || self.is_shut || self.has_ticked;
        let owed = match (reason, &self.drained) {
            _ if broken => vec![],
            (CloseReason::Drained, Some(owed)) => owed.clone(),
            _ => self.client.owed(),
        };
        let owed: Vec<u64> =
            owed.into_iter().filter(|cookie| self.client.is_owed(*cookie)).collect();
        assert!(owed.is_empty(), "{reason}, but a reply is owed to {owed:x?}");
        assert!(broken || self.client.is_between_replies(), "{reason} in the middle of a reply");
    }

    /// The session works on the device, if it needs to. Answers whether it did.
    pub(crate) fn advance(&mut self) -> bool {
        let needed = !self.is_over() && self.session.needs_overlay();
        if needed {
            self.session.advance(&mut self.overlay);
            self.settle();
            self.after_overlay();
        }
        needed
    }

    fn after_overlay(&mut self) {
        self.client.faults.note_used(self.client.now(), &self.overlay);
        if let Some(run) = self.overlay.poll_growth() {
            self.work.push_back(Work::Grow { run });
        }
        for key in self.overlay.take_waiting() {
            if key == KEY {
                self.work.push_back(Work::Wake);
            }
        }
    }

    /// Bytes of a payload land in slots, without the session being told.
    pub(crate) fn land(&mut self, most: usize) -> bool {
        let Some(mut receive) = self.receive.take() else { return false };
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let left = direct as usize - receive.landed.len();
        let count = left.min(most).min(self.waiting());
        if !self.is_reset && count > 0 {
            let bytes = self.take(count);
            self.store_at(&receive.targets, receive.landed.len() as u64, &bytes);
            receive.landed.extend(bytes);
        }
        self.receive = Some(receive);
        count > 0
    }

    /// Bytes of a payload cannot be put into their slots.
    pub(crate) fn receive_fault(&mut self, most: usize) -> bool {
        let Some(mut receive) = self.receive.take() else { return false };
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let left = direct as usize - receive.landed.len();
        let count = left.min(most).min(self.waiting());
        let possible = !self.is_reset && count > 0;
        if possible {
            receive.landed.extend(self.take(count));
        }
        self.receive = Some(receive);
        if possible {
            self.client.faults.storage = Some(self.client.now());
            self.tell(Input::ReceiveFault);
        }
        possible
    }

    /// The receive under way comes to an end, if there is anything to say.
    pub(crate) fn receive(&mut self, most: usize) -> bool {
        let is_broken = self.is_reset || self.is_shut;
        if !is_broken {
            self.land(most);
        }
        let Some(receive) = self.receive.take() else { return false };
        if is_broken {
            self.tell(Input::ReceiveFailed);
            return true;
        }
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let mut bytes = receive.landed;
        if bytes.len() as u64 == direct {
            let room = self.session.receive_plan().staging.len();
            let more = most.saturating_sub(bytes.len()).min(room).min(self.waiting());
            let more = self.take(more);
            self.session.receive_plan().staging[..more.len()].copy_from_slice(&more);
            bytes.extend(more);
        }
        if !bytes.is_empty() {
            self.client.given(&bytes);
            self.tell(Input::Received { bytes: bytes.len() });
        } else if receive.is_stopped || (self.has_ended && self.waiting() == 0) {
            self.tell(Input::EndOfStream);
        } else {
            self.receive = Some(Receive { landed: bytes, ..receive });
            return false;
        }
        true
    }

    /// The send under way comes to an end, with at most so many bytes.
    pub(crate) fn send(&mut self, most: usize) -> bool {
        let Some(pieces) = self.send.take() else { return false };
        if self.is_reset || self.is_shut {
            self.tell(Input::SendFailed);
            return true;
        }
        let mut bytes = Vec::new();
        for piece in &pieces {
            let room = most - bytes.len();
            match piece {
                Piece::Bytes(piece) => bytes.extend(&piece[..piece.len().min(room)]),
                Piece::Segment(segment) => {
                    let count = (segment.length as usize).min(room);
                    if let Source::Template { offset } = segment.source {
                        let range = offset as usize..offset as usize + count;
                        assert!(!self.available[range].contains(&0), "sent before it came");
                    }
                    let at = bytes.len();
                    bytes.resize(at + count, 0);
                    self.read(segment.source, &mut bytes[at..]);
                }
            }
        }
        self.client.got(&bytes);
        self.tell(Input::Sent { bytes: bytes.len() as u64 });
        true
    }

    /// The send under way finds that nothing goes.
    pub(crate) fn block(&mut self) -> bool {
        let possible = !self.is_reset && !self.is_shut && self.send.take().is_some();
        if possible {
            self.is_blocked = true;
            self.tell(Input::SendBlocked);
        }
        possible
    }

    /// More can be sent again.
    pub(crate) fn unblock(&mut self) -> bool {
        let possible = std::mem::take(&mut self.is_blocked) && !self.is_over();
        if possible {
            self.tell(Input::SendReady);
        }
        possible
    }

    /// The send under way cannot read a segment.
    pub(crate) fn send_fault(&mut self) -> bool {
        let is_segment = |piece: &Piece| matches!(piece, Piece::Segment(_));
        let possible = self.send.as_ref().is_some_and(|pieces| pieces.iter().any(is_segment));
        if possible && !self.is_reset && !self.is_shut {
            self.send = None;
            self.tell(Input::SendFault);
        }
        possible
    }

    /// Time passes; the session hears of it if it asked to.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.time = Instant(self.time.0 + seconds * 1_000_000_000);
        if !self.is_over() && self.session.deadline().is_some_and(|deadline| deadline <= self.time)
        {
            self.has_ticked = true;
            self.tell(Input::Tick);
        }
    }

    /// The server shuts down.
    pub(crate) fn drain(&mut self) {
        if self.is_over() || self.drained.is_some() {
            return;
        }
        let had_room = self.session.in_flight() < usize::from(self.setup.limits.requests_max);
        self.drained = Some(if had_room { self.client.owed() } else { vec![] });
        self.tell(Input::Drain);
    }

    /// One of the operations under way comes to its end.
    pub(crate) fn finish(&mut self, which: usize, how: How) -> bool {
        if self.work.is_empty() {
            return false;
        }
        let work = self.work.remove(which % self.work.len()).expect("there is one");
        let fails = how == How::Badly;
        let result = if fails { Err(Errno::Io) } else { Ok(()) };
        let failed_at = Some(self.client.now());
        match work {
            Work::Grow { run } => {
                if fails {
                    self.client.faults.growth = failed_at;
                } else {
                    // Whatever a slot held in its last life: anything but zeroes.
                    self.data.resize(self.data.len() + run.count as usize * BLOCK, 0xa5);
                }
                self.overlay.grown(!fails);
                self.after_overlay();
            }
            Work::Wake if self.is_over() => {}
            Work::Wake => self.tell(Input::Wake),
            Work::Load => self.load(how),
            Work::Store { id, staged, targets } => {
                let bytes = self.session.staged(staged).to_vec();
                let count = if fails { bytes.len() / 2 } else { bytes.len() };
                self.store_at(&targets, 0, &bytes[..count]);
                if fails {
                    self.client.faults.storage = failed_at;
                }
                self.tell(Input::Stored { id, result });
            }
            Work::Merge { id, merge } => {
                if fails {
                    self.client.faults.storage = failed_at;
                } else {
                    self.merge(&merge);
                }
                self.tell(Input::Merged { id, result });
            }
            Work::Fetch { id, offset, length, is_cancelled } => {
                let count = match how {
                    How::Well => length,
                    How::Badly => 0,
                    How::Short(count) => count % (length + 1),
                };
                if count == 0 && !is_cancelled {
                    self.client.faults.storage = failed_at;
                }
                self.available[offset as usize..(offset + count) as usize].fill(1);
                let result = if fails { Err(Errno::Io) } else { Ok(count) };
                self.tell(Input::Fetched { id, result });
            }
        }
        true
    }

    fn load(&mut self, how: How) {
        let room = if matches!(how, How::Short(_)) { 0 } else { u64::MAX };
        if how != How::Well {
            self.client.faults.storage = Some(self.client.now());
        }
        let Self { session, overlay, data, setup, .. } = self;
        session.load(room, |source, bytes| {
            if how == How::Badly {
                return Err(Errno::Io);
            }
            read_from(source, overlay, data, setup.template_bytes, bytes);
            Ok(())
        });
        self.settle();
    }

    fn merge(&mut self, merge: &Merge) {
        let (start, end) = (merge.keep.start as usize, merge.keep.end as usize);
        let mut block = [0; BLOCK];
        self.read(merge.source, &mut block[..merge.source_bytes as usize]);
        if merge.zero_keep {
            block[start..end].fill(0);
            return self.write(merge.target, &block);
        }
        self.write(merge.target, &block[..start]);
        self.write(merge.target + end as u64, &block[end..]);
    }

    fn read(&self, source: Source, bytes: &mut [u8]) {
        read_from(source, &self.overlay, &self.data, self.setup.template_bytes, bytes);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset as usize..offset as usize + bytes.len();
        for slot in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            assert!(
                self.overlay.is_private((slot * BLOCK) as u64),
                "only private slots are written"
            );
        }
        self.data[range].copy_from_slice(bytes);
    }

    fn store_at(&mut self, targets: &[(u64, u64)], mut skip: u64, mut bytes: &[u8]) {
        for (offset, length) in targets {
            let here = length.saturating_sub(skip).min(bytes.len() as u64);
            if here > 0 {
                let (piece, rest) = bytes.split_at(here as usize);
                self.write(offset + skip, piece);
                bytes = rest;
            }
            skip = skip.saturating_sub(*length);
        }
    }

    /// Somebody else changes whole blocks at once: with bytes, or to zero, perhaps with space set
    /// aside.
    pub(crate) fn neighbour(&mut self, blocks: Range<u64>, fill: Option<u8>, provision: bool) {
        let zero = if fill.is_some() { blocks.end..blocks.end } else { blocks.clone() };
        let extent =
            Extent { blocks: blocks.clone(), zero, provision: provision && fill.is_none() };
        let mut runs = Vec::new();
        if let Ok(Reserve::Granted(grant)) = self.overlay.reserve(&extent, NEIGHBOUR, &mut runs) {
            let size = self.setup.size_bytes;
            let bytes = blocks.start * BLOCK as u64..size.min(blocks.end * BLOCK as u64);
            let content = match fill {
                Some(fill) => {
                    for run in runs.clone() {
                        self.write(run.first.offset(), &vec![fill; run.count as usize * BLOCK]);
                    }
                    Content::Given(vec![fill; (bytes.end - bytes.start) as usize])
                }
                None => Content::Zero,
            };
            let version = self.client.model.begin(bytes, content);
            self.client.model.sent(version, self.client.now());
            self.client.step();
            match self.overlay.publish(&extent, &mut runs, grant, [].into_iter()) {
                Ok(_) => self.client.model.answered(version, self.client.now()),
                Err(_) => self.overlay.release(&mut runs, grant),
            }
            self.client.step();
        }
        self.after_overlay();
    }

    /// Everything goes well from now on, until nothing moves any more; the client's bytes come in the
    /// pieces that `cuts` says.
    pub(crate) fn calm(&mut self, cuts: &mut Cuts) {
        for _ in 0..100_000 + 20 * self.waiting() {
            self.client.step();
            let moved = self.advance()
                || self.finish(0, How::Well)
                || self.send(usize::MAX)
                || self.unblock()
                || self.receive(cuts.next());
            if !moved {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// The client says all it has to say, hears all it is told, and leaves: the session must end, with
    /// nothing left, and the device must be as the model says.
    pub(crate) fn run_out(mut self, cuts: &mut Cuts) -> CloseReason {
        self.calm(cuts);
        self.has_ended = true;
        self.calm(cuts);
        let reason = self.closed.expect("a session ends when its client does");
        while self.overlay.counts().displaced > 0 {
            let before = self.overlay.counts().displaced;
            self.overlay.reclaim();
            assert!(self.overlay.counts().displaced < before, "nobody looks, but slots stay");
        }
        self.overlay.audit();
        assert_eq!((self.overlay.counts().filling, self.overlay.charged()), (0, 0));
        let mut bytes = Vec::new();
        self.overlay.resolve(0..self.setup.size_bytes, &mut |segment| {
            let at = bytes.len();
            bytes.resize(at + segment.length as usize, 0);
            self.read(segment.source, &mut bytes[at..]);
        });
        self.client.step();
        let (now, all) = (self.client.now(), 0..self.setup.size_bytes);
        if let Err(broken) = self.client.model.check(all, &bytes, now, now) {
            panic!("at the end, {broken}");
        }
        reason
    }
}

fn read_from(
    source: Source,
    overlay: &Overlay,
    data: &[u8],
    template_bytes: u64,
    bytes: &mut [u8],
) {
    match source {
        Source::Zero => bytes.fill(0),
        Source::Template { offset } => {
            assert!(offset + bytes.len() as u64 <= template_bytes, "past the template");
            fill_template(offset, bytes);
        }
        Source::Data { offset } => {
            let range = offset as usize..offset as usize + bytes.len();
            for slot in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                let state = overlay.slot_state((slot * BLOCK) as u64);
                assert!(
                    matches!(state, SlotState::Live | SlotState::Displaced),
                    "slot {slot} is read while it is {state:?}"
                );
            }
            bytes.copy_from_slice(&data[range]);
        }
    }
}
