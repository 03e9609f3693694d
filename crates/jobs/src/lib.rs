//! Jobs: operations that a command starts, and that go on in the background, with the states, verbs and
//! messages of QEMU's.
//!
//! ```text
//! job/     Job, one operation with its state; Task, what it does; JobGroup, jobs that end together
//! set      Jobs: those that there are, by their ids
//! closure  a task that is one function
//! copy/    the copy engine: what is to be copied, and the workers that do it
//! rules    steps that a test build can leave out
//! snapshot/  filters that keep the bytes of an instant, and a node that shows them
//! backup/  Backup: the bytes that a node has at one instant are copied to another
//! mirror/  Mirror: a node is copied to another, and kept equal until that takes its place
//! chain    what jobs that make chains shorter have in common
//! stream/  Stream: a node gets what its backing files have
//! commit/  Commit: a backing file gets what the images above it have
//! transaction/ Transaction: actions that all take effect, or none
//! ```
#![forbid(unsafe_code)]

mod backup;
mod chain;
mod closure;
mod commit;
mod copy;
mod job;
mod mirror;
mod rules;
mod set;
mod stream;

pub use commit::{Commit, CommitError};
mod snapshot;
mod transaction;

pub use backup::{Backup, BackupError, BackupSync, BitmapMode};
pub use job::{
    BlockJob, Job, JobChange, JobError, JobEvent, JobFailure, JobGroup, JobInfo, JobOptions,
    JobStatus, OnError, Progress, Rate, StatusChange, Task, Verb,
};
pub use mirror::{CopyMode, Mirror, MirrorError, SyncMode};
#[cfg(feature = "test-rules")]
pub use rules::{Rule, leave_out};
pub use set::Jobs;
pub use snapshot::{
    CopyBeforeWrite, CopyBeforeWriteOptions, OnCbwError, SnapshotAccess, SnapshotAccessOptions,
};
pub use stream::{Stream, StreamError};
pub use transaction::{
    AbortAction, Action, ActionError, AddBitmap, BitmapAt, ClearBitmap, CompletionMode,
    CreateSnapshot, FindNode, InsertFilter, MergeBitmaps, Preparing, RecordBitmap, RemoveBitmap,
    RemoveFilter, SnapshotError, StartJob, Transaction, TransactionError, co_create_snapshot,
};
