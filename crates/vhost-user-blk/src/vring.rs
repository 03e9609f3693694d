//! One queue, as the front end sets it up: [`Vring`]. When it has all that it needs, it runs on its
//! device. The messages that bring it may come in any order.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk_aio::{AioContext, Co, EventNotifier};
use coblk_virtio_blk::{
    Earlier, Interrupt, PausedQueue, QueueLog, StoppedAt, VirtioBlk, VirtqueueLayout,
};
use vhost::vhost_user::{Error, Result};
use vm_memory::GuestMemoryMmap;

use crate::device::DeviceHandle;
use crate::memory::{MemoryTable, Shown};
use crate::notifier::share;

/// How often a queue is looked at whose front end does not kick.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// How the front end says that there is something in the queue.
pub(crate) enum Kick {
    /// It writes an eventfd.
    Notifier(EventNotifier),
    /// Not at all: we look.
    Poll,
}

/// Where the parts of a queue are, as addresses in the front end's process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) desc_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
}

/// One queue. Only the control thread has it.
pub(crate) struct Vring {
    index: u16,
    device: DeviceHandle,
    /// 0 until the front end has said it.
    pub(crate) size: u16,
    /// Where it begins in the available ring, if the front end has said it.
    pub(crate) base: Option<StoppedAt>,
    pub(crate) addresses: Option<RingAddresses>,
    /// Where the used ring is marked in a log, if the front end has said it.
    pub(crate) marked_at: Option<u64>,
    pub(crate) kick: Option<Kick>,
    pub(crate) call: Option<EventNotifier>,
    pub(crate) err: Option<EventNotifier>,
    pub(crate) enabled: bool,
    running: Option<Running>,
    /// The [place](Self::place) where the queue was last stopped.
    pub(crate) left_at: Option<u32>,
}

struct Running {
    /// Set to end the polling of a queue without kicks.
    ended: Arc<AtomicBool>,
    /// The index in the available ring at which it began.
    begun_at: u16,
}

