//! [`Inherited`]: options that a node has from its own options, or else from its parent's.

use super::BlockdevError;
use crate::driver::mode::{CacheMode, DetectZeroes};
use crate::driver::role::ChildRole;
use crate::graph::node::{BlockNode, NodeState};
use crate::options::NodeOptions;

/// The modes of a node that concern its driver, whatever driver that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeMode {
    /// Nothing is written. The layer refuses writes by itself; a driver opens its storage for
    /// reading, as other users may write it.
    pub read_only: bool,
    /// Storage that may not be written is opened for reading.
    pub auto_read_only: bool,
    /// How caches are treated.
    pub cache: CacheMode,
}

/// The modes that a child has from its parent, unless its own options say otherwise.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inherited {
    pub(crate) read_only: bool,
    pub(crate) auto_read_only: bool,
    pub(crate) cache_direct: bool,
    pub(crate) cache_no_flush: bool,
    pub(crate) unmap: bool,
    pub(crate) detect_zeroes: DetectZeroes,
    pub(crate) force_share: bool,
    pub(crate) inactive: bool,
}

impl Inherited {
    /// The modes that hold for a node itself.
    pub(crate) fn of(options: &NodeOptions, inherited: Inherited) -> Inherited {
        Inherited {
            read_only: options.read_only.unwrap_or(inherited.read_only),
            auto_read_only: options.auto_read_only.unwrap_or(inherited.auto_read_only),
            cache_direct: options.cache_direct.unwrap_or(inherited.cache_direct),
            cache_no_flush: options.cache_no_flush.unwrap_or(inherited.cache_no_flush),
            unmap: options.discard.unwrap_or(inherited.unmap),
            detect_zeroes: options.detect_zeroes.unwrap_or_default(),
            force_share: options.force_share.unwrap_or(inherited.force_share),
            inactive: options.active.map_or(inherited.inactive, |active| !active),
        }
    }

    /// Whether these go together.
    pub(crate) fn check(self, node: &str) -> Result<(), BlockdevError> {
        let invalid = |option: &str, why: &str| {
            let (node, option, why) = (node.to_owned(), option.to_owned(), why.to_owned());
            Err(BlockdevError::Invalid { node, option, why })
        };
        if self.detect_zeroes == DetectZeroes::Unmap && !self.unmap {
            return invalid("detect-zeroes", "'unmap' needs discard=unmap");
        }
        if self.force_share && !self.read_only {
            return invalid("force-share", "needs read-only=on");
        }
        Ok(())
    }

    /// The modes that a child has from the node.
    pub(crate) fn for_child(self, role: ChildRole) -> Inherited {
        // Discards that reach this node reach its children. The backing file of an inactive node may be
        // written by the process that has it.
        let inactive = self.inactive && role.contains(ChildRole::COW);
        let child = Inherited { unmap: true, inactive, ..self };
        if role.is_own_storage() {
            return Inherited { read_only: false, auto_read_only: false, ..child };
        }
        if role.contains(ChildRole::COW) {
            return Inherited { read_only: true, auto_read_only: false, ..child };
        }
        child
    }

    /// The modes of the node itself.
    pub(crate) fn node_state(self) -> NodeState {
        let cache_mode = CacheMode { direct: self.cache_direct, no_flush: self.cache_no_flush };
        NodeState {
            read_only: self.read_only,
            discard: self.unmap,
            detect_zeroes: self.detect_zeroes,
            force_share: self.force_share,
            cache_mode,
        }
    }

    /// Checks that a node that is to be written has a child that can be.
    pub(crate) fn check_writable(self, node: &str, child: &BlockNode) -> Result<(), BlockdevError> {
        if child.is_read_only() && !self.read_only && !self.auto_read_only {
            let (node, child) = (node.to_owned(), child.name().to_owned());
            return Err(BlockdevError::ReadOnlyChild { node, child });
        }
        Ok(())
    }

    /// The modes that the driver is told.
    pub(super) fn mode(self) -> NodeMode {
        let NodeState { read_only, cache_mode: cache, .. } = self.node_state();
        NodeMode { read_only, auto_read_only: self.auto_read_only, cache }
    }
}
