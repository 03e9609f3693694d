//! What the queues of a device share. Home thread only.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coblk_aio::{AioContext, Co, CoWaker};
use coblk_block::{BlockBackend, GivingBack};

use crate::config::{VirtioBlkConfig, feature};
use crate::error_log::ErrorLog;
use crate::interrupt::Interrupt;
use crate::kind::{ID_BYTES, Limits, SECTOR_BYTES};
use crate::run::Run;

/// Runs kept for reuse. More than ever run at once on a null device; those of a deep queue come
/// and go in numbers up to its size.
const KEPT_RUNS: usize = 1024;

pub(crate) struct Shared {
    pub(crate) backend: BlockBackend,
    pub(crate) config: VirtioBlkConfig,
    /// The answer to GET_ID.
    pub(crate) id: [u8; ID_BYTES],
    pub(crate) read_only: bool,
    pub(crate) capacity_sectors: Cell<u64>,
    /// What the driver has accepted.
    pub(crate) features: Cell<u64>,
    /// Whether the driver has the write cache on.
    pub(crate) writeback: Cell<bool>,
    pub(crate) needs_reset: Cell<bool>,
    /// The driver is to be told of a change: capacity, or the need for a reset.
    pub(crate) config_changed: Cell<bool>,
    config_interrupt: RefCell<Rc<Interrupt>>,
    /// Borrowed for one call.
    pub(crate) error_log: RefCell<ErrorLog>,
    // Boxed: a run moves from here to an open run to a coroutine, and comes back.
    #[allow(clippy::vec_box)]
    free_runs: RefCell<Vec<Box<Run>>>,
    /// Queues that stop.
    stopping: Cell<usize>,
    /// Requests of the others, which wait until none does.
    stop_waiters: RefCell<Vec<CoWaker>>,
}

impl Shared {
    pub(crate) fn new(backend: BlockBackend, config: VirtioBlkConfig, length_bytes: u64) -> Shared {
        let mut id = [0; ID_BYTES];
        id[..config.serial.len()].copy_from_slice(config.serial.as_bytes());
        let read_only = backend.is_read_only();
        Shared {
            id,
            read_only,
            capacity_sectors: Cell::new(length_bytes / SECTOR_BYTES),
            features: Cell::new(config.features(read_only) & !feature::RING_PACKED),
            writeback: Cell::new(config.write_cache),
            needs_reset: Cell::new(false),
            config_changed: Cell::new(false),
            config_interrupt: RefCell::default(),
            error_log: RefCell::default(),
            free_runs: RefCell::new(Vec::new()),
            stopping: Cell::new(0),
            stop_waiters: RefCell::default(),
            backend,
            config,
        }
    }

    pub(crate) fn has_feature(&self, bit: u64) -> bool {
        self.features.get() & bit != 0
    }

    /// Whether writes must be durable before they are answered: the driver has the cache off, or
    /// does not know how to flush it.
    pub(crate) fn is_writethrough(&self) -> bool {
        !self.has_feature(feature::FLUSH) || !self.writeback.get()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            capacity_bytes: self.capacity_sectors.get() * SECTOR_BYTES,
            read_only: self.read_only,
            discard: self.has_feature(feature::DISCARD),
            write_zeroes: self.has_feature(feature::WRITE_ZEROES),
        }
    }

    /// The backend's length is now this.
    pub(crate) fn set_length(&self, ctx: &AioContext, length_bytes: u64) {
        let sectors = length_bytes / SECTOR_BYTES;
        if self.capacity_sectors.replace(sectors) != sectors {
            self.config_changed.set(true);
            self.raise_config_interrupt(ctx);
        }
    }

    pub(crate) fn set_config_interrupt(&self, interrupt: Interrupt) {
        self.config_interrupt.replace(Rc::new(interrupt));
    }

    /// Tells the driver of a change, if there is one to tell.
    pub(crate) fn raise_config_interrupt(&self, ctx: &AioContext) {
        if self.config_changed.take() {
            // A handle of its own: the callback may replace the interrupt.
            let interrupt = Rc::clone(&self.config_interrupt.borrow());
            interrupt.raise(ctx);
        }
    }

    /// A queue stops, until the guard is dropped: the backend holds nothing meanwhile.
    pub(crate) fn begin_stop(self: &Rc<Self>) -> Stopping {
        self.stopping.set(self.stopping.get() + 1);
        let stopping =
            Stopping { shared: Rc::clone(self), giving_back: Some(self.backend.give_back_held()) };
        // It may be theirs.
        self.wake_stop_waiters();
        stopping
    }

    /// Waits for a change of which queues stop; false if none does.
    pub(crate) fn co_wait_for_stop(&self, co: &Co<'_>) -> bool {
        let waits = self.stopping.get() > 0;
        if waits {
            co.suspend_for("a queue that stops", |waker| {
                self.stop_waiters.borrow_mut().push(waker);
            });
        }
        waits
    }

    fn wake_stop_waiters(&self) {
        for waiter in self.stop_waiters.take() {
            waiter.wake();
        }
    }

    #[inline]
    pub(crate) fn take_run(&self) -> Box<Run> {
        self.free_runs.borrow_mut().pop().unwrap_or_default()
    }

    #[inline]
    pub(crate) fn give_run_back(&self, run: Box<Run>) {
        let mut free_runs = self.free_runs.borrow_mut();
        if free_runs.len() < KEPT_RUNS {
            free_runs.push(run);
        }
    }
}

/// A queue stops; see [`Shared::begin_stop`].
pub(crate) struct Stopping {
    shared: Rc<Shared>,
    giving_back: Option<GivingBack>,
}

impl Drop for Stopping {
    fn drop(&mut self) {
        let stopping = &self.shared.stopping;
        stopping.set(stopping.get() - 1);
        // First, or they would be given back again.
        self.giving_back = None;
        self.shared.wake_stop_waiters();
    }
}
