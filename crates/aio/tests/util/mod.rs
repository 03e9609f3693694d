//! What several test files share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use coblk_aio::{AioContext, Co, CoWaker, ThreadPool};
use tracing::field::{Field, Visit};
use tracing::{Dispatch, span};

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub fn new() -> Log {
        Log::default()
    }

    pub fn add(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }

    /// What was added since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.borrow_mut())
    }
}

/// The message with which `action` panics.
pub fn panic_message<R>(action: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(action)) else {
        panic!("should have panicked");
    };
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload.downcast::<&str>().expect("a panic with a message").to_string(),
    }
}

/// Ends the process if the test that holds it hangs. It decides no test, it only names the culprit.
pub struct Watchdog {
    alive: Option<Sender<()>>,
}

pub fn watchdog() -> Watchdog {
    let test = thread::current().name().unwrap_or("?").to_owned();
    let (alive, ended) = channel::<()>();
    thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(300)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("test {test} hangs");
            std::process::abort();
        }
    });
    Watchdog { alive: Some(alive) }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.alive.take());
    }
}

/// Calls a closure when it is dropped.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

type Hook = Box<dyn Fn(&str) + Send + Sync>;

/// Keeps the crate's `tracing` events: name, then fields.
#[derive(Clone, Default)]
pub struct Recorder {
    events: Arc<Mutex<Vec<String>>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// Calls `hook` with the name of each event, on the thread of the event.
    pub fn with_hook(hook: impl Fn(&str) + Send + Sync + 'static) -> Recorder {
        let recorder = Recorder::default();
        *recorder.hook.lock().unwrap() = Some(Box::new(hook));
        recorder
    }

    /// Runs `action` with this thread's events recorded.
    pub fn record<R>(&self, action: impl FnOnce() -> R) -> R {
        ask_every_subscriber();
        tracing::subscriber::with_default(self.clone(), action)
    }

    /// The events so far that contain `what`.
    pub fn containing(&self, what: &str) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.contains(what)).cloned().collect()
    }
}

/// Makes `tracing` ask every subscriber whether it wants an event, when the event comes for the first
/// time; the answer is kept. A process with one subscriber asks only the thread of the event, and a
/// thread without a recorder would silence the event for a test that records on another thread.
fn ask_every_subscriber() {
    static TWO: OnceLock<[Dispatch; 2]> = OnceLock::new();
    TWO.get_or_init(|| [(); 2].map(|()| Dispatch::new(Recorder::default())));
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("coblk_aio")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(event.metadata().name().to_owned());
        event.record(&mut text);
        self.events.lock().unwrap().push(text.0);
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook(event.metadata().name());
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// A small generator of numbers that look random; the same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Polls until nothing is left to do.
pub fn settle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

/// Runs `work` in `per_thread` coroutines on each of `threads` contexts of their own.
pub fn contend(threads: usize, per_thread: usize, work: impl Fn(&Co<'_>) + Clone + Send + 'static) {
    let _watchdog = watchdog();
    let barrier = Arc::new(Barrier::new(threads));
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let (work, barrier) = (work.clone(), Arc::clone(&barrier));
            thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                let ended = Rc::new(Cell::new(0));
                barrier.wait();
                for _ in 0..per_thread {
                    let (work, ended) = (work.clone(), Rc::clone(&ended));
                    ctx.spawn("contends", move |co| {
                        work(co);
                        ended.set(ended.get() + 1);
                    });
                }
                ctx.run_until(|| ended.get() == per_thread);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

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

/// A context with a pool of its own.
pub fn context(min: usize, max: usize) -> AioContext {
    AioContext::test_builder().thread_pool(ThreadPool::new(min, max).unwrap()).build().unwrap()
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

/// Waits until the one worker of the context's pool sleeps.
pub fn until_the_worker_sleeps(ctx: &AioContext) {
    let here = || std::fs::read_link("/proc/thread-self").unwrap();
    let thread = ctx.run(|co| co.context().thread_pool().submit_co(co, here));
    let state = std::path::Path::new("/proc").join(thread).join("stat");
    until(|| std::fs::read_to_string(&state).unwrap().contains(") S "));
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
