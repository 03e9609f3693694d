//! Disk images on the command line, with `qemu-img`'s commands, options, exit codes and output.
//!
//! The program `coblk-img` is one line; everything is here.
//!
//! ```text
//! cli        the command line
//! commands/  one file a command
//! engine/    work on whole images, by many requests in flight
//! image/     images: probed, opened, closed
//! progress   how much is done
//! interrupt  signals
//! output     standard output
//! size       numbers of bytes
//! failure    errors and exit codes
//! ```
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod engine;
mod failure;
mod image;
mod interrupt;
mod output;
mod progress;
mod size;

pub use cli::main;
