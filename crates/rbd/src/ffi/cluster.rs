//! [`Cluster`]: a connection with a cluster; [`Pool`]: where its images are.

use std::io;
use std::ptr::{self, NonNull};

use super::api::{Api, Handle, MissingLibrary, api};
use super::{c_string, checked};

/// A client of a cluster. All its calls may block.
pub struct Cluster {
    api: &'static Api,
    /// A `rados_t`.
    handle: NonNull<std::ffi::c_void>,
}

// SAFETY: librados has its own locks; a handle belongs to no thread.
unsafe impl Send for Cluster {}
// SAFETY: as above. What changes a handle takes `&mut self` here.
unsafe impl Sync for Cluster {}

/// Why there is no client.
#[derive(Debug)]
pub enum NoCluster {
    Library(MissingLibrary),
    Io(io::Error),
}

impl Cluster {
    /// A client that is called `user`, `admin` by default, and not connected yet.
    ///
    /// # Errors
    /// If the libraries are not there; those of librados.
    pub fn new(user: Option<&str>) -> Result<Cluster, NoCluster> {
        let api = api().map_err(NoCluster::Library)?;
        let user = user.map(c_string).transpose().map_err(NoCluster::Io)?;
        let user = user.as_ref().map_or(ptr::null(), |user| user.as_ptr());
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: a text, or null, and a place for the handle, for the length of the call.
        let created = checked(unsafe { (api.rados_create)(&raw mut handle, user) });
        let handle = created.and_then(|_| not_null(handle)).map_err(NoCluster::Io)?;
        Ok(Cluster { api, handle })
    }

    /// Reads a configuration file; without a path those that Ceph looks for.
    ///
    /// # Errors
    /// Those of librados.
    pub fn read_conf(&mut self, path: Option<&str>) -> io::Result<()> {
        let path = path.map(c_string).transpose()?;
        let path = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: our handle, and a text or null.
        checked(unsafe { (self.api.rados_conf_read_file)(self.handle.as_ptr(), path) }).map(drop)
    }

    /// Sets an option of Ceph.
    ///
    /// # Errors
    /// ENOENT if there is none of this name; EINVAL for a value that it cannot have.
    pub fn set(&mut self, name: &str, value: &str) -> io::Result<()> {
        let name = c_string(name)?;
        let value = zeroize::Zeroizing::new(c_string(value)?);
        // SAFETY: our handle, and two texts.
        let set = unsafe {
            (self.api.rados_conf_set)(self.handle.as_ptr(), name.as_ptr(), value.as_ptr())
        };
        checked(set).map(drop)
    }

    /// Connects. Blocks for `client_mount_timeout` if no monitor answers.
    ///
    /// # Errors
    /// Those of librados.
    pub fn connect(&mut self) -> io::Result<()> {
        // SAFETY: our handle, which has not been connected.
        checked(unsafe { (self.api.rados_connect)(self.handle.as_ptr()) }).map(drop)
    }

    /// A pool, and a namespace in it; empty for the one without a name.
    ///
    /// # Errors
    /// ENOENT if there is no such pool; others of librados. The namespace is not looked for.
    pub fn into_pool(self, pool: &str, namespace: &str) -> io::Result<Pool> {
        let (pool, namespace) = (c_string(pool)?, c_string(namespace)?);
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: our handle, a text, and a place for the new handle.
        checked(unsafe {
            (self.api.rados_ioctx_create)(self.handle.as_ptr(), pool.as_ptr(), &raw mut handle)
        })?;
        let pool = Pool { handle: not_null(handle)?, cluster: self };
        // SAFETY: the new handle, which nothing else uses yet, and a text.
        unsafe { (pool.api().rados_ioctx_set_namespace)(pool.handle(), namespace.as_ptr()) };
        Ok(pool)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: our handle, for the last time; pools and images keep the cluster, so none is left.
        unsafe { (self.api.rados_shutdown)(self.handle.as_ptr()) };
    }
}

/// A pool of a cluster that is connected.
pub struct Pool {
    /// A `rados_ioctx_t`.
    handle: NonNull<std::ffi::c_void>,
    cluster: Cluster,
}

// SAFETY: as a `Cluster`; nothing changes the handle after it was made.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(super) fn api(&self) -> &'static Api {
        self.cluster.api
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.as_ptr()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: our handle, for the last time; the images of a pool keep it. The cluster goes afterwards.
        unsafe { (self.api().rados_ioctx_destroy)(self.handle()) };
    }
}

pub(super) fn not_null(handle: Handle) -> io::Result<NonNull<std::ffi::c_void>> {
    NonNull::new(handle).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
}
