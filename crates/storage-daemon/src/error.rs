//! [`DaemonError`]: why the daemon cannot do something, in QEMU's words.

use std::io;

use coblk::block::{BitmapError, BlockdevError, SnapshotError};
use coblk::export::ExportError;
use coblk::jobs::{BackupError, CommitError, JobError, MirrorError, StreamError, TransactionError};

use crate::options::OptionError;
use crate::sockets::SocketError;

/// Why something cannot be done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// A node cannot be opened or closed.
    #[error(transparent)]
    Blockdev(BlockdevError),
    /// Every node that is opened by itself has a name.
    #[error("'node-name' must be specified for the root node")]
    NoNodeName,
    /// A bitmap cannot be made, changed or used.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// There is no such node with bitmaps.
    #[error("Node '{0}' not found")]
    NoBitmapNode(String),
    /// Something cannot be asked of a job.
    #[error(transparent)]
    Job(JobError),
    /// A backup does not begin.
    #[error(transparent)]
    Backup(BackupError),
    /// A mirror does not begin.
    #[error(transparent)]
    Mirror(MirrorError),
    /// A stream does not begin.
    #[error(transparent)]
    Stream(StreamError),
    /// A commit does not begin.
    #[error(transparent)]
    Commit(CommitError),
    /// A node does not get an overlay.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// A transaction has no effect.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// An export cannot be added or removed.
    #[error(transparent)]
    Export(ExportError),
    /// The name of a node is taken.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateNode(String),
    /// There is no such node to be closed.
    #[error("Failed to find node with node-name='{0}'")]
    NoSuchNode(String),
    /// There is no such device or node.
    #[error("Cannot find device='{device}' nor node-name='{node_name}'")]
    NoSuchDevice {
        /// The device.
        device: String,
        /// The node.
        node_name: String,
    },
    /// The node is part of another one.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// A node has users.
    #[error("Node '{0}' is in use")]
    NodeInUse(String),
    /// Requests of an export do not end. It goes when they have.
    #[error(
        "Export '{id}' still waits for requests on node '{node_name}'; \
         BLOCK_EXPORT_DELETED tells when it is gone"
    )]
    ExportWaits {
        /// The export.
        id: String,
        /// Its node.
        node_name: String,
    },
    /// There is no NBD server.
    #[error("NBD server not running")]
    NbdServerNotRunning,
    /// There is one.
    #[error("NBD server already running")]
    NbdServerRunning,
    /// Metrics are served already.
    #[error("metrics are served already")]
    MetricsServed,
    /// A socket cannot be made or used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The name of an object is taken.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    DuplicateObject(String),
    /// There is no such object.
    #[error("object '{0}' not found")]
    NoSuchObject(String),
    /// Others refer to the object.
    #[error("object '{0}' is in use, can not be deleted")]
    ObjectInUse(String),
    /// There is no such thread.
    #[error("iothread \"{0}\" not found")]
    NoSuchIothread(String),
    /// There are no such credentials.
    #[error("No TLS credentials with id '{0}'")]
    NoTlsCredentials(String),
    /// The object is something else.
    #[error("Object with id '{0}' is not TLS credentials")]
    NotTlsCredentials(String),
    /// Anything else that keeps a type from making an object, or from changing it.
    #[error(transparent)]
    Object(Box<dyn std::error::Error + Send + Sync>),
    /// A property that stays as it was when its object was made.
    #[error("Property '{0}' cannot be set after initialization")]
    FixedProperty(String),
    /// A thread cannot be started.
    #[error("iothread '{id}' cannot be started: {source}")]
    Iothread {
        /// Which.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// The name of a character device is taken.
    #[error("chardev '{0}' already exists")]
    DuplicateChardev(String),
    /// There is no such character device.
    #[error("chardev \"{0}\" not found")]
    NoSuchChardev(String),
    /// There is a monitor on it.
    #[error("Device '{0}' is in use")]
    ChardevInUse(String),
    /// The process has one standard input.
    #[error("cannot use stdio by multiple character devices")]
    StdioInUse,
    /// What is known, and not there.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The daemon ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The system refuses something.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DaemonError {
    /// An error of an object type's own, or a text.
    pub fn of_object(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DaemonError {
        DaemonError::Object(error.into())
    }
}

impl From<BlockdevError> for DaemonError {
    fn from(error: BlockdevError) -> DaemonError {
        match error {
            BlockdevError::DuplicateNode(name) => DaemonError::DuplicateNode(name),
            BlockdevError::NoSuchNode(name) => DaemonError::NoSuchNode(name),
            BlockdevError::InUse { what: "node", name } => DaemonError::NodeInUse(name),
            BlockdevError::InUse { name, .. } => DaemonError::ObjectInUse(name),
            other => DaemonError::Blockdev(other),
        }
    }
}

impl From<ExportError> for DaemonError {
    fn from(error: ExportError) -> DaemonError {
        match error {
            ExportError::Ended => DaemonError::ShuttingDown,
            ExportError::Options(error) => DaemonError::Options(error),
            ExportError::NoSuchIothread(id) => DaemonError::NoSuchIothread(id),
            other => DaemonError::Export(other),
        }
    }
}
