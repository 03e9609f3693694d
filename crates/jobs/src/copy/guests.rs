//! [`Guests`]: what the copies that guests drive, and those of the workers, have to do with each other. Any thread.

use std::io;
use std::sync::{Mutex, PoisonError};

use coblk_aio::RemoteBottomHalf;

use super::atomics::{AtomicBool, Ordering};
use super::waiters::{For, Waiters};

/// Errors that the job has not seen yet, at most.
const MAX_ERRORS: usize = 16;

pub(crate) struct Guests {
    /// Guests that wait for the end of claims.
    pub(crate) waiters: Waiters,
    /// Why copies that guests drive have failed.
    errors: Mutex<Vec<io::Error>>,
    /// The job waits for the end of claims.
    wants_end: AtomicBool,
    /// Wakes the job, if there is one.
    wake: Option<RemoteBottomHalf>,
    /// Why the job cannot go on.
    fatal: Mutex<Option<io::Error>>,
}

impl Guests {
    pub(crate) fn new(wake: RemoteBottomHalf) -> Guests {
        Guests { wake: Some(wake), ..Guests::without_job() }
    }

    /// Of a filter that belongs to no job.
    pub(crate) fn without_job() -> Guests {
        let (waiters, errors, wants_end, fatal) = Default::default();
        Guests { waiters, errors, wants_end, wake: None, fatal }
    }

    /// A copy that guests drive has failed in a way that no policy of the job mends.
    pub(crate) fn fail_job(&self, error: io::Error) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.wake_job();
    }

    /// Why the job cannot go on, if it cannot.
    pub(crate) fn take_fatal(&self) -> Option<io::Error> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn errors(&self) -> std::sync::MutexGuard<'_, Vec<io::Error>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy that a guest drives has failed at the target. Its granules are to be copied again.
    pub(crate) fn failed(&self, error: io::Error) {
        let mut errors = self.errors();
        if errors.len() < MAX_ERRORS {
            errors.push(error);
        }
        drop(errors);
        self.wake_job();
    }

    /// What has failed since the last call.
    pub(crate) fn take_errors(&self) -> Vec<io::Error> {
        std::mem::take(&mut *self.errors())
    }

    /// The job is to be woken when a claim ends. To be called before it looks, and sleeps.
    pub(crate) fn want_end(&self) {
        self.wants_end.store(true, Ordering::SeqCst);
    }

    /// A claim has ended.
    pub(crate) fn claim_ended(&self) {
        self.waiters.wake_for(For::Claims);
        if self.wants_end.load(Ordering::SeqCst) && self.wants_end.swap(false, Ordering::SeqCst) {
            self.wake_job();
        }
    }

    /// Wakes the job: there is something to do.
    pub(crate) fn wake_job(&self) {
        if let Some(wake) = &self.wake {
            wake.schedule();
        }
    }
}
