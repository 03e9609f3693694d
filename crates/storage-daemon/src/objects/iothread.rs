//! `iothread`: a thread with a loop of its own, which exports can be served by.

use std::time::Duration;

use coblk::aio::{PollParams, WaitStats};
use coblk::block::is_home;
use coblk::export::RunningExport;
use coblk::qapi::from_value;
use coblk::{AioContext, AioHandle, Co, IoThread, ThreadPool};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::object_type::{ObjectPlace, ObjectType};
use super::running::Objects;
use crate::error::DaemonError;
use crate::options::OptionError;
use crate::wait_mode::context_builder;

/// Threads that are started at once, and stay. More would leave none for others.
const MAX_IDLE_THREADS: u64 = 4096;
const BAD_POOL: &str = "bad thread-pool-min/thread-pool-max values";

/// The type `iothread`. Its object is an [`IoThread`].
#[derive(Clone, Copy, Debug, Default)]
pub struct IothreadType;

/// A thread that serves exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct IothreadOptions {
    /// `poll-max-ns`: how long it looks for work at most before it sleeps; 0 for not at all. If neither
    /// this nor the next two are given it looks as long as pays, and 32768 stands for that.
    pub poll_max_ns: Option<i64>,
    /// `poll-grow`: by what that time is multiplied when it was too short; 0 for 2.
    pub poll_grow: Option<i64>,
    /// `poll-shrink`: by what it is divided when it was too long; 0 to begin anew.
    pub poll_shrink: Option<i64>,
    /// `aio-max-batch`: known, and without effect.
    pub aio_max_batch: Option<i64>,
    /// `thread-pool-min`: workers that stay; 0 by default.
    pub thread_pool_min: Option<i64>,
    /// `thread-pool-max`: workers at most; 64 by default.
    pub thread_pool_max: Option<i64>,
}

impl IothreadOptions {
    /// How long its loop looks for work at most if only `poll-grow` or `poll-shrink` is given: QEMU's.
    const POLL_MAX_NS: i64 = 32_768;
    /// Workers at most, unless told otherwise: QEMU's.
    const MAX_THREADS: i64 = coblk::aio::DEFAULT_MAX_THREADS as i64;

    /// With every property as it is by default if it is not given.
    #[must_use]
    pub fn with_defaults(&self) -> IothreadOptions {
        IothreadOptions {
            poll_max_ns: self.poll_max_ns.or(Some(Self::POLL_MAX_NS)),
            poll_grow: self.poll_grow.or(Some(0)),
            poll_shrink: self.poll_shrink.or(Some(0)),
            aio_max_batch: self.aio_max_batch.or(Some(0)),
            thread_pool_min: self.thread_pool_min.or(Some(0)),
            thread_pool_max: self.thread_pool_max.or(Some(Self::MAX_THREADS)),
        }
    }
}

impl ObjectType for IothreadType {
    const NAME: &'static str = "iothread";
    type Options = IothreadOptions;
    type Object = IoThread;

    /// Starts a thread. Waits until its loop can run, which is short.
    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &IothreadOptions,
    ) -> Result<IoThread, DaemonError> {
        let polling = Polling::new(options)?;
        let pool = polling.pool()?;
        let failed = failed(place.id);
        let builder = context_builder().map_err(&failed)?.thread_pool(pool);
        IoThread::with_builder(place.id, builder.poll_params(polling.params)).map_err(failed)
    }

    fn release(&self, place: &ObjectPlace<'_, '_>, thread: &IoThread) -> Result<(), DaemonError> {
        let uses = |export: &RunningExport| {
            export.options().iothreads.iter().any(|thread| thread == place.id)
        };
        // A driver may have work of its own there.
        match place.exports.all().iter().any(uses) || is_home(thread.handle()) {
            true => Err(DaemonError::ObjectInUse(place.id.to_owned())),
            false => Ok(()),
        }
    }

    /// What it does takes effect at once.
    fn co_set(
        &self,
        place: &ObjectPlace<'_, '_>,
        thread: &IoThread,
        options: &IothreadOptions,
        property: &str,
        value: Value,
    ) -> Result<IothreadOptions, DaemonError> {
        // What was not given stays so: it is not the same as its default.
        let mut values = given(options);
        values.insert(property.to_owned(), value);
        let options = from_value(Value::Object(values))?;
        Polling::new(&options)?.co_set(place, thread)?;
        Ok(options)
    }

    fn values(&self, options: &IothreadOptions) -> Map<String, Value> {
        given(&options.with_defaults())
    }
}

