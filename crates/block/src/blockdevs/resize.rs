//! `block_resize`: another length for a node that is in use.

use coblk_aio::{AioContext, Co};

use super::Blockdevs;
use crate::backend::{BlockBackend, ResizeError};
use crate::driver::flags::Truncate;
use crate::graph::{self, Operation};
use crate::registry::BlockdevError;

impl Blockdevs {
    /// Changes the length of the node called `name` to `length` bytes, while requests run; new
    /// bytes read as zeroes. Backends are told ([`BlockBackend::set_length_listener`]). A shrink
    /// drains the node. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// If there is no such node, it is read-only, or its driver cannot; or another user of it, or
    /// another process, does not share the permission to resize.
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_resize`](Self::co_resize).
    pub fn resize(&self, ctx: &AioContext, name: &str, length: u64) -> Result<(), BlockdevError> {
        ctx.run(|co| self.co_resize(co, name, length))
    }

    /// [`resize`](Self::resize), from a coroutine.
    ///
    /// # Errors
    /// As of [`resize`](Self::resize).
    pub fn co_resize(&self, co: &Co<'_>, name: &str, length: u64) -> Result<(), BlockdevError> {
        let node = self.known_node(name)?;
        graph::lock().check_operation(&node, Operation::Resize)?;
        if node.is_read_only() {
            return Err(BlockdevError::ReadOnly(node.name().to_owned()));
        }
        // A user of the node like any other, for the time it takes.
        let backend = BlockBackend::new(co.context(), "block_resize", node);
        backend.co_resize(co, length, Truncate::default()).map_err(|error| match error {
            ResizeError::Permission(source) => BlockdevError::Permission(source),
            ResizeError::Graph(source) => BlockdevError::Graph(source),
            ResizeError::Io(source) => BlockdevError::Io { node: name.to_owned(), source },
        })
    }
}
