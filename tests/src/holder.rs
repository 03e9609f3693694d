//! Other programs that have an image open, and its locks.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coblk::aio::sys;

/// A program that holds an image; killed (SIGKILL) with the value.
pub struct Holder {
    child: Child,
}

impl Holder {
    /// Starts `command` and waits until another process than this one holds the lock on `byte` of
    /// `image`, which no process holds before. Its standard input stays open.
    #[track_caller]
    pub fn start(command: &mut Command, image: &Path, byte: u64) -> Holder {
        assert!(!is_locked(image, byte), "byte {byte} is locked before anybody was started");
        let silent = command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = silent.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut holder = Holder { child };
        let give_up = Instant::now() + Duration::from_secs(30);
        while !is_locked(image, byte) {
            if let Some(status) = holder.child.try_wait().expect("its status") {
                panic!("{command:?} ended with {status} and has not locked the image");
            }
            assert!(Instant::now() < give_up, "{command:?} does not lock the image");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The lock is taken before the contrary one is looked for; let it finish.
        std::thread::sleep(Duration::from_millis(50));
        holder
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether any open file has a lock on a byte.
pub fn is_locked(image: &Path, byte: u64) -> bool {
    let file = File::open(image).expect("an image");
    sys::is_byte_locked_by_others(file.as_fd(), byte).expect("asking for a lock")
}

/// The bytes from 100 to 299 on which some open file has a lock.
pub fn locked_bytes(image: &Path) -> Vec<u64> {
    (100..300).filter(|byte| is_locked(image, *byte)).collect()
}
