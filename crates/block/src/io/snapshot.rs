//! Requests to the bytes of an instant, which some drivers keep.

use std::io;

use coblk_aio::{Co, IoVectorMut};

use super::{RequestPath, check_range, errno};
use crate::driver::extent::Extent;
use crate::driver::flags::ReadFlags;
use crate::driver::snapshot::SnapshotReads;

/// The driver, if it keeps an instant, and the range is within the length.
fn driver_for(path: &RequestPath, offset: u64, bytes: u64) -> io::Result<&dyn SnapshotReads> {
    let driver = path.driver().snapshot().ok_or_else(|| errno(libc::ENOTSUP))?;
    check_range(path, offset, bytes)?;
    Ok(driver)
}

pub(crate) fn co_snapshot_preadv(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let driver = driver_for(path, offset, target.len() as u64)?;
    if target.is_empty() {
        return Ok(());
    }
    driver.co_snapshot_preadv(co, offset, target, flags)
}

pub(crate) fn co_snapshot_block_status(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<Extent> {
    let driver = driver_for(path, offset, bytes)?;
    if bytes == 0 {
        return Ok(Extent::data(0));
    }
    let extent = driver.co_snapshot_block_status(co, offset, bytes)?;
    // The caller goes on behind what it was told: with nothing it would never come to an end.
    if extent.bytes == 0 {
        return Err(errno(libc::EIO));
    }
    let bytes = extent.bytes.min(bytes);
    Ok(Extent { bytes, end: offset + bytes == path.length(), ..extent })
}

pub(crate) fn co_snapshot_pdiscard(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    let driver = driver_for(path, offset, bytes)?;
    if bytes == 0 {
        return Ok(());
    }
    driver.co_snapshot_pdiscard(co, offset, bytes)
}
