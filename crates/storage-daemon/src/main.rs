//! A storage daemon with QEMU's options; see the library of the same name.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coblk_storage_daemon::run::main(std::env::args_os())
}
