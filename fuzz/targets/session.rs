//! See `glassine_fuzz::session::session`.

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: glassine_fuzz::plant_from_environment(),
    |bytes: &[u8]| glassine_fuzz::session::session(bytes)
);
