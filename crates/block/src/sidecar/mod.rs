//! Bitmaps that are kept in a file beside an image, for drivers that cannot keep any: `x-coblk-bitmaps`.
//!
//! ```text
//! format     what is in the file
//! store      the file: replaced as a whole, or appended to
//! in_flight  writes that are under way, counted so that those of before can be waited for
//! sidecar    Sidecar: the bitmaps and their file
//! driver     WithSidecar: a driver whose bitmaps are in such a file
//! ```
//!
//! # Order
//!
//! The file has the bits of an instant, and a *journal*: regions of 64 MiB in which the disk may have been written
//! since. It is read as if all granules of these regions were dirty. What holds, of a bitmap that records:
//!
//! 1. *At each instant* each granule that was written since the bitmap was cleared is dirty in the file that a
//!    crash would leave. So a region is in the journal, and that is durable, before the first write there goes
//!    to the driver.
//! 2. A region leaves the journal only with a file whose bits were read after all writes there had ended that had
//!    relied on it. To begin that, regions are forgotten (`entered`), so that later writes enter them again; then
//!    the writes that are under way are waited for; then the bits are read.
//! 3. The file is never changed but for its journal, which only grows: another one is written beside, made
//!    durable, and renamed. A crash leaves the old file or the new one, and each has 1. Of a journal any part of
//!    its end may be missing that was not durable; no write has relied on that.
//! 4. A file says what image it is of: inode, time of the last change, length. Without a journal, another program that
//!    has changed the image since makes its bitmaps inconsistent. With a journal the image was written by this one, so
//!    only one that has put another file in its place does: the times of changes cannot be told apart.
//!
//! Loom runs models of 2 in every order (`models.rs`).
//!
//! Writes mark bits before they are counted out (2 needs that), so [`WithSidecar`](driver::WithSidecar) marks
//! them by itself; the request path finds them set.

mod driver;
mod format;
mod in_flight;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod sidecar;
mod store;

pub(crate) use driver::WithSidecar;
pub use format::SidecarError;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
