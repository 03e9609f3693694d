//! What the opening of a dirty image for writes does first.

use coblk_aio::Co;
use coblk_block::{CheckReport, Child};

use super::{Check, co_check_source};
use crate::layout::FormatError;
use crate::source::ImageError;

/// Repairs the dirty image that `file` has, before anything else is written to it, and clears the dirty bit.
/// `file` may be written and grow. On success the header, and whatever else the caller has read, is old:
/// it has to be read again.
///
/// # Errors
/// EACCES, with what was found, if corruptions are left: the bit stays, and the image is not to be written.
/// Those of the file; then nothing is worse than before.
#[expect(dead_code, reason = "images are not written yet")]
pub(crate) fn co_repair_dirty(co: &Co<'_>, file: &Child) -> Result<(), ImageError> {
    // Nothing is repaired yet.
    Err(refusal(&co_check_source(co, file)?))
}

fn refusal(check: &Check) -> ImageError {
    let CheckReport { corruptions, leaks, check_errors, .. } = check.report;
    let first = check.findings.first().map(|it| format!("; first: {it}")).unwrap_or_default();
    let why = format!(
        "image is dirty, and was not repaired: {corruptions} corruptions, {leaks} leaks, \
         {check_errors} errors of the check{first}"
    );
    FormatError::no_access(why).into()
}
