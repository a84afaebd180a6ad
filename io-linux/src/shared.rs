//! What all threads of a server have in common.

use glassine_core::{Catalog, Limits, Overlay};

use crate::device::Device;
use crate::pool::Pool;
use crate::router::Router;
use crate::sync::{Arc, AtomicU64, AtomicUsize, Ordering};

/// More connections than this at a time are turned away.
pub const CONNECTIONS_MAX: usize = 4096;

/// Memory for replies that slow clients do not take, all together. A client for whom there is none left
/// is given up, so that no number of them can use up the host.
pub const SPILL_BYTES_MAX: u64 = 1 << 30;

/// What all threads of a server have in common.
#[derive(Debug)]
pub struct Shared {
    /// The devices, in the order of the catalog.
    pub devices: Vec<Arc<Device>>,
    /// What clients can choose from.
    pub catalog: Arc<Catalog>,
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

impl Shared {
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
