//! coblk: a block I/O event loop for storage daemons.
//!
//! This is the crate that a daemon depends on. It adds nothing of its own: each layer is a module,
//! and what most programs use is here at the root.
//!
//! * [`aio`]: the event loop, [`AioContext`], with coroutines, bottom halves, timers and workers;
//! * [`block`]: the block layer, [`BlockBackend`] on [`BlockNode`]s on [`drivers`](mod@drivers),
//!   that are made in code, or opened by options ([`Blockdevs`]) with the [drivers](drivers()) of this build;
//! * [`virtio_blk`]: virtio-blk devices as a source of requests, and a guest driver to feed them;
//! * [`export`]: nodes for others to use: types of exports, and the life of one;
//! * [`jobs`]: operations in the background, such as the creation of an image;
//! * [`nbd`]: network block devices, a server and a driver; with the feature `nbd-tls` also over TLS;
//! * [`rbd`]: images of a Ceph cluster, a driver;
//! * [`qapi`]: options as QEMU writes them, into types that serde can make;
//! * `crypto`: encryption of images; with the feature `encryption`;
//! * `qcow2`: the image format; with the feature `qcow2`;
//! * [`qmp`]: commands from outside, in the QEMU Machine Protocol;
//! * `fuse`: block nodes as files of this machine; with the feature `fuse`;
//! * `vhost_user_blk`: block nodes as disks of virtual machines; with the feature `vhost-user-blk`;
//! * [`coroutine`]: the stackful coroutines below all of it.
//!
//! ```
//! use coblk::{AioContext, BackendOptions, BlockNode, IoVector, IoVectorMut, WriteFlags};
//! use coblk::drivers::File;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("disk.img");
//! # std::fs::File::create(&path)?.set_len(1 << 20)?;
//! let ctx = AioContext::new()?;
//! let node = BlockNode::new("disk0", File::options().open(&path)?);
//! let backend = BackendOptions::new("drive0").open(&ctx, node)?;
//!
//! // A coroutine reads like blocking code; the loop goes on while a worker thread does the I/O.
//! ctx.run(|co| {
//!     backend.co_pwritev(co, 4096, &IoVector::from(&b"hello"[..]), WriteFlags::empty())?;
//!     backend.co_flush(co)?;
//!     let mut back = [0u8; 5];
//!     backend.co_preadv(co, 4096, &mut IoVectorMut::from(&mut back[..]))?;
//!     assert_eq!(&back, b"hello");
//!     std::io::Result::Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub use coblk_aio as aio;
pub use coblk_block as block;
pub use coblk_coroutine as coroutine;
#[cfg(feature = "encryption")]
pub use coblk_crypto as crypto;
pub use coblk_export as export;
#[cfg(feature = "fuse")]
pub use coblk_fuse as fuse;
pub use coblk_jobs as jobs;
pub use coblk_nbd as nbd;
pub use coblk_qapi as qapi;
#[cfg(feature = "qcow2")]
pub use coblk_qcow2 as qcow2;
pub use coblk_qmp as qmp;
pub use coblk_rbd as rbd;
#[cfg(feature = "vhost-user-blk")]
pub use coblk_vhost_user_blk as vhost_user_blk;
pub use coblk_virtio_blk as virtio_blk;

pub use coblk_aio::{
    AioContext, AioHandle, AlignedBuffer, BottomHalf, Co, CoWaker, EventNotifier, FdInterest,
    IoBuffer, IoThread, IoVector, IoVectorMut, JoinError, JoinHandle, Readiness, RemoteBottomHalf,
    ThreadPool, Timer, Wait,
};
pub use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockLimits, BlockNode, Blockdevs, Child, Driver,
    Drivers, RemoteBackend, WriteFlags, ZeroFlags, drain_all, options,
};

/// Block drivers: where bytes are, and what bytes mean.
pub mod drivers {
    pub use coblk_block::drivers::*;
    pub use coblk_jobs::{
        CopyBeforeWrite, CopyBeforeWriteOptions, SnapshotAccess, SnapshotAccessOptions,
    };
    pub use coblk_nbd::{Nbd, NbdNodeOptions};
    #[cfg(feature = "qcow2")]
    pub use coblk_qcow2::{Qcow2, Qcow2Options};
    pub use coblk_rbd::{Rbd, RbdOptions};
}

/// The drivers of this build, for options to name.
pub fn drivers() -> Drivers {
    let mut drivers = coblk_block::drivers();
    drivers.add::<drivers::Nbd>();
    drivers.add::<drivers::Rbd>();
    drivers.add_creates::<drivers::Rbd>();
    drivers.add_file_names(|name| {
        drivers::NbdNodeOptions::from_filename(name).map(|options| options.map(Into::into))
    });
    drivers.add::<drivers::CopyBeforeWrite>();
    drivers.add::<drivers::SnapshotAccess>();
    #[cfg(feature = "qcow2")]
    drivers.add::<drivers::Qcow2>();
    #[cfg(feature = "qcow2")]
    drivers.add_creates::<drivers::Qcow2>();
    #[cfg(feature = "qcow2")]
    drivers.add_measures::<drivers::Qcow2>();
    drivers
}

/// Compiles the examples in README.md.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
