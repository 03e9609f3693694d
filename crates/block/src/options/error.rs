//! What can be wrong with options, and with opening what they describe.

use std::io;

use serde_json::Value;

use crate::driver::permissions::PermissionError;
use crate::drivers::FileOpenError;
use crate::filter::throttle::ThrottleError;
use crate::graph::GraphError;

/// Why a text is not the description of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// It is not JSON, or not an object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// It is not a list of `name=value`.
    #[error("option '{option}': {why}")]
    Keyval {
        /// The one that is not.
        option: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such option.
    #[error("node '{node}': {what} has no option '{option}'")]
    Unknown {
        /// The node.
        node: String,
        /// The option.
        option: String,
        /// What it was given to.
        what: String,
    },
    /// It is needed.
    #[error("node '{node}': option '{option}' is missing")]
    Missing {
        /// The node.
        node: String,
        /// The option.
        option: String,
    },
    /// It has a value that it cannot have.
    #[error("node '{node}': option '{option}': {why}")]
    Invalid {
        /// The node.
        node: String,
        /// The option.
        option: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a node cannot be opened, or closed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum BlockdevError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
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

/// A value for messages.
pub(super) fn describe(value: &Value) -> String {
    shorten(&value.to_string())
}

/// A text for messages, which what was sent must not make long: its first 60 characters.
pub fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
