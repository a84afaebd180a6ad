//! `cargo fuzz run handshake`: see `glassine_fuzz::handshake`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| glassine_fuzz::handshake(bytes));
