//! What can be wrong with opening what options describe.

use std::io;

use super::OptionsError;
use crate::driver::permissions::PermissionError;
use crate::drivers::FileOpenError;
use crate::filter::throttle::ThrottleError;
use crate::graph::GraphError;

/// Why a node cannot be opened, or closed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum BlockdevError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// An option has a value that it cannot have.
    #[error("node '{node}': option '{option}': {why}")]
    Invalid {
        /// The node.
        node: String,
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What cannot be the name of a node.
    #[error("{0}")]
    Name(String),
    /// A name that is taken.
    #[error("there is a node '{0}' already")]
    DuplicateNode(String),
    /// There is no such node.
    #[error("there is no node '{0}'")]
    NoSuchNode(String),
    /// There is no such throttle group.
    #[error("there is no throttle group '{0}'")]
    NoSuchGroup(String),
    /// A name that is taken.
    #[error("there is a throttle group '{0}' already")]
    DuplicateGroup(String),
    /// It has users.
    #[error("{what} '{name}' is in use")]
    InUse {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A node would be written to whose child cannot be.
    #[error("node '{node}': its child '{child}' is read-only, so it must be read-only too")]
    ReadOnlyChild {
        /// The node.
        node: String,
        /// What it stands on.
        child: String,
    },
    /// An option that stays as it was when the node was opened.
    #[error("node '{node}': cannot change the option '{option}'")]
    Fixed {
        /// The node.
        node: String,
        /// The option.
        option: String,
    },
    /// Its storage belongs to another process for the time being.
    #[error("node '{0}' is inactive")]
    Inactive(String),
    /// It is to be reopened in two ways.
    #[error("node '{0}' is to be reopened twice")]
    Twice(String),
    /// The users of the nodes concerned stand in the way.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Nothing can be changed in it.
    #[error("node '{0}' is read-only")]
    ReadOnly(String),
    /// Users of the node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The image cannot be opened.
    #[error("node '{node}': {source}")]
    File {
        /// The node.
        node: String,
        /// Why.
        source: FileOpenError,
    },
    /// The driver refuses.
    #[error("node '{node}': {source}")]
    Driver {
        /// The node.
        node: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Limits that make no sense.
    #[error("throttle group '{group}': {source}")]
    Throttle {
        /// The group.
        group: String,
        /// Why.
        source: ThrottleError,
    },
    /// An operation on a child failed.
    #[error("node '{node}': {source}")]
    Io {
        /// The node.
        node: String,
        /// What the system said.
        source: io::Error,
    },
}
