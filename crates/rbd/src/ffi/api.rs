//! [`Api`]: the functions of the libraries, by their names.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::sync::OnceLock;

use libc::{iovec, size_t, ssize_t};
use libloading::Library;

/// A `rados_t`, `rados_ioctx_t`, `rbd_image_t`, `rbd_completion_t` or `rbd_image_options_t`.
pub(super) type Handle = *mut c_void;

/// What librbd calls at the end of a request.
pub(super) type OnCompletion = unsafe extern "C" fn(Handle, *mut c_void);

/// What librbd calls when an image has changed.
pub(super) type OnUpdate = unsafe extern "C" fn(*mut c_void);

/// What librbd calls for each range of a difference: offset, length, whether it is there.
pub(super) type OnRange = unsafe extern "C" fn(u64, size_t, c_int, *mut c_void) -> c_int;

/// `rbd_image_info_t`.
#[repr(C)]
pub(super) struct ImageInfo {
    pub(super) size: u64,
    pub(super) object_bytes: u64,
    pub(super) objects: u64,
    pub(super) order: c_int,
    pub(super) block_name_prefix: [c_char; 24],
    pub(super) parent_pool: i64,
    pub(super) parent_name: [c_char; 96],
}

/// `rbd_encryption_luks1_format_options_t`, and the one of LUKS2.
#[repr(C)]
pub(super) struct LuksOptions {
    pub(super) algorithm: c_int,
    pub(super) passphrase: *const c_char,
    pub(super) passphrase_bytes: size_t,
}

/// Neither library is there, or it is too old.
#[derive(Clone, Debug)]
pub struct MissingLibrary(String);

impl fmt::Display for MissingLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = "the driver 'rbd' needs librbd of Ceph 16 or newer, which Debian has in the package librbd1";
        write!(f, "{why}: {}", self.0)
    }
}

impl std::error::Error for MissingLibrary {}

macro_rules! libraries {
    ($($file:literal { $($name:ident($($type:ty),*) $(-> $result:ty)?;)* })*) => {
        /// The functions of both libraries.
        pub(super) struct Api {
            $($(pub(super) $name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*)*
        }

        impl Api {
            fn load() -> Result<Api, libloading::Error> {
                Ok(Api {
                    $($($name: {
                        // SAFETY: what a library of Ceph does when it is loaded is safe, as for any program
                        // that is linked with it. The function has the type that its header gives it.
                        let function = unsafe { *library($file)?.get(stringify!($name))? };
                        function
                    },)*)*
                })
            }
        }
    };
}

libraries! {
    "librados.so.2" {
        rados_create(*mut Handle, *const c_char) -> c_int;
        rados_conf_read_file(Handle, *const c_char) -> c_int;
        rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
        rados_connect(Handle) -> c_int;
        rados_shutdown(Handle);
        rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
        rados_ioctx_destroy(Handle);
        rados_ioctx_set_namespace(Handle, *const c_char);
    }
    "librbd.so.1" {
        rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_close(Handle) -> c_int;
        rbd_create(Handle, *const c_char, u64, *mut c_int) -> c_int;
        rbd_remove(Handle, *const c_char) -> c_int;
        rbd_get_size(Handle, *mut u64) -> c_int;
        rbd_resize(Handle, u64) -> c_int;
        rbd_stat(Handle, *mut ImageInfo, size_t) -> c_int;
        rbd_get_features(Handle, *mut u64) -> c_int;
        rbd_get_flags(Handle, *mut u64) -> c_int;
        rbd_get_overlap(Handle, *mut u64) -> c_int;
        rbd_get_stripe_count(Handle, *mut u64) -> c_int;
        rbd_encryption_load(Handle, c_int, *mut c_void, size_t) -> c_int;
        rbd_encryption_format(Handle, c_int, *mut c_void, size_t) -> c_int;
        rbd_invalidate_cache(Handle) -> c_int;
        rbd_update_watch(Handle, *mut u64, OnUpdate, *mut c_void) -> c_int;
        rbd_update_unwatch(Handle, u64) -> c_int;
        rbd_diff_iterate2(Handle, *const c_char, u64, u64, u8, u8, OnRange, *mut c_void) -> c_int;
        rbd_aio_create_completion(*mut c_void, OnCompletion, *mut Handle) -> c_int;
        rbd_aio_get_return_value(Handle) -> ssize_t;
        rbd_aio_release(Handle);
        rbd_aio_readv(Handle, *const iovec, c_int, u64, Handle) -> c_int;
        rbd_aio_writev(Handle, *const iovec, c_int, u64, Handle) -> c_int;
        rbd_aio_discard(Handle, u64, u64, Handle) -> c_int;
        rbd_aio_write_zeroes(Handle, u64, size_t, Handle, c_int, c_int) -> c_int;
        rbd_aio_flush(Handle, Handle) -> c_int;
    }
}

/// A library, which is never unloaded. Loaded once more it is the same.
fn library(file: &str) -> Result<&'static Library, libloading::Error> {
    // SAFETY: see `Api::load`.
    let library = unsafe { Library::new(file)? };
    Ok(Box::leak(Box::new(library)))
}

/// The libraries, loaded when they are first needed. Blocks then. Without them it is tried again each time:
/// they may be installed while the program runs.
///
/// # Errors
/// If one is not there, or lacks a function.
pub(super) fn api() -> Result<&'static Api, MissingLibrary> {
    static API: OnceLock<Api> = OnceLock::new();
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let loaded = Api::load().map_err(|error| MissingLibrary(error.to_string()))?;
    Ok(API.get_or_init(|| loaded))
}
