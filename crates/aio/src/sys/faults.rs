//! Faults in system calls, for simulated contexts: transfers that fall short, interrupts, errors.

use std::cell::RefCell;
use std::io;

/// How often system calls go wrong while simulated jobs run, each out of 1000 calls.
///
/// ```
/// let faults = coblk_aio::sys::faults::Faults::default().short_per_mille(300).error_per_mille(30);
/// assert_eq!((faults.short_per_mille, faults.no_space_per_mille), (300, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// A read or write transfers only a part of what was asked.
    pub short_per_mille: u16,
    /// The call fails with EINTR, or with EAGAIN.
    pub interrupted_per_mille: u16,
    /// The call fails with EIO.
    pub error_per_mille: u16,
    /// A write fails with ENOSPC.
    pub no_space_per_mille: u16,
    /// Transfers fall short at multiples of this many bytes; 0 is like 1. With O_DIRECT the kernel
    /// ends them at whole blocks.
    pub short_unit_bytes: u16,
}

impl Faults {
    /// The same with so many transfers that fall short.
    #[must_use]
    pub fn short_per_mille(self, short_per_mille: u16) -> Faults {
        Faults { short_per_mille, ..self }
    }

    /// The same with so many interrupted calls.
    #[must_use]
    pub fn interrupted_per_mille(self, interrupted_per_mille: u16) -> Faults {
        Faults { interrupted_per_mille, ..self }
    }

    /// The same with so many calls that fail with EIO.
    #[must_use]
    pub fn error_per_mille(self, error_per_mille: u16) -> Faults {
        Faults { error_per_mille, ..self }
    }

    /// The same with so many writes that fail with ENOSPC.
    #[must_use]
    pub fn no_space_per_mille(self, no_space_per_mille: u16) -> Faults {
        Faults { no_space_per_mille, ..self }
    }

    /// The same with transfers that fall short at multiples of so many bytes.
    #[must_use]
    pub fn short_unit_bytes(self, short_unit_bytes: u16) -> Faults {
        Faults { short_unit_bytes, ..self }
    }
}

thread_local! {
    static ACTIVE: RefCell<Option<(Faults, fastrand::Rng)>> = const { RefCell::new(None) };
}

/// Injects faults into this thread's calls until it is dropped.
pub(crate) struct Injection(());

pub(crate) fn inject(faults: Faults, random: fastrand::Rng) -> Injection {
    ACTIVE.with(|active| *active.borrow_mut() = Some((faults, random)));
    Injection(())
}

impl Drop for Injection {
    fn drop(&mut self) {
        ACTIVE.with(|active| *active.borrow_mut() = None);
    }
}

/// What kind of call asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    Other,
}

/// Before a call of `len` bytes: how many of them it may transfer, or the error it fails with.
pub(super) fn before(call: Call, len: usize) -> io::Result<usize> {
    ACTIVE.with(|active| match &mut *active.borrow_mut() {
        None => Ok(len),
        Some((faults, random)) => draw(*faults, random, call, len),
    })
}

fn draw(faults: Faults, random: &mut fastrand::Rng, call: Call, len: usize) -> io::Result<usize> {
    let unit = usize::from(faults.short_unit_bytes.max(1));
    let mut happens = |per_mille: u16| per_mille > 0 && random.u16(..1000) < per_mille;
    let errno = if happens(faults.interrupted_per_mille) {
        if happens(500) { libc::EINTR } else { libc::EAGAIN }
    } else if happens(faults.error_per_mille) {
        libc::EIO
    } else if call == Call::Write && happens(faults.no_space_per_mille) {
        libc::ENOSPC
    } else if call != Call::Other && len > unit && happens(faults.short_per_mille) {
        return Ok(unit * random.usize(1..len.div_ceil(unit)));
    } else {
        return Ok(len);
    };
    Err(io::Error::from_raw_os_error(errno))
}
