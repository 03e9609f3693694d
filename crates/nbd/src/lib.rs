//! An NBD server on coblk's event loop: [`NbdServer`] serves [`NbdExport`]s to any number of clients
//! over unix and TCP sockets.
//!
//! A connection is one coroutine that negotiates (`handshake.rs`) and then reads requests
//! (`connection.rs`), and one coroutine for each request (`serve.rs`). Replies go out in the order in
//! which requests complete, several to a system call (`outbox.rs`).
//!
//! What a client sends is checked against its declared length before it means anything; what it makes
//! the server hold is bounded (`memory.rs`). Everything here stays on the thread of one context.
#![forbid(unsafe_code)]

mod connection;
mod export;
mod handshake;
mod link;
mod memory;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod option;
mod outbox;
mod pieces;
mod protocol;
mod receiver;
mod reply;
mod request;
mod serve;
mod server;
mod sparse;
mod starttls;
mod status;
#[cfg(feature = "tls")]
mod tls;
mod transport;

pub use coblk_aio::net::{Listener, SocketAddress, SocketError};
pub use export::{NbdExport, NbdExportError, RemoveMode};
#[cfg(not(feature = "tls"))]
pub use no_tls::TlsCredentials;
pub use server::{NbdOptions, NbdServer};
#[cfg(feature = "tls")]
pub use tls::{TlsCredentials, TlsError};

/// The parsers, for the fuzz target: bytes of a client in, nothing but errors out.
#[doc(hidden)]
pub fn fuzz_parsers(bytes: &[u8]) {
    // What nobody looks at is not compiled.
    use std::hint::black_box;
    black_box(request::Request::parse_compact(bytes));
    black_box(request::Request::parse_extended(bytes));
    let _ = black_box(option::GoOption::parse(bytes));
    if let Ok(option) = option::MetaOption::parse(bytes) {
        option.queries().for_each(|query| _ = black_box(query));
    }
    let _ = black_box(option::name(bytes));
}
