//! [`Closure`]: a job that is one function, and done all at once.

use std::cell::Cell;
use std::fmt::Display;
use std::rc::Rc;

use coblk_aio::Co;

use crate::{Job, JobFailure, Task};

type Work = dyn FnOnce(&Co<'_>) -> Result<(), String>;

/// A task that does something once.
pub(crate) struct Closure {
    work: Cell<Option<Box<Work>>>,
}

impl Closure {
    pub(crate) fn new<E: Display>(
        work: impl FnOnce(&Co<'_>) -> Result<(), E> + 'static,
    ) -> Closure {
        let work = |co: &Co<'_>| work(co).map_err(|error| error.to_string());
        Closure { work: Cell::new(Some(Box::new(work))) }
    }
}

impl Task for Closure {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let worked = self.work.take().map_or(Ok(()), |work| work(co));
        job.progress().add(job.progress().rest());
        job.progress().set_rest(0);
        worked.map_err(JobFailure::Text)
    }
}
