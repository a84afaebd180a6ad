//! The simulator: it drives the core that ships, in one thread, with every choice drawn from a tape.
//!
//! Where to look: `scenario` is the one body that every test runs; `swarm` draws a configuration;
//! `world` holds the device, its files and the operations under way, and decides what happens next;
//! `net` is a connection's two byte streams; `disk` is the device's files, and what a power cut leaves of them; `client` plays an NBD client; `model` is the oracle that
//! knows every admissible answer; `choice` is the tape and `trace` what is remembered of a run.

#![forbid(unsafe_code)]

pub mod broken;
pub mod choice;
pub mod client;
pub mod crashes;
pub mod disk;
pub mod exhaust;
pub mod model;
pub mod net;
pub mod picture;
pub mod planted;
pub mod scenario;
pub mod shrink;
pub mod swarm;
pub mod sweep;
pub mod trace;
pub mod world;
