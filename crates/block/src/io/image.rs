//! A change of all bytes at once, by a snapshot inside of the image.

use std::io;

use coblk_aio::{Co, trace_event};

use super::RequestPath;
use super::after_write::WriteKind;
use super::tracked::Access;
use crate::driver::image::ImageFormat;

/// Has the format of the node take the bytes of a snapshot. Tracked requests wait; users of changes are
/// told, also after a failure, which may have changed a part.
pub(crate) fn co_apply_snapshot(
    path: &RequestPath,
    co: &Co<'_>,
    format: &dyn ImageFormat,
    id: &str,
) -> io::Result<()> {
    trace_event!("bdrv_snapshot_goto", node = path.name());
    let _tracked = path.state.tracked.begin(co, 0..u64::MAX, Access::ExcludeAll);
    let result = format.co_apply_snapshot(co, id);
    path.state.wrote(0..path.length(), WriteKind::Apply, result.is_ok());
    result
}
