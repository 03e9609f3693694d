//! [`IoThread`]: a thread that runs a context.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::context::{AioContext, AioContextBuilder, AioHandle, wait_until};
use crate::{panics, sys};

/// A thread with an [`AioContext`] of its own, for devices that shall not share the main loop.
///
/// ```
/// use coblk_aio::IoThread;
///
/// let thread = IoThread::new("iothread0")?;
/// let answer = thread.handle().spawn("question", |co| co.context().name().to_owned());
/// assert_eq!(answer.wait()?, "iothread0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it ends the loop after the poll it is in, ends the context (see
/// [`AioContext`]), and waits for the thread, unless it is dropped on that thread itself.
/// [`join`](Self::join) also says how it ended.
///
/// A panic of what the loop runs is reported, and the loop goes on
/// ([`PanicPolicy`](crate::PanicPolicy)). The thread blocks signals, so that those of the process
/// reach the threads that handle them.
#[must_use = "dropping it ends the thread"]
pub struct IoThread {
    handle: AioHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread and a context, both called `name`.
    ///
    /// # Errors
    /// If the process has no threads or no descriptors left.
    pub fn new(name: &str) -> io::Result<IoThread> {
        Self::with_builder(name, AioContext::builder())
    }

    /// [`new`](Self::new), with a context of your own making; the name is set for you.
    ///
    /// # Errors
    /// As [`new`](Self::new), and what the builder reports.
    pub fn with_builder(name: &str, builder: AioContextBuilder) -> io::Result<IoThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(1);
        let (thread_name, stop_in_thread) = (name.to_owned(), Arc::clone(&stop));
        let run = move || match builder.name(thread_name).build() {
            Ok(ctx) => {
                let _ = sender.send(Ok(ctx.handle()));
                ctx.run_until(|| stop_in_thread.load(Ordering::Acquire));
            }
            Err(error) => drop(sender.send(Err(error))),
        };
        let thread = {
            // The thread inherits the mask, so no signal finds it before it can block any.
            let _blocked = sys::SignalsBlocked::here();
            std::thread::Builder::new().name(name.to_owned()).spawn(run)?
        };
        let handle = receiver.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(IoThread { handle, stop, thread: Some(thread) })
    }

    /// The way into its context.
    pub fn handle(&self) -> &AioHandle {
        &self.handle
    }

    /// Whether the thread has ended: by itself it does so only by a panic
    /// ([`PanicPolicy::Stop`](crate::PanicPolicy::Stop)).
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the loop and the context as dropping does, waits for the thread, and says how it ended.
    ///
    /// # Errors
    /// With what the panic carries that ended the thread. On the thread itself, which cannot wait
    /// for its own end, with a message; it then ends all the same.
    pub fn join(mut self) -> std::thread::Result<()> {
        self.end().unwrap_or_else(|| Err(Box::new("an IoThread cannot join itself")))
    }

    /// `None` on the thread itself.
    fn end(&mut self) -> Option<std::thread::Result<()>> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Some(Ok(())) };
        if !self.handle.is_own_process() {
            // A forked process has none of its parent's threads.
            return None;
        }
        self.handle.notify();
        if thread.thread().id() == std::thread::current().id() {
            return None;
        }
        // Its coroutines may have called to a context of this thread.
        wait_until(|| thread.is_finished());
        Some(thread.join())
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.end() {
            let (context, message) = (self.handle.name(), panics::message(&*panic));
            tracing::error!(context, message, "a panic has ended the context's thread");
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoThread").field("name", &self.handle.name()).finish_non_exhaustive()
    }
}
