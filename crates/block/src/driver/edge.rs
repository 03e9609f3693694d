//! Edges as a driver tells of them.

use crate::driver::role::ChildRole;

/// Names an edge: a [`Child`](crate::Child) of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeId(pub(crate) u64);

/// What an edge is, whatever node it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeInfo {
    id: EdgeId,
    name: &'static str,
    role: ChildRole,
}

impl EdgeInfo {
    pub(crate) fn new(id: EdgeId, name: &'static str, role: ChildRole) -> EdgeInfo {
        EdgeInfo { id, name, role }
    }

    /// The edge.
    #[inline]
    pub fn id(&self) -> EdgeId {
        self.id
    }

    /// The name of the option that says which node it leads to, such as `file`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What that node is for the driver.
    pub fn role(&self) -> ChildRole {
        self.role
    }
}
