//! One [`VirtioBlk`] on a context, and the way for another thread to have it do something:
//! [`DeviceHandle`].

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use coblk_aio::{AioContext, AioHandle, Co, CoWaker};
use coblk_virtio_blk::{VirtioBlk, VirtioBlkError};

use crate::error::VhostUserBlkError;

type Command = Box<dyn FnOnce(&Co<'_>, &Rc<VirtioBlk>) + Send>;

/// A device that lives in a coroutine of its context, for as long as a handle on it exists.
#[derive(Clone)]
pub(crate) struct DeviceHandle(Arc<Sender>);

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// The device's coroutine waits for a command.
    waiting: Option<CoWaker>,
    /// There is no handle left, or no coroutine.
    closed: bool,
}

type SharedQueue = Arc<Mutex<Queue>>;

fn lock(queue: &SharedQueue) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handles' end. A wake may run the coroutine at once, so none is given under the lock.
struct Sender(SharedQueue);

impl Drop for Sender {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = lock(&self.0);
            queue.closed = true;
            queue.waiting.take()
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

/// The coroutine's end. What is left when it goes is dropped, so that no thread waits for it.
struct Receiver(SharedQueue);

impl Drop for Receiver {
    fn drop(&mut self) {
        let left = {
            let mut queue = lock(&self.0);
            queue.closed = true;
            std::mem::take(&mut queue.commands)
        };
        drop(left);
    }
}

impl DeviceHandle {
    /// Makes a device on `home`, or, without it, on `ctx`, the caller's own context. Waits for
    /// `home`, which is short: nothing is read.
    pub(crate) fn start(
        ctx: &AioContext,
        home: Option<&AioHandle>,
        make: impl FnOnce(&AioContext) -> Result<VirtioBlk, VirtioBlkError> + Send + 'static,
    ) -> Result<DeviceHandle, VhostUserBlkError> {
        let queue = SharedQueue::default();
        let receiver = Receiver(Arc::clone(&queue));
        let start = move |ctx: &AioContext| {
            let device = Rc::new(make(ctx)?);
            ctx.spawn("vhost-user-blk", move |co| run(co, &device, &receiver));
            Ok::<(), VirtioBlkError>(())
        };
        match home.filter(|home| !home.is_home_thread()) {
            None => start(ctx)?,
            Some(home) => home
                .spawn("vhost-user-blk-start", move |co| start(co.context()))
                .wait()
                .map_err(|_| VhostUserBlkError::ContextGone(home.name().to_owned()))??,
        }
        Ok(DeviceHandle(Arc::new(Sender(queue))))
    }

    /// Has the device do something, and waits for the result. `None` if its context is gone. Not
    /// from a context's thread: it may be the device's own.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&Co<'_>, &Rc<VirtioBlk>) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.tell(move |co, device| drop(reply.send(command(co, device))));
        // Fails when the command is dropped without having run.
        answer.recv().ok()
    }

    /// Has the device do something, without waiting, unless its context is gone. Any thread.
    pub(crate) fn tell(&self, command: impl FnOnce(&Co<'_>, &Rc<VirtioBlk>) + Send + 'static) {
        let waiting = {
            let mut queue = lock(&self.0.0);
            if queue.closed {
                return;
            }
            queue.commands.push_back(Box::new(command));
            queue.waiting.take()
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

fn run(co: &Co<'_>, device: &Rc<VirtioBlk>, receiver: &Receiver) {
    loop {
        let mut queue = lock(&receiver.0);
        if let Some(command) = queue.commands.pop_front() {
            drop(queue);
            command(co, device);
        } else if queue.closed {
            return;
        } else {
            // The lock is given up once the waker is stored, so no command comes between.
            co.suspend_for("a command", move |waker| queue.waiting = Some(waker));
        }
    }
}
