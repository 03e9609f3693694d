//! The QEMU Machine Protocol on coblk's event loop: a [`Monitor`] takes commands from clients as QEMU's
//! does, looks them up in a [`CommandTable`], and tells [`Event`]s.
//!
//! A client's bytes are cut into JSON values ([`coblk_qapi::Splitter`]), which become commands
//! (`request.rs`), and their arguments Rust types ([`coblk_qapi::from_value`]). A session (`session.rs`)
//! is one coroutine: it runs one command after the other, and commands may suspend.
//!
//! What a client sends is bounded, and so is what waits for one that does not read: the session reads no
//! further command before the last one's answer has gone, and events are dropped.
#![forbid(unsafe_code)]

mod arguments;
mod channel;
mod command;
mod error;
mod event;
mod json;
mod monitor;
mod request;
mod session;

pub use coblk_aio::net::{Listener, SocketAddress, SocketError};

pub use arguments::from_arguments;
pub use command::CommandTable;
pub use error::{ErrorClass, QmpError};
pub use event::Event;
pub use monitor::{Monitor, QmpOptions, QmpVersion, VersionTriple};
