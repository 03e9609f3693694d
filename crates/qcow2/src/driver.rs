//! [`Qcow2`]: the driver.

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockDriver, BlockLimits, Child, Driver, EdgeId, EventType, Extent, ImageFormat, OpenError,
    Opening, ReadFlags, Reopen, Reopening, WriteFlags,
};

use crate::event::ImageCorrupted;
use crate::image::Image;
use crate::layout::{SECTOR_BYTES, SubclusterKind};
use crate::open;
use crate::options::Qcow2Options;

/// A qcow2 image, open for reads.
pub struct Qcow2 {
    pub(crate) image: Arc<Image>,
}

impl Driver for Qcow2 {
    const NAMES: &'static [&'static str] = &["qcow2"];
    const EVENTS: &'static [EventType] = &[EventType::of::<ImageCorrupted>()];
    type Options = Qcow2Options;

    fn co_open(opening: &Opening<'_, '_>, options: &Qcow2Options) -> Result<Qcow2, OpenError> {
        Ok(Qcow2 { image: open::co_open(opening, options)? })
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &Qcow2Options,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        open::check_mode(reopening.mode())?;
        // What the image names is found when it is opened, and not by a reopen.
        let is_empty = self.image.backing.node().is_none();
        if is_empty && options.backing.is_none() && self.image.header.backing.is_some() {
            let why = "it is missing, and the image names a backing file: null leaves it out";
            return Err(OpenError::option("backing", why));
        }
        Ok(Box::new(|| {}))
    }
}

impl BlockDriver for Qcow2 {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn length(&self) -> u64 {
        self.image.header.disk_bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn limits(&self) -> BlockLimits {
        let mut limits = BlockLimits::default();
        if self.image.encryption.is_some() {
            limits.request_alignment = SECTOR_BYTES as u32;
        }
        limits
    }

    fn children(&self) -> Vec<EdgeId> {
        let Image { file, data_file, backing, .. } = &*self.image;
        let data_file = data_file.as_ref().map(Child::id);
        [Some(file.id()), data_file, Some(backing.id())].into_iter().flatten().collect()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        self.image.co_read(co, offset, target)
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let run = self.image.co_find(co, offset..offset + bytes)?;
        let (_, name) = self.image.data();
        let extent = match run.kind {
            SubclusterKind::Unallocated | SubclusterKind::UnallocatedStored => {
                Extent::unallocated(run.bytes)
            }
            SubclusterKind::Zero | SubclusterKind::ZeroStored => Extent::hole(run.bytes),
            SubclusterKind::Data => Extent::data(run.bytes),
            SubclusterKind::Compressed => Extent { compressed: true, ..Extent::data(run.bytes) },
        };
        // A reader of the file would have what is encrypted.
        let has_place = run.kind.is_stored() && self.image.encryption.is_none();
        Ok(if has_place { extent.stored_at(Some(name), run.host) } else { extent })
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        let mut all = self.image.file.node().co_allocated_bytes(co)?;
        if let Some(data_file) = &self.image.data_file {
            let more = data_file.node().co_allocated_bytes(co)?;
            all = all.zip(more).map(|(bytes, more)| bytes.saturating_add(more));
        }
        Ok(all)
    }

    fn co_activate(&self, co: &Co<'_>) -> io::Result<()> {
        self.image.co_read_anew(co)
    }

    fn filename(&self) -> Option<String> {
        self.image.file.node().driver().filename()
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(&*self.image)
    }
}
