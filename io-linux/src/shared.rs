//! What all threads of a server have in common.

use glassine_core::{Catalog, Limits};

use crate::device::Device;
use crate::pool::Pool;
use crate::router::Router;
use crate::sync::{Arc, AtomicU64, AtomicUsize};

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
    /// Threads for what may block.
    pub pool: Pool,
    /// Connections being served.
    pub connections: AtomicUsize,
    /// Memory that replies take which clients do not.
    pub spilled: AtomicU64,
}
