//! A storage daemon with QEMU's options: disk images for other processes, over NBD and vhost-user, and as
//! files of this machine.
//!
//! The program `coblk-storage-daemon` is one line; everything is here, so that it can be tested, and
//! be part of other programs.
//!
//! * [`daemon`]: [`Daemon`](daemon::Daemon), what there is and what can be done to it;
//! * [`builder`]: which types of exports and objects and which commands a daemon has;
//! * [`objects`]: the types of objects;
//! * [`options`]: what can be said to it, as serde structs with QEMU's names;
//! * [`command_line`]: options in the order given, each a call of a method of the daemon;
//! * [`run`]: the life of the process: start, signals, pid file, end.
#![forbid(unsafe_code)]

pub mod builder;
pub mod command_line;
pub mod daemon;
mod daemonize;
mod error;
mod leftovers;
mod logging;
mod metrics;
pub mod objects;
pub mod options;
mod pid_file;
mod qmp;
pub mod run;
mod signals;
mod socket_activation;
pub mod sockets;
mod terminal;
mod trace_events;
mod wait_mode;
