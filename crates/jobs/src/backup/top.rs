//! Which parts of a source only its top layer has.

use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockBackend, BlockNode};

use crate::snapshot::Keeper;
use crate::{Job, JobFailure};

/// After that long without a suspension others have a turn.
const TURN_NS: i64 = 10_000_000;

/// Leaves out clusters that `base` and what is below it have alone. A step of the job's main coroutine; is paused with
/// the job.
///
/// Guests write meanwhile. A cluster that is not allocated now was not at the instant, so leaving it out is right
/// whatever comes; one that a guest has allocated since was copied before.
///
/// # Errors
/// If the job is cancelled, or the source cannot say what it has.
pub(super) fn co_skip_below(
    co: &Co<'_>,
    job: &Rc<Job>,
    (source, base): (&BlockBackend, &Arc<BlockNode>),
    keeper: &Keeper,
) -> Result<(), JobFailure> {
    let length = keeper.length();
    let (mut at, mut turn_ns) = (0, co.context().now_ns());
    // Where the bytes begin that are not allocated, up to `at`.
    let mut start = 0;
    while at < length {
        let left = length - at;
        let (is_allocated, bytes) = source.co_is_allocated_above(co, base, false, at, left)?;
        at += bytes.clamp(1, left);
        start = if is_allocated { at } else { keeper.skip(&(start..at)) };
        if co.context().now_ns() - turn_ns > TURN_NS {
            co.yield_now();
            turn_ns = co.context().now_ns();
        }
        job.co_pause_point(co)?;
    }
    Ok(())
}
