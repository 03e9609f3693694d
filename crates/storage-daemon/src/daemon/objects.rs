//! Objects: iothreads and throttle groups, by their names.

use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use coblk::aio::{PollParams, PoolShare};
use coblk::block::filters::throttle::{ThrottleGroup, ThrottleLimits};
use coblk::block::{BlockdevError, NamedObject};
use coblk::export::RunningExport;
use coblk::{AioContext, AioHandle, Co, IoThread, ThreadPool};

use super::tls::{self, TlsCredentials};
use super::{Daemon, DaemonError};
use crate::options::{
    IothreadOptions, ObjectKind, ObjectOptions, OptionError, ThrottleGroupOptions, is_identifier,
};
use crate::wait_mode::context_builder;

/// Threads that are started at once, and stay. More would leave none for others.
const MOST_IDLE_THREADS: u64 = 4096;

/// What `object-add` makes.
pub(super) enum Object {
    Iothread(IoThread),
    /// The nodes know it by its name.
    ThrottleGroup(ThrottleGroup),
    /// The NBD server has taken what it needs of them.
    TlsCreds(TlsCredentials),
}

/// Ends an object. A thread is waited for: elsewhere, so that the loop goes on.
fn co_drop(co: &Co<'_>, object: Object) {
    PoolShare::once(co, move || drop(object));
}

impl Daemon {
    /// `object-add`.
    ///
    /// # Errors
    /// If the name is taken, or the properties make no sense.
    pub fn object_add(&self, co: &Co<'_>, options: ObjectOptions) -> Result<(), DaemonError> {
        let command = self.begin_command("object-add")?;
        let ObjectOptions { id, kind } = options;
        if !is_identifier(&id) {
            return Err(invalid(
                "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', \
                 starting with a letter",
            ));
        }
        if self.objects.borrow().contains_key(&id) {
            return Err(DaemonError::DuplicateObject(id));
        }
        let object = match &kind {
            ObjectKind::Iothread(options) => Object::Iothread(iothread(co, &id, options)?),
            ObjectKind::ThrottleGroup(options) => {
                Object::ThrottleGroup(self.throttle_group(&id, options)?)
            }
            ObjectKind::TlsCredsX509(options) => Object::TlsCreds(tls::load(co, options)?),
        };
        // While a thread was started another command may have been faster, or the daemon may end.
        let refused = match (command.check(), self.objects.borrow_mut().entry(id)) {
            (Err(ended), _) => ended,
            (Ok(()), Entry::Occupied(taken)) => DaemonError::DuplicateObject(taken.key().clone()),
            (Ok(()), Entry::Vacant(place)) => {
                self.properties.borrow_mut().insert(place.key().clone(), kind);
                place.insert(object);
                return Ok(());
            }
        };
        co_drop(co, object);
        Err(refused)
    }

    /// `object-del`.
    ///
    /// # Errors
    /// If there is none, or somebody refers to it.
    pub fn object_del(&self, co: &Co<'_>, id: &str) -> Result<(), DaemonError> {
        let _command = self.begin_command("object-del")?;
        let in_use = || DaemonError::ObjectInUse(id.to_owned());
        let mut objects = self.objects.borrow_mut();
        match objects.get(id) {
            None => return Err(DaemonError::NoSuchObject(id.to_owned())),
            Some(Object::Iothread(_)) => {
                let uses = |export: &RunningExport| {
                    export.options().iothreads.iter().any(|thread| thread == id)
                };
                if self.exports.all().iter().any(uses) {
                    return Err(in_use());
                }
            }
            Some(Object::TlsCreds(_)) => {}
            Some(Object::ThrottleGroup(_)) => {
                self.blockdevs.remove_object::<ThrottleGroup>(id).map_err(|_| in_use())?;
            }
        }
        let object = objects.remove(id);
        self.properties.borrow_mut().remove(id);
        drop(objects);
        object.into_iter().for_each(|object| co_drop(co, object));
        Ok(())
    }

    /// The names of the iothreads, with the ways into their contexts.
    pub fn iothread_handles(&self) -> Vec<(String, AioHandle)> {
        let objects = self.objects.borrow();
        let iothreads = objects.iter().filter_map(|(id, object)| match object {
            Object::Iothread(thread) => Some((id.clone(), thread.handle().clone())),
            Object::ThrottleGroup(_) | Object::TlsCreds(_) => None,
        });
        iothreads.collect()
    }

