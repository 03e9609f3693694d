//! [`Creating`]: an image that is being made from options.

use std::cell::RefCell;
use std::sync::Arc;

use coblk_aio::Co;

use super::{BlockdevError, CreateError, Inherited, NamedObject, Registry};
use crate::backend::BlockBackend;
use crate::backend::options::BackendOptions;
use crate::driver::permissions::Permissions;
use crate::options::NodeRef;

/// An image that is being made, as its driver sees it. [`Blockdevs::co_create`](crate::Blockdevs::co_create)
/// makes one.
pub struct Creating<'a, 'co> {
    registry: &'a Registry,
    co: &'a Co<'co>,
    /// Those that the driver was given.
    children: RefCell<Vec<BlockBackend>>,
}

impl<'a, 'co> Creating<'a, 'co> {
    pub(crate) fn new(registry: &'a Registry, co: &'a Co<'co>) -> Creating<'a, 'co> {
        Creating { registry, co, children: RefCell::default() }
    }

    /// The coroutine in which the image is made.
    pub fn co(&self) -> &'a Co<'co> {
        self.co
    }

    /// Opens the node that an option names or describes, for what the image consists of. It is written and
    /// resized, and no other user may do that, nor another process. It is closed when the image is made, if
    /// it was opened for that; `name` is that of the option, for messages.
    ///
    /// Suspends.
    ///
    /// # Errors
    /// If there is no such node, it cannot be opened, is read-only, or others write it.
    pub fn co_child(&self, name: &str, node: &NodeRef) -> Result<BlockBackend, CreateError> {
        let node = match node {
            NodeRef::Name(name) => self.registry.names().find(name)?,
            NodeRef::Options(options) => {
                let opened = self.registry.co_open_node(
                    self.co,
                    options,
                    (Inherited::default(), Some("blockdev-create")),
                    0,
                );
                opened.map_err(BlockdevError::from)?
            }
        };
        let changes = Permissions::WRITE | Permissions::RESIZE;
        let (held, shared) = (Permissions::CONSISTENT_READ | changes, Permissions::all() - changes);
        let options = BackendOptions::new(format!("blockdev-create {name}"));
        let opened = options.permissions(held, shared).co_open(self.co, Arc::clone(&node));
        let backend = match opened {
            Ok(backend) => backend,
            Err(error) => {
                crate::graph::life::co_close_if_unused(self.co, &node);
                return Err(BlockdevError::from(error).into());
            }
        };
        self.children.borrow_mut().push(backend.clone());
        match node.is_read_only() {
            true => Err(BlockdevError::ReadOnly(node.name().to_owned()).into()),
            false => Ok(backend),
        }
    }

    /// The object with this id.
    ///
    /// # Errors
    /// If there is none of this type.
    pub fn object<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, CreateError> {
        Ok(self.registry.known_object(id)?)
    }

    /// Gives back the nodes.
    ///
    /// # Errors
    /// If one cannot be closed.
    pub(crate) fn co_finish(&self) -> Result<(), CreateError> {
        let mut result = Ok(());
        for backend in self.children.take() {
            let closed = backend.co_close(self.co);
            result = result.and(closed.map_err(|error| BlockdevError::from(error).into()));
        }
        result
    }
}
