//! [`IoThread`]: a thread that runs a context.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::context::{AioContext, AioContextBuilder};
use crate::handle::AioHandle;

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
/// [`AioContext`]), and waits for the thread.
pub struct IoThread {
    handle: AioHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread and a context, both called `name`. The context polls adaptively, for up to
    /// [`DEFAULT_POLL_MAX`](crate::DEFAULT_POLL_MAX) (contract: C48).
    ///
    /// # Errors
    /// If the process has no threads or no descriptors left.
    pub fn new(name: &str) -> io::Result<IoThread> {
        let builder = AioContext::builder().poll_max(crate::DEFAULT_POLL_MAX);
        Self::with_builder(name, move || builder)
    }

    /// [`new`](Self::new), with a context of your own making; the name is set for you.
    ///
    /// # Errors
    /// As [`new`](Self::new), and what the builder reports.
    pub fn with_builder(
        name: &str,
        builder: impl FnOnce() -> AioContextBuilder + Send + 'static,
    ) -> io::Result<IoThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(1);
        let (thread_name, stop_in_thread) = (name.to_owned(), Arc::clone(&stop));
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                match builder().name(thread_name).build() {
                    Ok(ctx) => {
                        let _ = sender.send(Ok(ctx.handle()));
                        ctx.run_until(|| stop_in_thread.load(Ordering::Acquire));
                    }
                    Err(error) => drop(sender.send(Err(error))),
                }
            })?;
        let handle = receiver.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(IoThread { handle, stop, thread: Some(thread) })
    }

    /// The way into its context.
    pub fn handle(&self) -> &AioHandle {
        &self.handle
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.handle.notify();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(context = self.handle.name(), "the context's thread panicked");
        }
    }
}
