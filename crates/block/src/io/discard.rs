//! Discards: hints that a range is not needed any more.

use std::io;

use coblk_aio::{Co, trace_event};

use super::tracked::Access;
use super::{check_range, check_wanted, track, whole_units};
use crate::graph::node::BlockNode;
use crate::io::after_write::WriteKind;

/// Gives the driver's whole units in a range back. What is left at its edges is too small to be
/// given back, and stays. So does everything where discard is disabled or not supported: a hint
/// that is not taken is no error (contract: C81).
pub(crate) fn co_pdiscard(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    check_range(node, offset, bytes)?;
    trace_event!("bdrv_co_pdiscard", node = node.name(), offset, bytes);
    let limits = node.limits();
    let unit = limits.request_alignment.max(limits.pdiscard_alignment);
    let range = whole_units(&(offset..offset + bytes), unit);
    if range.is_empty() || !node.path.is_discard_enabled() {
        return Ok(());
    }
    node.path.reaches(range.end);
    let _tracked = track(node, co, range.clone(), Access::Write, range.end)?;
    let most = (limits.max_pdiscard / u64::from(unit)).max(1) * u64::from(unit);
    let mut at = range.start;
    let result = loop {
        if at == range.end {
            break Ok(());
        }
        let bytes = most.min(range.end - at);
        match check_wanted(co).and_then(|()| node.driver().co_pdiscard(co, at, bytes)) {
            Ok(()) => at += bytes,
            // Nothing was changed by this piece.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let end = if result.is_ok() { at } else { range.end };
    if end > range.start {
        node.path.wrote(range.start..end, WriteKind::Discard, result.is_ok());
    }
    result
}
