//! [`Crew`]: threads with a context each, that work on one thing together.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use coblk::aio::sync::CoSleep;
use coblk::{AioContext, Co, IoThread, JoinError};

use crate::failure::Failure;
use crate::progress::Progress;

/// How often it is looked whether progress is worth a line.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// Threads with a context each.
pub(crate) struct Crew {
    threads: Vec<IoThread>,
}

impl Crew {
    /// As many threads as there are CPUs, and at most `max`.
    ///
    /// # Errors
    /// If the system has no threads or descriptors left.
    pub(crate) fn new(max: usize) -> io::Result<Crew> {
        Crew::of(cpus().min(max), false)
    }

    /// For files that are mostly in the page cache, which takes no longer to copy than a call takes to hand to
    /// a worker: each thread makes its own calls. One more than there are CPUs, as one may wait for a disk.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn of_page_cache(max: usize) -> io::Result<Crew> {
        Crew::of((cpus() + 1).min(max), true)
    }

    fn of(threads: usize, calls_in_place: bool) -> io::Result<Crew> {
        let start = |number| {
            let builder = AioContext::builder().calls_in_place(calls_in_place);
            IoThread::with_builder(&format!("worker-{number}"), builder)
        };
        Ok(Crew { threads: (0..threads.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// How many threads there are.
    pub(crate) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Runs `work` in a coroutine of each thread, with the number of the thread, and shows progress until
    /// all of them are done.
    ///
    /// # Errors
    /// The first failure; all have ended then.
    pub(crate) fn co_run(
        &self,
        co: &Co<'_>,
        progress: &Arc<Progress>,
        work: impl Fn(&Co<'_>, usize) -> Result<(), Failure> + Clone + Send + 'static,
    ) -> Result<(), Failure> {
        let started = self.threads.iter().enumerate().map(|(number, thread)| {
            let work = work.clone();
            thread.handle().spawn("work", move |co| work(co, number))
        });
        let started: Vec<_> = started.collect();
        let shown = Shown::begin(co, progress);
        let mut result = Ok(());
        for handle in started {
            let ended = co.block_on(handle);
            let ended = ended.unwrap_or_else(|error: JoinError| Err(Failure::new(error)));
            result = result.and(ended);
        }
        drop(shown);
        result
    }
}

fn cpus() -> usize {
    available_parallelism().map_or(1, |cpus| cpus.get())
}

/// A coroutine that shows progress until this is dropped.
struct Shown {
    is_over: Rc<Cell<bool>>,
    sleep: CoSleep,
}

impl Shown {
    fn begin(co: &Co<'_>, progress: &Arc<Progress>) -> Shown {
        let shown = Shown { is_over: Rc::default(), sleep: CoSleep::new() };
        let (is_over, sleep, progress) =
            (Rc::clone(&shown.is_over), shown.sleep.clone(), Arc::clone(progress));
        co.context().spawn("progress", move |co| {
            while !is_over.get() {
                progress.show();
                sleep.sleep(co, SHOW_EVERY);
            }
        });
        shown
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.is_over.set(true);
        self.sleep.wake();
    }
}
