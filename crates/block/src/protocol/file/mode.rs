//! How an image is open, which a reopen changes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::driver::BlockLimits;
use crate::driver::mode::Engine;
use crate::io::live_limits::LiveLimits;

/// How an image is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) read_only: bool,
    /// O_DIRECT: no page cache.
    pub(super) direct: bool,
    pub(super) no_flush: bool,
    pub(super) engine: Engine,
    /// Up to how many reads in a turn of the loop are tried in place where a ring could take them. With 0
    /// none is tried, ring or not.
    pub(super) in_place_a_turn: u32,
    pub(super) limits: BlockLimits,
}

/// A [`Mode`], what requests read of it each by itself. It changes in drained sections only.
#[derive(Debug)]
pub(super) struct LiveMode {
    read_only: AtomicBool,
    direct: AtomicBool,
    no_flush: AtomicBool,
    /// An [`Engine`].
    engine: AtomicU8,
    in_place_a_turn: AtomicU32,
    limits: LiveLimits,
}

impl LiveMode {
    pub(super) fn new(mode: &Mode) -> LiveMode {
        LiveMode {
            read_only: mode.read_only.into(),
            direct: mode.direct.into(),
            no_flush: mode.no_flush.into(),
            engine: AtomicU8::new(mode.engine as u8),
            in_place_a_turn: mode.in_place_a_turn.into(),
            limits: LiveLimits::new(mode.limits),
        }
    }

    /// Returns how it was. In a drained section.
    pub(super) fn swap(&self, new: Mode) -> Mode {
        Mode {
            read_only: self.read_only.swap(new.read_only, Ordering::Relaxed),
            direct: self.direct.swap(new.direct, Ordering::Relaxed),
            no_flush: self.no_flush.swap(new.no_flush, Ordering::Relaxed),
            engine: engine_of(self.engine.swap(new.engine as u8, Ordering::Relaxed)),
            in_place_a_turn: self.in_place_a_turn.swap(new.in_place_a_turn, Ordering::Relaxed),
            limits: self.limits.swap(new.limits),
        }
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    pub(super) fn no_flush(&self) -> bool {
        self.no_flush.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn engine(&self) -> Engine {
        engine_of(self.engine.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn in_place_a_turn(&self) -> u32 {
        self.in_place_a_turn.load(Ordering::Relaxed)
    }

    pub(super) fn limits(&self) -> &LiveLimits {
        &self.limits
    }
}

fn engine_of(stored: u8) -> Engine {
    let all = [Engine::Threads, Engine::IoUring, Engine::Native];
    all.into_iter().find(|it| *it as u8 == stored).unwrap_or_default()
}
