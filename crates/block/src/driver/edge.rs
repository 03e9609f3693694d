//! Edges as a driver tells of them.

use crate::driver::role::ChildRole;

/// Names an edge: a [`Child`](crate::Child) of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeId(pub(crate) u64);

/// What an edge is, whatever node it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeInfo {
    /// The edge.
    pub id: EdgeId,
    /// The name of the option that says which node it leads to, such as `file`.
    pub name: &'static str,
    /// What that node is for the driver.
    pub role: ChildRole,
}
