//! The simulated world: a device, its files, its connections, and everything that is under way.
//!
//! One step does one small thing, drawn from what could happen next: a client sends some bytes, the
//! kernel copies a few into a slot, a session advances, a template read fails. Operations land piece
//! by piece, so that other sessions run in their middle; the core must not care.

mod crash;
mod disturb;
mod driver;
mod files;
mod kernel;
mod probe;
mod seals;
mod small;

use std::collections::BTreeMap;
use std::ops::Range;

use glassine_core::journal::Task;
use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::pin::PinCell;
use glassine_core::request::RequestId;
use glassine_core::session::{Input, Merge, Output};
use glassine_core::slot::{Run, SlotCounts, SlotState};
use glassine_core::sync::Arc;
use glassine_core::{
    Catalog, CloseReason, Errno, Export, Instant, Overlay, OverlayConfig, Segment, Session, Source,
};

use crate::broken::Broken;
use crate::choice::{Lane, Tape};
use crate::client::{Client, Faults, Noticed, View};
use crate::disk::{Disk, DiskFile};
use crate::model::{Model, Moment, fill_template};
use crate::net::Pipe;
use crate::swarm::{Sheet, Swarm};
use crate::trace::{Event, Trace};
use seals::Export as SealExport;

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
    /// The data file, and those of the journal.
    disk: Disk,
    /// Bytes of the template that were made available are 1.
    available: Vec<u8>,
    /// Until when there is no space for a checkpoint.
    full_until: u64,
    /// The last generation whose files were begun, as far as a crash has shown.
    begun: u64,
    connections: Vec<Connection>,
    operations: Vec<Operation>,
    step: Moment,
    time: Instant,
    next_key: u64,
    requests_left: u64,
    seals_left: u64,
    mood: Mood,
    faults: Faults,
    next_serial: u64,
    /// What the slots were when they were last looked at, while every event is kept.
    slot_states: Vec<SlotState>,
    /// The next payload on its way to a client gets one bit wrong.
    spoils: bool,
    /// Requests answered by connections that are gone.
    answered: u64,
    /// Crashes so far.
    crashed: u64,
}

/// What may go wrong at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Whatever the configuration allows.
    Faulty,
    /// Nothing. One connection is looked at, while something else stands still.
    Probing(Probe),
    /// Nothing, from now on: everything must come to an end.
    Healing,
    /// Nothing, and every choice is the plainest: a small world gets ready.
    Preparing,
    /// Nothing but so many resets, and time stands still: one interleaving of a small world.
    Branching { resets: u64 },
}

/// What stands still while the connection of this key is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probe {
    key: u64,
    still: Still,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Still {
    /// All other connections, and whatever is under way for them.
    Others,
    /// Its own template reads, up to this serial number.
    Fetches { before: u64 },
    /// Its client's reading.
    Reading,
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
    /// It was told to drain when it had been given so many bytes, and could take all of them in.
    drained_at: Option<Drained>,
    /// Bytes of the client's stream that the session was told of.
    given: u64,
    /// A deadline has passed: the session may have given the client up.
    ticked: bool,
    /// The session had nothing more to say when it was last asked, and nothing has happened since.
    polled: bool,
    /// When each kind of action was last done.
    done_at: [Moment; Action::KINDS],
}

/// What a connection owed its client when it was told to drain.
#[derive(Debug, Clone, Copy)]
struct Drained {
    given: u64,
    /// Everything given had been looked at: the request table had room.
    had_room: bool,
}

/// A receive under way: the kernel copies into slots before it says so.
#[derive(Hash)]
struct Receive {
    targets: Vec<(u64, u64)>,
    landed: u64,
    stopped: bool,
}

/// A send under way: the kernel reads segments until it says how many bytes it took.
#[derive(Hash)]
struct Send {
    pieces: Vec<Piece>,
    taken: u64,
}

#[derive(Hash)]
enum Piece {
    Bytes(Vec<u8>),
    Segment(Segment),
}

/// An operation on files under way.
struct Operation {
    key: u64,
    serial: u64,
    /// When it was last touched.
    since: Moment,
    /// The step from which on it may go on.
    due: Moment,
    never: bool,
    kind: Kind,
}

#[derive(Hash)]
enum Kind {
    Store {
        id: RequestId,
        staged: Range<usize>,
        targets: Vec<(u64, u64)>,
        done: usize,
    },
    Merge {
        id: RequestId,
        merge: Merge,
        block: Option<Box<[u8; BLOCK]>>,
        half: bool,
    },
    Fetch {
        id: RequestId,
        offset: u64,
        length: u64,
        cancelled: bool,
    },
    Load,
    Grow {
        run: Run,
    },
    /// Their space is given back.
    Punch {
        run: Run,
    },
    Task {
        task: Option<Task>,
        done: usize,
    },
    Export(SealExport),
    Wake,
}

