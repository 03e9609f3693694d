//! Edges, as a driver names and describes them.

use std::borrow::Cow;
use std::fmt;

use crate::driver::role::ChildRole;

/// Names an edge: a [`Child`](crate::Child) of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeId(pub(crate) u64);

/// Names a [`ChildList`](crate::ChildList) of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListId(pub(crate) u64);

/// Name, number and role of an edge, whatever node it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeInfo {
    id: EdgeId,
    name: &'static str,
    index: Option<u32>,
    role: ChildRole,
}

impl EdgeInfo {
    pub(crate) fn new(
        id: EdgeId,
        name: &'static str,
        index: Option<u32>,
        role: ChildRole,
    ) -> EdgeInfo {
        EdgeInfo { id, name, index, role }
    }

    /// The edge.
    #[inline]
    pub fn id(&self) -> EdgeId {
        self.id
    }

    /// The name of the option that says which node it leads to, such as `file`. The children of a list
    /// share one.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number in a list.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// The role of the child for the driver.
    pub fn role(&self) -> ChildRole {
        self.role
    }

    /// The name by which commands and messages know the edge: `file`, or `children.0` in a list.
    pub fn label(&self) -> Cow<'static, str> {
        match self.index {
            None => self.name.into(),
            Some(index) => format!("{}.{index}", self.name).into(),
        }
    }
}

impl fmt::Display for EdgeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

/// A node that is to become a child.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NewChild<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its length in bytes.
    pub length: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
}
