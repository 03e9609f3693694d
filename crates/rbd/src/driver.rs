//! [`Rbd`]: the driver.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut, PoolShare};
use coblk_block::{
    Background, BlockDriver, BlockLimits, CacheMode, Driver, Extent, OpenError, Opening,
    Preallocation, ReadFlags, Truncate, WriteFlags, ZeroFlags,
};

use crate::connect::{Connect, Failure};
use crate::ffi::Image;
use crate::length;
use crate::name;
use crate::options::RbdOptions;
use crate::status::Status;
use crate::watch;

/// Longest read or write, in bytes: librbd cuts it at objects, and holds a copy of a write.
const MAX_TRANSFER: u64 = 32 << 20;
/// Most objects of one discard or write of zeroes: each becomes a message at once.
const MAX_OBJECTS: u64 = 1024;

/// An RBD image as a node. Opened by options: the driver `rbd`.
pub struct Rbd {
    image: Image,
    length: AtomicU64,
    header: u64,
    object_bytes: u64,
    /// None for an image that is encrypted: librbd tells of its storage, and not of what it decrypts to.
    status: Option<Status>,
    cache: CacheMode,
    read_only: bool,
    filename: String,
    background: std::sync::Arc<Background>,
    /// For calls that block.
    share: PoolShare,
}

/// An image that was opened, and what was asked of it.
struct Opened {
    image: Image,
    length: u64,
    object_bytes: u64,
    /// Bytes of its storage that are before the first one: those of a header of encryption.
    header: u64,
    /// Whether a difference tells of whole objects.
    whole_objects: bool,
    read_only: bool,
}

fn open(
    connect: &Connect<'_>,
    (read_only, may_fall_back): (bool, bool),
    notice: watch::Notice,
) -> Result<Opened, Failure> {
    let (mut image, read_only) = connect.image(read_only, may_fall_back)?;
    let header = connect.decrypt(&image)?;
    // A snapshot never changes.
    if connect.options.snapshot.is_none() {
        image.watch(Box::new(move || notice.image_changed()))?;
    }
    Ok(Opened {
        length: image.length()?,
        header,
        object_bytes: image.object_bytes()?,
        whole_objects: image.has_fast_diff()? && image.is_plain()?,
        image,
        read_only,
    })
}

impl Driver for Rbd {
    const NAMES: &'static [&'static str] = &["rbd"];
    type Options = RbdOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &RbdOptions) -> Result<Rbd, OpenError> {
        let (co, mode) = (opening.co(), opening.mode());
        let connect = Connect::new(options, !mode.cache.direct, |id| opening.object(id))?;
        let mut read_only = mode.read_only;
        if options.snapshot.is_some() && !read_only {
            if !mode.auto_read_only {
                return Err(OpenError::option("snapshot", "a snapshot is read-only"));
            }
            read_only = true;
        }
        let background = std::sync::Arc::new(Background::new(opening.home()));
        let notice = watch::Notice::new(&background);
        let opened =
            PoolShare::once(co, || open(&connect, (read_only, mode.auto_read_only), notice));
        let opened = opened.map_err(OpenError::of_driver)?;
        Ok(Rbd {
            image: opened.image,
            length: AtomicU64::new(opened.length),
            header: opened.header,
            object_bytes: opened.object_bytes,
            status: (options.encrypt.is_none())
                .then(|| Status::new(opened.object_bytes, opened.whole_objects)),
            cache: mode.cache,
            read_only: opened.read_only,
            filename: name::of(options),
            background,
            share: PoolShare::new(),
        })
    }
}

impl Rbd {
    /// Asks for the length again.
    fn refresh_length(&self) -> io::Result<u64> {
        let length = self.image.length()?;
        self.length.store(length, Ordering::Release);
        Ok(length)
    }

    /// Tells the status of a change, which it may have to forget.
    #[inline]
    fn changed(&self, result: io::Result<()>) -> io::Result<()> {
        if let Some(status) = &self.status {
            status.changed();
        }
        result
    }
}

impl BlockDriver for Rbd {
    fn format_name(&self) -> &'static str {
        "rbd"
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn limits(&self) -> BlockLimits {
        let most = self.object_bytes.saturating_mul(MAX_OBJECTS);
        BlockLimits {
            max_transfer: MAX_TRANSFER,
            max_pwrite_zeroes: most,
            max_pdiscard: most,
            ..BlockLimits::default()
        }
    }

    fn background(&self) -> Option<&Background> {
        Some(&self.background)
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
    }

    fn cache_mode(&self) -> CacheMode {
        self.cache
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        // librbd refuses lists of no ranges.
        if target.is_empty() {
            return Ok(());
        }
        let read = self.image.co_readv(co, offset, target)?;
        // Beyond the end of an image that has become shorter.
        if read < target.len() as u64 {
            target.fill_from(read as usize, 0);
        }
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        self.changed(self.image.co_writev(co, offset, source))
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        match self.read_only {
            true => Ok(()),
            false => self.image.co_flush(co),
        }
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let thick = !flags.contains(ZeroFlags::MAY_UNMAP);
        // Space that is kept has zeroes written to it, which is what is not wanted.
        if thick && flags.contains(ZeroFlags::NO_FALLBACK) {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        self.changed(self.image.co_write_zeroes(co, offset, bytes, thick))
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.changed(self.image.co_discard(co, offset, bytes))
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let range = offset..offset + bytes;
        match &self.status {
            Some(status) => status.co_extent(co, &self.share, &self.image, range, self.length()),
            None => Ok(Extent::data(bytes)),
        }
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        if how.preallocation != Preallocation::Off {
            let name = how.preallocation.name();
            let why = format!("preallocation '{name}' is not supported for an RBD image");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let resized = self.share.submit_co(co, || {
            let resized = length::set(&self.image, length, self.header);
            self.refresh_length().and(resized)
        });
        self.changed(resized)
    }

    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.share.submit_co(co, || self.refresh_length())
    }

    fn co_activate(&self, co: &Co<'_>) -> io::Result<()> {
        let activated = self.share.submit_co(co, || {
            self.image.invalidate_cache()?;
            self.refresh_length().map(drop)
        });
        self.changed(activated)
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        PoolShare::once(co, || self.image.close())
    }
}
