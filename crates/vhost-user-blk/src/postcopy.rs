//! A guest that runs here before its memory has come: more of [`Session`].
//!
//! POSTCOPY_ADVISE is answered with a [`Userfault`] of this process. From POSTCOPY_LISTEN to POSTCOPY_END each
//! region that is shown is registered there before anything is read from it, and the front end is told where it
//! lies in this process. Nothing touches the memory until the front end has taken note of that: queues that ran
//! are paused, and only messages that show memory are served. From then on a thread that touches a missing page
//! stands still until the front end brings it, which may be while the front end waits for an answer.
//!
//! A front end that goes in the midst brings no more pages. A [`Watch`] sees that, whatever the other threads wait
//! for, and takes the memory away: they go on, with errors.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use coblk_virtio_blk::PausedQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Error, Result};

use crate::inflight::InflightMemory;
use crate::memory::{Region, Shown};
use crate::messages::{self, Header};
use crate::session::Session;
use crate::uffd::Userfault;

/// How far a front end has come.
#[derive(Default)]
pub(crate) struct Postcopy {
    /// Since POSTCOPY_ADVISE.
    faults: Option<Arc<Faults>>,
    /// From POSTCOPY_LISTEN to POSTCOPY_END.
    watch: Option<Watch>,
    /// Memory was shown of which the front end has not taken note yet.
    unacknowledged: Option<Unacknowledged>,
    /// The front end waits for an answer that the vhost crate does not give.
    answers_end: bool,
}

/// What there was before, and how the queues were that ran.
struct Unacknowledged {
    before: Shown,
    paused: Vec<Option<PausedQueue>>,
}

/// Memory whose pages may be missing.
struct Faults {
    userfault: Userfault,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    regions: Vec<Weak<Region>>,
    inflight: Weak<InflightMemory>,
    is_gone: bool,
}

impl Faults {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, region: &Arc<Region>) -> Result<()> {
        let mut memory = self.memory();
        if memory.is_gone {
            return Err(Error::Disconnected);
        }
        self.userfault.register(region.mapping()).map_err(|error| {
            let why = format!("a memory region cannot be watched for missing pages: {error}");
            Error::ReqHandlerError(std::io::Error::new(error.kind(), why))
        })?;
        memory.regions.retain(|it| it.strong_count() > 0);
        memory.regions.push(Arc::downgrade(region));
        Ok(())
    }

    /// No pages are brought any more: threads that wait for one, or touch one later, get an error. A page of
    /// zeroes would be taken for what the guest has written. The log of what is in flight stays as it is by
    /// then, for the daemon that serves it next: no answer can be seen from here on.
    fn take_away(&self) {
        let mut memory = self.memory();
        if std::mem::replace(&mut memory.is_gone, true) {
            return;
        }
        if let Some(inflight) = memory.inflight.upgrade()
            && let Err(error) = inflight.detach()
        {
            tracing::warn!(%error, "the log of requests in flight is still written to");
        }
        let regions: Vec<_> = memory.regions.iter().filter_map(Weak::upgrade).collect();
        for region in &regions {
            let ended = region.take_away().and_then(|()| self.userfault.wake(region.mapping()));
            if let Err(error) = ended {
                tracing::error!(%error, "missing memory cannot be taken away, and reads as zeroes");
                let _ = self.userfault.unregister(region.mapping());
            }
        }
    }

    /// All pages are there.
    fn end(&self) -> Result<()> {
        let mut memory = self.memory();
        let regions = std::mem::take(&mut memory.regions);
        if memory.is_gone {
            return Err(Error::Disconnected);
        }
        for region in regions.iter().filter_map(Weak::upgrade) {
            self.userfault.unregister(region.mapping()).map_err(Error::ReqHandlerError)?;
        }
        Ok(())
    }
}

/// A thread that sees the connection end while others wait for missing pages.
struct Watch {
    /// Dropped to end it.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(connection: &UnixStream, faults: &Arc<Faults>) -> std::io::Result<Watch> {
        let (connection, faults) = (connection.try_clone()?, Arc::clone(faults));
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new().name("vhost-user-page".to_owned());
        let thread = thread.spawn(move || {
            if ends_first(&connection, &stopped) {
                faults.take_away();
            }
        })?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        // It waits for nothing else.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits until `connection` or `stopped` has ended. Whether it was `connection`.
fn ends_first(connection: &UnixStream, stopped: &UnixStream) -> bool {
    loop {
        let mut both =
            [connection, stopped].map(|it| PollFd::from_borrowed_fd(it.as_fd(), PollFlags::RDHUP));
        match poll(&mut both, None) {
            Err(Errno::INTR) => {}
            // It cannot be waited for: as if it had ended, which would not be seen.
            Err(_) => return true,
            Ok(_) if !both[1].revents().is_empty() => return false,
            Ok(_) => return !both[0].revents().is_empty(),
        }
    }
}

impl Session {
    /// POSTCOPY_ADVISE.
    pub(crate) fn advise(&mut self) -> Result<File> {
        let userfault = Userfault::new().inspect_err(|error| {
            tracing::warn!(%error, "there is no userfaultfd for a guest that comes before its memory");
        });
        let userfault = userfault.map_err(Error::ReqHandlerError)?;
        let shared = userfault.share().map_err(Error::ReqHandlerError)?;
        self.postcopy.faults = Some(Arc::new(Faults { userfault, memory: Mutex::default() }));
        Ok(shared)
    }