/// What could happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    Reset(usize),
}

impl Action {
    const KINDS: usize = 11;

    /// The connection it is about, and a number for its kind.
    fn of(self) -> Option<(usize, usize)> {
        match self {
            Self::Ask(index) => Some((index, 0)),
            Self::ClientSends(index) => Some((index, 1)),
            Self::ClientReads(index) => Some((index, 2)),
            Self::Advance(index) => Some((index, 3)),
            Self::Poll(index) => Some((index, 4)),
            Self::Receive(index) => Some((index, 5)),
            Self::Send(index) => Some((index, 6)),
            Self::Unblock(index) => Some((index, 7)),
            Self::Tick(index) => Some((index, 8)),
            Self::Leave(index) => Some((index, 9)),
            Self::Reset(index) => Some((index, 10)),
            Self::Operation(_) => None,
        }
    }
}

impl World {
    /// A world as the tape draws it.
    #[must_use]
    pub fn new(mut tape: Tape, trace: Trace) -> Self {
        let mut swarm = Swarm::draw(&mut tape);
        let read_only = tape.chance(Lane::Swarm, 4);
        swarm.sheet = Sheet::draw(&mut tape, &swarm.limits);
        let sheet = swarm.sheet.clone();
        let mut world = Self::made(tape, trace, swarm, read_only);
        if let Some(sheet) = sheet {
            world.make_sheet(&sheet);
        }
        for _ in 0..world.swarm.connections {
            world.connect();
        }
        world
    }

    /// A world without connections.
    fn made(tape: Tape, trace: Trace, swarm: Swarm, read_only: bool) -> Self {
        let export = Export {
            name: "disk".to_owned(),
            description: String::new(),
            size_bytes: swarm.size_bytes,
            read_only,
        };
        let overlay = Overlay::new(overlay_config(&swarm));
        Self {
            model: Model::new(swarm.size_bytes, swarm.template_bytes),
            available: vec![0; swarm.template_bytes as usize],
            full_until: 0,
            begun: 0,
            catalog: Arc::new(Catalog::new(vec![export])),
            requests_left: swarm.requests,
            seals_left: swarm.seals,
            faults: Faults::new(swarm.quota_bytes),
            swarm,
            tape,
            trace,
            overlay,
            disk: Disk::new(false),
            connections: Vec::new(),
            operations: Vec::new(),
            step: 1,
            time: Instant(1),
            next_key: 1,
            next_serial: 1,
            mood: Mood::Faulty,
            slot_states: Vec::new(),
            spoils: false,
            answered: 0,
            crashed: 0,
        }
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// From now on, the next payload on its way to a client gets one bit wrong.
    pub fn spoil_a_reply(&mut self) {
        self.spoils = true;
    }

    /// Some number of steps.
    pub fn draw_steps(&mut self) -> u64 {
        self.tape.length(Lane::Schedule, 4000)
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

    /// Whether nothing fails and nothing is late at the moment.
    fn is_calm(&self) -> bool {
        self.mood != Mood::Faulty
    }

    fn overlay_config(&self) -> OverlayConfig {
        overlay_config(&self.swarm)
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
            drained_at: None,
            given: 0,
            ticked: false,
            polled: false,
            done_at: [self.step; Action::KINDS],
        });
    }

    /// From now on nothing fails, nothing is late, and everybody reads.
    pub fn heal(&mut self) {
        self.mood = Mood::Healing;
        self.note("heal", 0, [0; 4]);
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
        let piece = u64::from(self.swarm.limits.payload_bytes_max).min(40_000);
        for start in (0..size).step_by(piece as usize) {
            let bytes = start..size.min(start + piece);
            connection.client.ask_to_read(bytes, view, &mut self.model);
        }
    }

    fn view(&self) -> View {
        let export = &self.catalog.exports()[0];
        View {
            size_bytes: export.size_bytes,
            read_only: export.read_only,
            payload_bytes_max: self.swarm.limits.payload_bytes_max,
            now: self.step,
        }
    }

    fn note(&mut self, what: &'static str, connection: u64, numbers: [u64; 4]) {
        self.trace.note(Event { step: self.step, what, connection, numbers });
    }

