//! [`Image`]: an image that is open, and its requests; [`NewImage`]: one that is to be made.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use libc::size_t;

use super::api::{Api, Handle, ImageInfo, LuksOptions};
use super::cluster::{Pool, not_null};
use super::request::co_run;
use super::{c_string, checked};

/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`.
const THICK: c_int = 1;
/// `RBD_FEATURE_FAST_DIFF` and `RBD_FLAG_FAST_DIFF_INVALID`.
const FAST_DIFF: u64 = 1 << 4;
const FAST_DIFF_INVALID: u64 = 1 << 1;

/// Closed, in the count of users: far more than there can be.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The format of an encrypted image, by its number in librbd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Luks {
    V1 = 0,
    V2 = 1,
}

/// Which image of a pool is opened, and how.
pub struct OpenImage<'a> {
    pub name: &'a str,
    pub snapshot: Option<&'a str>,
    /// It takes no lock, and is never written.
    pub read_only: bool,
}

/// An image that is to be made.
pub struct NewImage<'a> {
    pub name: &'a str,
    pub bytes: u64,
    /// The bytes of an object, as a power of two; 0 for the default of the cluster.
    pub order: u8,
}

type OnChange = Box<dyn Fn() + Send + Sync>;

/// An image that is open. Requests come from any thread, many at once.
pub struct Image {
    /// An `rbd_image_t`; valid until `users` is `CLOSED`.
    handle: NonNull<c_void>,
    /// Calls that use the handle.
    users: AtomicUsize,
    /// What is called when it changes, and the number of that. Boxed twice: its address has one word.
    watch: Option<(u64, Box<OnChange>)>,
    pool: Pool,
}

// SAFETY: librbd has its own locks; a handle belongs to no thread.
unsafe impl Send for Image {}
// SAFETY: as above: its functions may be called from several threads at once. That none is called after the
// image was closed is what `users` is for.
unsafe impl Sync for Image {}

/// The right to use the handle of an image, until it is dropped.
struct Use<'a> {
    image: &'a Image,
    handle: Handle,
}

impl Drop for Use<'_> {
    #[inline]
    fn drop(&mut self) {
        self.image.users.fetch_sub(1, Ordering::Release);
    }
}

impl Image {
    /// Opens an image. Blocks. With the pool where it fails, as others may be opened there.
    ///
    /// # Errors
    /// ENOENT if there is none of this name, or it has no such snapshot; others of librbd.
    pub fn open(pool: Pool, image: &OpenImage<'_>) -> Result<Image, (Pool, io::Error)> {
        let names = c_string(image.name)
            .and_then(|name| Ok((name, image.snapshot.map(c_string).transpose()?)));
        let (name, snapshot) = match names {
            Ok(names) => names,
            Err(error) => return Err((pool, error)),
        };
        let snapshot = snapshot.as_ref().map_or(ptr::null(), |snapshot| snapshot.as_ptr());
        let api = pool.api();
        let open = if image.read_only { api.rbd_open_read_only } else { api.rbd_open };
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: the handle of a pool, texts or null, and a place for the handle.
        let opened =
            checked(unsafe { open(pool.handle(), name.as_ptr(), &raw mut handle, snapshot) });
        match opened.and_then(|_| not_null(handle)) {
            Ok(handle) => Ok(Image { handle, users: AtomicUsize::new(0), watch: None, pool }),
            Err(error) => Err((pool, error)),
        }
    }

    /// Makes an image. Blocks.
    ///
    /// # Errors
    /// EEXIST if there is one of this name; others of librbd.
    pub fn create(pool: &Pool, new: &NewImage<'_>) -> io::Result<()> {
        let name = c_string(new.name)?;
        let mut order = c_int::from(new.order);
        // SAFETY: the handle of a pool, a text, and a number that is read and written.
        let created = unsafe {
            (pool.api().rbd_create)(pool.handle(), name.as_ptr(), new.bytes, &raw mut order)
        };
        checked(created).map(drop)
    }

    /// Removes an image that is not open. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn remove(pool: &Pool, name: &str) -> io::Result<()> {
        let name = c_string(name)?;
        // SAFETY: the handle of a pool, and a text.
        checked(unsafe { (pool.api().rbd_remove)(pool.handle(), name.as_ptr()) }).map(drop)
    }

    fn api(&self) -> &'static Api {
        self.pool.api()
    }

    /// # Errors
    /// ESHUTDOWN if it was closed.
    #[inline]
    fn enter(&self) -> io::Result<Use<'_>> {
        let entered = Use { image: self, handle: self.handle.as_ptr() };
        match self.users.fetch_add(1, Ordering::Acquire) & CLOSED {
            0 => Ok(entered),
            _ => Err(io::Error::from_raw_os_error(libc::ESHUTDOWN)),
        }
    }

    /// Calls `on_change` whenever the image has changed: its length, its snapshots. It must not block. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn watch(&mut self, on_change: OnChange) -> io::Result<()> {
        unsafe extern "C" fn changed(on_change: *mut c_void) {
            // SAFETY: the box is dropped after the watch has ended, which waits for calls.
            unsafe { (*on_change.cast_const().cast::<OnChange>())() };
        }
        let on_change = Box::new(on_change);
        let argument = (&raw const *on_change).cast_mut().cast::<c_void>();
        let mut number = 0;
        // SAFETY: our handle, a place for the number, and a function with its argument.
        checked(unsafe {
            (self.api().rbd_update_watch)(self.handle.as_ptr(), &raw mut number, changed, argument)
        })?;
        self.watch = Some((number, on_change));
        Ok(())
    }

    /// Closes the image, if no request is in flight, and it is open. Blocks. The connection with the cluster
    /// ends when the value is dropped.
    ///
    /// # Errors
    /// EBUSY if there are requests; those of librbd: it is closed then all the same.
    pub fn close(&self) -> io::Result<()> {
        match self.users.compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(users) if users & CLOSED != 0 => return Ok(()),
            Err(_) => return Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
        if let Some((number, _)) = &self.watch {
            // SAFETY: our handle, and the number of our watch. Nothing else uses either: this is the one
            // call that has closed it.
            let ended =
                checked(unsafe { (self.api().rbd_update_unwatch)(self.handle.as_ptr(), *number) });
            if let Err(error) = ended {
                tracing::warn!(%error, "the watch of an RBD image does not end");
            }
        }
        // SAFETY: as above; nothing uses the handle any more.
        checked(unsafe { (self.api().rbd_close)(self.handle.as_ptr()) }).map(drop)
    }

    /// Its length in bytes, also after others have changed it. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn length(&self) -> io::Result<u64> {
        self.number(self.api().rbd_get_size)
    }

    fn number(&self, ask: unsafe extern "C" fn(Handle, *mut u64) -> c_int) -> io::Result<u64> {
        let (image, mut number) = (self.enter()?, 0);
        // SAFETY: a handle in use, and a place for the number.
        checked(unsafe { ask(image.handle, &raw mut number) })?;
        Ok(number)
    }

    /// The bytes of an object. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn object_bytes(&self) -> io::Result<u64> {
        let image = self.enter()?;
        let mut info = std::mem::MaybeUninit::<ImageInfo>::zeroed();
        // SAFETY: a handle in use, and a place of the length that is said.
        checked(unsafe {
            (self.api().rbd_stat)(image.handle, info.as_mut_ptr(), size_of::<ImageInfo>())
        })?;
        // SAFETY: numbers, of which any is one; librbd has written them over zeroes.
        let info = unsafe { info.assume_init() };
        Ok(info.object_bytes.max(1))
    }

    /// Whether a table knows which objects there are, and is right. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn has_fast_diff(&self) -> io::Result<bool> {
        let features = self.number(self.api().rbd_get_features)?;
        Ok(features & FAST_DIFF != 0
            && self.number(self.api().rbd_get_flags)? & FAST_DIFF_INVALID == 0)
    }

    /// Whether one object has the bytes of one range, and no parent has any. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn is_plain(&self) -> io::Result<bool> {
        let overlap = self.number(self.api().rbd_get_overlap)?;
        Ok(overlap == 0 && self.number(self.api().rbd_get_stripe_count)? <= 1)
    }

    /// Changes the length. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let image = self.enter()?;
        // SAFETY: a handle in use.
        checked(unsafe { (self.api().rbd_resize)(image.handle, bytes) }).map(drop)
    }

    /// Forgets what is cached, which another client may have changed. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn invalidate_cache(&self) -> io::Result<()> {
        let image = self.enter()?;
        // SAFETY: a handle in use.
        checked(unsafe { (self.api().rbd_invalidate_cache)(image.handle) }).map(drop)
    }

    /// Has what is read decrypted, and what is written encrypted. Blocks.
    ///
    /// # Errors
    /// EPERM if the passphrase is wrong; EINVAL if there is no header of this format; others of librbd.
    pub fn load_encryption(&self, luks: Luks, passphrase: &[u8]) -> io::Result<()> {
        let image = self.enter()?;
        let mut options = luks_options(0, passphrase);
        let place = (&raw mut options).cast::<c_void>();
        // SAFETY: a handle in use, and options of this format with a passphrase of the length that they say.
        let loaded = unsafe {
            (self.api().rbd_encryption_load)(image.handle, luks as c_int, place, size_of_luks())
        };
        checked(loaded).map(drop)
    }

    /// Makes a header of encryption. `algorithm` is its number in librbd. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn format_encryption(
        &self,
        luks: Luks,
        algorithm: c_int,
        passphrase: &[u8],
    ) -> io::Result<()> {
        let image = self.enter()?;
        let mut options = luks_options(algorithm, passphrase);
        let place = (&raw mut options).cast::<c_void>();
        // SAFETY: as in `load_encryption`.
        let formatted = unsafe {
            (self.api().rbd_encryption_format)(image.handle, luks as c_int, place, size_of_luks())
        };
        checked(formatted).map(drop)
    }

    /// Calls `visit` with the ranges that have data, or had: offset, length, and whether it is there. They
    /// come in order. It ends when `visit` returns false. Blocks.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn allocated(
        &self,
        range: std::ops::Range<u64>,
        whole_objects: bool,
        mut visit: impl FnMut(u64, u64, bool) -> bool,
    ) -> io::Result<()> {
        /// The errno of a visit that has seen enough.
        const ENOUGH: c_int = -libc::ECANCELED;
        unsafe extern "C" fn found<V: FnMut(u64, u64, bool) -> bool>(
            offset: u64,
            bytes: size_t,
            exists: c_int,
            visit: *mut c_void,
        ) -> c_int {
            // SAFETY: the function's own argument, which librbd calls from one thread at a time, and not
            // after it has returned.
            let visit = unsafe { &mut *visit.cast::<V>() };
            if visit(offset, bytes as u64, exists != 0) { 0 } else { ENOUGH }
        }
        fn callback<V: FnMut(u64, u64, bool) -> bool>(_: &V) -> super::api::OnRange {
            found::<V>
        }
        let image = self.enter()?;
        let (on_range, argument) = (callback(&visit), (&raw mut visit).cast::<c_void>());
        // SAFETY: a handle in use, no snapshot, and a function with its argument, for the length of the call.
        let told = unsafe {
            (self.api().rbd_diff_iterate2)(
                image.handle,
                ptr::null(),
                range.start,
                range.end - range.start,
                1,
                u8::from(whole_objects),
                on_range,
                argument,
            )
        };
        match told {
            ENOUGH => Ok(()),
            told => checked(told).map(drop),
        }
    }

    /// Reads at `offset` bytes into `target`; returns how many bytes were read.
    ///
    /// # Errors
    /// Those of librbd.
    #[inline]
    pub fn co_readv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<u64> {
        let (image, api) = (self.enter()?, self.api());
        let ranges = target.as_iovecs();
        let (first, count) = (ranges.as_ptr(), ranges.len() as c_int);
        // SAFETY: a handle in use for the length of this call, for which ranges and memory are borrowed.
        unsafe {
            co_run(co, api, |completion| {
                (api.rbd_aio_readv)(image.handle, first, count, offset, completion)
            })
        }
    }

    /// Writes `source` at `offset` bytes.
    ///
    /// # Errors
    /// Those of librbd.
    #[inline]
    pub fn co_writev(&self, co: &Co<'_>, offset: u64, source: &IoVector<'_>) -> io::Result<()> {
        let (image, api) = (self.enter()?, self.api());
        let ranges = source.as_iovecs();
        let (first, count) = (ranges.as_ptr(), ranges.len() as c_int);
        // SAFETY: as in `co_readv`.
        let written = unsafe {
            co_run(co, api, |completion| {
                (api.rbd_aio_writev)(image.handle, first, count, offset, completion)
            })
        };
        written.map(drop)
    }

    /// Deallocates a range.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn co_discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let (image, api) = (self.enter()?, self.api());
        // SAFETY: a handle in use for the length of this call, and numbers.
        let done = unsafe {
            co_run(co, api, |completion| {
                (api.rbd_aio_discard)(image.handle, offset, bytes, completion)
            })
        };
        done.map(drop)
    }

    /// Has a range read as zeroes; allocated, if it is to be `thick`.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn co_write_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        thick: bool,
    ) -> io::Result<()> {
        let (image, api) = (self.enter()?, self.api());
        let (bytes, flags) = (bytes as size_t, if thick { THICK } else { 0 });
        // SAFETY: as in `co_discard`.
        let done = unsafe {
            co_run(co, api, |completion| {
                (api.rbd_aio_write_zeroes)(image.handle, offset, bytes, completion, flags, 0)
            })
        };
        done.map(drop)
    }

    /// Makes durable what was written before, also what is cached.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let (image, api) = (self.enter()?, self.api());
        // SAFETY: as in `co_discard`.
        let done =
            unsafe { co_run(co, api, |completion| (api.rbd_aio_flush)(image.handle, completion)) };
        done.map(drop)
    }
}

impl Drop for Image {
    /// Where it was not closed: nothing borrows it any more, so nothing is in flight.
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "an RBD image does not close");
        }
    }
}

fn luks_options(algorithm: c_int, passphrase: &[u8]) -> LuksOptions {
    let (bytes, length) = (passphrase.as_ptr().cast(), passphrase.len());
    LuksOptions { algorithm, passphrase: bytes, passphrase_bytes: length }
}

fn size_of_luks() -> size_t {
    size_of::<LuksOptions>()
}
