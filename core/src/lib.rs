//! All decisions of Glassine, and nothing else: no I/O, no clock, no threads, no randomness.
//!
//! Two machines live here. A [`Session`] speaks NBD with one client; an [`Overlay`] is the state of
//! one copy-on-write device. A *driver* owns both: it moves bytes between sockets, files and the
//! machines, and tells them what happened. The production driver (crate `glassine`) and the
//! simulator (crate `sim`) drive this same code.
//!
//! Where to look: `wire` is the byte format, `handshake` the option haggling, `session` the
//! whole of a connection (with `staging`, `request` and `outbox` as its parts), `overlay` the device
//! (with `map`, `slot`, `pin` and `seal`), `journal` what of it survives a crash, `layer` the
//! format of sealed layers, `limits` every bound, `judge` what the simulator needs in here.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

pub mod error;
pub mod export;
pub mod handshake;
pub mod journal;
pub mod judge;
pub mod layer;
pub mod limits;
pub mod map;
pub mod outbox;
pub mod overlay;
pub mod pin;
pub mod request;
pub mod seal;
pub mod segment;
pub mod session;
pub mod slot;
pub mod staging;
pub mod sync;
pub mod time;
pub mod wire;

pub use error::{CloseReason, Errno};
pub use export::{Catalog, Export};
pub use limits::{JournalLimits, Limits, SpaceLimits};
pub use overlay::{Overlay, OverlayConfig};
pub use seal::Seal;
pub use segment::{Segment, Source};
pub use session::{Input, Output, Session};
pub use time::Instant;
