//! [`Cleaner`]: gives the memory of tables back that were not used for a while.
//!
//! A slice that comes to the cache has a coroutine look at the cache after an interval, and again as long as
//! slices stay. So an image that is not used wakes up twice at most, and never again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use coblk_aio::sync::CoSleep;
use coblk_aio::{AioHandle, Co};

use crate::image::Image;

/// When the cache of an image is cleaned, and where. Any thread.
pub(crate) struct Cleaner {
    home: AioHandle,
    /// 0: never. A reopen changes it.
    interval_s: AtomicU64,
    /// A coroutine waits for the next time.
    is_armed: AtomicBool,
    image: OnceLock<Weak<Image>>,
    sleep: CoSleep,
}

/// The coroutine that waits is there. If it ends without a word, the next slice has another one wait.
struct Armed(Option<Weak<Image>>);

impl Armed {
    fn image(&self) -> Option<Arc<Image>> {
        self.0.as_ref().and_then(Weak::upgrade)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Some(image) = self.image() {
            image.cleaner.is_armed.store(false, Ordering::SeqCst);
        }
    }
}

impl Cleaner {
    /// Cleans every `interval_s` seconds in the context of `home`, or never.
    pub(crate) fn new(home: AioHandle, interval_s: u64) -> Cleaner {
        let (is_armed, image, sleep) = Default::default();
        Cleaner { home, interval_s: interval_s.into(), is_armed, image, sleep }
    }

    /// Says whose cache it is.
    pub(crate) fn set_image(&self, image: &Arc<Image>) {
        // An image has one for its life.
        let _ = self.image.set(Arc::downgrade(image));
    }

    /// Gives it another interval from the next time on; returns the one that it had.
    pub(crate) fn swap_interval(&self, interval_s: u64) -> u64 {
        self.interval_s.swap(interval_s, Ordering::Relaxed)
    }

    /// The image is closed: no coroutine waits any more.
    pub(crate) fn end(&self) {
        self.swap_interval(0);
        self.rest();
    }

    /// The tables are of no use for now: no coroutine waits until there are others.
    pub(crate) fn rest(&self) {
        self.sleep.wake();
    }

    fn interval(&self) -> Option<Duration> {
        let seconds = self.interval_s.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// A slice has come to the cache.
    pub(crate) fn arm(&self) {
        if self.is_armed.load(Ordering::Relaxed) || self.interval().is_none() {
            return;
        }
        let Some(image) = self.image.get() else { return };
        if self.is_armed.swap(true, Ordering::SeqCst) {
            return;
        }
        let armed = Armed(Some(Weak::clone(image)));
        drop(self.home.spawn("clean the cache of a qcow2 image", move |co| co_clean(co, armed)));
    }
}

impl Drop for Cleaner {
    /// An image that is not active, or was given up, goes without a close.
    fn drop(&mut self) {
        self.end();
    }
}

/// Cleans again and again, until nothing is left. The image may go meanwhile.
fn co_clean(co: &Co<'_>, mut armed: Armed) {
    while let Some(interval) = armed.image().and_then(|image| image.cleaner.interval()) {
        let Some(sleep) = armed.image().map(|image| image.cleaner.sleep.clone()) else { return };
        if sleep.sleep(co, interval) {
            return;
        }
        let Some(image) = armed.image() else { return };
        // A slice that comes after the look has to be noticed.
        image.cleaner.is_armed.store(false, Ordering::SeqCst);
        if !image.clean_cache() || image.cleaner.is_armed.swap(true, Ordering::SeqCst) {
            armed.0 = None;
            return;
        }
    }
}

impl Image {
    /// Forgets slices that were not used since the last time, and gives their memory back. Returns whether some
    /// are left.
    fn clean_cache(&self) -> bool {
        let (mut next, mut keeps) = (Some(0), false);
        while let Some(first) = next {
            let state = self.lock();
            let (then, kept) = self.cache.clean(&state.owed, first);
            (next, keeps) = (then, keeps || kept);
        }
        if let Some(refcounts) = &mut self.lock().refcounts {
            keeps |= refcounts.clean();
        }
        keeps
    }
}
