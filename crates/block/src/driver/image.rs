//! [`ImageFormat`]: operations on a whole image, of a driver that is a format.

use std::{fmt, io};

use coblk_aio::Co;
use coblk_qapi::Deferred;
use serde_json::Value;

use super::not_supported;

/// A format's operations on its image as a whole: rare ones, which are kept out of
/// [`BlockDriver`](crate::BlockDriver) so that drivers of protocols and filters do not see them.
///
/// They are called by [`BlockNode::co_image`](crate::BlockNode::co_image). The layer guarantees that the node is open
/// and active, that a drain waits for the call, unless the format [lets it go ahead](crate::Child::co_let_drain), and
/// that what changes the image is not called on a read-only node. It does *not* drain the node: requests run
/// meanwhile, and so may another of these calls. The format excludes by its own locks what must not happen at the
/// same time.
///
/// Methods are called as those of [`BlockDriver`](crate::BlockDriver) are: in coroutines, in several
/// contexts at once. A change that has returned is durable: no flush has to follow. After an error the image
/// is as before, or in a state that a check repairs without loss. By default all fail with ENOTSUP. Errors
/// carry the OS errno; those for a user may have a text instead.
pub trait ImageFormat: Send + Sync {
    /// Describes the image as the format has it in memory. Makes no system call; any thread.
    fn info(&self) -> io::Result<ImageInfo> {
        Err(not_supported())
    }

    /// Compares the image's tables with each other, and mends what `repair` names. Findings are no error:
    /// they are in the report. With a repair the report is that of a second check, after the repair, beside
    /// the counts of what was fixed. An error means that the check has not come to its end.
    ///
    /// A check takes as long as the image is large, and a drain waits for it. A format whose node is [being
    /// drained](crate::BlockDriver::drained_begin) ends it with EINTR, with nothing held that a request may wait for:
    /// the layer calls again after the drain. A repair that has mended something by then has [`Mended`] in the error.
    fn co_check(&self, _co: &Co<'_>, _repair: Repair) -> io::Result<CheckReport> {
        Err(not_supported())
    }

    /// Writes another backing file into the header; `None` means that there is none. The bytes of the image
    /// are not adapted to it, and no edge turns. A name or format that is too long is EINVAL, and ENOSPC if
    /// the header has no place for it.
    fn co_change_backing(&self, _co: &Co<'_>, _backing: Option<&BackingName>) -> io::Result<()> {
        Err(not_supported())
    }

    /// Changes properties of the image, as `qemu-img amend` does: those that `amend` names; others stay. The
    /// length is none of them, as the layer keeps it for requests: a caller truncates the node. Takes as
    /// long as the image is large, and ends with ECANCELED when the coroutine is not [wanted](Co::is_wanted)
    /// any more: the image is as before then. Options that make no sense are EINVAL, with a text.
    fn co_amend(&self, _co: &Co<'_>, _amend: Amend<'_>) -> io::Result<()> {
        Err(not_supported())
    }

    /// Drops all that the image itself has stored: its bytes are those of the backing file then, or zeroes.
    /// Its length and properties stay, and so do snapshots.
    fn co_make_empty(&self, _co: &Co<'_>) -> io::Result<()> {
        Err(not_supported())
    }

    /// The image's snapshots, in the order of its table.
    fn co_snapshots(&self, _co: &Co<'_>) -> io::Result<Vec<ImageSnapshot>> {
        Err(not_supported())
    }

    /// Keeps the bytes of one instant of this call under `name`, and returns the id that the format gives
    /// them. Names may repeat; ids do not.
    fn co_create_snapshot(&self, _co: &Co<'_>, _name: &str) -> io::Result<String> {
        Err(not_supported())
    }

    /// Deletes the snapshot of an id. Without such a snapshot: ENOENT.
    fn co_delete_snapshot(&self, _co: &Co<'_>, _id: &str) -> io::Result<()> {
        Err(not_supported())
    }

    /// Checks that the image can store one more bitmap, besides those that the driver [has
    /// loaded](crate::BlockDriver::bitmaps): of this name, with granules of so many bytes. Errors have a text.
    fn check_new_bitmap(&self, _name: &str, _granularity: u64) -> io::Result<()> {
        Err(not_supported())
    }

    /// Removes the bitmap of a name from the image, if it is stored there.
    fn co_remove_bitmap(&self, _co: &Co<'_>, _name: &str) -> io::Result<()> {
        Err(not_supported())
    }

    /// The node's stored bitmaps are others than before: one was added, enabled or disabled, or has other bits. For
    /// images that have to know that at once, and not when they are closed.
    fn co_note_bitmaps(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Replaces the bytes of the node by those of the snapshot of an id, which stays. Without such a
    /// snapshot: ENOENT. The node must be as long as the snapshot, else EINVAL: the caller truncates it
    /// first, as the layer keeps the length for requests.
    fn co_apply_snapshot(&self, _co: &Co<'_>, _id: &str) -> io::Result<()> {
        Err(not_supported())
    }
}

/// A change of properties of an image.
#[non_exhaustive]
pub struct Amend<'a> {
    /// The properties, by the names that they have when an image is created. The format
    /// [reads](Deferred::take) them as a type of its own.
    pub options: Deferred,
    /// Whether to go on where that may lose something, such as the last key of an encrypted image.
    pub force: bool,
    /// To be called now and then with how much is done, and how much there is to do, in any unit.
    pub progress: &'a dyn Fn(u64, u64),
}

