//! The simulated world: a device, its files, its connections, and everything that is under way.
//!
//! One step does one small thing, drawn from what could happen next: a client sends some bytes, the
//! kernel copies a few into a slot, a session advances, a template read fails. Operations land piece
//! by piece, so that other sessions run in their middle; the core must not care.

use std::collections::BTreeMap;
use std::ops::Range;

use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::pin::PinCell;
use glassine_core::request::RequestId;
use glassine_core::session::{Input, Merge, Output};
use glassine_core::sync::Arc;
use glassine_core::{
    Catalog, CloseReason, Errno, Export, Instant, Overlay, OverlayConfig, Segment, Session, Source,
};

use crate::choice::{Lane, Tape};
use crate::client::{Client, Excuses, View};
use crate::model::{Model, Moment, template_byte};
use crate::net::Pipe;
use crate::swarm::Swarm;
use crate::trace::Trace;

const BLOCK: usize = 4096;

/// Everything there is.
pub struct World {
    /// The configuration.
    pub swarm: Swarm,
    /// Where choices come from.
    pub tape: Tape,
    /// What has happened.
    pub trace: Trace,
    /// The oracle.
    pub model: Model,
    overlay: Overlay,
    catalog: Arc<Catalog>,
    /// The data file.
    data: Vec<u8>,
    /// Bytes of the template that were made available.
    available: Vec<bool>,
    connections: Vec<Connection>,
    operations: Vec<Operation>,
    step: Moment,
    time: Instant,
    next_key: u64,
    requests_left: u64,
    /// Faults have stopped: everything must come to an end.
    pub healing: bool,
    faults: Faults,
    /// Requests answered by connections that are gone.
    answered: u64,
}

/// What went wrong when, to excuse errors.
#[derive(Debug, Default)]
struct Faults {
    storage: Option<Moment>,
    /// Moments at which more of the quota was spoken for than before or after.
    used: Vec<(Moment, u64)>,
    growth: Option<Moment>,
    quota_blocks: u64,
}

impl Excuses for Faults {
    fn storage_failed(&self, since: Moment) -> bool {
        self.storage.is_some_and(|at| at >= since)
    }

    fn space_was_short(&self, since: Moment, blocks: u64) -> bool {
        let mut used = self.used.iter().rev();
        let last = used.by_ref().take_while(|(at, _)| *at >= since).map(|(_, used)| *used).max();
        // What held when the request was issued was noted before that.
        let before = self.used.iter().rev().find(|(at, _)| *at < since).map(|(_, used)| *used);
        let most = last.max(before).unwrap_or(0);
        self.growth.is_some_and(|at| at >= since) || most + blocks > self.quota_blocks
    }
}

struct Connection {
    key: u64,
    session: Session,
    cell: Option<PinCell>,
    client: Client,
    to_server: Pipe,
    to_client: Pipe,
    receive: Option<Receive>,
    send: Option<Send>,
    /// The session was told that nothing more can be sent.
    blocked: bool,
    /// The session wants its connection broken.
    shut: bool,
    reset: bool,
    draining: bool,
}

/// A receive under way: the kernel copies into slots before it says so.
struct Receive {
    targets: Vec<(u64, u64)>,
    landed: u64,
    stopped: bool,
}

/// A send under way: the kernel reads segments until it says how many bytes it took.
struct Send {
    pieces: Vec<Piece>,
    taken: u64,
}

enum Piece {
    Bytes(Vec<u8>),
    Segment(Segment),
}

/// An operation on files under way.
struct Operation {
    key: u64,
    /// The step from which on it may go on.
    due: Moment,
    never: bool,
    kind: Kind,
}

enum Kind {
    Store { id: RequestId, staged: Range<usize>, targets: Vec<(u64, u64)>, done: usize },
    Merge { id: RequestId, merge: Merge, block: Option<Box<[u8; BLOCK]>>, half: bool },
    Fetch { id: RequestId, offset: u64, length: u64, cancelled: bool },
    Load,
    Grow { slots: u32 },
    Wake,
}

/// What could happen next.
#[derive(Debug, Clone, Copy)]
enum Action {
    Ask(usize),
    ClientSends(usize),
    ClientReads(usize),
    Advance(usize),
    Poll(usize),
    Receive(usize),
    Send(usize),
    Unblock(usize),
    Operation(usize),
    Tick(usize),
    Leave(usize),
}

