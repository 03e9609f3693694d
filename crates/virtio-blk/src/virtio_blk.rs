//! [`VirtioBlk`]: a device as its owner sees it, from its making to its reset. What it does with
//! requests begins in `device.rs`.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, EventNotifier, RemoteBottomHalf};
use coblk_block::{BlockBackend, PermissionError};
use vm_memory::GuestMemoryMmap;

use crate::config::{
    CONFIG_SPACE_BYTES, ConfigError, VirtioBlkConfig, feature, parse_config_write,
};
use crate::dirty::QueueLog;
use crate::interrupt::Interrupt;
use crate::memory::GuestMap;
use crate::queue::DeviceQueue;
use crate::ring::{Ring, RingOptions};
use crate::shared::Shared;
use crate::unanswered::{Earlier, PausedQueue, StoppedAt};
use crate::virtqueue::{VirtqueueError, VirtqueueLayout};

/// Why a device or a queue cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioBlkError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Others use the node, and do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The backend does not tell its length.
    #[error("cannot ask the backend for its length: {0}")]
    Backend(#[source] io::Error),
    /// The driver accepted features that were not offered, or not VERSION_1.
    #[error(
        "the driver accepted features {accepted:#x}, offered were {offered:#x}; VERSION_1 is required"
    )]
    Features {
        /// What it accepted.
        accepted: u64,
        /// What it could have.
        offered: u64,
    },
    /// There is no such queue.
    #[error("there is no queue {index}: the device has {num_queues}")]
    NoSuchQueue {
        /// Which was asked for.
        index: u16,
        /// How many there are.
        num_queues: u16,
    },
    /// The queue runs.
    #[error("queue {0} runs already")]
    AlreadyRunning(u16),
    /// The queue does not run.
    #[error("queue {0} does not run")]
    NotRunning(u16),
    /// The queue cannot be used.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which.
        index: u16,
        /// Why.
        source: VirtqueueError,
    },
}

/// A virtio-blk device: requests from virtqueues in guest memory, split or packed, served by a
/// [`BlockBackend`].
///
/// It belongs to the backend's context and stays on its thread. In the order of a driver's
/// initialisation: [`negotiate`](Self::negotiate), [`start_queue`](Self::start_queue), kicks,
/// [`reset`](Self::reset). Kicks come from the home thread ([`kick`](Self::kick)), from another
/// thread ([`remote_kick`](Self::remote_kick)) or through an eventfd
/// ([`watch_notifier`](Self::watch_notifier)).
///
/// Requests of a guest never panic and never block the loop. A malformed one is answered with an
/// I/O error if there is a status byte to put it in; if not, the queue is broken: it takes no more
/// requests, an error event says why, and [`needs_reset`](Self::needs_reset) is true.
///
/// Capacity is the backend's length in whole sectors of 512 bytes; what is left of the length
/// cannot be addressed.
///
/// # Dropping
/// a device whose queues run lets the requests in flight finish, and takes no new ones. What a stopped
/// backend holds is treated as by [`co_stop_queue`](Self::co_stop_queue). Guest memory stays mapped
/// until the last has finished. [`reset`](Self::reset) waits for that.
pub struct VirtioBlk {
    shared: Rc<Shared>,
    queues: RefCell<Vec<Option<Rc<DeviceQueue>>>>,
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        let queues = std::mem::take(self.queues.get_mut());
        queues.iter().flatten().for_each(|queue| queue.abandon());
    }
}

impl VirtioBlk {
    /// A device on `backend`.
    ///
    /// # Errors
    /// If the configuration is wrong, or the backend has no medium.
    pub fn new(
        backend: BlockBackend,
        config: VirtioBlkConfig,
    ) -> Result<VirtioBlk, VirtioBlkError> {
        config.check()?;
        let length_bytes = backend.length().map_err(VirtioBlkError::Backend)?;
        if let Some(policies) = config.error_policies {
            backend.set_error_policies(policies);
        }
        let queues = (0..config.num_queues).map(|_| None).collect();
        let shared = Rc::new(Shared::new(backend, config, length_bytes));
        let me = Rc::downgrade(&shared);
        shared.backend.set_length_listener(move |ctx, length_bytes| {
            if let Some(shared) = me.upgrade() {
                shared.set_length(ctx, length_bytes);
            }
        });
        Ok(VirtioBlk { shared, queues: RefCell::new(queues) })
    }

    /// How it was configured.
    pub fn config(&self) -> &VirtioBlkConfig {
        &self.shared.config
    }

    /// The backend behind it.
    pub fn backend(&self) -> &BlockBackend {
        &self.shared.backend
    }

    /// The features it offers; bits of [`feature`](crate::feature).
    pub fn features(&self) -> u64 {
        self.shared.config.features(self.shared.read_only)
    }