impl Amend<'_> {
    /// To these properties, and not by force.
    pub fn new(options: Deferred) -> Amend<'static> {
        Amend { options, force: false, progress: &|_, _| () }
    }
}

impl fmt::Debug for Amend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Amend { options, force, .. } = self;
        f.debug_struct("Amend")
            .field("options", options)
            .field("force", force)
            .finish_non_exhaustive()
    }
}

/// An image as its format describes it. Made by [`ImageInfo::new`]; fields that a format does not know stay
/// as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Length of the disk that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Size of a cluster in bytes, if the format has clusters.
    pub cluster_size: Option<u64>,
    /// Whether its data is encrypted.
    pub encrypted: bool,
    /// Whether it was not closed after the last change: a check may find leaks.
    pub dirty: bool,
    /// Whether it is marked as corrupt: it is not to be written before a repair.
    pub corrupt: bool,
    /// The backing file that the header names.
    pub backing: Option<BackingName>,
    /// Its snapshots, in the order of its table.
    pub snapshots: Vec<ImageSnapshot>,
    /// What only this format has.
    pub specific: Option<SpecificInfo>,
}

impl ImageInfo {
    /// An image of `virtual_size` bytes, without anything else.
    pub fn new(virtual_size: u64) -> ImageInfo {
        ImageInfo {
            virtual_size,
            cluster_size: None,
            encrypted: false,
            dirty: false,
            corrupt: false,
            backing: None,
            snapshots: Vec::new(),
            specific: None,
        }
    }
}

/// What only one format has, as `format-specific` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecificInfo {
    /// The name of the type of `data`, such as `qcow2`.
    pub kind: &'static str,
    /// The fields: a JSON object.
    pub data: Value,
}

impl SpecificInfo {
    /// The fields `data` of the type `kind`.
    pub fn new(kind: &'static str, data: Value) -> SpecificInfo {
        SpecificInfo { kind, data }
    }
}

/// A backing file as a header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackingName {
    /// The path or URL, as it is in the header: relative paths are those of the image's directory.
    pub name: String,
    /// The name of its format, if the header has one.
    pub format: Option<String>,
}

impl BackingName {
    /// The file `name`, of the format `format`.
    pub fn new(name: impl Into<String>, format: Option<String>) -> BackingName {
        BackingName { name: name.into(), format }
    }
}

/// Which findings a check mends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// None: the image is not written.
    #[default]
    None,
    /// Leaks: space that is counted as used, and is not.
    Leaks,
    /// Leaks and corruptions.
    All,
}

/// The outcome of a check, in clusters unless a field says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// Places that could not be checked, as reads failed.
    pub check_errors: u64,
    /// Corruptions that are there now.
    pub corruptions: u64,
    /// Leaks that are there now.
    pub leaks: u64,
    /// Corruptions that the repair has mended.
    pub corruptions_fixed: u64,
    /// Leaks that the repair has mended.
    pub leaks_fixed: u64,
    /// All clusters of the disk that the guest sees.
    pub total_clusters: u64,
    /// Those with storage of their own.
    pub allocated_clusters: u64,
    /// Those that are not stored behind their predecessors.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends in the image, in bytes, if the format knows.
    pub image_end_offset: Option<u64>,
}

impl CheckReport {
    /// The report, of a repair that followed others.
    pub(crate) fn after(self, before: Mended) -> CheckReport {
        let corruptions_fixed = self.corruptions_fixed.saturating_add(before.corruptions);
        let leaks_fixed = self.leaks_fixed.saturating_add(before.leaks);
        CheckReport { corruptions_fixed, leaks_fixed, ..self }
    }
}

/// What a repair has mended before it was interrupted, in an error of the kind
/// [`Interrupted`](io::ErrorKind::Interrupted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "formats make it")]
pub struct Mended {
    /// Corruptions.
    pub corruptions: u64,
    /// Leaks.
    pub leaks: u64,
}

impl Mended {
    /// This, and what the error of an interrupted repair tells.
    pub(crate) fn and_of(self, error: &io::Error) -> Mended {
        let more: Option<&Mended> = error.get_ref().and_then(|inner| inner.downcast_ref());
        let more = more.copied().unwrap_or_default();
        Mended {
            corruptions: self.corruptions.saturating_add(more.corruptions),
            leaks: self.leaks.saturating_add(more.leaks),
        }
    }
}

impl fmt::Display for Mended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "interrupted, with {} corruptions and {} leaks mended",
            self.corruptions, self.leaks
        )
    }
}

impl std::error::Error for Mended {}

/// A snapshot inside of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageSnapshot {
    /// Its id, which no other snapshot of the image has.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Length of the disk at that instant, in bytes.
    pub length: u64,
    /// Size of the state of the machine that is kept with it, in bytes.
    pub vm_state_size: u64,
    /// When it was made: seconds and nanoseconds since 1970, UTC.
    pub date: (u64, u32),
    /// How long the guest had run by then, in nanoseconds.
    pub vm_clock: u64,
    /// How many instructions the guest had run by then, if they were counted.
    pub icount: Option<u64>,
}

impl ImageSnapshot {
    /// A snapshot of a disk of `length` bytes, without a machine's state and times.
    pub fn new(id: impl Into<String>, name: impl Into<String>, length: u64) -> ImageSnapshot {
        let (id, name) = (id.into(), name.into());
        let (vm_state_size, date, vm_clock, icount) = (0, (0, 0), 0, None);
        ImageSnapshot { id, name, length, vm_state_size, date, vm_clock, icount }
    }
}
