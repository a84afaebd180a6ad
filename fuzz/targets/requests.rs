//! See `glassine_fuzz::requests::requests`.

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: glassine_fuzz::plant_from_environment(),
    |bytes: &[u8]| glassine_fuzz::requests::requests(bytes)
);
