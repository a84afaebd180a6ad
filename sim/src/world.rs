//! The simulated world: a device, its files, its connections, and everything that is under way.
//!
//! One step does one small thing, drawn from what could happen next: a client sends some bytes, the
//! kernel copies a few into a slot, a session advances, a template read fails. Operations land piece
//! by piece, so that other sessions run in their middle; the core must not care.

mod driver;
mod files;
mod kernel;

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
