//! The Linux driver of Glassine: sockets, files and threads around the machines of `glassine-core`.
//!
//! Where to look: `config` and `cli` say what to serve, `server` starts and stops it, `worker` is a
//! thread's event loop, `driver` moves one connection, `device` is one copy-on-write device with its
//! `template`, `sheet` and `data_file`, `pool` does what may block, `sys` holds the system calls.
//! This is the only crate with unsafe code, and `sys` and `mapping` are where it is.

pub mod cli;
pub mod clock;
pub mod config;
pub mod data_file;
pub mod device;
pub mod driver;
pub mod listener;
pub mod mapping;
pub mod pool;
pub mod server;
pub mod sheet;
pub mod sync;
pub mod sys;
pub mod template;
pub mod worker;
