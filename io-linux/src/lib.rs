//! The Linux driver of Glassine: sockets, files and threads around the machines of `glassine-core`.
//!
//! Where to look: `config` and `cli` say what to serve, `server` starts and stops it, `worker` is a
//! thread's event loop (told by the `router`), `driver` moves one connection, `device` is one
//! copy-on-write device with its `template`, `sheet`, `data_file` and
//! `journal_files` (`check` and `repair` look at those of a sheet that is not served), `pool` does what may
//! block. `control` is how a running server is asked and told, and
//! `command` is the command line's side of that.
//! This is the only crate with unsafe code, and all of it is in `sys`, behind the
//! system calls, and in `copy`.

#![deny(unsafe_code)]

#[cfg(not(any(debug_assertions, loom)))]
const _: () = assert!(
    !glassine_core::judge::IS_POSSIBLE,
    "bugs can be planted in this build of the core; build the server alone: cargo build --release -p glassine"
);

pub mod check;
pub mod cli;
pub mod clock;
#[cfg(not(loom))]
pub mod command;
pub mod config;
#[cfg(not(loom))]
pub mod control;
#[allow(unsafe_code)]
mod copy;
pub mod data_file;
pub mod device;
#[cfg(test)]
mod draw;
pub mod driver;
mod flush_habit;
pub mod journal_files;
pub mod layer;
#[cfg(not(loom))]
pub mod layer_commands;
pub mod listener;
pub mod mapping;
#[cfg(all(test, loom))]
mod models;
pub mod new_file;
pub mod pool;
pub mod repair;
pub mod router;
pub mod server;
pub mod shared;
pub mod sheet;
#[cfg(not(loom))]
pub mod snapshot;
pub mod sync;
#[allow(unsafe_code)]
pub mod sys;
pub mod template;
pub mod worker;
