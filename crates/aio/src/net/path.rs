//! Sockets that have a name in the file system: how one is bound there, and removed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::listener::BACKLOG;

/// How long another server may take to bind or to remove its socket.
const PATIENCE_AT_START: Duration = Duration::from_secs(10);
/// The same at the end, on the thread of a loop.
const PATIENCE_AT_END: Duration = Duration::from_millis(500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(2);

/// The paths that are bound in this process, for [`remove_bound_paths`].
static BOUND: Mutex<Vec<BoundFile>> = Mutex::new(Vec::new());

/// The socket at a path: no other is the same before it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BoundFile {
    /// The process may leave its directory.
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// A socket that a listener has bound at a path. Dropping it removes the path, if that socket is still
/// there. To be dropped before the socket is closed.
#[derive(Debug)]
#[must_use = "dropping it removes the path"]
pub struct BoundPath(BoundFile);

/// Listens at `path`. A socket at which no process listens is replaced; whatever else is there stays.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] if a process listens there, or there is something that is no socket.
pub fn listen_at(path: &Path) -> io::Result<(BoundPath, Socket)> {
    let address = SockAddr::unix(path)?;
    let absolute = std::path::absolute(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let lock = PathLock::take(&absolute, PATIENCE_AT_START)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_over(path)? => {
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        result => result?,
    }
    let identity = identity(&fs::symlink_metadata(path)?);
    // From here on the path goes if something fails; after the lock, which its removal takes.
    let bound = BoundPath::new(BoundFile { path: absolute, identity });
    let listening = socket.listen(BACKLOG);
    drop(lock);
    listening.map(|()| (bound, socket))
}

/// Whether there is a socket at `path` at which no process listens.
fn is_left_over(path: &Path) -> io::Result<bool> {
    // To connect to what is no socket is refused as well.
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let connected = connect_now(&SockAddr::unix(path)?);
    Ok(connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

/// Connects to a unix socket. Does not wait while the queue there is full, as a blocking socket would
/// without end.
pub fn connect_now(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl BoundFile {
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity)
    }

    fn remove(&self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl BoundPath {
    fn new(file: BoundFile) -> BoundPath {
        bound().push(file.clone());
        BoundPath(file)
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // Where no lock can be made, as on a full disk, looking once more has to do. If another server
        // holds it, the socket stays: the next one that starts replaces it.
        let lock = self.0.is_there().then(|| PathLock::take(&self.0.path, PATIENCE_AT_END));
        let is_held = matches!(&lock, Some(Err(error)) if error.kind() == ErrorKind::AddrInUse);
        // The list is held until the path is gone: what removes all of it would otherwise look now, and
        // remove what another server binds next.
        let mut bound = bound();
        if !is_held {
            self.0.remove();
        }
        bound.retain(|file| *file != self.0);
    }
}

fn bound() -> MutexGuard<'static, Vec<BoundFile>> {
    BOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the paths that listeners of this process have bound, while these go on: for a process that
/// is about to end without dropping them. Like a listener's end it leaves alone what is not that
/// listener's own socket. Any thread.
pub fn remove_bound_paths() {
    bound().iter().for_each(BoundFile::remove);
}

/// The right to bind or to remove a socket at one path: a lock on an empty file beside it, which is
/// removed with the lock. The kernel gives the lock back when its holder dies.
struct PathLock {
    path: PathBuf,
    _file: File,
}

impl PathLock {
    /// # Errors
    /// [`ErrorKind::AddrInUse`] if another has it for as long as `patience`.
    fn take(socket: &Path, patience: Duration) -> io::Result<PathLock> {
        let no_name = || io::Error::new(ErrorKind::InvalidInput, "not the name of a socket");
        let mut name = std::ffi::OsString::from(".");
        name.push(socket.file_name().ok_or_else(no_name)?);
        name.push(".lock");
        let path = socket.with_file_name(name);
        let deadline = Instant::now() + patience;
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                // There may be a link, or a FIFO to wait for.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() || metadata.len() > 0 {
                let text = format!("{} is in the way", path.display());
                return Err(io::Error::new(ErrorKind::AlreadyExists, text));
            }
            match file.try_lock() {
                // Its last holder may have removed it meanwhile.
                Ok(()) if is_at(&metadata, &path) => return Ok(PathLock { path, _file: file }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let text = format!("{} is locked by another process", path.display());
                    return Err(io::Error::new(ErrorKind::AddrInUse, text));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

fn is_at(file: &fs::Metadata, path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == identity(file))
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // It is this file, because only the holder of the lock removes it.
        let _ = fs::remove_file(&self.path);
    }
}
