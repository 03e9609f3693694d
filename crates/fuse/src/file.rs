//! [`File`]: what all contexts of an export know of the file: its attributes, and how often it is open.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use coblk_block::IoStatus;

use crate::abi::attr;
use crate::reply::Attributes;
use crate::request::{SetAttr, Time};

/// How an export was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Writes are allowed.
    pub writable: bool,
    /// Writes behind the end make the node longer.
    pub growable: bool,
    /// Every write is durable before it is answered.
    pub writethrough: bool,
}

/// What one queue tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The kernel has agreed on rings.
    UseRing,
    /// There are requests to be read.
    Look,
}

/// Any thread.
pub struct File {
    pub rules: Rules,
    /// Others than the daemon's user reach the file.
    shared: bool,
    /// Permissions, as in chmod(2).
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    times: Mutex<[Time; 3]>,
    /// It was written to since the times were looked at.
    modified: AtomicBool,
    /// How often it is open.
    opens: AtomicUsize,
    status: AtomicU8,
    /// Tells the queues of all contexts.
    queues: OnceLock<Box<dyn Fn(Call) + Send + Sync>>,
}

/// Of all permissions, those to write.
const WRITE_MODES: u32 = 0o222;

impl File {
    pub fn new(rules: Rules, shared: bool) -> File {
        let now = now();
        File {
            rules,
            shared,
            mode: AtomicU32::new(if rules.writable { 0o600 } else { 0o400 }),
            uid: AtomicU32::new(rustix::process::getuid().as_raw()),
            gid: AtomicU32::new(rustix::process::getgid().as_raw()),
            times: Mutex::new([now; 3]),
            modified: AtomicBool::new(false),
            opens: AtomicUsize::new(0),
            status: AtomicU8::new(IoStatus::Ok as u8),
            queues: OnceLock::new(),
        }
    }

    /// Says how queues are told, before the first request.
    pub fn set_queues(&self, tell: impl Fn(Call) + Send + Sync + 'static) {
        let _ = self.queues.set(Box::new(tell));
    }

    fn tell_queues(&self, call: Call) {
        if let Some(tell) = self.queues.get() {
            tell(call);
        }
    }

    /// The kernel has agreed on rings.
    pub fn use_rings(&self) {
        self.tell_queues(Call::UseRing);
    }

    /// A queue does not read what is there.
    pub fn look_elsewhere(&self) {
        self.tell_queues(Call::Look);
    }

    /// Its content has changed.
    pub fn touch(&self) {
        // Threads that write share the line, and do not take it from each other.
        if !self.modified.load(Ordering::Relaxed) {
            self.modified.store(true, Ordering::Relaxed);
        }
    }

    /// It was opened once more.
    pub fn open(&self) {
        self.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// One that had it open has closed it.
    pub fn release(&self) {
        // The kernel closes what it has opened.
        let _ =
            self.opens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1));
    }

    /// It is open no more, though it was not closed.
    pub fn forget_opens(&self) {
        self.opens.store(0, Ordering::Relaxed);
    }

    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Relaxed) > 0
    }

    pub fn set_status(&self, status: IoStatus) {
        self.status.store(status as u8, Ordering::Relaxed);
    }

    pub fn status(&self) -> IoStatus {
        let all = [IoStatus::Ok, IoStatus::Failed, IoStatus::NoSpace];
        let number = self.status.load(Ordering::Relaxed);
        all.into_iter().find(|status| *status as u8 == number).unwrap_or_default()
    }

    /// Its attributes; sizes are of the node.
    pub fn attributes(&self) -> Attributes {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if self.modified.swap(false, Ordering::Relaxed) {
            (times[1], times[2]) = (now(), now());
        }
        Attributes {
            times: *times,
            mode: libc::S_IFREG | self.mode.load(Ordering::Relaxed),
            uid: self.uid.load(Ordering::Relaxed),
            gid: self.gid.load(Ordering::Relaxed),
            ..Attributes::default()
        }
    }

    /// That all but the size may be changed so, or the errno that says why not.
    pub fn check(&self, new: &SetAttr) -> Result<(), i32> {
        let sets = |bits| new.valid & bits != 0;
        if sets(attr::MODE) && new.mode & WRITE_MODES != 0 && !self.rules.writable {
            return Err(libc::EROFS);
        }
        // No other user could be meant.
        if sets(attr::UID | attr::GID) && !self.shared {
            return Err(libc::ENOTSUP);
        }
        if sets(attr::SIZE) && !self.rules.writable {
            return Err(libc::EACCES);
        }
        Ok(())
    }

    /// Changes all but the size. Nothing of it outlives the export.
    pub fn set(&self, new: &SetAttr) {
        let sets = |bits| new.valid & bits != 0;
        if sets(attr::MODE) {
            self.mode.store(new.mode & 0o7777, Ordering::Relaxed);
        }
        if sets(attr::UID) {
            self.uid.store(new.uid, Ordering::Relaxed);
        }
        if sets(attr::GID) {
            self.gid.store(new.gid, Ordering::Relaxed);
        }
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let given = [
            (attr::ATIME, attr::ATIME_NOW, new.atime),
            (attr::MTIME, attr::MTIME_NOW, new.mtime),
            (attr::CTIME, 0, new.ctime),
        ];
        for (time, (set, set_now, value)) in times.iter_mut().zip(given) {
            if sets(set_now) {
                *time = now();
            } else if sets(set) {
                *time = value;
            }
        }
        if sets(attr::MTIME | attr::MTIME_NOW) {
            self.modified.store(false, Ordering::Relaxed);
        }
        if !sets(attr::CTIME) {
            times[2] = now();
        }
    }
}

fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ_ONLY: Rules = Rules { writable: false, growable: false, writethrough: false };

    #[test]
    fn a_read_only_file_gets_no_permission_to_write() {
        let file = File::new(READ_ONLY, true);
        let mode = |mode| file.check(&SetAttr { valid: attr::MODE, mode, ..SetAttr::default() });
        assert_eq!((mode(0o444), mode(0o600)), (Ok(()), Err(libc::EROFS)));
        let size = SetAttr { valid: attr::SIZE, ..SetAttr::default() };
        assert_eq!(file.check(&size), Err(libc::EACCES));
        assert_eq!(file.attributes().mode, libc::S_IFREG | 0o400);
    }

    #[test]
    fn only_a_file_that_others_reach_changes_its_owner() {
        let owner = SetAttr { valid: attr::UID, uid: 7, ..SetAttr::default() };
        let file = File::new(READ_ONLY, true);
        assert_eq!(file.check(&owner), Ok(()));
        file.set(&owner);
        assert_eq!(file.attributes().uid, 7);
        assert_eq!(File::new(READ_ONLY, false).check(&owner), Err(libc::ENOTSUP));
    }

    #[test]
    fn writing_sets_the_time_and_a_time_that_is_given_stays() {
        let file = File::new(Rules { writable: true, ..READ_ONLY }, true);
        let mtime = |(seconds, _)| SetAttr {
            valid: attr::MTIME,
            mtime: (seconds, 5),
            ..SetAttr::default()
        };
        file.touch();
        file.set(&mtime((1000, 0)));
        assert_eq!(file.attributes().times[1], (1000, 5));
        file.touch();
        assert!(file.attributes().times[1].0 > 1000);
    }

    #[test]
    fn what_is_closed_too_often_is_closed() {
        let file = File::new(READ_ONLY, true);
        file.release();
        file.open();
        assert!(file.is_open());
        file.release();
        assert!(!file.is_open());
    }
}
