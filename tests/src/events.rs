//! `tracing` events, with the thread that each came from.

use std::fmt::Debug;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::ThreadId;

use tracing::field::{Field, Visit};
use tracing::span;

/// One event as it happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name, such as `blk_co_preadv`.
    pub name: &'static str,
    /// The module that emitted it, such as `coblk_block::io`.
    pub target: &'static str,
    /// Its level.
    pub level: tracing::Level,
    /// The thread that emitted it.
    pub thread: ThreadId,
    fields: Vec<(&'static str, String)>,
}

impl Event {
    /// The value of a field, as text; empty if there is no such field.
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value)
    }
}

impl Visit for Event {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.push((field.name(), format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.push((field.name(), value.to_owned()));
    }
}

/// `None` while no test records.
static EVENTS: Mutex<Option<Vec<Event>>> = Mutex::new(None);

/// The event whose thread has to wait.
static HELD: Mutex<Option<&str>> = Mutex::new(None);
static RELEASED: Condvar = Condvar::new();

fn held() -> MutexGuard<'static, Option<&'static str>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_if_held(name: &str) {
    let mut held = held();
    while *held == Some(name) {
        held = RELEASED.wait(held).unwrap_or_else(PoisonError::into_inner);
    }
}

fn events() -> MutexGuard<'static, Option<Vec<Event>>> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The events of the process, from [`begin`](Self::begin) on. There is one at a time; a second one
/// waits. A test that must see no events but its own begins before it does anything else, as do
/// its neighbours in the same program.
pub struct Recording {
    _turn: MutexGuard<'static, ()>,
}

impl Recording {
    /// Begins to record.
    pub fn begin() -> Recording {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        static INSTALL: Once = Once::new();
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        INSTALL.call_once(|| {
            tracing::subscriber::set_global_default(Recorder).expect("the only subscriber");
            // An event of another thread may have found no subscriber just before, and remembers that.
            tracing::callsite::rebuild_interest_cache();
        });
        *events() = Some(Vec::new());
        Recording { _turn: turn }
    }

    /// From now on a thread that emits an event of this name waits there for its
    /// [`release`](Self::release).
    pub fn hold(&self, name: &'static str) {
        *held() = Some(name);
    }

    /// Lets the threads go on that were [held](Self::hold).
    pub fn release(&self) {
        *held() = None;
        RELEASED.notify_all();
    }

    /// What was recorded since the last call, in order.
    pub fn take(&self) -> Vec<Event> {
        events().replace(Vec::new()).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.release();
        *events() = None;
    }
}

struct Recorder;

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        // Ours, and what a test itself has to say.
        metadata.target().starts_with("coblk") || metadata.target() == "test"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let metadata = event.metadata();
        let mut recorded = Event {
            name: metadata.name(),
            target: metadata.target(),
            level: *metadata.level(),
            thread: std::thread::current().id(),
            fields: Vec::new(),
        };
        event.record(&mut recorded);
        if let Some(events) = events().as_mut() {
            events.push(recorded);
        }
        wait_if_held(metadata.name());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
