//! Refcounts of another width: all of them are written anew, as a repair does it, and one sector of the header
//! switches to table, blocks, and width at once.

use coblk_aio::Co;

use super::{Fixed, Progress, Repairer, co_count};
use crate::check::store::Store;
use crate::layout::{FormatError, RefcountWidth};
use crate::source::ImageError;

/// Has the refcounts of the image in `file`, which is of version 3 and which no node writes, be of `2^order` bits.
/// Leaks are gone then.
///
/// # Errors
/// EINVAL if a cluster has more references than fit, or the image is corrupt. ECANCELED. Those of reading and
/// writing. The image is as before then.
pub(in crate::check) fn co_change_width(
    co: &Co<'_>,
    file: &dyn Store,
    order: u32,
    progress: &dyn Fn(u64, u64),
) -> Result<(), ImageError> {
    let width = RefcountWidth::new(order)?;
    let mut checker = co_count(co, file, false, &Progress::whole(progress))?;
    checker.compare()?;
    let report = &checker.check.report;
    if report.corruptions > 0 || report.check_errors > 0 {
        let why = "'refcount_bits': the image is corrupt, and has to be repaired before";
        return Err(FormatError::invalid(why).into());
    }
    let too_many = |cluster: &u64| checker.counts.get(*cluster) > width.max();
    if let Some(cluster) = checker.counts.iter().find(too_many) {
        let (bits, count) = (width.bits(), checker.counts.get(cluster));
        let offset = cluster << checker.geometry.cluster_bits();
        let why = format!(
            "'refcount_bits': {bits} bits are too few, as the cluster at offset {offset:#x} has a \
             refcount of {count}"
        );
        return Err(FormatError::invalid(why).into());
    }
    checker.refcounts.width = width;
    checker.header.refcount_order = order;
    let mut repairer = Repairer { checker, co, file, fixed: Fixed::default() };
    let places = repairer.plan_rebuild()?;
    repairer.co_rebuild(&places)
}
