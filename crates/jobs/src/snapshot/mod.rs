//! The bytes of an instant: filters that keep them, and show them.
//!
//! ```text
//! keeper   Keeper: what is kept, what is in the target, what is given up
//! reads    reads of the instant, and what waits for them
//! copy     a copy that a guest drives
//! filter   CopyBeforeWrite: has old bytes copied before a guest writes over them
//! options  how it is opened by options
//! access   SnapshotAccess: a node with the bytes of the instant
//! ```
//!
//! What holds, from the moment in which the filter is above the node whose bytes it keeps:
//!
//! 1. A write to a cluster whose old bytes are to be kept reaches the node after these bytes are in the target, or in
//!    memory where they may be held.
//!    For it goes on when the cluster is neither todo nor busy, and a cluster that was neither never is again; a copy
//!    ends its claim after its write to the target has returned.
//! 2. A read of the instant takes a cluster from the target if that is said to have it, which is said after the write
//!    to the target has returned; else from the node, and a copy ends its claim after such reads have. So no
//!    guest writes under them.
//! 3. If bytes of the instant are lost, no read of the instant succeeds any more: that is noted before the write that
//!    loses them goes on, and a read looks at it after it has read.
//! 4. A guest waits for copies of the clusters that it writes, its own and those under way, and a copy for reads of the
//!    instant that have begun before its end; a read of the instant waits for neither. So all waiting ends.

mod access;
mod copy;
mod filter;
mod keeper;
mod options;
mod reads;

pub use access::{SnapshotAccess, SnapshotAccessOptions};
pub use filter::CopyBeforeWrite;
pub(crate) use filter::{cluster_size, leads_to};
pub use keeper::OnCbwError;
pub(crate) use keeper::{Keeper, KeeperPlan};
pub use options::CopyBeforeWriteOptions;
pub(crate) use options::{check_hold, check_least, copy_cluster, copy_granule};
