//! Network block devices on coblk's event loop, both sides: [`NbdServer`] serves [`NbdExport`]s to any number
//! of clients over unix and TCP sockets; [`Nbd`] is the driver of a node that is an export of another server.
//!
//! `protocol` has the messages as bytes and does no I/O; `transport` is a socket, in the clear or with
//! TLS; `server` and `client` are all the rest. A connection of the server is one coroutine that negotiates
//! (`server/handshake.rs`) and then reads requests (`server/session.rs`), and one coroutine for each
//! request (`server/serve.rs`). Replies go out in the order in which requests complete, several to a
//! system call (`server/outbox.rs`).
//!
//! What a client sends is checked against its declared length before it means anything; what it makes
//! the server hold is bounded (`server/memory.rs`). A connection belongs to one context: that of the server, or one of
//! those of the export that it has chosen (`server/seats.rs`).
#![forbid(unsafe_code)]

mod client;
mod export_type;
mod protocol;
mod server;
mod transport;

pub use client::Nbd;
pub use client::options::NbdNodeOptions;
pub use coblk_aio::net::{Listener, SocketAddress, SocketError};
pub use coblk_export::RemoveMode;
pub use export_type::{NbdExportOptions, NbdExportType};
pub use server::NbdServer;
pub use server::export::{NbdExport, NbdExportError};
pub use server::options::{Authorize, NbdOptions};
pub use server::seats::{NbdContextError, NbdContexts};
#[cfg(feature = "tls")]
pub use transport::{RefusedFile, TlsError, TlsFiles};
pub use transport::{TlsClientCredentials, TlsCredentials};

/// The parsers, for the fuzz target: bytes of a peer in, nothing but errors out.
#[doc(hidden)]
pub fn fuzz_parsers(bytes: &[u8]) {
    // A result that is not used is not computed.
    use std::hint::black_box;
    black_box(protocol::request::Request::parse_compact(bytes));
    black_box(protocol::request::Request::parse_extended(bytes));
    let _ = black_box(protocol::option::GoOption::parse(bytes));
    if let Ok(option) = protocol::option::MetaOption::parse(bytes) {
        option.queries().for_each(|query| _ = black_box(query));
    }
    let _ = black_box(protocol::option::name(bytes));
    let _ = black_box(protocol::option_reply::OptionReply::parse(bytes, protocol::OPT_GO));
    let _ = black_box(protocol::option_reply::information(bytes));
    let _ = black_box(protocol::option_reply::export(bytes));
    let _ = black_box(protocol::option_reply::block_sizes(bytes));
    let _ = black_box(protocol::option_reply::context(bytes));
    black_box(protocol::answer::Answer::parse(bytes));
    if let Ok(name) = std::str::from_utf8(bytes) {
        black_box(NbdNodeOptions::from_filename(name));
    }
}
