//! See `properties::signature`.

#![no_main]

#[path = "properties.rs"]
#[allow(dead_code, reason = "each target has its own part of it")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::signature(input));