impl World {
    /// A world as the tape draws it.
    #[must_use]
    pub fn new(mut tape: Tape, print: bool) -> Self {
        let swarm = Swarm::draw(&mut tape);
        let read_only = tape.chance(Lane::Swarm, 4);
        let export = Export {
            name: "disk".to_owned(),
            description: String::new(),
            size_bytes: swarm.size_bytes,
            read_only,
        };
        let overlay = Overlay::new(OverlayConfig {
            size_bytes: swarm.size_bytes,
            template_bytes: swarm.template_bytes,
            quota_bytes: swarm.quota_bytes,
        });
        let mut world = Self {
            model: Model::new(swarm.size_bytes, swarm.template_bytes),
            available: vec![false; swarm.template_bytes as usize],
            catalog: Arc::new(Catalog::new(vec![export])),
            requests_left: swarm.requests,
            faults: Faults { quota_blocks: swarm.quota_bytes / 4096, ..Faults::default() },
            swarm,
            tape,
            trace: Trace::new(print),
            overlay,
            data: Vec::new(),
            connections: Vec::new(),
            operations: Vec::new(),
            step: 1,
            time: Instant(1),
            next_key: 1,
            healing: false,
            answered: 0,
        };
        for _ in 0..world.swarm.connections {
            world.connect();
        }
        world
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Requests answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered + self.connections.iter().map(|one| one.client.answered).sum::<u64>()
    }