    /// POSTCOPY_LISTEN.
    pub(crate) fn listen(&mut self) -> Result<()> {
        let not_advised = Error::InvalidOperation("missing pages without an advice before them");
        let faults = self.postcopy.faults.as_ref().ok_or(not_advised)?;
        if !self.shown.memory.is_empty() {
            return Err(Error::InvalidOperation(
                "memory was shown before its pages may be missing",
            ));
        }
        faults.memory().inflight = weak(self.shown.inflight.as_ref());
        let watch = Watch::start(&self.socket, faults).map_err(Error::ReqHandlerError)?;
        self.postcopy.watch = Some(watch);
        tracing::info!(export = self.name(), "a guest comes before its memory");
        Ok(())
    }

    pub(crate) fn is_unacknowledged(&self) -> bool {
        self.postcopy.unacknowledged.is_some()
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.postcopy.watch.is_some()
    }

    /// POSTCOPY_END. It is always answered.
    pub(crate) fn end_postcopy(&mut self) -> Result<()> {
        if let Some(faults) = &self.postcopy.faults {
            faults.end()?;
        }
        let answers_end = self.postcopy.answers_end;
        tracing::info!(export = self.name(), "a guest's memory has come");
        self.postcopy = Postcopy::default();
        self.acknowledge_if(messages::POSTCOPY_END, answers_end)
    }

    /// The front end has gone, perhaps in the midst.
    pub(crate) fn abandon_postcopy(&mut self) {
        if let (Some(faults), true) = (&self.postcopy.faults, self.is_listening()) {
            tracing::warn!(
                export = self.name(),
                "a front end goes before a guest's memory has come"
            );
            faults.take_away();
        }
        self.postcopy = Postcopy::default();
    }

    /// Refuses a message that may touch memory of which the front end has not taken note.
    pub(crate) fn check_turn(&mut self, header: Option<&Header>) -> Result<()> {
        if header.is_some_and(Header::has_strange_body) {
            return Err(Error::InvalidOperation("a message about missing pages that has a body"));
        }
        if let Some(header) = header.filter(|it| it.request == messages::POSTCOPY_END) {
            let is_answered = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
            self.postcopy.answers_end = !(is_answered && header.wants_answer());
        }
        if self.is_unacknowledged() && !header.is_some_and(Header::shows_memory) {
            return Err(Error::InvalidOperation("memory was shown, and is not acknowledged"));
        }
        Ok(())
    }

    /// Changes the memory while pages may be missing. Queues stand still until the front end has taken note.
    pub(crate) fn change_missing(
        &mut self,
        change: impl FnOnce(&mut Shown) -> Result<Vec<Arc<Region>>>,
    ) -> Result<Vec<VhostUserMemoryRegionBase>> {
        let Some(faults) = self.postcopy.faults.clone() else {
            return Err(Error::BackendInternalError);
        };
        if !self.is_unacknowledged() {
            let paused = self.pause_all()?;
            let before = self.shown.clone();
            self.postcopy.unacknowledged = Some(Unacknowledged { before, paused });
        }
        let changed = change(&mut self.shown).and_then(|regions| {
            regions.iter().try_for_each(|region| faults.register(region))?;
            Ok(regions.iter().map(|region| region.mapping().as_ptr() as u64).collect())
        });
        if changed.is_err() {
            self.take_back_unacknowledged()?;
        }
        changed
    }

    /// The front end has taken note of the memory that it has shown, and brings its pages.
    pub(crate) fn memory_is_acknowledged(&mut self, number: u64) -> Result<()> {
        if number != 0 || !self.is_listening() {
            return Err(Error::InvalidOperation("no memory waits to be acknowledged"));
        }
        let Some(Unacknowledged { before, paused }) = self.postcopy.unacknowledged.take() else {
            // Nothing has changed, or was only removed.
            return Ok(());
        };
        self.settle(Ok(()), paused, before)
    }

    /// The message that has shown the memory fails, and the connection with it.
    fn take_back_unacknowledged(&mut self) -> Result<()> {
        if let Some(Unacknowledged { before, paused }) = self.postcopy.unacknowledged.take() {
            self.shown = before;
            self.go_on(&paused)?;
        }
        Ok(())
    }

    /// There is a log of requests in flight, or another one.
    pub(crate) fn note_inflight(&self) {
        if let Some(faults) = &self.postcopy.faults {
            faults.memory().inflight = weak(self.shown.inflight.as_ref());
        }
    }
}

fn weak<T>(shared: Option<&Arc<T>>) -> Weak<T> {
    shared.map_or_else(Weak::new, Arc::downgrade)
}
