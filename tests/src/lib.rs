//! What the end-to-end tests share: the server under test, tools, a client of our own, payloads.

pub mod client;
pub mod load;
pub mod pattern;
pub mod server;