    /// The driver's choice of features. Before any queue starts; without it, all that is offered
    /// counts as accepted, but for RING_PACKED.
    ///
    /// # Errors
    /// If a feature was not offered, or VERSION_1 is not among them.
    pub fn negotiate(&self, accepted: u64) -> Result<(), VirtioBlkError> {
        let offered = self.features();
        if accepted & !offered != 0 || accepted & feature::VERSION_1 == 0 {
            return Err(VirtioBlkError::Features { accepted, offered });
        }
        self.shared.features.set(accepted);
        Ok(())
    }

    /// Capacity in sectors of 512 bytes.
    pub fn capacity_sectors(&self) -> u64 {
        self.shared.capacity_sectors.get()
    }

    /// The configuration space, `struct virtio_blk_config` of the standard.
    pub fn config_space(&self) -> [u8; CONFIG_SPACE_BYTES] {
        let shared = &self.shared;
        shared.config.space(self.capacity_sectors(), self.features(), shared.writeback.get())
    }

    /// The driver writes to configuration space: it can switch the write cache, and nothing else.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        match parse_config_write(offset, data) {
            Some(writeback) if self.shared.has_feature(feature::CONFIG_WCE) => {
                self.shared.writeback.set(writeback);
            }
            _ => tracing::warn!(offset, len = data.len(), "config write ignored"),
        }
    }

    /// What happens when configuration space changes, or the device needs a reset.
    pub fn set_config_interrupt(&self, interrupt: Interrupt) {
        self.shared.set_config_interrupt(interrupt);
    }

    /// Takes over the backend's length, and tells the driver if it has changed. After a change that
    /// the block layer makes the device does so by itself.
    ///
    /// # Errors
    /// If the backend has no medium.
    pub fn update_capacity(&self, ctx: &AioContext) -> io::Result<()> {
        self.shared.set_length(ctx, self.shared.backend.length()?);
        Ok(())
    }

    /// Starts a queue that the driver has laid out in `mem`. What is available in it already is
    /// taken from the next poll on. `interrupt` is raised when requests were completed and the
    /// driver wants to know.
    ///
    /// # Errors
    /// If there is no such queue, if it runs, or if its layout is wrong.
    pub fn start_queue(
        &self,
        ctx: &AioContext,
        index: u16,
        mem: &Arc<GuestMemoryMmap>,
        layout: VirtqueueLayout,
        interrupt: impl Into<Interrupt>,
    ) -> Result<(), VirtioBlkError> {
        self.continue_queue(ctx, index, mem, layout, interrupt, Earlier::default())
    }

    /// [`start_queue`](Self::start_queue), with the knowledge of requests that were taken earlier.
    /// Those that were not answered are served first; `next_index` of the layout is ignored then, as
    /// log and used ring tell it, or the place where the queue was paused.
    ///
    /// # Errors
    /// As [`start_queue`](Self::start_queue), and if the log does not fit the queue.
    pub fn continue_queue(
        &self,
        ctx: &AioContext,
        index: u16,
        mem: &Arc<GuestMemoryMmap>,
        layout: VirtqueueLayout,
        interrupt: impl Into<Interrupt>,
        earlier: Earlier,
    ) -> Result<(), VirtioBlkError> {
        let num_queues = self.shared.config.num_queues;
        let mut queues = self.queues.borrow_mut();
        let slot = queues
            .get_mut(usize::from(index))
            .ok_or(VirtioBlkError::NoSuchQueue { index, num_queues })?;
        if slot.is_some() {
            return Err(VirtioBlkError::AlreadyRunning(index));
        }
        let options = RingOptions {
            size_max: self.shared.config.queue_size_max,
            event_idx: self.shared.has_feature(feature::EVENT_IDX),
            is_packed: self.shared.has_feature(feature::RING_PACKED),
        };
        let map = GuestMap::new(mem);
        let dirty = earlier.dirty.clone();
        let ring = Ring::new(&map, layout, options, earlier)
            .map_err(|source| VirtioBlkError::Queue { index, source })?;
        let queue = DeviceQueue::new(ctx, index, &self.shared, map, ring, interrupt.into());
        queue.set_dirty_log(dirty.as_ref());
        queue.kick_bh().schedule();
        *slot = Some(queue);
        Ok(())
    }

    /// Replaces what happens when a running queue interrupts its driver.
    ///
    /// # Errors
    /// If the queue does not run.
    pub fn set_interrupt(
        &self,
        index: u16,
        interrupt: impl Into<Interrupt>,
    ) -> Result<(), VirtioBlkError> {
        self.queue(index)?.set_interrupt(interrupt.into());
        Ok(())
    }

    /// From now on a running queue marks what it writes to guest memory in `log`, or nowhere. Requests that
    /// are in flight do so as well, and the used ring is marked at once. See [`DirtyLog`](crate::DirtyLog).
    ///
    /// # Errors
    /// If the queue does not run.
    pub fn set_dirty_log(&self, index: u16, log: Option<&QueueLog>) -> Result<(), VirtioBlkError> {
        self.queue(index)?.set_dirty_log(log);
        Ok(())
    }

    /// The driver kicks, on the home thread: the queue is looked at in the next poll. Without
    /// effect if the queue does not run.
    pub fn kick(&self, index: u16) {
        if let Ok(queue) = self.queue(index) {
            queue.kick_bh().schedule();
        }
    }

    /// What a driver on another thread kicks a queue with: no system call while the loop is awake.
    ///
    /// # Errors
    /// If the queue does not run.
    pub fn remote_kick(&self, index: u16) -> Result<RemoteBottomHalf, VirtioBlkError> {
        Ok(self.queue(index)?.kick_bh().remote())
    }

    /// Takes kicks from an eventfd too, until the queue stops.
    ///
    /// # Errors
    /// If the queue does not run ([`io::ErrorKind::NotFound`]), or the process has no descriptors
    /// left.
    pub fn watch_notifier(
        &self,
        ctx: &AioContext,
        index: u16,
        notifier: &EventNotifier,
    ) -> io::Result<()> {
        self.queue(index)
            .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?
            .watch(ctx, notifier)
    }

    /// Requests taken and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.queues.borrow().iter().flatten().map(|queue| queue.in_flight()).sum()
    }

    /// Whether the driver broke a queue. [`reset`](Self::reset) clears it.
    pub fn needs_reset(&self) -> bool {
        self.shared.needs_reset.get()
    }

    /// How the driver broke a queue; `None` if it did not.
    pub fn queue_error(&self, index: u16) -> Option<String> {
        self.queue(index).ok()?.error_message()
    }

    /// Stops a queue: takes nothing more from it, and waits for those in flight. Guest memory is not
    /// touched afterwards. Returns where to start it again; `None` if it did not run.
    ///
    /// What a stopped backend holds is not in flight, unless [`BlockBackend::report_errors`] makes it
    /// end. It stays in the log, if there is one. If not, the index lies before all that came last and
    /// was not answered; held requests that came before answered ones fail with an I/O error.
    pub fn co_stop_queue(&self, co: &Co<'_>, index: u16) -> Option<StoppedAt> {
        let queue = self.queue(index).ok()?;
        let stopped_at = queue.co_stop(co);
        self.remove(index, &queue);
        Some(stopped_at)
    }

    /// [Stops](Self::co_stop_queue) a queue whose driver has gone. A discard or a write of zeroes that goes on in
    /// pieces ends behind the piece at hand, and becomes what of held requests is said there: in the log it
    /// stays unanswered, and is done all over by the device that comes next.
    pub fn co_give_up_queue(&self, co: &Co<'_>, index: u16) -> Option<StoppedAt> {
        let queue = self.queue(index).ok()?;
        let stopped_at = queue.co_give_up(co);
        self.remove(index, &queue);
        Some(stopped_at)
    }

    /// [Stops](Self::co_stop_queue) a queue that is to go on, in other memory perhaps: what a stopped
    /// backend holds is neither answered nor forgotten, but part of the result. `None` if it did
    /// not run.
    pub fn co_pause_queue(&self, co: &Co<'_>, index: u16) -> Option<PausedQueue> {
        let queue = self.queue(index).ok()?;
        let paused = queue.co_pause(co);
        self.remove(index, &queue);
        Some(paused)
    }

    /// [Stops](Self::co_stop_queue) a queue that its driver resets: what a stopped backend holds is
    /// not answered, and the log is empty afterwards.
    pub fn co_forget_queue(&self, co: &Co<'_>, index: u16) {
        if let Ok(queue) = self.queue(index) {
            queue.co_forget(co);
            self.remove(index, &queue);
        }
    }

    fn remove(&self, index: u16, queue: &Rc<DeviceQueue>) {
        // Unless another stop was as quick.
        if let Some(slot) = self.queues.borrow_mut().get_mut(usize::from(index))
            && slot.as_ref().is_some_and(|it| Rc::ptr_eq(it, queue))
        {
            *slot = None;
        }
    }

    /// Stops all queues and forgets what was negotiated, as a driver's reset does. Afterwards the
    /// device does not touch guest memory any more. Requests that a stopped backend holds, of all
    /// its users, end with an error.
    pub fn co_reset(&self, co: &Co<'_>) {
        let _reporting = self.shared.backend.report_errors();
        for index in 0..self.shared.config.num_queues {
            self.co_forget_queue(co, index);
        }
        self.shared.features.set(self.features() & !feature::RING_PACKED);
        self.shared.writeback.set(self.shared.config.write_cache);
        self.shared.needs_reset.set(false);
        self.shared.config_changed.set(false);
    }

    /// [`co_reset`](Self::co_reset), polling until it is done.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn reset(&self, ctx: &AioContext) {
        ctx.run(|co| self.co_reset(co));
    }

    fn queue(&self, index: u16) -> Result<Rc<DeviceQueue>, VirtioBlkError> {
        let queues = self.queues.borrow();
        let queue = queues.get(usize::from(index)).and_then(Option::as_ref);
        queue.cloned().ok_or(VirtioBlkError::NotRunning(index))
    }
}

impl fmt::Debug for VirtioBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlk").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
