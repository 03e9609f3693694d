//! Abilities that a file system or a device has said to lack.
//!
//! It is asked for what may be missing with the first request that wants it. That it cannot is
//! remembered, and said once in the log, so that not every request pays for a call in vain. It is
//! asked again now and then: a device behind a name can be another one after a while. An error that
//! is about one request says nothing of others.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Requests that go without before one asks again.
const PASS: u32 = 255;

/// One thing that may be missing. Any thread.
#[derive(Debug)]
pub(super) struct Ability {
    /// As messages call it.
    name: &'static str,
    /// Requests that are to go without; 0 if it can as far as is known.
    pass: AtomicU32,
    said: AtomicBool,
}

impl Ability {
    pub(super) fn new(name: &'static str) -> Ability {
        Ability { name, pass: AtomicU32::new(0), said: AtomicBool::new(false) }
    }

    /// Makes `call`, unless that is known to be in vain. ENOTSUP if it is, or turns out to be.
    pub(super) fn attempt(
        &self,
        image: &Path,
        call: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        // Several threads may count at once; what gets lost is an attempt earlier or later.
        let pass = self.pass.load(Ordering::Relaxed);
        if pass > 0 {
            self.pass.store(pass - 1, Ordering::Relaxed);
            return Err(not_supported());
        }
        call().map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                self.pass.store(PASS, Ordering::Relaxed);
                if !self.said.swap(true, Ordering::Relaxed) {
                    let what = self.name;
                    tracing::info!(image = %image.display(), what, "not supported here");
                }
                not_supported()
            }
            // A kernel that does not know the call, or not for what this is.
            Some(libc::ENOSYS | libc::ENODEV | libc::ENOTTY) => not_supported(),
            _ => error,
        })
    }
}

pub(super) fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errno of an attempt whose call fails like this, and whether the call was made.
    fn attempt(ability: &Ability, errno: i32) -> (i32, bool) {
        let mut made = false;
        let result = ability.attempt(Path::new("image"), || {
            made = true;
            if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        });
        (result.err().and_then(|error| error.raw_os_error()).unwrap_or(0), made)
    }

    #[test]
    fn one_bad_request_says_nothing_of_the_next() {
        let ability = Ability::new("discard");
        for errno in [libc::EINVAL, libc::EIO, libc::ENOSPC, libc::EBUSY, libc::EPERM] {
            assert_eq!(attempt(&ability, errno), (errno, true));
        }
        for errno in [libc::ENOSYS, libc::ENODEV, libc::ENOTTY] {
            assert_eq!(attempt(&ability, errno), (libc::ENOTSUP, true));
        }
        assert_eq!(attempt(&ability, 0), (0, true));
    }

    #[test]
    fn what_cannot_be_is_asked_for_again_now_and_then() {
        let ability = Ability::new("discard");
        for _ in 0..3 {
            assert_eq!(attempt(&ability, libc::EOPNOTSUPP), (libc::ENOTSUP, true));
            for _ in 0..PASS {
                assert_eq!(attempt(&ability, 0), (libc::ENOTSUP, false));
            }
        }
        // Another device is there.
        assert_eq!(attempt(&ability, 0), (0, true));
        assert_eq!(attempt(&ability, 0), (0, true));
    }
}
