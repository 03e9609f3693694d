//! [`BlockNode`]: a driver with a name, in the graph, behind a gate.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::driver::debug_event::DebugEvent;
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::{BlockDriver, BlockLimits, MAX_LENGTH};
use crate::graph::gate::Gate;
use crate::graph::life::{self, Life};
use crate::graph::node_info::{CacheMode, DetectZeroes};
use crate::graph::{self, Child, GraphError, NodeId};
use crate::io::live_limits::LiveLimits;
use crate::io::{self as request_path, PathState, ThresholdPassed};

/// A node of the block graph: a driver that requests reach through
/// [`BlockBackend`](crate::BlockBackend)s. Any thread; several contexts may use one at once.
pub struct BlockNode {
    id: NodeId,
    name: String,
    driver: Box<dyn BlockDriver>,
    limits: LiveLimits,
    pub(crate) gate: Gate,
    pub(crate) path: PathState,
    pub(crate) life: Life,
    /// How it was asked to treat caches.
    cache_mode: Mutex<CacheMode>,
    force_share: AtomicBool,
    wants_debug_events: bool,
}

/// What a node is told by options, whatever its driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeState {
    /// Refuse writes, whatever the driver allows.
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    pub(crate) detect_zeroes: DetectZeroes,
    /// No user is kept from anything.
    pub(crate) force_share: bool,
    pub(crate) cache_mode: CacheMode,
}

impl BlockNode {
    /// A node called `name`, for messages and commands, with this driver. One that is made above a
    /// node that is drained, or while [`drain_all`](crate::drain_all) holds, is born quiet
    /// (contract: C77).
    ///
    /// # Panics
    /// Where [`try_new`](Self::try_new) has an error.
    pub fn new(name: impl Into<String>, driver: impl BlockDriver + 'static) -> Arc<BlockNode> {
        Self::try_new(name, driver).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`new`](Self::new), where the nodes below are a user's choice.
    ///
    /// # Errors
    /// If it would stand on more than 256 nodes, one upon the other, or is longer than
    /// [`MAX_LENGTH`]; and if its driver is wrong: its limits contradict themselves, see
    /// [`BlockLimits`], or it lists an edge twice, or another node's.
    pub fn try_new(
        name: impl Into<String>,
        driver: impl BlockDriver + 'static,
    ) -> Result<Arc<BlockNode>, GraphError> {
        let (name, length) = (name.into(), driver.length());
        if length > MAX_LENGTH {
            return Err(GraphError::TooLong { node: name, length });
        }
        let limits = driver.limits();
        if !limits.are_possible() {
            return Err(GraphError::Limits { node: name, limits: format!("{limits:?}") });
        }
        let limits = LiveLimits::new(limits);
        let wants_debug_events = driver.wants_debug_events();
        let cache_mode = Mutex::new(driver.cache_mode());
        let mut graph = graph::lock();
        let node = Arc::new(BlockNode {
            id: graph.new_node_id(),
            name,
            driver: Box::new(driver),
            limits,
            gate: Gate::default(),
            path: PathState::default(),
            life: Life::default(),
            cache_mode,
            force_share: AtomicBool::new(false),
            wants_debug_events,
        });
        let added = graph.add_node(&node);
        // Its end would take the lock.
        drop(graph);
        added.map(|()| node)
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver below.
    #[inline]
    pub fn driver(&self) -> &dyn BlockDriver {
        &*self.driver
    }

    /// The edge that its filter passes requests on by. Only an edge that the graph knows: the ways
    /// down these have an end, whatever a driver says.
    pub(crate) fn filtered(&self) -> Option<&Child> {
        self.driver.filtered().filter(|child| child.is_of(self))
    }

    /// A step of a request has been reached.
    #[inline]
    pub(crate) fn debug_event(&self, event: DebugEvent) {
        if self.wants_debug_events {
            self.driver.debug_event(event);
        }
    }

    /// What the driver takes in one request. May change when the node is reopened.
    pub fn limits(&self) -> BlockLimits {
        self.limits.get()
    }

    /// The limits, for those who read one of them, or change them.
    #[inline]
    pub(crate) fn live_limits(&self) -> &LiveLimits {
        &self.limits
    }

    /// Length in bytes, [`MAX_LENGTH`] at most.
    pub fn length(&self) -> u64 {
        // What a request adds up stays a number, whatever the driver says later.
        self.driver.length().min(MAX_LENGTH)
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.path.is_read_only() || self.driver.is_read_only()
    }

    /// Whether its users let everybody do anything, whatever they say.
    pub(crate) fn is_force_share(&self) -> bool {
        self.force_share.load(Ordering::Relaxed)
    }

    /// Makes it what options say; returns what it was. While nothing is in flight.
    pub(crate) fn swap_state(&self, state: NodeState) -> NodeState {
        let mut cache_mode = self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner);
        NodeState {
            read_only: self.path.swap_read_only(state.read_only),
            discard: self.path.swap_discard_enabled(state.discard),
            detect_zeroes: self.path.swap_detect_zeroes(state.detect_zeroes),
            force_share: self.force_share.swap(state.force_share, Ordering::Relaxed),
            cache_mode: std::mem::replace(&mut cache_mode, state.cache_mode),
        }
    }

