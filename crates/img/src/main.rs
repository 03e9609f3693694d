//! Disk images on the command line, with `qemu-img`'s options; see the library of the same name.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coblk_img::main(std::env::args_os())
}
