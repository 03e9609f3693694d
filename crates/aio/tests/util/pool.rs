//! For tests of the worker pool.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use coblk_aio::{AioContext, ThreadPool};

/// A context with a pool of its own.
pub fn context(min: usize, max: usize) -> AioContext {
    AioContext::builder().thread_pool(ThreadPool::new(min, max).unwrap()).build().unwrap()
}

/// A gate that jobs wait at.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
    pub fn pass(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }
}

/// Waits for another thread to bring something about.
pub fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_micros(200));
    }
}

/// A job that tells when a worker runs it, and then waits at the gate.
pub fn gated(started: &Sender<thread::ThreadId>, gate: &Gate) -> impl FnOnce() + Send + use<> {
    let (started, gate) = (started.clone(), gate.clone());
    move || {
        started.send(thread::current().id()).unwrap();
        gate.pass();
    }
}

/// A context whose one worker waits at a gate, so that what is submitted next stays queued.
pub fn blocked() -> (AioContext, Gate) {
    let ctx = context(1, 1);
    let (gate, (started, ids)) = (Gate::default(), channel());
    ctx.thread_pool().submit_aio(&ctx, gated(&started, &gate), |_, result| result.unwrap());
    ids.recv().unwrap();
    (ctx, gate)
}
