//! A libFuzzer target: what an image has, as the parsers of the format see it.
//! `tests/fuzz/run` compiles and runs it.
#![forbid(unsafe_code)]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coblk_qcow2::fuzz_parsers(bytes));
