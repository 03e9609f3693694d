//! coblk-bench: what coblk costs, beside its peers, in one run.
//!
//! `micro` measures the parts, `null` and `file` make requests as fio would, `compare` measures
//! whole paths beside `qemu-img bench` and bare loops, and servers beside those of others and bare
//! ones (`floors/`). `plot` draws what was recorded. Each row is a work with a name that stays,
//! measured in laps that alternate with those of its peers (`measure.rs`, `peers/`), and printed as
//! a table or as JSON (`report/`).
//!
//! Unsafe code is fenced in `alloc`, `sys`, `peers/swapcontext`, `peers/uring` and
//! `workload/vhost_user`; each says why it is sound.
#![deny(unsafe_code)]

mod alloc;
mod cli;
mod compare;
mod engine;
mod fio;
mod floors;
mod image;
mod jobs;
mod measure;
mod micro;
mod page;
mod peers;
mod plot;
mod progress;
mod report;
mod stats;
mod sys;
mod syscalls;
mod workload;
mod works;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coblk-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
