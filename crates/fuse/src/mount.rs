//! [`Mount`]: the file system, from mounting to unmounting.
//!
//! A privileged daemon mounts by itself; another one has `fusermount3` do it, which comes with libfuse and
//! gives back the device over a socket. All functions block, and may wait for other file systems: they are
//! for worker threads.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use coblk_aio::sys::join_fuse_session;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, open, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{getegid, geteuid};

use crate::abi::MAX_TRANSFER;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// What tables of mounts call the file system.
const NAME: &str = "coblk";
/// Variable of the helper's environment: the number of the descriptor to send the device over.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Why something cannot be mounted.
#[derive(Debug)]
pub struct MountError(String);

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MountError {}

impl MountError {
    pub fn new(text: impl Into<String>) -> MountError {
        MountError(text.into())
    }
}

/// How long a process that ends without order waits for its file systems to be unmounted.
const END_LIMIT: Duration = Duration::from_millis(300);

/// The file systems of this process that are mounted.
static MOUNTED: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// Where a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// By which it is told from another that was mounted there later.
    system: FileSystem,
}

/// A file system that is mounted. Dropping it, as at the end of a panic, unmounts it.
#[derive(Debug)]
pub struct Mount(Place);

impl Mount {
    /// Mounts over a regular file, for other users too or not. Returns the device that requests are read
    /// from, non-blocking.
    pub fn new(path: &Path, allow_other: bool) -> Result<(Mount, OwnedFd), MountError> {
        let device = match mount_directly(path, allow_other) {
            Err(Errno::PERM | Errno::ACCESS) => mount_by_helper(path, allow_other)?,
            Err(error) => {
                let what =
                    format!("Failed to mount FUSE session to export on '{}'", path.display());
                return Err(MountError(format!("{what}: {}", io::Error::from(error))));
            }
            Ok(device) => device,
        };
        let number = file_system(path).map_err(|error| MountError(error.to_string()))?;
        let place = Place { path: path.to_owned(), system: number };
        mounted().push(place.clone());
        Ok((Mount(place), device))
    }

    /// Unmounts, if it is still there. Programs that have the file open keep it until the device is closed.
    pub fn unmount(&mut self) {
        if self.0.leave_list() {
            self.0.unmount();
        }
    }
}

impl Place {
    /// Returns whether it was still on the list.
    fn leave_list(&self) -> bool {
        let mut mounted = mounted();
        let index = mounted.iter().position(|place| place == self);
        index.map(|index| mounted.swap_remove(index)).is_some()
    }

    fn unmount(&self) {
        if file_system(&self.path) != Ok(self.system) {
            return;
        }
        if let Err(error) = detach(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot unmount");
        }
    }
}

fn mounted() -> MutexGuard<'static, Vec<Place>> {
    MOUNTED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.0.leave_list() {
            unmount_in_time(vec![self.0.clone()]);
        }
    }
}

/// Unmounts the file systems of this process: for one that is about to end without closing its exports.
/// Waits no longer than a moment. Any thread.
pub fn unmount_all() {
    let places = std::mem::take(&mut *mounted());
    if !places.is_empty() {
        unmount_in_time(places);
    }
}

/// The kernel may wait for requests that the calling thread would serve, so another one does it.
fn unmount_in_time(places: Vec<Place>) {
    let (done, ended) = mpsc::channel();
    let started = thread::Builder::new().name("fuse-unmount".to_owned()).spawn(move || {
        places.iter().for_each(Place::unmount);
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = ended.recv_timeout(END_LIMIT);
    }
}

/// Another descriptor of a session, for another thread.
pub fn join(session: &OwnedFd) -> io::Result<OwnedFd> {
    let device = match open_device() {
        Ok(device) => device,
        // A user may have the device of a mount by the helper alone. Threads then share it.
        Err(Errno::PERM | Errno::ACCESS) => return session.try_clone(),
        Err(error) => return Err(error.into()),
    };
    join_fuse_session(device.as_fd(), session.as_fd())?;
    Ok(device)
}

fn open_device() -> Result<OwnedFd, Errno> {
    open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

/// The options of any way to mount.
fn options(allow_other: bool) -> String {
    let others = if allow_other { ",allow_other" } else { "" };
    format!("default_permissions,max_read={MAX_TRANSFER}{others}")
}

fn mount_directly(path: &Path, allow_other: bool) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    if !geteuid().is_root() {
        return Err(Errno::PERM);
    }
    let device = open_device()?;
    let options = format!(
        "fd={},rootmode={:o},user_id={},group_id={},{}",
        device.as_raw_fd(),
        libc::S_IFREG,
        geteuid().as_raw(),
        getegid().as_raw(),
        options(allow_other)
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(NAME, path, format!("fuse.{NAME}"), flags, options.as_c_str())?;
    Ok(device)
}

fn mount_by_helper(path: &Path, allow_other: bool) -> Result<OwnedFd, MountError> {
    let failed = |why: &dyn fmt::Display| MountError(format!("{HELPER}: {why}"));
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(&error))?;
    let options = format!("fsname={NAME},subtype={NAME},{}", options(allow_other));
    // Its standard input is the socket, which so needs no number of its own.
    let output = Command::new(HELPER)
        .env(HELPER_SOCKET, "0")
        .args(["-o", &options, "--"])
        .arg(path)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .output()
        .map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(MountError(said(&output)));
    }
    let device = receive(&ours).map_err(|error| failed(&error))?;
    let flags = fcntl_getfl(&device).map_err(|error| failed(&error))?;
    fcntl_setfl(&device, flags | OFlags::NONBLOCK).map_err(|error| failed(&error))?;
    Ok(device)
}

