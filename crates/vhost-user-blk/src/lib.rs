//! vhost-user-blk: a block node as a disk of a virtual machine, or of any other process that drives
//! virtqueues in shared memory.
//!
//! [`VhostUserBlk::listen`] waits on a unix socket for a front end. Who does what:
//!
//! ```text
//!   the context of the listener        a control thread, one a front end
//!     export.rs: accept, remove   -->    control.rs, session.rs: messages
//!                                          |  one command at a time
//!                                          v
//!                                      contexts of the queues
//!                                        device.rs: a VirtioBlk on each; kicks come straight here
//! ```
//!
//! The thread is there because a message is read in pieces, and a front end may send half of one and
//! no more. It is no part of any request.
//!
//! Unsafe code is in two files: `sigbus.rs`, which keeps the process alive when a front end truncates
//! its memory, and `uffd.rs`, for memory whose pages come later.
#![deny(unsafe_code)]

mod channel;
mod config;
mod control;
mod device;
mod dirty;
mod error;
mod export;
mod export_type;
mod handover;
mod inflight;
mod logging;
mod memory;
mod messages;
mod notifier;
mod options;
mod packed;
mod postcopy;
mod session;
mod sigbus;
mod tables;
mod uffd;
mod vring;

pub use coblk_export::RemoveMode;
pub use error::VhostUserBlkError;
pub use export::VhostUserBlk;
pub use export_type::{Bind, Sockets, VhostUserBlkExportOptions, VhostUserBlkExportType};
pub use options::{ErrorListener, VhostUserBlkOptions};
