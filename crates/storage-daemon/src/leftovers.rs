//! Names in the file system that go with the process, also when it ends at once: sockets, the pid
//! file, and what FUSE exports have mounted.
//!
//! Each is removed by its owner when the daemon ends in order. [`remove_all`] removes them when there is
//! no time for that, if they are still the process's own: a successor may have put another file there.
//! Sockets are known to [`net`], mounts to [`coblk::fuse`]; other files are on the list of this module.

use std::fs::{remove_file, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk::aio::net;

static LEFTOVERS: Mutex<List> = Mutex::new(List { last: 0, entries: Vec::new() });

struct List {
    last: u64,
    entries: Vec<Entry>,
}

struct Entry {
    number: u64,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

fn lock() -> MutexGuard<'static, List> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// A file of this process, on the list while this lives.
#[derive(Debug)]
pub struct Leftover {
    number: Option<u64>,
}

impl Leftover {
    /// Puts what is at `path` on the list, if something is.
    pub fn at(path: &Path) -> Leftover {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let Some(file) = file_at(&absolute) else { return Leftover { number: None } };
        let mut list = lock();
        list.last += 1;
        let number = list.last;
        list.entries.push(Entry { number, path: absolute, file });
        Leftover { number: Some(number) }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            lock().entries.retain(|entry| entry.number != number);
        }
    }
}

/// Removes sockets and what is on the list, if it is still this process's own. Any thread.
pub fn remove_all() {
    net::remove_bound_paths();
    coblk::fuse::unmount_all();
    for entry in std::mem::take(&mut lock().entries) {
        if file_at(&entry.path) == Some(entry.file) {
            let _ = remove_file(&entry.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: there is one list.
    #[test]
    fn what_is_on_the_list_and_the_same_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [own, gone, replaced, free] =
            ["own", "gone", "replaced", "free"].map(|name| dir.path().join(name));
        let all = [&own, &gone, &replaced, &free];
        all.iter().for_each(|path| std::fs::write(path, "").unwrap());
        let kept = [&own, &gone, &replaced].map(|path| Leftover::at(path));
        drop(Leftover::at(&free));
        assert_eq!(Leftover::at(&dir.path().join("nothing")).number, None);
        std::fs::remove_file(&gone).unwrap();
        let successor = dir.path().join("successor");
        std::fs::write(&successor, "").unwrap();
        std::fs::rename(&successor, &replaced).unwrap();
        remove_all();
        assert_eq!(all.map(|path| path.exists()), [false, false, true, true]);
        drop(kept);
    }
}