    /// Whether all requests of the run were made.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.requests_left == 0
    }

    /// Whether every connection has come to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.connections.is_empty() && self.operations.is_empty()
    }

    fn connect(&mut self) {
        let key = self.next_key;
        self.next_key += 1;
        let catalog = Arc::clone(&self.catalog);
        let limits = self.swarm.limits.clone();
        let [to_server, to_client] = self.swarm.pipe_bytes;
        self.connections.push(Connection {
            key,
            session: Session::new(SessionKey(key), limits, catalog, self.time),
            cell: None,
            client: Client::new(&mut self.tape, &self.swarm, key),
            to_server: Pipe::new(to_server as usize),
            to_client: Pipe::new(to_client as usize),
            receive: None,
            send: None,
            blocked: false,
            shut: false,
            reset: false,
            draining: false,
        });
    }

    /// From now on nothing fails, nothing is late, and everybody reads.
    pub fn heal(&mut self) {
        self.healing = true;
        self.note("heal", 0, 0, 0);
        for connection in &mut self.connections {
            connection.client.deaf = false;
            connection.to_server.widen(1 << 20);
            connection.to_client.widen(1 << 20);
        }
        for operation in &mut self.operations {
            operation.never = false;
            operation.due = 0;
        }
    }

    /// No client has anything left to ask: all leave once they are answered.
    pub fn dismiss(&mut self) {
        for connection in &mut self.connections {
            connection.client.leaving = true;
        }
    }

    /// Clients that are still there read the whole device in pieces.
    pub fn read_everything(&mut self) {
        let view = self.view();
        let Some(connection) = self.connections.iter_mut().find(|one| !one.is_ending()) else {
            return;
        };
        let size = self.swarm.size_bytes;
        for start in (0..size).step_by(40_000) {
            let bytes = start..size.min(start + 40_000);
            connection.client.ask_to_read(bytes, view, &mut self.model);
        }
    }

    fn view(&self) -> View {
        let export = &self.catalog.exports()[0];
        View { size_bytes: export.size_bytes, read_only: export.read_only, now: self.step }
    }

    fn note(&mut self, what: &'static str, connection: u64, first: u64, second: u64) {
        self.trace.note(self.step, what, connection, first, second);
    }

    // ---- what happens next ---------------------------------------------------------------------

    /// One small thing happens. `Ok(false)`: nothing can.
    pub fn step(&mut self) -> Result<bool, String> {
        self.step += 1;
        self.time = Instant(self.time.0 + self.tape.draw(Lane::Schedule, 2000));
        if self.swarm.jumps && !self.healing && self.tape.draw(Lane::Schedule, 3000) == 0 {
            self.time = Instant(self.time.0 + 30_000_000_000);
        }
        self.disturb();
        let actions = self.actions();
        if actions.is_empty() {
            return Ok(false);
        }
        let action = *self.tape.pick(Lane::Schedule, &actions);
        self.perform(action)?;
        let used = self.overlay.tally().provisioned() + self.overlay.charged();
        if self.faults.used.last().is_none_or(|(_, last)| *last != used) {
            self.faults.used.push((self.step, used));
        }
        if !self.overlay.counts().conserved() {
            return Err(format!("slots are lost: {:?}", self.overlay.counts()));
        }
        if self.step.is_multiple_of(64) {
            self.overlay.audit();
            for connection in &self.connections {
                connection.session.audit();
            }
        }
        Ok(true)
    }

    /// Faults of connections, at any moment.
    fn disturb(&mut self) {
        let quiet = self.tape.draw(Lane::Net, 10_000) >= self.swarm.reset_per_10k;
        if quiet || self.healing || self.connections.is_empty() {
            return;
        }
        let index = self.tape.draw(Lane::Net, self.connections.len() as u64) as usize;
        let connection = &mut self.connections[index];
        let key = connection.key;
        match self.tape.draw(Lane::Net, 4) {
            0 | 1 => {
                connection.reset = true;
                self.note("reset", key, 0, 0);
            }
            2 => {
                connection.to_server.ended = true;
                self.note("half-close", key, 0, 0);
            }
            _ if !connection.draining => {
                connection.draining = true;
                connection.session.handle(self.time, Input::Drain);
                self.note("drain", key, 0, 0);
            }
            _ => {}
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::with_capacity(32);
        for (index, one) in self.connections.iter().enumerate() {
            let alive = !one.reset && !one.to_server.ended;
            if alive && self.may_ask(one) {
                actions.push(Action::Ask(index));
            }
            if alive && one.client.has_output() && one.to_server.room() > 0 {
                actions.push(Action::ClientSends(index));
            }
            if !one.client.deaf && !one.to_client.is_empty() {
                actions.push(Action::ClientReads(index));
            }
            if alive && one.client.leaving && (one.client.is_idle() || one.client.is_gone()) {
                actions.push(Action::Leave(index));
            }
            if one.session.needs_overlay() {
                actions.push(Action::Advance(index));
            }
            actions.push(Action::Poll(index));
            if let Some(receive) = &one.receive {
                let ends = one.to_server.ended || one.reset || one.shut || receive.stopped;
                if !one.to_server.is_empty() || receive.landed > 0 || ends {
                    actions.push(Action::Receive(index));
                }
            }
            if one.send.is_some() {
                actions.push(Action::Send(index));
            }
            if one.blocked && (one.to_client.room() > 0 || one.reset || one.shut) {
                actions.push(Action::Unblock(index));
            }
            if one.session.deadline().is_some_and(|at| at <= self.time) {
                actions.push(Action::Tick(index));
            }
        }
        for (index, operation) in self.operations.iter().enumerate() {
            if !operation.never && operation.due <= self.step {
                actions.push(Action::Operation(index));
            }
        }
        actions
    }

    fn may_ask(&self, one: &Connection) -> bool {
        !self.healing
            && !one.client.leaving
            && self.requests_left > 0
            && (one.client.asked.len() as u64) < self.swarm.depth
    }

    fn perform(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Ask(index) => {
                self.requests_left -= 1;
                let view = self.view();
                let client = &mut self.connections[index].client;
                client.ask(&mut self.tape, &self.swarm, view, &mut self.model);
            }
            Action::ClientSends(index) => self.client_sends(index),
            Action::ClientReads(index) => self.client_reads(index)?,
            Action::Leave(index) => self.leave(index),
            Action::Advance(index) => self.advance(index),
            Action::Poll(index) => self.poll(index),
            Action::Receive(index) => self.receive(index)?,
            Action::Send(index) => self.send(index)?,
            Action::Unblock(index) => {
                self.connections[index].blocked = false;
                self.tell(index, "send-ready", Input::SendReady);
            }
            Action::Tick(index) => self.tell(index, "tick", Input::Tick),
            Action::Operation(index) => self.operate(index)?,
        }
        Ok(())
    }

    /// How many of `most` bytes (at least one) move at once.
    fn portion(&mut self, lane: Lane, most: u64) -> u64 {
        if self.healing { most } else { self.tape.length(lane, most).max(1).min(most) }
    }

    fn tell(&mut self, index: usize, what: &'static str, input: Input) {
        let connection = &mut self.connections[index];
        connection.session.handle(self.time, input);
        let key = connection.key;
        self.note(what, key, 0, 0);
    }

    // ---- clients -------------------------------------------------------------------------------

    fn client_sends(&mut self, index: usize) {
        let room = self.connections[index].to_server.room() as u64;
        let most = self.portion(Lane::Net, room);
        let connection = &mut self.connections[index];
        let count = connection.client.output_bytes().min(most as usize);
        let bytes = connection.client.send(count, &mut self.model, self.step);
        connection.to_server.push(&bytes);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        self.note("client-sends", key, count as u64, 0);
    }

    fn client_reads(&mut self, index: usize) -> Result<(), String> {
        let waiting = self.connections[index].to_client.len() as u64;
        let count = self.portion(Lane::Net, waiting);
        let connection = &mut self.connections[index];
        let bytes = connection.to_client.take(count as usize);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        let outcome = connection.client.receive(&bytes, &mut self.model, self.step, &self.faults);
        self.note("client-reads", key, bytes.len() as u64, 0);
        outcome.map_err(|error| format!("connection {key}: {error}"))
    }

    fn leave(&mut self, index: usize) {
        let politely = self.tape.chance(Lane::Client, 50);
        let connection = &mut self.connections[index];
        if connection.client.is_gone() || !politely {
            connection.to_server.ended = true;
        }
        connection.client.say_goodbye(politely);
        let key = connection.key;
        self.note("leaves", key, u64::from(politely), 0);
    }

    // ---- the drain loop ------------------------------------------------------------------------

    fn advance(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.session.advance(&mut self.overlay);
        let key = connection.key;
        self.note("advance", key, 0, 0);
        self.after_overlay();
    }

    /// The overlay was used: it may want to grow, or somebody to wake.
    fn after_overlay(&mut self) {
        if let Some(slots) = self.overlay.poll_growth() {
            self.add(0, Kind::Grow { slots });
        }
        for key in self.overlay.take_waiting() {
            self.add(key.0, Kind::Wake);
        }
    }

    fn add(&mut self, key: u64, kind: Kind) {
        let delay = self.tape.length(Lane::Backend, self.swarm.delay_steps);
        let may_stick =
            matches!(kind, Kind::Fetch { .. } | Kind::Merge { .. } | Kind::Store { .. });
        let stuck = self.tape.chance(Lane::Backend, self.swarm.never_percent);
        let never = stuck && may_stick && !self.healing;
        let due = if self.healing { 0 } else { self.step + delay };
        self.operations.push(Operation { key, due, never, kind });
    }

    fn poll(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let Some(output) = connection.session.poll() else {
            return;
        };
        match output {
            Output::Enter { .. } => {
                let cell = self.overlay.attach();
                connection.cell = Some(cell.clone());
                connection.session.entered(cell);
                self.note("enter", key, 0, 0);
            }
            Output::Receive => {
                let plan = connection.session.receive_plan();
                let targets: Vec<_> = plan.direct.collect();
                let direct: u64 = targets.iter().map(|(_, length)| length).sum();
                let stopped = false;
                connection.receive = Some(Receive { targets, landed: 0, stopped });
                self.note("receive", key, direct, 0);
            }
            Output::Send => {
                let pieces = connection.session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => Piece::Bytes(bytes.to_vec()),
                    SendPiece::Segment(segment) => Piece::Segment(segment),
                });
                connection.send = Some(Send { pieces: pieces.collect(), taken: 0 });
                self.note("send", key, 0, 0);
            }
            Output::Load => self.add(key, Kind::Load),
            Output::Store { id, staged } => {
                let targets = connection.session.targets(id, staged.len()).collect();
                self.note("store", key, staged.start as u64, staged.end as u64);
                self.add(key, Kind::Store { id, staged, targets, done: 0 });
            }
            Output::Merge { id, merge } => {
                self.note("merge", key, merge.target, u64::from(merge.keep.start));
                self.add(key, Kind::Merge { id, merge, block: None, half: false });
            }
            Output::Fetch { id, offset, length } => {
                self.note("fetch", key, offset, length);
                self.add(key, Kind::Fetch { id, offset, length, cancelled: false });
            }
            Output::CancelFetch { id: cancelled_id } => {
                for operation in self.operations.iter_mut().filter(|other| other.key == key) {
                    if let Kind::Fetch { id, cancelled, .. } = &mut operation.kind
                        && *id == cancelled_id
                    {
                        *cancelled = true;
                    }
                }
                self.note("cancel-fetch", key, 0, 0);
            }
            Output::Prefetch { offset, length } => self.note("prefetch", key, offset, length),
            Output::StopReceiving => {
                if let Some(receive) = &mut connection.receive {
                    receive.stopped = true;
                }
                self.note("stop-receiving", key, 0, 0);
            }
            Output::Shutdown => {
                connection.shut = true;
                self.note("shutdown", key, 0, 0);
            }
            Output::Close { reason } => self.close(index, reason),
        }
    }

    fn close(&mut self, index: usize, reason: CloseReason) {
        let connection = self.connections.remove(index);
        self.note("close", connection.key, reason as u64, 0);
        connection.session.audit();
        assert!(connection.receive.is_none() && connection.send.is_none(), "nothing is under way");
        let key = connection.key;
        let mine = |other: &&Operation| other.key == key && !matches!(other.kind, Kind::Wake);
        assert!(self.operations.iter().find(mine).is_none(), "nothing is under way");
        if let Some(cell) = &connection.cell {
            self.overlay.detach(cell);
        }
        self.answered += connection.client.answered;
        if !self.healing && self.requests_left > 0 {
            self.connect();
        }
    }

    // ---- the kernel ----------------------------------------------------------------------------

    fn write_data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let end = offset + bytes.len() as u64;
        for place in
            (offset / BLOCK as u64..end.div_ceil(BLOCK as u64)).map(|slot| slot * BLOCK as u64)
        {
            if !self.overlay.is_private(place) {
                return Err(format!("a write to the slot at {place}, which is not private"));
            }
        }
        self.data[offset as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, source: Source, bytes: &mut [u8]) -> Result<(), String> {
        match source {
            Source::Zero => bytes.fill(0),
            Source::Data { offset } => {
                let range = offset as usize..offset as usize + bytes.len();
                for slot in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    if !self.overlay.is_readable((slot * BLOCK) as u64) {
                        return Err(format!("a read of slot {slot}, which is nobody's bytes"));
                    }
                }
                bytes.copy_from_slice(&self.data[range]);
            }
            Source::Template { offset } => {
                for (position, byte) in (offset..).zip(bytes) {
                    if position >= self.swarm.template_bytes {
                        return Err(format!("a read of the template at {position}, past its end"));
                    }
                    *byte = template_byte(position);
                }
            }
        }
        Ok(())
    }

    /// The kernel receives: some bytes land in slots, and perhaps it then says so.
    fn receive(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let receive = connection.receive.as_mut().expect("the action was possible");
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let lands = (direct - receive.landed).min(connection.to_server.len() as u64);
        if lands > 0 && !connection.reset && self.tape.chance(Lane::Net, 70) {
            let count = self.portion(Lane::Net, lands);
            let connection = &mut self.connections[index];
            let receive = connection.receive.as_mut().expect("just seen");
            let bytes = connection.to_server.take(count as usize);
            let mut skip = receive.landed;
            receive.landed += count;
            let mut rest = &bytes[..];
            for (offset, length) in receive.targets.clone() {
                let here = length.saturating_sub(skip).min(rest.len() as u64);
                if here > 0 {
                    let (piece, after) = rest.split_at(here as usize);
                    self.write_data(offset + skip, piece)?;
                    rest = after;
                }
                skip = skip.saturating_sub(length);
            }
            self.note("lands", key, count, 0);
            return Ok(());
        }
        let landed = receive.landed;
        let full = landed == direct;
        let receive = connection.receive.take().expect("the action was possible");
        let broken = connection.reset || connection.shut;
        let input = if broken && (landed == 0 || self.tape.chance(Lane::Net, 50)) {
            Input::ReceiveFailed
        } else {
            // Behind the slots, the staging buffer.
            let mut bytes = landed;
            if full && !broken {
                let room = connection.session.receive_plan().staging.len();
                let most = room.min(connection.to_server.len()) as u64;
                let count = match (most, self.healing) {
                    (0, _) => 0,
                    (most, true) => most,
                    (most, false) => {
                        self.tape.length(Lane::Net, most).max(u64::from(landed == 0)).min(most)
                    }
                };
                let taken = connection.to_server.take(count as usize);
                connection.session.receive_plan().staging[..count as usize].copy_from_slice(&taken);
                bytes += count;
            }
            let ended =
                receive.stopped || (connection.to_server.ended && connection.to_server.is_empty());
            match bytes {
                0 if ended => Input::EndOfStream,
                0 => {
                    connection.receive = Some(receive);
                    return Ok(());
                }
                bytes => Input::Received { bytes: bytes as usize },
            }
        };
        let what = match input {
            Input::Received { .. } => "received",
            Input::EndOfStream => "end-of-stream",
            _ => "receive-failed",
        };
        self.tell(index, what, input);
        Ok(())
    }

    /// The kernel sends: it takes a few bytes, or says how many it took.
    fn send(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let send = connection.send.as_ref().expect("the action was possible");
        let total: u64 = send.pieces.iter().map(Piece::length).sum();
        let room = connection.to_client.room() as u64;
        let left = (total - send.taken).min(room);
        let broken = connection.reset || connection.shut;
        if left > 0 && !broken && self.tape.chance(Lane::Net, 75) {
            let count = self.portion(Lane::Net, left);
            let bytes = self.read_pieces(index, count)?;
            let connection = &mut self.connections[index];
            connection.send.as_mut().expect("just seen").taken += count;
            connection.to_client.push(&bytes);
            self.note("takes", key, count, 0);
            return Ok(());
        }
        let taken = send.taken;
        connection.send = None;
        if broken && (taken == 0 || self.tape.chance(Lane::Net, 50)) {
            self.tell(index, "send-failed", Input::SendFailed);
        } else if taken > 0 {
            self.tell(index, "sent", Input::Sent { bytes: taken });
        } else if !self.healing && self.tape.chance(Lane::Backend, self.swarm.fault_percent / 4) {
            self.tell(index, "send-fault", Input::SendFault);
        } else if room == 0 || self.tape.chance(Lane::Net, 50) {
            self.connections[index].blocked = true;
            self.tell(index, "send-blocked", Input::SendBlocked);
        } else {
            self.tell(index, "sent", Input::Sent { bytes: 0 });
        }
        Ok(())
    }

    /// The next `count` bytes of a send, as they are at this moment.
    fn read_pieces(&self, index: usize, count: u64) -> Result<Vec<u8>, String> {
        let send = self.connections[index].send.as_ref().expect("a send is under way");
        let mut bytes = vec![0; count as usize];
        let (mut skip, mut at) = (send.taken, 0usize);
        for piece in &send.pieces {
            let length = piece.length();
            if skip >= length {
                skip -= length;
                continue;
            }
            let here = (length - skip).min(count - at as u64) as usize;
            let into = &mut bytes[at..at + here];
            match piece {
                Piece::Bytes(bytes) => {
                    into.copy_from_slice(&bytes[skip as usize..skip as usize + here]);
                }
                Piece::Segment(segment) => {
                    let source = advance_source(segment.source, skip);
                    if let Source::Template { offset } = source {
                        let range = offset as usize..offset as usize + here;
                        if !self.available[range].iter().all(|available| *available) {
                            return Err(format!(
                                "template bytes at {offset} sent before they came"
                            ));
                        }
                    }
                    self.read(source, into)?;
                }
            }
            at += here;
            skip = 0;
            if at as u64 == count {
                break;
            }
        }
        Ok(bytes)
    }

    // ---- files ---------------------------------------------------------------------------------

    fn fails(&mut self) -> bool {
        let fails = self.tape.chance(Lane::Backend, self.swarm.fault_percent) && !self.healing;
        if fails {
            self.faults.storage = Some(self.step);
        }
        fails
    }

    /// An operation goes on, perhaps to its end.
    fn operate(&mut self, at: usize) -> Result<(), String> {
        let key = self.operations[at].key;
        let index = self.connections.iter().position(|one| one.key == key);
        let mut operation = self.operations.swap_remove(at);
        match &mut operation.kind {
            Kind::Grow { slots } => {
                let slots = *slots;
                self.grow(slots);
                return Ok(());
            }
            Kind::Wake => {
                if let Some(index) = index {
                    self.tell(index, "wake", Input::Wake);
                }
                return Ok(());
            }
            _ => {}
        }
        let index = index.expect("a session outlives its operations");
        let (what, input) = match &mut operation.kind {
            Kind::Load => return self.load(index),
            Kind::Fetch { id, offset, length, cancelled } => (
                if *cancelled { "fetched-late" } else { "fetched" },
                self.fetch(*id, *offset, *length, *cancelled),
            ),
            Kind::Store { id, staged, targets, done } => {
                let id = *id;
                if self.fails() {
                    ("store-failed", Input::Stored { id, result: Err(Errno::Io) })
                } else {
                    let left = staged.len() - *done;
                    let count = self.portion(Lane::Backend, left as u64) as usize;
                    self.store(index, staged, targets, *done, count)?;
                    *done += count;
                    if *done < staged.len() {
                        self.operations.push(operation);
                        return Ok(());
                    }
                    ("stored", Input::Stored { id, result: Ok(()) })
                }
            }
            Kind::Merge { id, merge, block, half } => {
                let id = *id;
                if self.fails() {
                    ("merge-failed", Input::Merged { id, result: Err(Errno::Io) })
                } else if self.merge(merge, block, half)? {
                    ("merged", Input::Merged { id, result: Ok(()) })
                } else {
                    self.operations.push(operation);
                    return Ok(());
                }
            }
            Kind::Grow { .. } | Kind::Wake => unreachable!("done above"),
        };
        self.tell(index, what, input);
        Ok(())
    }

    fn grow(&mut self, slots: u32) {
        let fails = self.tape.chance(Lane::Backend, self.swarm.full_percent) && !self.healing;
        if fails {
            self.faults.growth = Some(self.step);
        } else {
            // What a slot held in its last life is still there: anything but zeroes.
            self.data.resize(self.data.len() + slots as usize * BLOCK, 0xa5);
        }
        self.overlay.grown(!fails);
        self.note("grown", 0, u64::from(slots), u64::from(fails));
        self.after_overlay();
    }

    fn fetch(&mut self, id: RequestId, offset: u64, length: u64, cancelled: bool) -> Input {
        if (cancelled && self.tape.chance(Lane::Backend, 50)) || self.fails() {
            return Input::Fetched { id, result: Err(Errno::Io) };
        }
        let short = !self.healing && self.tape.chance(Lane::Backend, self.swarm.fault_percent);
        let count = if short { self.tape.draw(Lane::Backend, length + 1) } else { length };
        if count == 0 {
            self.faults.storage = Some(self.step);
        }
        self.available[offset as usize..(offset + count) as usize].fill(true);
        Input::Fetched { id, result: Ok(count) }
    }

    fn store(
        &mut self,
        index: usize,
        staged: &Range<usize>,
        targets: &[(u64, u64)],
        done: usize,
        count: usize,
    ) -> Result<(), String> {
        // The staging buffer is read at this very moment: it must still hold the payload.
        let bytes =
            self.connections[index].session.staged(staged.clone())[done..done + count].to_vec();
        let (mut skip, mut rest) = (done as u64, &bytes[..]);
        for (offset, length) in targets {
            let here = length.saturating_sub(skip).min(rest.len() as u64);
            if here > 0 {
                let (piece, after) = rest.split_at(here as usize);
                self.write_data(offset + skip, piece)?;
                rest = after;
            }
            skip = skip.saturating_sub(*length);
        }
        Ok(())
    }

    /// Reads, then writes one side, then the other. Answers whether it is done.
    fn merge(
        &mut self,
        merge: &Merge,
        block: &mut Option<Box<[u8; BLOCK]>>,
        half: &mut bool,
    ) -> Result<bool, String> {
        let (start, end) = (merge.keep.start as usize, merge.keep.end as usize);
        let Some(block) = block else {
            let mut bytes = Box::new([0; BLOCK]);
            self.read(merge.source, &mut bytes[..merge.source_bytes as usize])?;
            if merge.zero_keep {
                bytes[start..end].fill(0);
            }
            *block = Some(bytes);
            return Ok(false);
        };
        if merge.zero_keep {
            self.write_data(merge.target, &block[..])?;
            return Ok(true);
        }
        if !std::mem::replace(half, true) {
            self.write_data(merge.target, &block[..start])?;
            return Ok(false);
        }
        self.write_data(merge.target + end as u64, &block[end..])?;
        Ok(true)
    }

    fn load(&mut self, index: usize) -> Result<(), String> {
        let fails = self.fails();
        let mut failure = None;
        let mut session = std::mem::replace(
            &mut self.connections[index].session,
            Session::new(
                SessionKey(0),
                self.swarm.limits.clone(),
                Arc::clone(&self.catalog),
                self.time,
            ),
        );
        session.load(|source, bytes| {
            if fails {
                return Err(Errno::Io);
            }
            if let Err(error) = self.read(source, bytes) {
                failure = Some(error);
            }
            Ok(())
        });
        let connection = &mut self.connections[index];
        connection.session = session;
        let key = connection.key;
        self.note("loaded", key, u64::from(fails), 0);
        failure.map_or(Ok(()), Err)
    }

    // ---- the end -------------------------------------------------------------------------------

    /// Nothing is left: no pin, no reservation, no slot unaccounted for, and the device reads as it
    /// must.
    pub fn check_end(&mut self) -> Result<(), String> {
        while self.overlay.counts().displaced > 0 {
            let before = self.overlay.counts();
            self.overlay.reclaim();
            if self.overlay.counts() == before {
                return Err(format!("displaced slots that nobody frees: {before:?}"));
            }
        }
        self.overlay.audit();
        let counts = self.overlay.counts();
        if counts.filling > 0 || self.overlay.charged() > 0 || self.overlay.sessions() > 0 {
            let charged = self.overlay.charged();
            return Err(format!("leaked at the end: {counts:?}, {charged} blocks charged"));
        }
        let mut content = vec![0; self.swarm.size_bytes as usize];
        let mut segments = Vec::new();
        self.overlay.resolve(0..self.swarm.size_bytes, &mut |segment| segments.push(segment));
        let mut at = 0;
        for segment in segments {
            let end = at + segment.length as usize;
            self.read(segment.source, &mut content[at..end])?;
            at = end;
        }
        self.trace.note_bytes(&content);
        let step = self.step + 1;
        let whole = 0..self.swarm.size_bytes;
        self.model
            .check(whole, &content, step, step)
            .map_err(|error| format!("at the end: {error}"))
    }

    /// What is not over, in words.
    #[must_use]
    pub fn stuck(&self) -> String {
        let mut text = String::new();
        for one in &self.connections {
            let mut waits: BTreeMap<u64, u64> = BTreeMap::new();
            for (cookie, asked) in &one.client.asked {
                waits.insert(asked.issued_at, *cookie);
            }
            text += &format!(
                "connection {}: {} requests in flight at the server, {} unanswered (oldest since step {:?}), \
                 receive {}, send {}, blocked {}, to server {} bytes, to client {} bytes\n",
                one.key,
                one.session.in_flight(),
                one.client.asked.len(),
                waits.keys().next(),
                one.receive.is_some(),
                one.send.is_some(),
                one.blocked,
                one.to_server.len(),
                one.to_client.len(),
            );
        }
        text + &format!(
            "{} operations under way; slots {:?}",
            self.operations.len(),
            self.overlay.counts()
        )
    }
}

impl Connection {
    fn is_ending(&self) -> bool {
        self.reset || self.shut || self.draining || self.to_server.ended || self.client.leaving
    }
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Segment(segment) => segment.length,
        }
    }
}

fn advance_source(source: Source, by: u64) -> Source {
    match source {
        Source::Zero => Source::Zero,
        Source::Template { offset } => Source::Template { offset: offset + by },
        Source::Data { offset } => Source::Data { offset: offset + by },
    }
}
