//! `cargo fuzz run requests`: see `glassine_fuzz::requests`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| glassine_fuzz::requests(bytes));
