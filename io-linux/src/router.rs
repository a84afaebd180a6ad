//! How threads tell workers: a mailbox each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use glassine_core::session::Input;
use glassine_core::sync::weakened;

use crate::sync::{Mutex, Waker, lock};

/// Names a connection in the whole process; the top byte is its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// Where the worker is in a [`ConnectionId`].
pub const WORKER_SHIFT: u32 = 56;
/// The most workers there can be.
pub const WORKERS_MAX: usize = 1 << (64 - WORKER_SHIFT);
/// What a worker is told from outside.
#[derive(Debug)]
pub enum Mail {
    /// A client has connected: serve it.
    Accepted {
        /// Its socket.
        socket: OwnedFd,
        /// Who it is, in words.
        peer: String,
    },
    /// Something a connection waited for is done.
    Completed(Input),
    /// Finish what is in flight on the connections to this export.
    Close {
        /// Its name.
        export: String,
    },
    /// Finish what is in flight; end when no connection is left.
    Drain,
}

/// The mailboxes of all workers.
#[derive(Debug)]
pub struct Router {
    boxes: Vec<Mailbox>,
}

#[derive(Debug)]
struct Mailbox {
    mail: Mutex<VecDeque<(ConnectionId, Mail)>>,
    signal: Waker,
}

impl Router {
    /// Mailboxes for so many workers.
    pub fn new(workers: usize) -> io::Result<Self> {
        assert!(workers <= WORKERS_MAX);
        let make = |_| Ok(Mailbox { mail: Mutex::default(), signal: Waker::new()? });
        Ok(Self { boxes: (0..workers).map(make).collect::<io::Result<_>>()? })
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.boxes.len()
    }

    /// Tells the worker of a connection. If the connection has ended, nothing comes of it.
    pub fn send(&self, connection: ConnectionId, mail: Mail) {
        let worker = (connection.0 >> WORKER_SHIFT) as usize;
        self.post(worker, connection, mail);
    }

    /// Tells a worker.
    pub fn send_to(&self, worker: usize, mail: Mail) {
        self.post(worker, ConnectionId(0), mail);
    }

    /// What wakes a worker, for its epoll.
    #[must_use]
    pub fn signal(&self, worker: usize) -> BorrowedFd<'_> {
        self.boxes[worker].signal.fd()
    }

    /// Everything that a worker was told since it last looked.
    #[must_use]
    pub fn take(&self, worker: usize) -> VecDeque<(ConnectionId, Mail)> {
        let mailbox = &self.boxes[worker];
        // The signal first: mail that comes in between leaves a signal behind.
        let late = weakened("clear-late");
        if !late {
            mailbox.signal.clear();
        }
        let mail = std::mem::take(&mut *lock(&mailbox.mail));
        if late {
            mailbox.signal.clear();
        }
        mail
    }

    /// Sleeps until there is mail, as a worker does in its epoll.
    #[cfg(loom)]
    pub fn wait(&self, worker: usize) {
        self.boxes[worker].signal.wait();
    }

    fn post(&self, worker: usize, connection: ConnectionId, mail: Mail) {
        let mailbox = &self.boxes[worker];
        lock(&mailbox.mail).push_back((connection, mail));
        mailbox.signal.signal();
    }
}
