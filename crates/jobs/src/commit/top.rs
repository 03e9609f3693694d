//! [`CommitTop`]: the filter above the images that a commit leaves out. It passes requests on, and holds nothing
//! below: the backing file that they lead to is written meanwhile, and reads the same through them.

use std::sync::Arc;

use coblk_block::{BlockNode, Child, ChildRole, EdgeInfo, Filter, Permissions};

pub(super) struct CommitTop(Child);

impl CommitTop {
    pub(super) fn new(top: &Arc<BlockNode>) -> CommitTop {
        CommitTop(Child::new("backing", ChildRole::FILTER, Arc::clone(top)))
    }
}

impl Filter for CommitTop {
    fn name(&self) -> &'static str {
        "commit_top"
    }

    fn child(&self) -> &Child {
        &self.0
    }

    fn child_permissions(
        &self,
        _edge: &EdgeInfo,
        _held: Permissions,
        _shared: Permissions,
    ) -> (Permissions, Permissions) {
        (Permissions::empty(), Permissions::all())
    }
}
