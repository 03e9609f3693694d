//! For tests of suspending and waking.

use std::cell::Cell;
use std::rc::Rc;

use coblk_aio::{AioContext, Co, CoWaker};

use super::Log;

/// Where a coroutine leaves its waker.
#[derive(Clone, Default)]
pub struct Slot(pub Rc<Cell<Option<CoWaker>>>);

impl Slot {
    pub fn wait(&self, co: &Co<'_>) {
        co.suspend_with(|waker| self.0.set(Some(waker)));
    }
    pub fn take(&self) -> CoWaker {
        self.0.take().expect("the coroutine waits")
    }
}

/// Spawns a coroutine that waits in the slot `times` and logs each time it goes on.
pub fn waiting(ctx: &AioContext, log: &Log, name: &'static str, times: usize) -> Slot {
    let slot = Slot::default();
    let (own, log) = (slot.clone(), log.clone());
    ctx.spawn(name, move |co| {
        for _ in 0..times {
            own.wait(co);
            log.add(co.name());
        }
    });
    slot
}