    /// One small thing happens. `Ok(false)`: nothing can.
    pub fn step(&mut self) -> Result<bool, Broken> {
        self.step += 1;
        if self.is_small() {
            self.settle()?;
        } else {
            self.time = Instant(self.time.0 + 1000);
        }
        if self.mood == Mood::Faulty {
            self.disturb();
        }
        let mut actions = self.actions();
        if actions.is_empty() {
            return Ok(!self.is_small() && self.wait());
        }
        // The plainest choice is whoever has waited longest.
        let longest = (0..actions.len()).min_by_key(|at| self.waits_since(actions[*at]));
        actions.swap(0, longest.unwrap_or(0));
        let choice = match self.mood {
            Mood::Probing(_) | Mood::Preparing => 0,
            _ => self.tape.draw(Lane::Schedule, actions.len() as u64),
        };
        self.perform(actions[choice as usize])?;
        if self.is_small() {
            self.settle()?;
        }
        self.check_step()?;
        Ok(true)
    }

    fn check_step(&mut self) -> Result<(), Broken> {
        self.faults.note_used(self.step, &self.overlay);
        let counts = self.overlay.counts();
        if !counts.conserved() {
            return Broken::by("slots conserved", format!("{counts:?}"));
        }
        if self.step.is_multiple_of(64) {
            self.overlay.audit();
            for connection in &self.connections {
                connection.session.audit();
            }
        }
        if self.trace.is_complete() {
            self.watch_slots();
        }
        Ok(())
    }

    /// Notes which slots have changed their state.
    fn watch_slots(&mut self) {
        let total = self.overlay.counts().total as usize;
        self.slot_states.resize(total, SlotState::Free);
        for slot in 0..total {
            let state = self.overlay.slot_state((slot * BLOCK) as u64);
            if std::mem::replace(&mut self.slot_states[slot], state) != state {
                let numbers = [slot as u64, state as u64, 0, 0];
                let what = "slot";
                self.trace.watch(Event { step: self.step, what, connection: 0, numbers });
            }
        }
    }

    /// Nothing can happen now: whatever comes next in time does. Answers whether there is anything.
    fn wait(&mut self) -> bool {
        let due = self.operations.iter().filter(|one| !one.never && self.may_operate(one));
        if let Some(due) = due.map(|operation| operation.due).min() {
            self.step = self.step.max(due);
            return true;
        }
        if matches!(self.mood, Mood::Probing(_)) {
            return false;
        }
        let deadlines = self.connections.iter().filter_map(|one| one.session.deadline());
        let next = deadlines.min();
        if let Some(next) = next {
            self.time = self.time.max(next);
        }
        next.is_some()
    }

