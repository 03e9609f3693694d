//! One queue, as the front end sets it up: [`Vring`]. When it has all that it needs, it runs on its
//! device.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk_aio::{AioContext, EventNotifier};
use coblk_virtio_blk::{Interrupt, VirtioBlk, VirtqueueLayout};
use vhost::vhost_user::{Error, Result};

use crate::device::DeviceHandle;
use crate::inflight::InflightMemory;
use crate::memory::MemoryTable;
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
#[derive(Clone, Copy)]
pub(crate) struct RingAddresses {
    pub(crate) desc_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
}

/// One queue. Only the control thread has it.
pub(crate) struct Vring {
    index: u16,
    device: DeviceHandle,
    pub(crate) size: u16,
    pub(crate) base: u16,
    pub(crate) addresses: Option<RingAddresses>,
    pub(crate) kick: Option<Kick>,
    pub(crate) call: Option<EventNotifier>,
    pub(crate) err: Option<EventNotifier>,
    pub(crate) enabled: bool,
    /// It runs; set to end the polling of a queue without kicks.
    running: Option<Arc<AtomicBool>>,
}

impl Vring {
    pub(crate) fn new(index: u16, device: DeviceHandle) -> Vring {
        Vring {
            index,
            device,
            size: 0,
            base: 0,
            addresses: None,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            running: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts the queue if the front end wants it to run and it does not.
    pub(crate) fn start(
        &mut self,
        memory: &MemoryTable,
        inflight: Option<&InflightMemory>,
    ) -> Result<()> {
        let Some(kick) = self.kick.as_ref().filter(|_| self.enabled && !self.is_running()) else {
            return Ok(());
        };
        let addresses =
            self.addresses.ok_or(Error::InvalidOperation("a queue starts before it has rings"))?;
        let layout = VirtqueueLayout {
            size: self.size,
            desc_table: memory.translate(addresses.desc_table)?,
            avail_ring: memory.translate(addresses.avail_ring)?,
            used_ring: memory.translate(addresses.used_ring)?,
            next_index: self.base,
        };
        let log = inflight.map(|it| it.log(self.index, self.size)).transpose()?;
        let kick = match kick {
            Kick::Notifier(notifier) => Some(share(notifier)?),
            Kick::Poll => None,
        };
        let call = self.call.as_ref().map(share).transpose()?;
        let (index, guest) = (self.index, Arc::clone(memory.guest()));
        let stopped = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stopped);
        let started = self.device.call(move |co, device| {
            let ctx = co.context();
            // What was answered by our predecessor may not have been announced.
            let interrupt = announced(call);
            device.start_logged_queue(ctx, index, &guest, layout, interrupt, log)?;
            match kick {
                Some(kick) => device.watch_notifier(ctx, index, &kick).map_err(Failed::Io),
                None => {
                    poll(ctx, device, index, until);
                    Ok(())
                }
            }
        });
        started.ok_or(Error::BackendInternalError)?.map_err(|error| {
            tracing::warn!(queue = index, %error, "a queue does not start");
            Error::ReqHandlerError(std::io::Error::other(error))
        })?;
        self.running = Some(stopped);
        Ok(())
    }

    /// Stops the queue, once what is in flight was answered.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(stopped) = self.running.take() else { return Ok(()) };
        stopped.store(true, Ordering::Relaxed);
        let index = self.index;
        let next = self.device.call(move |co, device| device.co_stop_queue(co, index));
        self.base = next.flatten().ok_or(Error::BackendInternalError)?;
        Ok(())
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
