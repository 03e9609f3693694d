//! FUSE exports: a block node as a regular file of this machine, which any program opens, maps, or puts a
//! loop device on. The kernel's protocol is spoken here, without libfuse, on the contexts of the daemon.
//!
//! ```text
//!   the thread of the exports             each context that serves the file
//!     export_type.rs: make, close   -->     station.rs: a queue, and what it is told
//!     mountpoint.rs, mount.rs                  queue.rs: requests from /dev/fuse, answer.rs: back
//!                                                 request.rs, reply.rs: their bytes; memory.rs: data
//!                                                 serve.rs: data.rs, look.rs, change.rs
//! ```
//!
//! The data of a write is read from the device straight into memory that the request keeps until it is
//! answered; that of a read is written to the device from where the node has put it.
#![forbid(unsafe_code)]

mod abi;
mod answer;
mod change;
mod data;
mod export_type;
mod file;
mod look;
mod memory;
mod mount;
mod mountpoint;
mod queue;
mod reply;
mod request;
mod ring;
mod room;
mod serve;
mod station;

pub use export_type::{AllowOther, FuseExportOptions, FuseExportType};
pub use mount::unmount_all;

/// The parser of requests, for the fuzz target: bytes of the device in, nothing but errors out.
#[doc(hidden)]
pub fn fuzz_parser(bytes: &[u8]) {
    // A result that is not used is not computed.
    use std::hint::black_box;
    let Some(header) = request::Header::parse(bytes) else { return };
    let body = &bytes[request::Header::BYTES..];
    let behind_head = &body[..body.len().min(request::WRITE_BYTES)];
    for received in [bytes.len(), header.length as usize] {
        let _ = black_box(request::Request::parse(&header, body, received));
        let _ = black_box(request::Request::parse(&header, behind_head, received));
    }
}