    fn waits_since(&self, action: Action) -> Moment {
        match (action.of(), action) {
            (Some((index, kind)), _) => self.connections[index].done_at[kind],
            (None, Action::Operation(index)) => self.operations[index].since,
            (None, _) => unreachable!("everything else is about a connection"),
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::with_capacity(32);
        for (index, one) in self.connections.iter().enumerate() {
            if let Mood::Probing(Probe { key, still }) = self.mood
                && still == Still::Others
                && key != one.key
            {
                continue;
            }
            self.actions_of(index, one, &mut actions);
        }
        for (index, operation) in self.operations.iter().enumerate() {
            if !operation.never && operation.due <= self.step && self.may_operate(operation) {
                actions.push(Action::Operation(index));
            }
        }
        if self.is_small() && actions.iter().any(|action| !matches!(action, Action::Leave(_))) {
            // Nobody sees whether a client that wants nothing any more leaves now or later.
            actions.retain(|action| !matches!(action, Action::Leave(_)));
        }
        actions
    }

    fn actions_of(&self, index: usize, one: &Connection, actions: &mut Vec<Action>) {
        let alive = !one.reset && !one.to_server.ended;
        if alive && self.may_ask(one) {
            actions.push(Action::Ask(index));
        }
        if alive && one.client.has_output() && one.to_server.room() > 0 {
            actions.push(Action::ClientSends(index));
        }
        if self.may_read(one) && !one.to_client.is_empty() {
            actions.push(Action::ClientReads(index));
        }
        let silent = one.client.is_silent();
        let leaves = if silent { !one.client.is_in_the_middle() } else { one.client.is_idle() };
        if alive && one.client.leaving && (leaves || one.client.is_gone()) {
            actions.push(Action::Leave(index));
        }
        if one.session.needs_overlay() {
            actions.push(Action::Advance(index));
        }
        if !one.polled {
            actions.push(Action::Poll(index));
        }
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
        if alive && matches!(self.mood, Mood::Branching { resets: 1.. }) && !one.client.is_idle() {
            actions.push(Action::Reset(index));
        }
    }

    fn may_ask(&self, one: &Connection) -> bool {
        self.mood == Mood::Faulty
            && !one.client.leaving
            && !one.client.is_silent()
            && self.requests_left > 0
            && (one.client.asked.len() as u64) < self.swarm.depth
    }

    fn may_read(&self, one: &Connection) -> bool {
        match self.mood {
            Mood::Probing(Probe { key, still }) if key == one.key => still != Still::Reading,
            _ => !one.client.deaf,
        }
    }

    fn may_operate(&self, operation: &Operation) -> bool {
        let Mood::Probing(Probe { key, still }) = self.mood else { return true };
        match still {
            // The data file is everybody's, and so is the journal.
            Still::Others => {
                let shared = matches!(
                    operation.kind,
                    Kind::Grow { .. } | Kind::Punch { .. } | Kind::Task { .. }
                );
                operation.key == key || shared
            }
            Still::Fetches { before } => {
                let is_fetch = matches!(operation.kind, Kind::Fetch { .. });
                !(is_fetch && operation.key == key && operation.serial < before)
            }
            Still::Reading => true,
        }
    }

    fn perform(&mut self, action: Action) -> Result<(), Broken> {
        if let Some((index, kind)) = action.of() {
            self.connections[index].done_at[kind] = self.step;
        }
        match action {
            Action::Ask(index) => {
                self.requests_left -= 1;
                let view = self.view();
                let client = &mut self.connections[index].client;
                client.ask(&mut self.tape, &self.swarm, view, &mut self.model);
                self.notice(index);
            }
            Action::ClientSends(index) => self.client_sends(index),
            Action::ClientReads(index) => self.client_reads(index)?,
            Action::Leave(index) => self.leave(index),
            Action::Advance(index) => self.advance(index),
            Action::Poll(index) => self.poll(index)?,
            Action::Receive(index) => self.receive(index)?,
            Action::Send(index) => self.send(index)?,
            Action::Unblock(index) => {
                self.connections[index].blocked = false;
                self.tell(index, "send-ready", Input::SendReady);
            }
            Action::Tick(index) => {
                self.connections[index].ticked = true;
                self.tell(index, "tick", Input::Tick);
            }
            Action::Reset(index) => {
                if let Mood::Branching { resets } = &mut self.mood {
                    *resets -= 1;
                }
                self.reset(index);
            }
            Action::Operation(index) => self.operate(index)?,
        }
        Ok(())
    }

    /// How many of `most` bytes (at least one) move at once.
    fn portion(&mut self, lane: Lane, most: u64) -> u64 {
        if self.is_calm() {
            return most;
        }
        match self.tape.length(lane, most) {
            0 => most,
            part => part,
        }
    }

    fn tell(&mut self, index: usize, what: &'static str, input: Input) {
        let connection = &mut self.connections[index];
        connection.session.handle(self.time, input);
        connection.polled = false;
        let key = connection.key;
        self.note(what, key, [0; 4]);
    }

    /// Nothing is left: no pin, no reservation, no slot unaccounted for, and the device reads as it
    /// must.
    pub fn check_end(&mut self) -> Result<(), Broken> {
        self.flush_all();
        // What a failed journal may still name is never used again.
        let unused = |counts: SlotCounts| counts.displaced > 0 || counts.sealed > 0;
        while unused(self.overlay.counts()) && !self.overlay.has_failed() {
            let before = self.overlay.counts();
            self.overlay.reclaim();
            if self.overlay.counts() == before {
                return Broken::by(
                    "leak",
                    format!("displaced or sealed slots that nobody frees: {before:?}"),
                );
            }
        }
        self.overlay.audit();
        let counts = self.overlay.counts();
        if counts.filling > 0 || self.overlay.charged() > 0 || self.overlay.sessions() > 0 {
            let charged = self.overlay.charged();
            return Broken::by("leak", format!("at the end: {counts:?}, {charged} blocks charged"));
        }
        let content = self.content()?;
        self.trace.note_bytes(&content);
        let step = self.step + 1;
        let whole = 0..self.swarm.size_bytes;
        self.model.check(whole, &content, step, step).map_err(|broken| Broken {
            check: broken.check,
            text: format!("at the end: {}", broken.text),
        })
    }

    /// All that the device shows.
    fn content(&mut self) -> Result<Vec<u8>, Broken> {
        let mut content = vec![0; self.swarm.size_bytes as usize];
        let mut segments = Vec::new();
        self.overlay.resolve(0..self.swarm.size_bytes, &mut |segment| segments.push(segment));
        let mut at = 0;
        for segment in segments {
            let end = at + segment.length as usize;
            self.read(0, segment.source, &mut content[at..end])?;
            at = end;
        }
        Ok(content)
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

fn overlay_config(swarm: &Swarm) -> OverlayConfig {
    OverlayConfig {
        size_bytes: swarm.size_bytes,
        template_bytes: swarm.template_bytes,
        quota_bytes: swarm.quota_bytes,
        space: swarm.space.clone(),
    }
}

impl Connection {
    fn is_ending(&self) -> bool {
        self.reset
            || self.shut
            || self.drained_at.is_some()
            || self.to_server.ended
            || self.client.leaving
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