    /// The context of the iothread with this name.
    pub(super) fn iothread(&self, id: &str) -> Option<AioHandle> {
        match self.objects.borrow().get(id) {
            Some(Object::Iothread(thread)) => Some(thread.handle().clone()),
            _ => None,
        }
    }

    fn throttle_group(
        &self,
        id: &str,
        options: &ThrottleGroupOptions,
    ) -> Result<ThrottleGroup, DaemonError> {
        let limits = options.checked_limits()?;
        let group = ThrottleGroup::new(id, limits).map_err(|source| {
            DaemonError::Blockdev(BlockdevError::Object {
                kind: ThrottleGroup::KIND,
                id: id.to_owned(),
                source: source.into(),
            })
        })?;
        self.blockdevs.add_object(id, Arc::new(group.clone()))?;
        Ok(group)
    }

    /// Lets everything pass that throttle groups hold back.
    pub(super) fn lift_limits(&self) {
        for object in self.objects.borrow().values() {
            if let Object::ThrottleGroup(group) = object
                && let Err(error) = group.set_limits(ThrottleLimits::default())
            {
                tracing::error!(group = group.name(), %error, "limits cannot be lifted");
            }
        }
    }
}

fn invalid(text: &str) -> DaemonError {
    OptionError::other(text).into()
}

/// How an iothread looks for work, and how many workers it has.
#[derive(Clone, Copy)]
pub(super) struct Polling {
    max: Duration,
    grow: u32,
    shrink: u32,
    min_threads: usize,
    max_threads: usize,
}

impl Polling {
    pub(super) fn new(options: &IothreadOptions) -> Result<Polling, DaemonError> {
        let options = options.with_defaults();
        let number = |name: &str, value: Option<i64>| match value.unwrap_or_default() {
            number @ 0.. => Ok(number.unsigned_abs()),
            _ => Err(invalid(&format!("{name} value must be in range [0, {}]", i64::MAX))),
        };
        if number("aio-max-batch", options.aio_max_batch)? > 0 {
            tracing::warn!("aio-max-batch has no effect");
        }
        let min = number("thread-pool-min", options.thread_pool_min)?;
        if min > MOST_IDLE_THREADS {
            return Err(invalid(&format!(
                "thread-pool-min value must be in range [0, {MOST_IDLE_THREADS}]"
            )));
        }
        Ok(Polling {
            max: Duration::from_nanos(number("poll-max-ns", options.poll_max_ns)?),
            grow: clamp(number("poll-grow", options.poll_grow)?),
            shrink: clamp(number("poll-shrink", options.poll_shrink)?),
            min_threads: clamp(min) as usize,
            max_threads: clamp(number("thread-pool-max", options.thread_pool_max)?) as usize,
        })
    }

    fn pool(self) -> Result<ThreadPool, DaemonError> {
        ThreadPool::new(self.min_threads, self.max_threads).map_err(|_| invalid(BAD_POOL))
    }

    /// Changes a loop that runs, on its thread.
    pub(super) fn apply(self, ctx: &AioContext) -> Result<(), DaemonError> {
        let limits = ctx.thread_pool().set_limits(self.min_threads, self.max_threads);
        limits.map_err(|_| invalid(BAD_POOL))?;
        ctx.set_poll_params(PollParams::new(self.max).grow(self.grow).shrink(self.shrink));
        Ok(())
    }
}

const BAD_POOL: &str = "bad thread-pool-min/thread-pool-max values";

/// Starts a thread. Waits until its loop can run, which is short.
fn iothread(co: &Co<'_>, id: &str, options: &IothreadOptions) -> Result<IoThread, DaemonError> {
    let polling = Polling::new(options)?;
    let pool = polling.pool()?;
    let failed = |source| DaemonError::Iothread { id: id.to_owned(), source };
    let builder = context_builder().map_err(failed)?.thread_pool(pool);
    let thread = IoThread::with_builder(id, builder);
    let thread = thread.map_err(failed)?;
    let set = thread.handle().spawn("poll parameters", move |co| polling.apply(co.context()));
    co.block_on(set).map_err(|error| failed(std::io::Error::other(error)))??;
    Ok(thread)
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
