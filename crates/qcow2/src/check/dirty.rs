//! What the opening of a dirty image for writes does first.

use coblk_aio::Co;
use coblk_block::{CheckReport, Child, Repair};

use super::store::Store;
use super::{Check, CheckOptions, co_check_store};
use crate::layout::FormatError;
use crate::source::ImageError;

/// Repairs the dirty image that `file` has, before anything else is written to it, and clears the dirty bit.
/// `file` may be written and grow. On success the header, and whatever else the caller has read, is old:
/// it has to be read again.
///
/// # Errors
/// EACCES, with what was found, if corruptions are left: the bit stays, and the image is not to be written.
/// Those of the file; then nothing is worse than before.
pub(crate) fn co_repair_dirty(co: &Co<'_>, file: &Child) -> Result<(), ImageError> {
    co_repair_store(co, file)
}

fn co_repair_store(co: &Co<'_>, file: &dyn Store) -> Result<(), ImageError> {
    let check = co_check_store(co, file, &CheckOptions::new(Repair::All))?;
    let CheckReport { corruptions, check_errors, corruptions_fixed, leaks_fixed, .. } =
        check.report;
    if corruptions == 0 && check_errors == 0 {
        tracing::info!(corruptions_fixed, leaks_fixed, "a dirty qcow2 image was repaired");
        return Ok(());
    }
    Err(refusal(&check))
}

fn refusal(check: &Check) -> ImageError {
    let CheckReport { corruptions, check_errors, .. } = check.report;
    // The last ones are those that are left.
    let last = check.findings.last().map(|it| format!(", such as: {it}")).unwrap_or_default();
    let why = format!(
        "image is dirty, and a repair leaves {corruptions} corruptions and {check_errors} errors \
         of the check{last}"
    );
    FormatError::no_access(why).into()
}
