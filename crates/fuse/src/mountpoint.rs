//! Where a file system may be mounted.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use crate::mount::{MountError, detach, is_fuse_mount};

/// File systems of daemons that are gone, above each other, that are taken away.
const MAX_STALE: usize = 16;

/// The path of a mount point without symbolic links. Blocks; asks no server of a file system that is mounted
/// there.
pub fn resolve(path: &str) -> Result<PathBuf, MountError> {
    std::fs::canonicalize(path).map_err(|error| failed(Path::new(path), &error))
}

/// Makes sure that there is a regular file at a path, to mount over. What a daemon has left there that was
/// killed is taken away. Blocks.
pub fn prepare(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STALE {
        match kind(path) {
            Ok(libc::S_IFREG) if is_fuse_mount(path) => {
                let what = "is a mount point of another FUSE file system";
                return Err(MountError::new(format!("'{}' {what}", path.display())));
            }
            Ok(libc::S_IFREG) => return Ok(()),
            Ok(_) => {
                return Err(MountError::new(format!("'{}' is not a regular file", path.display())));
            }
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                tracing::info!(path = %path.display(), "a daemon that is gone was mounted here");
                detach(path).map_err(|error| {
                    let what = "Cannot unmount what a daemon that is gone has left at";
                    MountError::new(format!("{what} '{}': {error}", path.display()))
                })?;
            }
            Err(error) => return Err(failed(path, &error.into())),
        }
    }
    Err(failed(path, &Errno::BUSY.into()))
}

fn failed(path: &Path, error: &io::Error) -> MountError {
    MountError::new(format!("Failed to stat '{}': {error}", path.display()))
}

/// The type of what is there. A server that is gone is noticed.
fn kind(path: &Path) -> Result<u32, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::TYPE)?;
    Ok(u32::from(found.stx_mode) & libc::S_IFMT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| prepare(path).unwrap_err().to_string();
        let missing = dir.path().join("missing");
        let expected = format!("Failed to stat '{}': No such file or directory", missing.display());
        assert!(said(&missing).starts_with(&expected));
        let error = resolve(missing.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
        let expected = format!("'{}' is not a regular file", dir.path().display());
        assert_eq!(said(dir.path()), expected);
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        assert!(prepare(&file).is_ok());
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let file = file.canonicalize().unwrap();
        assert_eq!(resolve(link.to_str().unwrap()).unwrap(), file);
    }
}
