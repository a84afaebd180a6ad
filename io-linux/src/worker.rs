//! A worker: one thread that serves its share of the connections.
//!
//! Everything from outside reaches it as [`Mail`]; a connection is only ever touched by its worker.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use glassine_core::session::Input;
use glassine_core::{Instant, Overlay};

use crate::clock;
use crate::driver::{Connection, Scratch, Turn};
use crate::router::{ConnectionId, Mail, WORKER_SHIFT};
use crate::shared::Shared;
use crate::sync::Arc;
use crate::sys::{Epoll, Ready, no_events};

/// How often devices are looked after: this long a write stays without being durable if nobody flushes, and writes no more.
const CARE_TIME: Duration = Duration::from_secs(5);
/// The epoll token of the mailbox; connections count from 1.
const MAILBOX: u64 = 0;

/// One worker's state.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    epoll: Epoll,
    connections: HashMap<u64, Box<Connection>>,
    serial: u64,
    /// Connections whose turn it is.
    due: Vec<u64>,
    scratch: Scratch,
    /// No deadline of any connection is earlier.
    next_tick: Option<Instant>,
    /// When this worker looks after devices. One worker does.
    next_care: Option<Instant>,
    draining: bool,
}

impl Worker {
    /// Worker number `index` of a server.
    pub fn new(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add_signal(shared.router.signal(index), MAILBOX)?;
        let next_care = (index == 0).then(|| clock::now().after(CARE_TIME));
        Ok(Self {
            index,
            shared,
            epoll,
            connections: HashMap::new(),
            serial: MAILBOX,
            due: Vec::new(),
            scratch: Scratch::default(),
            next_tick: None,
            next_care,
            draining: false,
        })
    }

    /// Serves until drained.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = no_events();
        let mut turns = Vec::new();
        loop {
            let timeout = self.timeout();
            let (connections, due) = (&mut self.connections, &mut self.due);
            let mut mail = false;
            self.epoll.wait(&mut events, timeout, |ready: Ready| {
                if ready.token == MAILBOX {
                    mail = true;
                } else if let Some(connection) = connections.get_mut(&ready.token) {
                    connection.ready(ready);
                    due.push(ready.token);
                }
            })?;
            if mail {
                self.take_mail();
            }
            self.tick();
            self.look_after_devices();
            std::mem::swap(&mut turns, &mut self.due);
            for serial in turns.drain(..) {
                self.turn(serial);
            }
            if self.draining && self.connections.is_empty() {
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> Option<u32> {
        if !self.due.is_empty() {
            return Some(0);
        }
        let next = [self.next_tick, self.next_care].into_iter().flatten().min()?;
        let left = next.since(clock::now());
        // Rounded up: waking just before the deadline would only mean to wait again.
        Some(u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1))
    }

    fn take_mail(&mut self) {
        let shared = Arc::clone(&self.shared);
        for (id, mail) in shared.router.take(self.index) {
            match mail {
                Mail::Accepted { socket, peer } => self.accept(socket, peer),
                Mail::Completed(input) => {
                    let serial = id.0 & ((1 << WORKER_SHIFT) - 1);
                    if let Some(connection) = self.connections.get_mut(&serial) {
                        connection.tell(input);
                        self.due.push(serial);
                    }
                }
                Mail::Close { export } => self.drain(|connection| {
                    connection.device().is_some_and(|device| device.export.name == export)
                }),
                Mail::Drain => {
                    self.draining = true;
                    self.drain(|_| true);
                }
            }
        }
    }

    /// Tells connections to finish what is in flight.
    fn drain(&mut self, is_meant: impl Fn(&Connection) -> bool) {
        for (serial, connection) in &mut self.connections {
            if is_meant(connection) {
                connection.tell(Input::Drain);
                self.due.push(*serial);
            }
        }
    }

    fn accept(&mut self, socket: OwnedFd, peer: String) {
        if self.draining {
            self.shared.leave();
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        let id = ConnectionId((self.index as u64) << WORKER_SHIFT | serial);
        let connection = Box::new(Connection::new(id, socket, peer, &self.shared));
        if let Err(error) = self.epoll.add(connection.socket(), serial) {
            tracing::error!(peer = connection.peer(), %error, "cannot watch a new connection");
            self.shared.leave();
            return;
        }
        tracing::info!(connection = serial, peer = connection.peer(), "connection opened");
        self.connections.insert(serial, connection);
        self.due.push(serial);
    }

    fn turn(&mut self, serial: u64) {
        let Some(connection) = self.connections.get_mut(&serial) else {
            return;
        };
        match connection.turn(&self.shared, &mut self.scratch) {
            Turn::Closed(reason) => {
                let connection = self.connections.remove(&serial).expect("its turn was just taken");
                let seconds = clock::now().since(connection.opened_at()).as_secs_f64();
                let export = connection.device().map(|device| device.export.name.as_str());
                tracing::info!(
                    connection = serial,
                    peer = connection.peer(),
                    export,
                    seconds,
                    "connection closed: {reason}"
                );
                drop(connection);
                self.shared.leave();
            }
            turn => {
                if let Some(deadline) = connection.deadline() {
                    self.next_tick = Some(self.next_tick.map_or(deadline, |at| at.min(deadline)));
                }
                if turn == Turn::More {
                    self.due.push(serial);
                }
            }
        }
    }

    /// Makes durable what was written, though nobody asks, so that a power cut takes no more than the last
    /// seconds from clients that never flush; and gives space back that nobody needs.
    fn look_after_devices(&mut self) {
        let now = clock::now();
        if self.next_care.is_none_or(|at| at > now) {
            return;
        }
        for device in self.shared.devices().iter() {
            self.shared.with_overlay(device, Overlay::tick);
        }
        self.next_care = Some(now.after(CARE_TIME));
    }

    /// Tells the time to all connections, if it is time for one of them.
    fn tick(&mut self) {
        let now = clock::now();
        if self.next_tick.is_none_or(|at| at > now) {
            return;
        }
        self.next_tick = None;
        for (serial, connection) in &mut self.connections {
            let Some(deadline) = connection.deadline() else { continue };
            if deadline <= now {
                connection.tell(Input::Tick);
                self.due.push(*serial);
            } else {
                self.next_tick = Some(self.next_tick.map_or(deadline, |at| at.min(deadline)));
            }
        }
    }
}
