//! Another backing file in the header of an image that is in use. What the node reads stays as it is.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use crate::driver::image::BackingName;
use crate::driver::permissions::Permissions;
use crate::graph::node::BlockNode;
use crate::graph::{NodeUse, NodeUser};
use crate::registry::BlockdevError;

/// While a header is written.
struct Naming;

impl NodeUser for Naming {
    fn name(&self) -> String {
        "a change of the name of the backing file".to_owned()
    }
}

impl Blockdevs {
    /// Has the header of a node's image name another backing file, or none; durable when this returns. A read-only
    /// node is reopened for that, and put back. Requests run meanwhile.
    ///
    /// # Errors
    /// If the node is no image, or cannot be reopened; those of the format. The header is as before then.
    pub fn co_name_backing(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        backing: Option<&BackingName>,
    ) -> Result<(), BlockdevError> {
        let failed = |source: io::Error| BlockdevError::Io { node: node.name().to_owned(), source };
        let is_read_only = node.is_read_only();
        if is_read_only {
            self.co_set_read_only(co, node, false)?;
        }
        let (held, shared) = (Permissions::WRITE_UNCHANGED, Permissions::all());
        let named = NodeUse::co_new(co, Arc::new(Naming), node, held, shared)
            .map_err(BlockdevError::from)
            .and_then(|used| {
                let named = node.co_image(co).and_then(|it| it.co_change_backing(co, backing));
                used.co_end(co);
                named.map_err(failed)
            });
        if is_read_only && let Err(error) = self.co_set_read_only(co, node, true) {
            tracing::error!(node = node.name(), %error, "a node stays writable");
        }
        named
    }
}