    /// Whether discards reach the driver; at first they do. Without, a discard succeeds and does
    /// nothing, and zeroes keep their place (contract: C81). Any thread; requests in flight may
    /// still go by what was set before.
    pub fn set_discard_enabled(&self, enabled: bool) {
        self.path.swap_discard_enabled(enabled);
    }

    /// Calls `passed`, once, when a write, a request for zeroes or a discard that reaches the driver
    /// ends behind `threshold` bytes, whether it succeeds or not; then there is no threshold. One that
    /// was set before is forgotten.
    ///
    /// It is called on the thread of the request, before that is complete, and may set the next
    /// threshold. Any thread.
    pub fn set_write_threshold(
        &self,
        threshold: u64,
        passed: impl FnOnce(ThresholdPassed) + Send + 'static,
    ) {
        self.path.set_write_threshold(threshold, Some(Box::new(passed)));
    }

    /// Removes the threshold, and its listener. Any thread.
    pub fn unset_write_threshold(&self) {
        self.path.set_write_threshold(0, None);
    }

    /// How it was asked to treat caches.
    pub(crate) fn cache_mode(&self) -> CacheMode {
        *self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what waits in this node, and in those below, for something outside of this process, such as
    /// a reconnect: the requests fail. Others go on. For those that give up: a removal that waits for
    /// no client, the end of a program. Any thread.
    pub fn cancel_in_flight(self: &Arc<Self>) {
        self.driver.cancel_in_flight();
        let below = graph::lock().nodes_below(self);
        below.iter().for_each(|node| node.driver.cancel_in_flight());
    }

    /// Whether discards reach the driver.
    pub fn is_discard_enabled(&self) -> bool {
        self.path.is_discard_enabled()
    }
}

impl Drop for BlockNode {
    fn drop(&mut self) {
        life::check_end(self);
        graph::lock().remove_node(self.id);
    }
}

/// The door for drivers that stand on other nodes: formats and filters, by their [`Child`](crate::Child). A
/// request comes in here as part of one that a [`BlockBackend`](crate::BlockBackend) has counted in
/// above, or that its driver has counted itself ([`OwnIo`](crate::OwnIo)), so it does not wait at the
/// gate. Errors are those of the backend's requests.
impl BlockNode {
    /// Fills `target` from `offset` bytes on.
    pub(crate) fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        request_path::co_preadv(self, co, offset, target, flags)
    }

    /// Writes `source` at `offset` bytes.
    pub(crate) fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pwritev(self, co, offset, source, flags)
    }

    /// Makes all writes durable that completed before.
    pub(crate) fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        request_path::co_flush(self, co)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub(crate) fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pwrite_zeroes(self, co, offset, bytes, flags)
    }

    /// Gives `bytes` bytes from `offset` on back to the storage.
    pub(crate) fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pdiscard(self, co, offset, bytes)
    }

    /// A backend has asked this of the node at the top; those below may differ (contract: C74).
    fn check_writable(&self) -> io::Result<()> {
        if self.is_read_only() { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
    }

    /// What is known of the bytes from `offset` on: how many of them, at least one, are of one kind.
    pub(crate) fn co_block_status(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<Extent> {
        request_path::co_block_status(self, co, offset, bytes)
    }

    /// Changes the length to `length` bytes; what is new reads as zeroes. Changes of length come one
    /// after the other. Whoever makes a device shorter sees to it that nobody writes beyond the new
    /// end meanwhile, as [`BlockBackend::co_truncate`](crate::BlockBackend::co_truncate) does.
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EFBIG if `length` is beyond what a file can have.
    pub(crate) fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        request_path::co_truncate(self, co, length, how)
    }

    /// How many bytes are taken where it stores things; `None` if the driver cannot tell.
    ///
    /// # Errors
    /// What the system says.
    pub fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.driver.co_allocated_bytes(co)
    }

    /// Looks how long the storage is now, and returns it in bytes. Waits while the node is drained,
    /// and a drain waits for it.
    ///
    /// # Errors
    /// What the system says.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        let _own = self.co_enter_own(co);
        match self.gate.refusal() {
            Some(error) => Err(error),
            None => request_path::co_refresh_length(self, co),
        }
    }
}
