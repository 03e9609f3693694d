//! [`Resident`]: a value on the thread of a context, told by other threads what to do.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use coblk_aio::{AioContext, AioHandle, Co, CoWaker, JoinError, JoinHandle};

type Command<T> = Box<dyn FnOnce(&Co<'_>, &Rc<T>) + Send>;

/// A value that lives in a coroutine of its own on some context, such as a backend that serves an export
/// there. Commands are carried out there one after the other; one that suspends holds up those behind it.
///
/// Dropping it lets the value go without waiting. If the context ends before, the value goes with it, and
/// commands are dropped.
pub struct Resident<T> {
    queue: Arc<Mutex<Queue<T>>>,
    /// Taken once its end is waited for.
    ended: Mutex<Option<JoinHandle<()>>>,
    home: AioHandle,
}

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError<E> {
    /// The context is gone, or has no stack for a coroutine.
    #[error("cannot be served by context '{0}': {1}")]
    Context(String, JoinError),
    /// Making the value has failed.
    #[error(transparent)]
    Make(E),
}

struct Queue<T> {
    commands: VecDeque<Command<T>>,
    /// The coroutine waits for a command.
    waiting: Option<CoWaker>,
    /// There is no handle left, or no coroutine.
    closed: bool,
}

impl<T: 'static> Resident<T> {
    /// Makes a value on `home`, which may be the caller's own context. Suspends.
    ///
    /// # Errors
    /// What `make` says, or that the context cannot have it.
    pub fn co_start<E: Send + 'static>(
        co: &Co<'_>,
        home: &AioHandle,
        make: impl FnOnce(&Co<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<Resident<T>, ResidentError<E>> {
        let (queue, receiver) = new_queue();
        let started = home.spawn("resident started", move |co| {
            let value = make(co)?;
            Ok(live(co.context(), value, receiver))
        });
        let no_context = |error| ResidentError::Context(home.name().to_owned(), error);
        let ended = co.block_on(started).map_err(no_context)?.map_err(ResidentError::Make)?;
        Ok(Resident { queue, ended: Mutex::new(Some(ended)), home: home.clone() })
    }

    /// [`co_start`](Self::co_start) outside of coroutines: the calling thread waits. `ctx` is its context, which
    /// may be that of `home`.
    ///
    /// # Errors
    /// As of `co_start`.
    pub fn start<E: Send + 'static>(
        ctx: &AioContext,
        home: &AioHandle,
        make: impl FnOnce(&AioContext) -> Result<T, E> + Send + 'static,
    ) -> Result<Resident<T>, ResidentError<E>> {
        let (queue, receiver) = new_queue();
        let start = move |ctx: &AioContext| Ok(live(ctx, make(ctx)?, receiver));
        let made = match home.is_home_thread() {
            true => start(ctx),
            false => home
                .spawn("resident started", move |co| start(co.context()))
                .wait()
                .map_err(|error| ResidentError::Context(home.name().to_owned(), error))?,
        };
        let ended = made.map_err(ResidentError::Make)?;
        Ok(Resident { queue, ended: Mutex::new(Some(ended)), home: home.clone() })
    }

    /// Has it do something, and waits for the result. `None` if the context is gone. Blocks the thread, which
    /// must not be that of a context: it may be the value's own.
    pub fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&Co<'_>, &Rc<T>) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.tell(move |co, value| drop(reply.send(command(co, value))));
        // Fails when the command is dropped without having run.
        answer.recv().ok()
    }

    /// Has it do something, without waiting. The command is dropped if the context is gone.
    pub fn tell(&self, command: impl FnOnce(&Co<'_>, &Rc<T>) + Send + 'static) {
        let waiting = {
            let mut queue = lock(&self.queue);
            if queue.closed {
                return;
            }
            queue.commands.push_back(Box::new(command));
            queue.waiting.take()
        };
        // It may run the coroutine at once, so not under the lock.
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Returns when all commands are done and the value is gone. Nothing can be told any more.
    pub fn co_end(&self, co: &Co<'_>) {
        close(&self.queue);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            // An error says that the context is gone, and the value with it.
            let _ = co.block_on(ended);
        }
    }
}

impl<T> Resident<T> {
    /// The context that it lives on.
    pub fn home(&self) -> &AioHandle {
        &self.home
    }
}

impl<T> Drop for Resident<T> {
    fn drop(&mut self) {
        close(&self.queue);
    }
}

impl<T> fmt::Debug for Resident<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident").field("home", &self.home).finish_non_exhaustive()
    }
}

/// The coroutine's end. Commands that are left when it goes are dropped, for others may wait for that.
struct Receiver<T>(Arc<Mutex<Queue<T>>>);

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let left = {
            let mut queue = lock(&self.0);
            queue.closed = true;
            std::mem::take(&mut queue.commands)
        };
        drop(left);
    }
}

