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
mod child_role;
mod debug_event;
mod driver;
pub mod drivers;
mod error_policy;
mod filter;
pub mod filters;
mod flags;
mod gate;
mod graph;
mod in_flight;
mod io;
mod length;
mod live_limits;
mod medium;
mod merged;
mod node;
mod node_info;
pub mod options;
mod own_io;
mod permissions;
mod remote;

pub use accounting::{Accounting, RequestKind, Statistics};
pub use backend_options::BackendOptions;
pub use block_backend::{BlockBackend, MediumError};
pub use blockdevs::Blockdevs;
pub use child_role::ChildRole;
pub use debug_event::DebugEvent;
pub use driver::{BlockDriver, BlockLimits, MAX_LENGTH};
pub use error_policy::{
    ErrorAction, ErrorEvent, ErrorPolicies, ErrorPolicy, GivenBack, GivingBack, IoStatus,
    ReportErrors,
};
pub use filter::Filter;
pub use flags::{WriteFlags, ZeroFlags};
pub use gate::WAIT_LIMIT;
pub use graph::{
    BackendInfo, Child, Device, DrainedAllSection, DrainedSection, GraphError, Parent, drain_all,
};
pub use in_flight::{RequestInfo, requests_in_flight};
pub use io::{BlockStatus, BlockStatusKind, ThresholdPassed};
pub use merged::Merged;
pub use node::BlockNode;
pub use node_info::{CacheMode, ChildInfo, DetectZeroes, NodeInfo};
pub use own_io::OwnIo;
pub use permissions::{PermissionError, Permissions};
pub use remote::RemoteBackend;
