//! A listing of a context's coroutines, to find out what hangs.

use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use coblk_coroutine::CoroutineState;

use super::NoteInfo;
use super::task::{Task, TaskList};
use crate::context::AioContext;

/// One coroutine, as it was when it was asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CoroutineInfo {
    /// Unique in the process.
    pub id: u64,
    /// The name it was spawned with.
    pub name: &'static str,
    /// The name of its context.
    pub context: String,
    /// Where it is between its creation and its end.
    pub state: CoroutineState,
    /// What it waits for, while it is suspended.
    pub waits_for: &'static str,
    /// For how long it has existed, by a clock that ticks every few milliseconds.
    pub age: Duration,
    /// What it has noted of its work ([`Co::note`](crate::Co::note)), if anything.
    pub note: Option<NoteInfo>,
}

impl fmt::Display for CoroutineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CoroutineInfo { id, name, context, state, waits_for, age, .. } = self;
        write!(f, "#{id} '{name}' in '{context}', {state:?}")?;
        if *state == CoroutineState::Suspended {
            write!(f, ", waits for {waits_for}")?;
        }
        write!(f, ", {age:?} old")
    }
}

impl AioContext {
    /// All coroutines of this context that have not ended, the youngest first.
    pub fn coroutines(&self) -> Vec<CoroutineInfo> {
        self.inner().refresh_coarse_clock();
        let now_ns = self.inner().coarse_ns();
        self.inner().tasks().live().map(|task| task.info(self.name(), now_ns)).collect()
    }
}

impl TaskList {
    /// The live tasks. For use within one call: nothing may end meanwhile.
    fn live(&self) -> impl Iterator<Item = &Task> {
        let mut next = self.first();
        std::iter::from_fn(move || {
            // SAFETY: tasks on the live list are alive, and this is the home thread.
            let task = unsafe { NonNull::new(next)?.as_ref() };
            next = task.following();
            Some(task)
        })
    }
}