fn new_queue<T>() -> (Arc<Mutex<Queue<T>>>, Receiver<T>) {
    let new = Queue { commands: VecDeque::new(), waiting: None, closed: false };
    let queue = Arc::new(Mutex::new(new));
    (Arc::clone(&queue), Receiver(queue))
}

/// The value lives from now on.
fn live<T: 'static>(ctx: &AioContext, value: T, receiver: Receiver<T>) -> JoinHandle<()> {
    let value = Rc::new(value);
    ctx.spawn_join("resident", move |co| run(co, value, &receiver))
}

fn lock<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close<T>(queue: &Mutex<Queue<T>>) {
    let waiting = {
        let mut queue = lock(queue);
        queue.closed = true;
        queue.waiting.take()
    };
    if let Some(waker) = waiting {
        waker.wake();
    }
}

fn run<T>(co: &Co<'_>, value: Rc<T>, receiver: &Receiver<T>) {
    loop {
        let mut queue = lock(&receiver.0);
        if let Some(command) = queue.commands.pop_front() {
            drop(queue);
            command(co, &value);
        } else if queue.closed {
            return;
        } else {
            // The lock is given up once the waker is stored, so no command comes between.
            co.suspend_for("a command", move |waker| queue.waiting = Some(waker));
        }
    }
}

#[cfg(test)]
mod tests {
    use coblk_aio::IoThread;
    use std::io;

    use super::*;

    /// Tells when it goes, and on which thread.
    struct Told(mpsc::Sender<std::thread::ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }

    #[test]
    fn a_value_lives_on_its_context_and_does_what_it_is_told_in_order() {
        let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("t").unwrap());
        let home = thread.handle().clone();
        let (tell, told) = mpsc::channel();
        let own = tell.clone();
        let log = Arc::new(Mutex::new(Vec::new()));
        ctx.run(|co| {
            let made = Resident::co_start(co, &home, move |_| Ok::<_, ()>(Told(own))).unwrap();
            for number in 0..3 {
                let log = Arc::clone(&log);
                made.tell(move |co, _| {
                    co.yield_now();
                    log.lock().unwrap().push(number);
                });
            }
            made.co_end(co);
            assert_eq!(*log.lock().unwrap(), [0, 1, 2]);
            assert!(told.try_recv().unwrap() != std::thread::current().id());
            // Nothing is told any more, and nothing waits for it.
            made.tell(|_, _| unreachable!());
            let refused = Resident::<Told>::co_start(co, &home, |_| Err("no")).unwrap_err();
            assert!(matches!(refused, ResidentError::Make("no")));
        });
    }

    #[test]
    fn a_thread_starts_it_on_any_context_and_waits_for_what_it_is_told() {
        let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("t").unwrap());
        let home = thread.handle().clone();
        let there = Resident::start(&ctx, &home, |_| Ok::<_, ()>(7)).unwrap();
        assert_eq!(there.call(|co, value| (co.yield_now(), **value)), Some(((), 7)));
        let refused = Resident::<u8>::start(&ctx, &home, |_| Err("no")).unwrap_err();
        assert!(matches!(refused, ResidentError::Make("no")));
        drop(thread);
        assert_eq!(there.call(|_, _| ()), None, "its context is gone");
        let gone = Resident::start(&ctx, &home, |_| Ok::<_, ()>(())).unwrap_err();
        assert!(matches!(gone, ResidentError::Context(name, _) if name == "t"));

        let own = ctx.handle();
        let here = Resident::start(&ctx, &own, |_| Ok::<_, ()>(8)).unwrap();
        let told = Arc::new(Mutex::new(0));
        let tell = Arc::clone(&told);
        here.tell(move |_, value| *tell.lock().unwrap() = **value);
        ctx.run(|co| here.co_end(co));
        assert_eq!(*told.lock().unwrap(), 8);
    }

    #[test]
    fn commands_of_a_context_that_ends_are_dropped() {
        let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("t").unwrap());
        let home = thread.handle().clone();
        let (tell, told) = mpsc::channel();
        ctx.run(|co| {
            let made = Resident::co_start(co, &home, |_| Ok::<_, io::Error>(())).unwrap();
            let (own, ours) = (Told(tell.clone()), Told(tell));
            made.tell(move |co, _| {
                let _own = own;
                co.suspend_for("the end", |_| ());
            });
            made.tell(move |_, _| drop(ours));
            co.yield_now();
            drop(thread);
            assert!(told.recv().is_ok() && told.recv().is_ok());
            made.co_end(co);
            let gone = Resident::co_start(co, &home, |_| Ok::<_, io::Error>(())).unwrap_err();
            assert!(gone.to_string().contains("cannot be served by context 't'"), "{gone}");
        });
    }
}
