//! What all threads of a server have in common.

use std::time::Duration;

use glassine_core::{Catalog, Limits, Overlay};

use crate::device::Device;
use crate::pool::Pool;
use crate::router::{Mail, Router};
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering, lock, sleep};

/// More connections than this at a time are turned away.
pub const CONNECTIONS_MAX: usize = 4096;

/// Memory for replies that slow clients do not take, all together. A client for whom there is none left
/// is given up, so that no number of them can use up the host.
pub const SPILL_BYTES_MAX: u64 = 1 << 30;

/// What all threads of a server have in common.
#[derive(Debug)]
pub struct Shared {
    /// What is served at present. No request looks at it, only the beginning of a connection.
    pub exports: Mutex<Exports>,
    /// The bounds of every session.
    pub limits: Limits,
    /// The workers' mailboxes.
    pub router: Arc<Router>,
    /// Threads for template reads, which may take as long as they like.
    pub pool: Pool,
    /// Threads for our own files. No slow template takes them.
    pub storage: Pool,
    /// Connections being served.
    pub connections: AtomicUsize,
    /// Memory that replies take which clients do not.
    pub spilled: AtomicU64,
}

/// The devices that are served, and what clients can choose from: the same, in the same order.
#[derive(Debug)]
pub struct Exports {
    devices: Vec<Arc<Device>>,
    catalog: Arc<Catalog>,
}

impl Exports {
    /// The exports of these devices.
    #[must_use]
    pub fn new(devices: Vec<Arc<Device>>) -> Self {
        let exports = devices.iter().map(|device| device.export.clone()).collect();
        Self { devices, catalog: Arc::new(Catalog::new(exports)) }
    }
}

/// How often a device that is being closed is looked at: whether anybody still uses it.
const CLOSE_POLL_TIME: Duration = Duration::from_millis(5);

impl Shared {
    /// What a new client can choose from.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&lock(&self.exports).catalog)
    }

    /// The devices, in the order of the catalog.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        lock(&self.exports).devices.clone()
    }

    /// The device of an export, if it is still served.
    pub fn device(&self, export: &str) -> Option<Arc<Device>> {
        let exports = lock(&self.exports);
        exports.devices.iter().find(|device| device.export.name == export).cloned()
    }

    /// Begins to close an export: no client finds it any more, and those that use it get their replies and are
    /// let go. [`Self::close`] does the rest. `None` if there is no such export.
    pub fn withdraw(&self, export: &str) -> Option<Arc<Device>> {
        let mut exports = lock(&self.exports);
        let is_it = |device: &Arc<Device>| device.export.name == export;
        let index = exports.devices.iter().position(is_it)?;
        let mut devices = std::mem::take(&mut exports.devices);
        let device = devices.remove(index);
        *exports = Exports::new(devices);
        drop(exports);
        // Whoever found the device before has it by the time its worker reads this.
        for worker in 0..self.router.workers() {
            self.router.send_to(worker, Mail::Close { export: export.to_owned() });
        }
        Some(device)
    }

    /// Waits until nobody uses a withdrawn device any more, makes it durable, and closes its files. Answers
    /// whether it is durable: not if its journal has failed. May block for as long as a client may take for its replies,
    /// and for what the pool does for the device.
    pub fn close(&self, mut device: Arc<Device>) -> bool {
        // Everything that uses a device holds it: connections, jobs of the pool, snapshots.
        while Arc::get_mut(&mut device).is_none() {
            sleep(CLOSE_POLL_TIME);
        }
        device.close()
    }

    /// Counts a new connection; `false` if there are too many.
    pub fn admit(&self) -> bool {
        let admitted = self.connections.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX;
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// A connection has ended.
    pub fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Works with an overlay, and sees to what comes of it.
    pub fn with_overlay(&self, device: &Arc<Device>, work: impl FnOnce(&mut Overlay)) {
        self.storage.settle(device, device.with_overlay(work));
    }
}
