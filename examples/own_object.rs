//! A storage daemon with a type of objects of its own.
//!
//! The type is `counter`: a number with a step. The command `x-count` adds the step, and returns the sum.
//!
//! ```sh
//! cargo run --example own_object -- --object counter,id=c,start=10,step=5 \
//!     --chardev stdio,id=c0 --monitor c0
//! {"execute": "qmp_capabilities"}
//! {"execute": "x-count", "arguments": {"id": "c"}}
//! {"execute": "qom-set", "arguments": {"path": "c", "property": "step", "value": 1}}
//! ```

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk::qapi::from_value;
use coblk::qmp::QmpError;
use coblk_storage_daemon::builder::DaemonBuilder;
use coblk_storage_daemon::daemon::{Daemon, DaemonError};
use coblk_storage_daemon::objects::{ObjectPlace, ObjectType};
use coblk_storage_daemon::run;
use serde_json::{Value, json};

fn main() -> ExitCode {
    run::main_with(builder(), std::env::args_os())
}

/// The daemon, with one line for the type and one for the command.
pub fn builder() -> DaemonBuilder {
    Daemon::builder().object_type(CounterType).command("x-count", |daemon, _co, Id { id }| {
        let no_counter = || QmpError::generic(format!("there is no counter '{id}'"));
        let counter = daemon.object::<Counter>(&id).ok_or_else(no_counter)?;
        Ok(counter.count())
    })
}

#[derive(serde::Deserialize)]
struct Id {
    id: String,
}

/// The type.
struct CounterType;

/// Its properties.
#[derive(Clone, serde::Deserialize, serde::Serialize)]
struct CounterOptions {
    /// Where it begins.
    #[serde(default)]
    start: u64,
    /// What is added at once.
    #[serde(default = "one")]
    step: u64,
}

fn one() -> u64 {
    1
}

/// An object of that type.
pub struct Counter {
    sum: AtomicU64,
    step: AtomicU64,
}

impl Counter {
    fn count(&self) -> u64 {
        let step = self.step.load(Ordering::Relaxed);
        self.sum.fetch_add(step, Ordering::Relaxed).wrapping_add(step)
    }
}

impl ObjectType for CounterType {
    const NAME: &'static str = "counter";
    type Options = CounterOptions;
    type Object = Counter;

    fn co_make(
        &self,
        _place: &ObjectPlace<'_, '_>,
        options: &CounterOptions,
    ) -> Result<Counter, DaemonError> {
        if options.step == 0 {
            return Err(DaemonError::of_object("a counter has a step"));
        }
        let (sum, step) = (AtomicU64::new(options.start), AtomicU64::new(options.step));
        Ok(Counter { sum, step })
    }

    /// The step changes while it is used, where it begins does not.
    fn co_set(
        &self,
        _place: &ObjectPlace<'_, '_>,
        counter: &Counter,
        options: &CounterOptions,
        property: &str,
        value: Value,
    ) -> Result<CounterOptions, DaemonError> {
        if property != "step" {
            return Err(DaemonError::FixedProperty(property.to_owned()));
        }
        let new: CounterOptions = from_value(json!({ "start": options.start, "step": value }))?;
        if new.step == 0 {
            return Err(DaemonError::of_object("a counter has a step"));
        }
        counter.step.store(new.step, Ordering::Relaxed);
        Ok(new)
    }
}
