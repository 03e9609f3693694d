//! What a [`BlockBackend`](crate::BlockBackend) counts.

mod kind;

pub use kind::RequestKind;
