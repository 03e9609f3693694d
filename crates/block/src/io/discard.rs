//! Discards: hints that a range is not needed any more.

use std::io;

use coblk_aio::{Co, trace_event};

use super::after_write::WriteKind;
use super::changing::Changing;
use super::held::{Held, lock};
use super::steps::Steps;
use super::tracked::Access;
use super::{RequestPath, check_range, check_wanted, whole_units};

/// Deallocates the driver's whole units in a range. What is left at its edges is too small for that, and
/// stays. So does everything where discard is disabled or not supported: a hint that is not taken is no
/// error (contract: C81). The caller may have locked the range.
pub(crate) fn co_pdiscard(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    check_range(path, offset, bytes)?;
    trace_event!("bdrv_co_pdiscard", node = path.name(), offset, bytes);
    let limits = path.limits.get();
    let unit = limits.request_alignment.max(limits.pdiscard_alignment);
    let range = whole_units(&(offset..offset + bytes), unit);
    if range.is_empty() || !path.state.is_discard_enabled() {
        return Ok(());
    }
    path.state.reaches(range.end);
    let _lock = lock(path, co, held, range.clone(), Access::Write, range.end)?;
    let changing = Changing::new(path, range.clone(), WriteKind::Discard);
    let mut steps = Steps::new(unit, limits.max_pdiscard);
    let mut at = range.start;
    let result = loop {
        if at == range.end {
            break Ok(());
        }
        let bytes = steps.next(co, range.end - at);
        match check_wanted(co).and_then(|()| path.driver().co_pdiscard(co, at, bytes)) {
            Ok(()) => {
                at += bytes;
                if at < range.end {
                    steps.done(co);
                }
            }
            // Nothing was changed by this piece.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    changing.end_at(if result.is_ok() { at } else { range.end }, result.is_ok());
    result
}
