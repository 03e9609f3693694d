//! What a worker knows of a job: what to call, and where the job goes afterwards.
//!
//! A job is a [`Node`] with a function for the worker in front. The worker runs the function, which
//! stores the result in the job, and then schedules the node on the submitting context; there the
//! bottom-half phase completes it (contract: C54).

use std::ptr::NonNull;
use std::sync::Arc;

use crate::home::Home;
use crate::run_list::{LocalList, Node, NodeKind};

/// The part of every job that a worker knows. First field of each kind of job.
#[repr(C)]
pub(crate) struct JobHeader {
    pub(crate) node: Node,
    /// Runs the job's function, and stores the result in the job.
    work: unsafe fn(NonNull<JobHeader>),
    /// The context to go home to. A context waits for its jobs, so this is valid until the node is
    /// scheduled.
    home: *const Home,
}

impl JobHeader {
    pub(crate) fn new(
        kind: &'static NodeKind,
        work: unsafe fn(NonNull<JobHeader>),
        home: &Arc<Home>,
    ) -> JobHeader {
        JobHeader { node: Node::new(kind), work, home: Arc::as_ptr(home) }
    }

    /// Runs a job and sends it home. `cache` keeps the last home, because after the hand-over
    /// neither the job nor its context need exist, but the notification still has to be given.
    /// `done` is called in between: its effects are seen by the coroutine that waits for the job.
    /// Returns whether the loop slept, and had to be woken.
    ///
    /// # Safety
    /// The caller took the job from the channel: it is alive, and no other worker runs it.
    pub(super) unsafe fn run(
        job: NonNull<JobHeader>,
        cache: &mut Option<Arc<Home>>,
        done: impl FnOnce(),
    ) -> bool {
        // SAFETY: alive until the node is scheduled, see `home`.
        let (work, home) = unsafe { (job.as_ref().work, job.as_ref().home) };
        if cache.as_ref().is_none_or(|cached| Arc::as_ptr(cached) != home) {
            // SAFETY: `home` comes from `Arc::as_ptr`, and the context, which waits for this job,
            // still holds that `Arc`.
            let home = unsafe {
                Arc::increment_strong_count(home);
                Arc::from_raw(home)
            };
            *cache = Some(home);
        }
        if let Some(home) = cache {
            home.worker.publish();
        }
        // SAFETY: passed on.
        unsafe { work(job) };
        done();
        // SAFETY: the submitter keeps the job in place until the node has come home, and it is on no
        // list: it has been with us.
        cache.as_ref().is_some_and(|home| unsafe { home.schedule(job.cast::<Node>()) })
    }

    /// Runs a job on its own context's thread, for the simulated mode.
    ///
    /// # Safety
    /// The job was given to the simulation and not to a worker, and is run once.
    pub(crate) unsafe fn run_at_home(job: NonNull<JobHeader>, list: &LocalList) {
        // SAFETY: alive until its node has come home; on no list, as it was with the simulation.
        unsafe {
            (job.as_ref().work)(job);
            list.push(job.cast::<Node>());
        }
    }
}
