//! The block layer: [`BlockBackend`], [`BlockNode`], [`drivers`](mod@drivers) and [`filters`].
//!
//! A request goes from a backend (`backend/`) through the request path of its node (`io/`) to a driver,
//! all in one coroutine, on one thread.
//!
//! ```text
//! bitmap/     dirty bitmaps: what was written since an instant
//! sidecar/    bitmaps in a file beside an image
//! driver/     the seam: BlockDriver, limits, flags, roles, permissions
//! io/         the request path of a node: cut, pad, serialise, flush
//! graph/      nodes and edges, gates and drains, permissions
//! backend/    BlockBackend: what a device or a client submits requests to
//! accounting/ counters and latencies
//! protocol/   drivers of where bytes are: file, null
//! format/     drivers of what bytes mean: raw
//! filter/     drivers that pass requests on: blkdebug, blklogwrites, copy-on-read, throttle
//! options/    what nodes are described by
//! registry/   drivers by their names, and how they open nodes
//! blockdevs/  nodes by their names: open, close, reopen, resize
//! ```
#![forbid(unsafe_code)]

pub mod accounting;
mod backend;
mod bitmap;
mod blockdevs;
mod driver;
mod filter;
mod format;
mod graph;
mod io;
pub mod options;
mod protocol;
mod registry;
mod sidecar;

/// Block drivers: where bytes are, and what bytes mean.
pub mod drivers {
    pub use crate::driver::mode::Engine;
    pub use crate::format::{Raw, RawError, RawMeasureOptions, RawOptions};
    pub use crate::protocol::{
        File, FileCreateOptions, FileNodeOptions, FileOpenError, FileOptions, Locking, Null,
        NullOptions,
    };
}

/// Filters: drivers that pass requests on to one child, and do something on the way.
pub mod filters {
    pub use crate::filter::{CopyOnRead, CopyOnReadOptions, blkdebug, blklogwrites, throttle};
}

pub use accounting::{Accounting, RequestKind, Statistics};
pub use backend::entered::Entered;
pub use backend::error_policy::{
    ErrorAction, ErrorEvent, ErrorPolicies, ErrorPolicy, GivenBack, GivingBack, IoStatus,
    ReportErrors,
};
pub use backend::in_flight::{RequestInfo, requests_in_flight};
pub use backend::merged::Merged;
pub use backend::options::BackendOptions;
pub use backend::remote::RemoteBackend;
pub use backend::{BlockBackend, MediumError};
pub use bitmap::{
    AcquiredBitmap, BitmapError, BitmapInfo, BitmapRef, BitmapUse, Bitmaps, DirtyBitmap, DirtyBits,
    NewBitmap, NodeBitmap, SplitBitmap,
};
pub use blockdevs::Blockdevs;
pub use blockdevs::hidden::HiddenNode;
pub use blockdevs::snapshot::{PreparedSnapshot, SnapshotError};
pub use blockdevs::weak::WeakBlockdevs;
pub use driver::background::Background;
pub use driver::debug_event::DebugEvent;
pub use driver::edge::{EdgeId, EdgeInfo, ListId, NewChild};
pub use driver::extent::{Extent, Stored};
pub use driver::flags::{Preallocation, ReadFlags, Truncate, WriteFlags, ZeroFlags};
pub use driver::image::{
    Amend, BackingName, CheckReport, ImageFormat, ImageInfo, ImageSnapshot, Mended, Repair,
    SpecificInfo,
};
pub use driver::map::{Piece, Place, ReadMap};
pub use driver::mode::{CacheMode, DetectZeroes};
pub use driver::permissions::{PermissionError, Permissions};
pub use driver::role::ChildRole;
pub use driver::snapshot::SnapshotReads;
pub use driver::stamp::StorageStamp;
pub use driver::{BlockDriver, BlockLimits, MAX_LENGTH};
pub use graph::after_write::AfterWriteHook;
pub use graph::bitmaps::BitmapRemoval;
pub use graph::chain::ChainExtent;
pub use graph::change::ChangeLock;
pub use graph::filter::Filter;
pub use graph::gate::WAIT_LIMIT;
pub use graph::hand_over::HandOver;
pub use graph::homes::is_home;
pub use graph::image::Image;
pub use graph::insert::TurnedUsers;
pub use graph::joint::JointChange;
pub use graph::mapped::co_read_mapped;
pub use graph::node::BlockNode;
pub use graph::node_info::{ChildInfo, NodeInfo};
pub use graph::own_io::{OwnIo, OwnRequests};
pub use graph::range_lock::{RangeLock, Tracking};
pub use graph::{
    BackendInfo, Child, ChildList, ChildRef, ChildSlot, Children, Device, DrainedAllSection,
    DrainedSection, EdgeRef, FrozenChain, GraphError, NodeUse, NodeUser, Operation, Parent, Woken,
    drain_all, nodes_in_flight,
};
pub use io::ThresholdPassed;
pub use io::after_write::{AfterWrite, WriteKind};
pub use io::tracked::Access;
pub use registry::{
    BlockdevError, CreateError, Creates, Creating, Creation, Driver, DriverEvent, Drivers,
    EventData, EventSink, EventType, Measure, Measures, NamedObject, NodeMode, ObjectFinder,
    OpenError, Opening, ReadFileName, Reopen, Reopening, Secret,
};
pub use sidecar::SidecarError;

/// The drivers of this crate, for options to name.
pub fn drivers() -> Drivers {
    let mut drivers = Drivers::new();
    drivers.add::<drivers::File>();
    drivers.add::<drivers::Null>();
    drivers.add::<drivers::Raw>();
    drivers.add::<filters::blkdebug::BlkDebug>();
    drivers.add::<filters::blklogwrites::BlkLogWrites>();
    drivers.add::<filters::CopyOnRead>();
    drivers.add::<filters::throttle::Throttle>();
    drivers.add_creates::<drivers::File>();
    drivers.add_measures::<drivers::Raw>();
    drivers
}
