//! [`BackendOptions`]: how a device uses its node, and lets others use it.

use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle, Co, JoinHandle};

use crate::backend::BlockBackend;
use crate::backend::remote::RemoteBackend;
use crate::driver::permissions::{PermissionError, Permissions};
use crate::graph::backends::Claim;
use crate::graph::node::BlockNode;
use crate::graph::{self, Device, DeviceId, Use};

/// How a device uses its node. Opens a [`BlockBackend`] for it, or one on each of the contexts that
/// the device has queues on: those that are opened with the same options, or clones of them, belong
/// to one device, and do not exclude each other. Any thread.
///
/// Such a backend holds permissions on its node: to read, and to write unless it is read-only. It
/// lets others read, and write only if asked to [share](Self::share_rw). Where an image is locked,
/// that holds for other processes too.
///
/// ```
/// # use coblk_aio::AioContext;
/// # use coblk_block::{BackendOptions, BlockNode, drivers::Null};
/// # let ctx = AioContext::new()?;
/// let disk = BlockNode::new("disk", Null::new(1 << 30));
/// let first = BackendOptions::new("first").open(&ctx, disk.clone())?;
/// let refused = BackendOptions::new("second").open(&ctx, disk.clone()).err().unwrap();
/// assert_eq!(
///     refused.to_string(),
///     "backend 'second' needs write permission on node 'disk', which backend 'first' does not share"
/// );
/// drop(first);
/// let second = BackendOptions::new("second").open(&ctx, disk)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BackendOptions {
    name: String,
    read_only: bool,
    share_rw: bool,
    share_resize: bool,
    allow_inactive: bool,
    /// The permissions that it holds and shares, if they do not follow from the rest.
    permissions: Option<Use>,
    device: DeviceId,
}

impl BackendOptions {
    /// Makes the options of a device called `name`, for messages. It writes, and does not let
    /// others write.
    pub fn new(name: impl Into<String>) -> BackendOptions {
        let device = graph::lock().new_device();
        BackendOptions {
            name: name.into(),
            read_only: false,
            share_rw: false,
            share_resize: false,
            allow_inactive: false,
            permissions: None,
            device,
        }
    }

    /// The device that these options are of.
    pub fn device(&self) -> Device {
        Device(self.device)
    }

    /// Refuses writes, whatever the node allows.
    pub fn read_only(self, read_only: bool) -> BackendOptions {
        BackendOptions { read_only, ..self }
    }

    /// Shares writing and resizing with others. Two writers must both agree to that.
    pub fn share_rw(self, share_rw: bool) -> BackendOptions {
        BackendOptions { share_rw, ..self }
    }

    /// Shares resizing: others may change the length. For a device that tells its guest
    /// ([`BlockBackend::set_length_listener`]), or asks for the length when it needs it.
    pub fn share_resize(self, share_resize: bool) -> BackendOptions {
        BackendOptions { share_resize, ..self }
    }

    /// Holds and shares these permissions, instead of those that follow from reading, writing and
    /// sharing. Permissions to change a node are held where the node can be written. Without
    /// [`WRITE`](Permissions::WRITE) and [`WRITE_UNCHANGED`](Permissions::WRITE_UNCHANGED) the
    /// backend refuses writes.
    pub fn permissions(self, held: Permissions, shared: Permissions) -> BackendOptions {
        BackendOptions { permissions: Some(Use { held, shared }), ..self }
    }

    /// Allows the node to be [inactive](BlockNode::co_set_active) though the device writes: its
    /// requests fail then. May be opened on an inactive node.
    pub fn allow_inactive(self, allow_inactive: bool) -> BackendOptions {
        BackendOptions { allow_inactive, ..self }
    }

    /// Opens a backend of `ctx` on `node`; writable if the node is, and unless read-only. May
    /// block, for the locks of an image; in a coroutine, use [`co_open`](Self::co_open).
    ///
    /// # Errors
    /// If other users of the node, or of its descendants, do not agree; or other processes.
    pub fn open(
        &self,
        ctx: &AioContext,
        node: Arc<BlockNode>,
    ) -> Result<BlockBackend, PermissionError> {
        let backend = self.open_empty(ctx);
        backend.insert(node)?;
        Ok(backend)
    }

    /// [`open`](Self::open), from a coroutine of the context. A worker asks for the locks of an image, which
    /// may take any time.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn co_open(
        &self,
        co: &Co<'_>,
        node: Arc<BlockNode>,
    ) -> Result<BlockBackend, PermissionError> {
        let backend = self.open_empty(co.context());
        backend.co_insert(co, node)?;
        Ok(backend)
    }

    /// Makes a backend of `ctx` without a medium. A medium that is
    /// [inserted](BlockBackend::insert_medium) later is used as these options say.
    pub fn open_empty(&self, ctx: &AioContext) -> BlockBackend {
        BlockBackend::with_claim(ctx, self.name.clone(), self.claim())
    }

    /// Opens a backend in another context, from any thread.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_remote(
        &self,
        home: &AioHandle,
        node: Arc<BlockNode>,
    ) -> JoinHandle<Result<RemoteBackend, PermissionError>> {
        let options = self.clone();
        home.spawn("open backend", move |co| {
            options.co_open(co, node).map(|backend| backend.remote())
        })
    }

    fn claim(&self) -> Claim {
        let writes = Permissions::WRITE | Permissions::WRITE_UNCHANGED;
        if let Some(Use { held, shared }) = self.permissions {
            let write = held & (writes | Permissions::RESIZE);
            return Claim {
                device: self.device,
                read_only: !held.intersects(writes),
                allow_inactive: self.allow_inactive,
                read: held - write,
                write,
                shared,
            };
        }
        let mut shared = Permissions::all();
        shared.set(Permissions::WRITE, self.share_rw);
        shared.set(Permissions::RESIZE, self.share_rw || self.share_resize);
        Claim {
            device: self.device,
            read_only: self.read_only,
            allow_inactive: self.allow_inactive,
            read: Permissions::CONSISTENT_READ,
            write: Permissions::WRITE,
            shared,
        }
    }
}