/// What the helper complains about, in one line.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().replace('\n', "; ");
    if text.is_empty() { format!("{HELPER} failed: {}", output.status) } else { text }
}

fn receive(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut messages = control.drain();
    let device = messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    device.ok_or(Errno::BADF)
}

/// Takes away what is mounted at a path.
pub fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    let arguments = ["-u", "-z", "--"].map(OsString::from);
    let output = Command::new(HELPER).args(arguments).arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(said(&output))) }
}

/// The numbers of a mounted file system: of its device, which another may get later, and of the mount, which
/// is unique since Linux 6.8, and 0 before.
type FileSystem = ((u32, u32), u64);

/// STATX_MNT_ID_UNIQUE of the kernel.
const UNIQUE_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What is mounted at a path, or where it lies. Asks no server of a file system.
fn file_system(path: &Path) -> Result<FileSystem, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::TYPE | UNIQUE_ID)?;
    let is_unique = found.stx_mask & UNIQUE_ID.bits() != 0;
    let mount = if is_unique { found.stx_mnt_id } else { 0 };
    Ok(((found.stx_dev_major, found.stx_dev_minor), mount))
}

/// Whether a FUSE file system is mounted at a path itself, by the table of the kernel. Asks no server of a
/// file system.
pub fn is_fuse_mount(path: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    is_fuse_in(&table, path)
}

/// The topmost mount at the path comes last.
fn is_fuse_in(table: &[u8], path: &Path) -> bool {
    let mut mounts = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let place = fields.nth(4)?;
        let mut fields = fields.skip_while(|field| *field != b"-");
        (unescaped(place) == path.as_os_str().as_bytes()).then(|| fields.nth(1))?
    });
    mounts.next_back().is_some_and(|kind| kind == b"fuse" || kind.starts_with(b"fuse."))
}

/// The table has blanks, and their like, as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, behind)) = rest.split_first() {
        let escaped = behind.get(..3).filter(|_| *byte == b'\\');
        let escaped = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(meant) => {
                bytes.push(meant);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*byte);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_at_a_path_counts() {
        let table = b"22 1 0:5 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /a\\040b rw,nosuid shared:1 - fuse.coblk coblk rw\n\
            31 22 0:41 / /c rw - fuse x rw\n\
            32 22 0:42 / /c rw - tmpfs x rw\n";
        let is = |path: &str| is_fuse_in(table, Path::new(path));
        assert_eq!([is("/a b"), is("/c"), is("/"), is("/a")], [true, false, false, false]);
        assert!(is_fuse_in(b"31 22 0:41 / /c rw - fuse x rw", Path::new("/c")));
        assert!(!is_fuse_in(b"31 22 0:41 / /c rw - fusectl x rw\n\\0", Path::new("/c")));
    }
    /// Needs root, and `/dev/fuse`. One test: there is one list.
    #[test]
    fn mounts_go_with_their_value_and_with_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("file");
        std::fs::write(&path, "").unwrap();
        let mount = || Mount::new(&path, true).unwrap();
        let (first, device) = mount();
        assert!(is_fuse_mount(&path));
        drop(first);
        assert!(!is_fuse_mount(&path));
        drop(device);
        // A panic takes it away, too.
        let panicked = std::panic::catch_unwind(|| {
            let _mounted = mount();
            assert!(!is_fuse_mount(&path), "as it should be");
        });
        assert!(panicked.is_err() && !is_fuse_mount(&path));
        let (second, device) = mount();
        unmount_all();
        assert!(!is_fuse_mount(&path));
        // Another one that is there by then stays.
        let (third, _device) = mount();
        drop((second, device));
        assert!(is_fuse_mount(&path));
        drop(third);
    }
}
