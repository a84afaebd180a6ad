//! The protocol, byte by byte, through the real binary: what the clients of others cannot send.

mod ending;
mod handshake;
mod transmission;
