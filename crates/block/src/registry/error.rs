//! Errors of opening nodes: those of a driver, and those for callers that ask for a node.

use std::io;

use crate::driver::BlockDriver;
use crate::driver::permissions::PermissionError;
use crate::graph::GraphError;
use crate::options::OptionsError;

/// Any error of a driver's.
type DriverError = Box<dyn std::error::Error + Send + Sync>;

/// Why a node cannot be opened, or closed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
        option: String,
        /// What is wrong with the value.
        why: String,
    },
    /// A text cannot be the name of a node.
    #[error("{0}")]
    Name(String),
    /// A node of this name exists.
    #[error("there is a node '{0}' already")]
    DuplicateNode(String),
    /// There is no node of this name.
    #[error("there is no node '{0}'")]
    NoSuchNode(String),
    /// There is no such object.
    #[error("there is no {kind} '{id}'")]
    NoSuchObject {
        /// Of what kind.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// An object with this id exists.
    #[error("there is a {kind} '{id}' already")]
    DuplicateObject {
        /// Of what kind is the one that has it.
        kind: &'static str,
        /// The id.
        id: String,
    },
    /// A node or an object that is to be removed has users.
    #[error("{what} '{name}' is in use")]
    InUse {
        /// The kind of the thing: `node`, or that of an object.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A node belongs to a job, and commands leave it alone.
    #[error("node '{node}' is in use by {owner}")]
    Hidden {
        /// The node.
        node: String,
        /// The job, as `job 'backup'`.
        owner: String,
    },
    /// A node that may be written has a child that may not.
    #[error("node '{node}': its child '{child}' is read-only, so it must be read-only too")]
    ReadOnlyChild {
        /// The node.
        node: String,
        /// The child.
        child: String,
    },
    /// An option cannot change after the node was opened.
    #[error("node '{node}': cannot change the option '{option}'")]
    Fixed {
        /// The node.
        node: String,
        /// The option.
        option: String,
    },
    /// A slot has a child, and the options of a reopen do not say what is to become of it.
    #[error("node '{node}': option '{option}' is missing: a reopen names the child, or has null")]
    SlotMissing {
        /// The node.
        node: String,
        /// The option, which has the name of the slot.
        option: String,
    },
    /// The node is inactive: its storage belongs to another process for the time being.
    #[error("node '{0}' is inactive")]
    Inactive(String),
    /// The node was made in code, and has no options.
    #[error("node '{0}' was not made from options")]
    NoOptions(String),
    /// A node is named twice in one reopen.
    #[error("node '{0}' is to be reopened twice")]
    Twice(String),
    /// The graph cannot be changed in this way.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The node is read-only.
    #[error("node '{0}' is read-only")]
    ReadOnly(String),
    /// Users of the node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The driver refuses.
    #[error("node '{node}': {source}")]
    Driver {
        /// The node.
        node: String,
        /// Why.
        source: DriverError,
    },
    /// An object cannot be made.
    #[error("{kind} '{id}': {source}")]
    Object {
        /// Of what kind.
        kind: &'static str,
        /// Its id.
        id: String,
        /// Why.
        source: DriverError,
    },
    /// An operation on a child failed.
    #[error("node '{node}': {source}")]
    Io {
        /// The node.
        node: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl BlockdevError {
    pub(crate) fn hidden(node: &str, owner: &str) -> BlockdevError {
        BlockdevError::Hidden { node: node.to_owned(), owner: owner.to_owned() }
    }

    /// The error of a driver, with the name of its node.
    pub(crate) fn of_node(node: &str, error: OpenError) -> BlockdevError {
        let node = node.to_owned();
        match error {
            OpenError::Option { option, why } => BlockdevError::Invalid { node, option, why },
            OpenError::Io(source) => BlockdevError::Io { node, source },
            OpenError::Driver(source) => BlockdevError::Driver { node, source },
            OpenError::Other(error) => *error,
            broken @ OpenError::Broken(_) => BlockdevError::Driver { node, source: broken.into() },
        }
    }
}

/// Why a driver cannot open a node, or change it. The node's name is added to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option has a value that it cannot have.
    #[error("option '{option}': {why}")]
    Option {
        /// The option.
        option: String,
        /// What is wrong with the value.
        why: String,
    },
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Any other reason of the driver's own.
    #[error(transparent)]
    Driver(DriverError),
    /// A child cannot be opened, or there is no such object. It tells which.
    #[error(transparent)]
    Other(Box<BlockdevError>),
    /// The driver has a bug.
    #[error("its driver {0}")]
    Broken(String),
}

impl OpenError {
    /// An option has a value that it cannot have.
    pub fn option(option: impl Into<String>, why: impl std::fmt::Display) -> OpenError {
        OpenError::Option { option: option.into(), why: why.to_string() }
    }

    /// A reason of the driver's own.
    pub fn of_driver(error: impl Into<DriverError>) -> OpenError {
        OpenError::Driver(error.into())
    }

    /// That requests can be made to fit a driver.
    pub(crate) fn check_limits(driver: &dyn BlockDriver) -> Result<(), OpenError> {
        let limits = driver.limits();
        match limits.are_possible() {
            true => Ok(()),
            false => Err(OpenError::broken(format!("has impossible limits: {limits:?}"))),
        }
    }

    pub(super) fn broken(what: impl Into<String>) -> OpenError {
        OpenError::Broken(what.into())
    }
}

impl From<BlockdevError> for OpenError {
    fn from(error: BlockdevError) -> OpenError {
        OpenError::Other(Box::new(error))
    }
}

impl From<Box<BlockdevError>> for OpenError {
    fn from(error: Box<BlockdevError>) -> OpenError {
        OpenError::Other(error)
    }
}

impl From<Box<BlockdevError>> for BlockdevError {
    fn from(error: Box<BlockdevError>) -> BlockdevError {
        *error
    }
}

impl From<GraphError> for OpenError {
    fn from(error: GraphError) -> OpenError {
        BlockdevError::from(error).into()
    }
}
