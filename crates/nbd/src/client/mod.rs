//! The client: the driver `nbd`, whose storage is an export of an NBD server.
//!
//! A node has one connection, or, if its server shows the same bytes on all, one for each of several
//! contexts ([`connection`]): then its requests go out and come back on the thread that they are made on,
//! and share no lock. The requests of a context without a connection are carried out in one that has it.
//!
//! `handshake` negotiates, on a `wire`; `link` is a connection from then on; `connection` is what stays when
//! links come and go, and `keeper` makes them anew.

mod claims;
mod connection;
mod driver;
mod handshake;
mod keeper;
mod lanes;
mod link;
mod making;
mod moves;
mod open;
pub mod options;
mod session;
mod shared;
mod silence;
mod starttls;
mod target;
mod uri;
mod wire;

pub use driver::Nbd;
