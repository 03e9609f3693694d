//! How the contexts of the daemon wait.

use std::io;

use coblk::AioContext;
use coblk::aio::AioContextBuilder;

/// Contexts wait as `COBLK_WAIT_MODE` says, to find out whether a failure has to do with io_uring.
pub(crate) fn context_builder() -> io::Result<AioContextBuilder> {
    let builder = AioContext::builder();
    match std::env::var("COBLK_WAIT_MODE") {
        Ok(mode) if !mode.is_empty() => Ok(builder.wait_mode(mode.parse()?)),
        _ => Ok(builder),
    }
}
