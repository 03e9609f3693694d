//! A change of all bytes at once, by the format of the node.

use std::io;

use coblk_aio::{Co, trace_event};

use super::RequestPath;
use super::after_write::WriteKind;
use super::changing::Changing;
use super::tracked::Access;

/// Has the format of the node `change` its bytes. Tracked requests wait; users of changes are told, also
/// after a failure, which may have changed a part.
pub(crate) fn co_change_image(
    path: &RequestPath,
    co: &Co<'_>,
    kind: WriteKind,
    change: impl FnOnce(&Co<'_>) -> io::Result<()>,
) -> io::Result<()> {
    match kind {
        WriteKind::Empty => trace_event!("bdrv_make_empty", node = path.name()),
        _ => trace_event!("bdrv_snapshot_goto", node = path.name()),
    }
    let _tracked = path.state.tracked.begin(co, 0..u64::MAX, Access::ExcludeAll);
    let changing = Changing::new(path, 0..0, kind);
    let result = change(co);
    changing.end(result.is_ok());
    result
}
