//! One [`VirtioBlk`] on a context: [`DeviceHandle`].

use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle};
use coblk_export::{Resident, ResidentError};
use coblk_virtio_blk::{VirtioBlk, VirtioBlkError};

use crate::error::VhostUserBlkError;

/// A device that lives on its context for as long as a handle on it exists. The thread of a connection tells it
/// what to do.
pub(crate) type DeviceHandle = Arc<Resident<VirtioBlk>>;

/// Makes a device on `home`, or, without it, on `ctx`, the caller's own context. Waits for `home`, which is short:
/// nothing is read.
pub(crate) fn start(
    ctx: &AioContext,
    home: Option<&AioHandle>,
    make: impl FnOnce(&AioContext) -> Result<VirtioBlk, VirtioBlkError> + Send + 'static,
) -> Result<DeviceHandle, VhostUserBlkError> {
    let own = ctx.handle();
    let made = Resident::start(ctx, home.unwrap_or(&own), make);
    made.map(Arc::new).map_err(|error| match error {
        ResidentError::Context(name, _) => VhostUserBlkError::ContextGone(name),
        ResidentError::Make(error) => error.into(),
    })
}
