//! The bodies of the fuzz targets. `targets/` hands them libFuzzer's bytes, `tests/` bolero's: one
//! body, two engines.
//!
//! Each takes bytes, and panics if something is wrong. Where to look: `handshake`, `requests`, `session`,
//! `overlay`, `journal` and `layer` hold a body each, with what it knows about the right answer; `driver` and `client` are
//! what `requests` and `session` share; `input` turns bytes into choices; `seeds` makes the seeds.

#![forbid(unsafe_code)]

mod client;
mod driver;
pub mod handshake;
mod input;
pub mod journal;
pub mod layer;
pub mod overlay;
pub mod requests;
pub mod seeds;
pub mod session;

use glassine_core::judge::{self, Bug};
use sim::choice::Tape;
use sim::scenario;

/// A target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them. Each has a shim in `targets/`, and seeds and a corpus by its name.
pub const TARGETS: [Target; 7] = [
    ("handshake", handshake::handshake),
    ("requests", requests::requests),
    ("session", session::session),
    ("overlay", overlay::overlay),
    ("journal", journal::journal),
    ("layer", layer::layer),
    ("world", world),
];

/// A whole simulated world, its choices taken from the bytes.
pub fn world(bytes: &[u8]) {
    if let Err(failure) = scenario::run(Tape::bytes(bytes.to_vec())) {
        panic!("{failure}");
    }
}

/// Plants the bug that the environment variable `GLASSINE_PLANT` names, if it does. For the shims.
pub fn plant_from_environment() {
    if let Some(name) = std::env::var_os("GLASSINE_PLANT") {
        let bug = Bug::ALL.iter().copied().find(|bug| *bug.id() == *name);
        judge::plant(Some(bug.expect("GLASSINE_PLANT names a bug of core/src/judge.rs")));
    }
}
