//! [`Image`]: the way to a format's operations on its whole image.

use std::cell::Cell;
use std::io;

use coblk_aio::Co;

use crate::driver::image::{
    Amend, BackingName, CheckReport, ImageFormat, ImageInfo, ImageSnapshot, Mended, Repair,
};
use crate::graph::node::BlockNode;
use crate::graph::own_io::OwnIo;
use crate::io as request_path;
use crate::io::after_write::WriteKind;

/// A format's operations on its image, for as long as this lives: a drain of the node, or of a child, waits
/// until it is dropped. The methods are those of [`ImageFormat`], and are called in coroutines; the ones
/// that change the image fail with EPERM on a read-only node.
///
/// It neither keeps the node open nor holds permissions. The caller does, as a user of the node
/// ([`BlockBackend`](crate::BlockBackend) or [`NodeUser`](crate::NodeUser)), with the permission to write
/// where it changes the image.
#[must_use = "a drain waits only while it lives"]
pub struct Image<'a> {
    format: &'a dyn ImageFormat,
    node: &'a BlockNode,
    /// None only while a check [waits](Self::co_give_way) for the end of a drain.
    own: Cell<Option<OwnIo<&'a BlockNode>>>,
}

/// How often drains interrupt a check before it fails.
const MAX_INTERRUPTIONS: u32 = 16;

impl BlockNode {
    /// The operations of its format on the whole image. Waits while the node is drained, so a
    /// coroutine that drains the node must not call it. Filters have none: the caller asks the node of the
    /// format itself.
    ///
    /// # Errors
    /// ENOTSUP if the driver is no [format](crate::BlockDriver::image); that of requests if the node is
    /// closed or [inactive](Self::co_set_active).
    pub fn co_image(&self, co: &Co<'_>) -> io::Result<Image<'_>> {
        let own = self.co_begin_own(co);
        if let Some(error) = self.gate.refusal() {
            return Err(error);
        }
        let format = self.driver().image();
        let format = format.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTSUP))?;
        Ok(Image { format, node: self, own: Cell::new(Some(own)) })
    }
}

impl Image<'_> {
    /// The format, where the node may be written.
    fn writable(&self) -> io::Result<&dyn ImageFormat> {
        self.node.writable()?;
        Ok(self.format)
    }

    /// Lets a drain go ahead that waits for this, and waits for its end.
    ///
    /// # Errors
    /// If the node takes no requests by then.
    fn co_give_way(&self, co: &Co<'_>) -> io::Result<()> {
        drop(self.own.take());
        self.own.set(Some(self.node.co_begin_own(co)));
        self.node.gate.refusal().map_or(Ok(()), Err)
    }

    /// See [`ImageFormat::info`].
    pub fn info(&self) -> io::Result<ImageInfo> {
        self.format.info()
    }

    /// See [`ImageFormat::co_check`]. A repair changes the image. A check that a drain interrupts begins again after
    /// the drain; one that is interrupted again and again fails with EBUSY.
    pub fn co_check(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        let mut mended = Mended::default();
        for _ in 0..MAX_INTERRUPTIONS {
            let format = match repair {
                Repair::None => self.format,
                Repair::Leaks | Repair::All => self.writable()?,
            };
            match format.co_check(co, repair) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    mended = mended.and_of(&error);
                    self.co_give_way(co)?;
                }
                checked => return checked.map(|report| report.after(mended)),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// See [`ImageFormat::co_change_backing`]. Changes the image.
    pub fn co_change_backing(&self, co: &Co<'_>, backing: Option<&BackingName>) -> io::Result<()> {
        self.writable()?.co_change_backing(co, backing)
    }

    /// See [`ImageFormat::co_amend`]. Changes the image.
    pub fn co_amend(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        self.writable()?.co_amend(co, amend)
    }

    /// See [`ImageFormat::co_make_empty`]. Changes the image, and tells the [users of
    /// changes](crate::AfterWrite). Where requests are [tracked](crate::Tracking), they wait meanwhile.
    pub fn co_make_empty(&self, co: &Co<'_>) -> io::Result<()> {
        let format = self.writable()?;
        let empty = |co: &Co<'_>| format.co_make_empty(co);
        request_path::co_change_image(&self.node.path, co, WriteKind::Empty, empty)
    }

    /// See [`ImageFormat::co_snapshots`].
    pub fn co_snapshots(&self, co: &Co<'_>) -> io::Result<Vec<ImageSnapshot>> {
        self.format.co_snapshots(co)
    }

    /// See [`ImageFormat::co_create_snapshot`]. Changes the image.
    pub fn co_create_snapshot(&self, co: &Co<'_>, name: &str) -> io::Result<String> {
        self.writable()?.co_create_snapshot(co, name)
    }

    /// See [`ImageFormat::co_delete_snapshot`]. Changes the image.
    pub fn co_delete_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.writable()?.co_delete_snapshot(co, id)
    }

    /// See [`ImageFormat::co_remove_bitmap`]. Changes the image.
    pub(crate) fn co_remove_bitmap(&self, co: &Co<'_>, name: &str) -> io::Result<()> {
        self.writable()?.co_remove_bitmap(co, name)
    }

    /// See [`ImageFormat::co_note_bitmaps`]. Changes the image.
    pub(crate) fn co_note_bitmaps(&self, co: &Co<'_>) -> io::Result<()> {
        self.writable()?.co_note_bitmaps(co)
    }

    /// See [`ImageFormat::co_apply_snapshot`]. Changes the image, and tells the [users of
    /// changes](crate::AfterWrite). Where requests are [tracked](crate::Tracking), they wait meanwhile.
    pub fn co_apply_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        let format = self.writable()?;
        let apply = |co: &Co<'_>| format.co_apply_snapshot(co, id);
        request_path::co_change_image(&self.node.path, co, WriteKind::Apply, apply)
    }
}
