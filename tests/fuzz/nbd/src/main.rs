//! A libFuzzer target: what a client sends, as the parsers of the NBD server see it.
//! `tests/fuzz/run` compiles and runs it.
#![forbid(unsafe_code)]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coblk_nbd::fuzz_parsers(bytes));