/// The properties that have a value.
fn given(options: &IothreadOptions) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(values)) => values.into_iter().filter(|it| !it.1.is_null()).collect(),
        // They are a struct.
        _ => Map::new(),
    }
}

fn failed(id: &str) -> impl Fn(std::io::Error) -> DaemonError + '_ {
    |source| DaemonError::Iothread { id: id.to_owned(), source }
}

fn invalid(text: &str) -> DaemonError {
    OptionError::other(text).into()
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// How an iothread looks for work, and how many workers it has.
#[derive(Clone, Copy)]
struct Polling {
    params: PollParams,
    min_threads: usize,
    max_threads: usize,
}

impl Polling {
    fn new(options: &IothreadOptions) -> Result<Polling, DaemonError> {
        let is_told = [options.poll_max_ns, options.poll_grow, options.poll_shrink] != [None; 3];
        let options = options.with_defaults();
        let number = |name: &str, value: Option<i64>| match value.unwrap_or_default() {
            number @ 0.. => Ok(number.unsigned_abs()),
            _ => Err(invalid(&format!("{name} value must be in range [0, {}]", i64::MAX))),
        };
        if number("aio-max-batch", options.aio_max_batch)? > 0 {
            tracing::warn!("aio-max-batch has no effect");
        }
        let min = number("thread-pool-min", options.thread_pool_min)?;
        if min > MAX_IDLE_THREADS {
            return Err(invalid(&format!(
                "thread-pool-min value must be in range [0, {MAX_IDLE_THREADS}]"
            )));
        }
        let told =
            PollParams::new(Duration::from_nanos(number("poll-max-ns", options.poll_max_ns)?))
                .grow(clamp(number("poll-grow", options.poll_grow)?))
                .shrink(clamp(number("poll-shrink", options.poll_shrink)?));
        Ok(Polling {
            params: if is_told { told } else { PollParams::default() },
            min_threads: clamp(min) as usize,
            max_threads: clamp(number("thread-pool-max", options.thread_pool_max)?) as usize,
        })
    }

    fn pool(self) -> Result<ThreadPool, DaemonError> {
        ThreadPool::new(self.min_threads, self.max_threads).map_err(|_| invalid(BAD_POOL))
    }

    /// Changes a loop that runs.
    fn co_set(self, place: &ObjectPlace<'_, '_>, thread: &IoThread) -> Result<(), DaemonError> {
        let set = thread.handle().spawn("poll parameters", move |co| self.apply(co.context()));
        let gone = |error| failed(place.id)(std::io::Error::other(error));
        place.co.block_on(set).map_err(gone)?
    }

    fn apply(self, ctx: &AioContext) -> Result<(), DaemonError> {
        let limits = ctx.thread_pool().set_limits(self.min_threads, self.max_threads);
        limits.map_err(|_| invalid(BAD_POOL))?;
        ctx.set_poll_params(self.params);
        Ok(())
    }
}

/// An iothread, as `query-iothreads` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IothreadInfo {
    /// Its id.
    pub id: String,
    /// The number that the system knows the thread by.
    pub thread_id: i64,
    /// Its properties.
    pub properties: IothreadOptions,
    /// How its loop has waited.
    pub waits: WaitStats,
}

/// The ids of the iothreads, with the ways into their contexts. These keep none of them.
pub fn handles(objects: &Objects) -> Vec<(String, AioHandle)> {
    let threads = objects.all::<IoThread>().into_iter();
    threads.map(|(id, thread)| (id, thread.handle().clone())).collect()
}

/// `query-iothreads`: those that there are when it begins, but for those that end meanwhile.
pub fn co_infos(co: &Co<'_>, objects: &Objects) -> Result<Vec<IothreadInfo>, DaemonError> {
    // At once, as each may be deleted, and another one have its id, while a thread is asked.
    let begun = handles(objects).into_iter().map(|(id, handle)| {
        let values = objects.properties(&id).map(|(_, values)| values).unwrap_or_default();
        let answer = handle
            .spawn("query-iothreads", |co| (rustix::thread::gettid(), co.context().wait_stats()));
        Ok((id, from_value(Value::Object(values))?, answer))
    });
    let mut infos = Vec::new();
    for (id, properties, answer) in begun.collect::<Result<Vec<_>, DaemonError>>()? {
        if let Ok((thread_id, waits)) = co.block_on(answer) {
            let thread_id = thread_id.as_raw_nonzero().get().into();
            infos.push(IothreadInfo { id, thread_id, properties, waits });
        }
    }
    Ok(infos)
}