impl Vring {
    pub(crate) fn new(index: u16, device: DeviceHandle) -> Vring {
        Vring {
            index,
            device,
            size: 0,
            base: None,
            addresses: None,
            marked_at: None,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            running: None,
            left_at: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn has_rings_in(&self, memory: &MemoryTable) -> bool {
        self.addresses.is_some_and(|RingAddresses { desc_table, avail_ring, used_ring }| {
            [desc_table, avail_ring, used_ring].iter().all(|addr| memory.translate(*addr).is_ok())
        })
    }

    /// Starts the queue, if the front end wants it to run, has said all that it takes, and it does not
    /// run. It goes on from `paused`, if it was.
    pub(crate) fn start(&mut self, shown: &Shown, paused: Option<PausedQueue>) -> Result<()> {
        let memory = &shown.memory;
        let wanted = self.enabled && self.size > 0 && !self.is_running() && !memory.is_empty();
        let (Some(kick), Some(addresses), true) = (&self.kick, self.addresses, wanted) else {
            return Ok(());
        };
        let kick = match kick {
            Kick::Notifier(notifier) => Some(share(notifier)?),
            Kick::Poll => None,
        };
        let used_ring = memory.translate(addresses.used_ring)?;
        let place = self.place(shown, used_ring)?;
        let layout = VirtqueueLayout {
            size: self.size,
            desc_table: memory.translate(addresses.desc_table)?,
            avail_ring: memory.translate(addresses.avail_ring)?,
            used_ring,
            // All before it was answered, so nothing is served twice.
            next_index: self.base.map_or(place as u16, |base| base.next_index),
        };
        let log = shown.inflight.as_ref();
        let log = log.map(|it| it.log(self.index, self.size, shown.is_packed())).transpose()?;
        // The driver has begun a new ring: it has forgotten what it asked for in the old one.
        if let Some(log) = &log
            && self.left_at.take().is_some_and(|left_at| left_at != place)
        {
            log.clear().map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let start = Start {
            index: self.index,
            guest: Arc::clone(memory.guest()),
            layout,
            earlier: Earlier { log, paused, dirty: self.queue_log(shown)? },
            kick,
            call: self.call.as_ref().map(share).transpose()?,
            ended: Arc::clone(&ended),
        };
        let started = self.device.call(move |co, device| start.run(co, device));
        started.ok_or(Error::BackendInternalError)?.map_err(|error| {
            tracing::warn!(queue = self.index, %error, "a queue does not start");
            Error::ReqHandlerError(std::io::Error::other(error))
        })?;
        self.running = Some(Running { ended, begun_at: layout.next_index });
        Ok(())
    }

    /// Stops the queue, once what is in flight was answered.
    pub(crate) fn stop(&mut self, shown: &Shown) -> Result<()> {
        if let Some(next) = self.end(|co, device, index| device.co_stop_queue(co, index))? {
            self.base = Some(next.ok_or(Error::BackendInternalError)?);
            self.left_at = self.place_now(shown);
        }
        Ok(())
    }

    /// [`stop`](Self::stop), when the front end has gone and has left a log, or hands the queue over with it:
    /// requests that go on in pieces stay in it, and are done all over for the next one.
    pub(crate) fn stop_without_drain(&mut self, shown: &Shown) -> Result<()> {
        if shown.inflight.is_none() {
            return self.stop(shown);
        }
        if let Some(next) = self.end(|co, device, index| device.co_give_up_queue(co, index))? {
            self.base = Some(next.ok_or(Error::BackendInternalError)?);
            self.left_at = self.place_now(shown);
        }
        Ok(())
    }

    /// [`stop`](Self::stop), to go on from there; `None` if it did not run.
    pub(crate) fn pause(&mut self) -> Result<Option<PausedQueue>> {
        let paused = self.end(|co, device, index| device.co_pause_queue(co, index))?;
        paused.map(|paused| paused.ok_or(Error::BackendInternalError)).transpose()
    }

    /// The driver has reset: the queue is as it was in the beginning.
    pub(crate) fn reset(&mut self, shown: &Shown) -> Result<()> {
        if let Some(inflight) = &shown.inflight
            && !self.is_running()
        {
            inflight.clear(self.index, shown.packed)?;
        }
        let ended = self.end(|co, device, index| device.co_forget_queue(co, index));
        (self.kick, self.enabled, self.addresses, self.size) = (None, false, None, 0);
        (self.base, self.left_at, self.marked_at) = (None, None, None);
        ended.map(drop)
    }

    /// The front end says where the queue begins.
    pub(crate) fn set_base(&mut self, base: u32, shown: &Shown) -> Result<()> {
        let begun_at = self.running.as_ref().map(|running| running.begun_at);
        let base = self.stopped_at(base, shown)?;
        self.base = Some(base);
        // With a log, log and rings tell it.
        if begun_at.is_none_or(|begun_at| begun_at == base.next_index) || shown.inflight.is_some() {
            return Ok(());
        }
        let paused = self.pause()?;
        let is_at = |paused: &PausedQueue| begun_at.is_some_and(|begun_at| paused.is_at(begun_at));
        if paused.as_ref().is_some_and(is_at) {
            return self.start(shown, None);
        }
        // Goes on, so that what it has taken is answered.
        self.start(shown, paused)?;
        Err(Error::InvalidOperation("a queue that runs cannot begin elsewhere"))
    }

    /// What the queue marks.
    fn queue_log(&self, shown: &Shown) -> Result<Option<QueueLog>> {
        let Some(addresses) = self.addresses else { return Ok(None) };
        let used_ring = shown.memory.translate(addresses.used_ring)?;
        // Flags, index, entries, and the index of the next kick; or the event suppression structure.
        let bytes = if shown.is_packed() { 4 } else { 4 + 8 * u64::from(self.size) + 2 };
        shown.queue_log(used_ring, bytes, self.marked_at)
    }

    /// Has the queue mark where it is to by now, if it runs.
    pub(crate) fn mark_there(&self, shown: &Shown) -> Result<()> {
        if self.is_running() {
            let (index, log) = (self.index, self.queue_log(shown)?);
            let set = self.device.call(move |_, device| {
                device.set_dirty_log(index, log.as_ref()).is_ok() //
            });
            set.filter(|set| *set).ok_or(Error::BackendInternalError)?;
        }
        Ok(())
    }

    fn place_now(&self, shown: &Shown) -> Option<u32> {
        self.place(shown, shown.memory.translate(self.addresses?.used_ring).ok()?).ok()
    }

    /// Has the device end the queue. `None` if it did not run.
    fn end<R: Send + 'static>(
        &mut self,
        end: impl FnOnce(&Co<'_>, &VirtioBlk, u16) -> R + Send + 'static,
    ) -> Result<Option<R>> {
        let Some(running) = self.running.take() else { return Ok(None) };
        running.ended.store(true, Ordering::Relaxed);
        let index = self.index;
        let ended = self.device.call(move |co, device| end(co, device, index));
        ended.map(Some).ok_or(Error::BackendInternalError)
    }

    /// Replaces the way in which the front end is interrupted.
    pub(crate) fn set_call(&mut self, call: Option<EventNotifier>) -> Result<()> {
        self.call = call;
        if self.is_running() {
            let (index, call) = (self.index, self.call.as_ref().map(share).transpose()?);
            let set = self.device.call(move |_, device| {
                device.set_interrupt(index, announced(call)).is_ok() //
            });
            set.filter(|set| *set).ok_or(Error::BackendInternalError)?;
        }
        Ok(())
    }
}

/// All that the device's context is given to start a queue.
struct Start {
    index: u16,
    guest: Arc<GuestMemoryMmap>,
    layout: VirtqueueLayout,
    earlier: Earlier,
    kick: Option<EventNotifier>,
    call: Option<EventNotifier>,
    ended: Arc<AtomicBool>,
}

impl Start {
    fn run(self, co: &Co<'_>, device: &Rc<VirtioBlk>) -> std::result::Result<(), Failed> {
        let ctx = co.context();
        let Start { index, guest, layout, earlier, kick, call, ended } = self;
        // What was answered by our predecessor may not have been announced.
        let interrupt = announced(call);
        device.continue_queue(ctx, index, &guest, layout, interrupt, earlier)?;
        match kick {
            Some(kick) => device.watch_notifier(ctx, index, &kick).map_err(|error| {
                device.co_stop_queue(co, index);
                Failed::Io(error)
            }),
            None => {
                poll(ctx, device, index, ended);
                Ok(())
            }
        }
    }
}

/// Why a queue does not start.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Device(#[from] coblk_virtio_blk::VirtioBlkError),
    #[error("its kicks cannot be waited for: {0}")]
    Io(std::io::Error),
}

/// An interrupt through `call`, raised once at the start: one that the driver needs may have been
/// lost, and one too many does no harm.
fn announced(call: Option<EventNotifier>) -> Interrupt {
    match call {
        None => Interrupt::None,
        Some(call) => {
            if let Err(error) = call.set() {
                tracing::debug!(%error, "cannot interrupt the driver");
            }
            Interrupt::from(call)
        }
    }
}

/// Looks at a queue again and again, until `stopped`.
fn poll(ctx: &AioContext, device: &Rc<VirtioBlk>, index: u16, stopped: Arc<AtomicBool>) {
    let device = Rc::downgrade(device);
    let polling = ctx.try_spawn("vhost-user-blk-poll", move |co| {
        while !stopped.load(Ordering::Relaxed)
            && let Some(device) = device.upgrade()
        {
            device.kick(index);
            drop(device);
            co.sleep(POLL_INTERVAL);
        }
    });
    if let Err(error) = polling {
        tracing::error!(%error, index, "no coroutine to poll a queue; it is not served");
    }
}
