//! What the end-to-end tests share: the server under test, tools, a client of our own, payloads, and what may
//! be lost in a crash.

pub mod changes;
pub mod client;
pub mod history;
pub mod load;
pub mod pattern;
pub mod server;
