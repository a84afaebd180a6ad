//! `cargo fuzz run world`: see `glassine_fuzz::world`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| glassine_fuzz::world(bytes));
