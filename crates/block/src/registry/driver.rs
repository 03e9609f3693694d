//! [`Driver`]: a driver's names, options, opening and reopen, in one place.

use super::{EventType, OpenError, Opening, Reopening};
use crate::driver::BlockDriver;
use crate::options::DriverOptions;

/// A driver that options can name: its names, its options, how it is opened, and what a reopen changes.
///
/// [`Drivers::add`](super::Drivers::add) makes it known. From then on it has its place in `blockdev-add`
/// and its schema, on a command line, in reopen, in lists and in the printed configuration.
/// `examples/own_driver.rs` is a disk and a filter of a program's own.
///
/// Its methods run in a coroutine of the thread that opens the node. They may suspend; what may block is a
/// worker's job ([`PoolShare::once`](coblk_aio::PoolShare::once)).
pub trait Driver: BlockDriver + Sized {
    /// The names that `driver` may have; [`format_name`](BlockDriver::format_name) is one of them. Which of
    /// them was used is [`Opening::driver_name`].
    const NAMES: &'static [&'static str];

    /// Its options that a reopen may change. All others are kept for the node's life, and a reopen with
    /// another value is refused, naming the option. Children are not among them: another node may take the
    /// place of a child of any driver, unless the child is the driver's own storage.
    const CHANGEABLE: &'static [&'static str] = &[];

    /// The events that it tells of its nodes ([`Opening::events`]), for `query-qmp-schema`.
    const EVENTS: &'static [EventType] = &[];

    /// Its own options.
    type Options: DriverOptions;

    /// Opens a node. Its children are those that [`Opening::co_child`] gives it, and no others. A driver
    /// that has others, another name than its [`NAMES`](Self::NAMES), or impossible limits, is not taken:
    /// the command fails.
    ///
    /// # Errors
    /// If it cannot be opened. The children that were opened for it are closed then.
    fn co_open(opening: &Opening<'_, '_>, options: &Self::Options) -> Result<Self, OpenError>;

    /// Gets ready to be what other options say, and changes nothing yet. The node is drained, and was
    /// flushed; other changes wait, so this must not wait for the end of a drain
    /// ([`Child::co_begin_own`](crate::Child::co_begin_own)). By default nothing of the driver's own changes.
    ///
    /// # Errors
    /// If it cannot become that.
    fn co_prepare_reopen<'a>(
        &'a self,
        _reopening: &Reopening<'_, '_>,
        _options: &Self::Options,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        Ok(Box::new(|| {}))
    }
}

/// A driver that is ready to change to its new options, and back. A closure is one:
///
/// ```
/// # use std::sync::atomic::{AtomicU64, Ordering};
/// # use coblk_block::Reopen;
/// # fn prepare(latency_us: &AtomicU64, mut new: u64) -> Box<dyn Reopen + '_> {
/// Box::new(move || new = latency_us.swap(new, Ordering::Relaxed))
/// # }
/// ```
pub trait Reopen {
    /// Changes, without I/O; called once more, changes back, as other users of the nodes are asked after
    /// the first call. Nothing is in flight. The driver's limits are asked for afterwards.
    fn swap(&mut self);
}

impl<F: FnMut()> Reopen for F {
    fn swap(&mut self) {
        self();
    }
}
