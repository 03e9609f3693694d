//! A libFuzzer target: requests of the FUSE device, as the parser sees them.
//! `tests/fuzz/run` compiles and runs it.
#![forbid(unsafe_code)]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coblk_fuse::fuzz_parser(bytes));
