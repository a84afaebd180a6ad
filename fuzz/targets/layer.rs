//! See `glassine_fuzz::layer::layer`.

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: glassine_fuzz::plant_from_environment(),
    |bytes: &[u8]| glassine_fuzz::layer::layer(bytes)
);
