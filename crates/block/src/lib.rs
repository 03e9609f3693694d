//! The block layer: [`BlockBackend`], [`BlockNode`], [`drivers`] and [`filters`].
//!
//! A request goes from a backend (`block_backend.rs`) through the request path (`io/`) to a
//! driver (`drivers/`), all in one coroutine, on one thread.
#![forbid(unsafe_code)]

pub mod accounting;
mod aio;
mod backend_options;
mod block_backend;
mod blockdevs;
mod blocking;
mod driver;
pub mod drivers;
mod error_policy;
pub mod filters;
mod flags;
mod gate;
mod graph;
mod io;
mod length;
mod medium;
mod merged;
mod node;
mod node_info;
pub mod options;
mod permissions;
mod remote;
mod versions;

pub use accounting::{Accounting, RequestKind, Statistics};
pub use backend_options::BackendOptions;
pub use block_backend::{BlockBackend, MediumError};
pub use blockdevs::Blockdevs;
pub use driver::{BlockDriver, BlockLimits};
pub use error_policy::{
    ErrorAction, ErrorEvent, ErrorPolicies, ErrorPolicy, GivenBack, GivingBack, IoStatus,
    ReportErrors,
};
pub use flags::{WriteFlags, ZeroFlags};
pub use graph::{
    BackendInfo, Child, DrainedAllSection, DrainedSection, GraphError, Parent, drain_all,
};
pub use io::{BlockStatus, BlockStatusKind, ThresholdPassed};
pub use merged::Merged;
pub use node::BlockNode;
pub use node_info::{CacheMode, ChildInfo, DetectZeroes, NodeInfo};
pub use permissions::{PermissionError, Permissions};
pub use remote::RemoteBackend;
