//! Objects: what options of others refer to by a name, as iothreads, throttle groups and credentials.
//!
//! A type of objects is a value that implements [`ObjectType`]; [`ObjectTypes`] has those that there are,
//! and [`Objects`] the objects that have been made. One file a type:
//!
//! * [`authz`]: which clients are let in, by the names of their certificates;
//! * [`iothread`]: threads that exports are served by;
//! * [`throttle_group`]: limits for nodes;
//! * [`secret`]: passwords and keys;
//! * [`tls_creds_x509`]: identity of the NBD server, and the clients it lets in.
//!
//! An object is found by its id and its Rust type: [`Objects::find`], for an export
//! [`Exporting::object`](coblk::export::Exporting::object).

pub mod authz;
pub mod iothread;
mod object_type;
mod registry;
mod running;
pub mod secret;
pub mod throttle_group;
pub mod tls_creds_x509;

pub use object_type::{ObjectPlace, ObjectType, Property};
pub use registry::ObjectTypes;
pub use running::{ObjectInfo, Objects};
