//! [`BlockNode`]: a driver with a name, in the graph, behind a gate.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coblk_aio::Co;

use crate::driver::edge::ListId;
use crate::driver::flags::Truncate;
use crate::driver::mode::{CacheMode, DetectZeroes};
use crate::driver::role::ChildRole;
use crate::driver::{BlockDriver, BlockLimits, MAX_LENGTH};
use crate::graph::edge::{Edge, List};
use crate::graph::gate::Gate;
use crate::graph::life::{self, Activity, Life};
use crate::graph::{self, GraphError, NodeId};
use crate::io::{self as request_path, RequestPath, ThresholdPassed};

/// A node of the block graph: a driver with a name, which requests reach through
/// [`BlockBackend`](crate::BlockBackend)s. Any thread; several contexts may use one at once.
pub struct BlockNode {
    id: NodeId,
    pub(crate) path: RequestPath,
    edges: Vec<Arc<Edge>>,
    /// Children that come and go.
    list: Weak<List>,
    pub(crate) gate: Gate,
    pub(crate) life: Life,
    /// How it was asked to treat caches.
    cache_mode: Mutex<CacheMode>,
    force_share: AtomicBool,
}

/// The modes of a node by its options, whatever its driver.
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
    /// Makes a node called `name`, for messages and commands, with this driver. A node that is made
    /// with a child that is drained, or while [`drain_all`](crate::drain_all) holds, starts
    /// quiesced (contract: C77).
    ///
    /// # Panics
    /// Where [`try_new`](Self::try_new) has an error.
    pub fn new(name: impl Into<String>, driver: impl BlockDriver + 'static) -> Arc<BlockNode> {
        Self::try_new(name, driver).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`new`](Self::new), where the children are a user's choice.
    ///
    /// # Errors
    /// If it would have more than 256 levels of children, or is longer than
    /// [`MAX_LENGTH`]; and if its driver is wrong: its limits contradict themselves, see
    /// [`BlockLimits`], or it lists an edge twice, or another node's.
    pub fn try_new(
        name: impl Into<String>,
        driver: impl BlockDriver + 'static,
    ) -> Result<Arc<BlockNode>, GraphError> {
        Self::make(name.into(), driver, Activity::Active)
    }

    /// [`try_new`](Self::try_new), and the node is [inactive](Self::co_set_active) from the start:
    /// its storage is another process's. Its children may be inactive.
    ///
    /// # Errors
    /// As of [`try_new`](Self::try_new).
    pub fn try_new_inactive(
        name: impl Into<String>,
        driver: impl BlockDriver + 'static,
    ) -> Result<Arc<BlockNode>, GraphError> {
        Self::make(name.into(), driver, Activity::Inactive)
    }

    fn make(
        name: String,
        driver: impl BlockDriver + 'static,
        activity: Activity,
    ) -> Result<Arc<BlockNode>, GraphError> {
        let length = driver.length();
        if length > MAX_LENGTH {
            return Err(GraphError::TooLong { node: name, length });
        }
        let limits = driver.limits();
        if !limits.are_possible() {
            return Err(GraphError::Limits { node: name, limits: format!("{limits:?}") });
        }
        let cache_mode = Mutex::new(driver.cache_mode());
        let path = RequestPath::new(name, Box::new(driver), limits);
        path.state.look_at_bitmaps();
        let edges = graph::lock().edges(&path.driver().children());
        let list = path.driver().child_list();
        let list = list.map_or_else(Weak::new, |list| graph::lock().list(list));
        path.state.set_backing(backing(&edges).is_some());
        BlockNode::check_children_declared(&edges, &list)?;
        let mut graph = graph::lock();
        let node = Arc::new(BlockNode {
            id: graph.new_node_id(),
            path,
            edges,
            list,
            gate: Gate::default(),
            life: Life::new(activity),
            cache_mode,
            force_share: AtomicBool::new(false),
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
        self.path.name()
    }

    /// Its driver.
    #[inline]
    pub fn driver(&self) -> &dyn BlockDriver {
        self.path.driver()
    }

    /// The limits of one request. They may change when the node is reopened.
    pub fn limits(&self) -> BlockLimits {
        self.path.limits.get()
    }

    /// The children may have become others, and the limits with them. While nothing is in flight.
    pub(crate) fn look_at_limits(&self) {
        let limits = self.driver().limits();
        if limits.are_possible() {
            self.path.swap_limits(limits);
        } else {
            tracing::error!(node = self.name(), ?limits, "the driver has impossible limits");
        }
        self.path.state.set_backing(self.backing().is_some());
    }

    /// Length in bytes, [`MAX_LENGTH`] at most.
    #[inline]
    pub fn length(&self) -> u64 {
        self.path.length()
    }

    /// Whether writes are refused.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.path.is_read_only()
    }

    /// Whether its users share all permissions, whatever they were opened with.
    pub(crate) fn is_force_share(&self) -> bool {
        self.force_share.load(Ordering::Relaxed)
    }

    /// Makes it what options say; returns what it was. While nothing is in flight.
    pub(crate) fn swap_state(&self, state: NodeState) -> NodeState {
        let mut cache_mode = self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner);
        let read_only = self.path.state.swap_read_only(state.read_only);
        let is_read_only = self.is_read_only();
        let stored = self.bitmaps().list().into_iter().filter(|it| it.is_persistent());
        stored.for_each(|bitmap| bitmap.set_read_only(is_read_only));
        NodeState {
            read_only,
            discard: self.path.state.swap_discard_enabled(state.discard),
            detect_zeroes: self.path.state.swap_detect_zeroes(state.detect_zeroes),
            force_share: self.force_share.swap(state.force_share, Ordering::Relaxed),
            cache_mode: std::mem::replace(&mut cache_mode, state.cache_mode),
        }
    }

    /// Whether discards reach the driver; at first they do. Without, a discard succeeds and does
    /// nothing, and zeroes keep their place (contract: C81). Any thread; requests in flight may
    /// still go by what was set before.
    pub fn set_discard_enabled(&self, enabled: bool) {
        self.path.state.swap_discard_enabled(enabled);
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
        self.path.state.set_write_threshold(threshold, Some(Box::new(passed)));
    }

    /// Removes the threshold, and its listener. Any thread.
    pub fn unset_write_threshold(&self) {
        self.path.state.set_write_threshold(0, None);
    }

    /// How it was asked to treat caches.
    pub(crate) fn cache_mode(&self) -> CacheMode {
        *self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends with an error what waits in this node and its descendants for something outside of this
    /// process, such as a reconnect. Other requests go on. For a caller that gives up: a removal
    /// that waits for no client, the end of a program. Any thread.
    pub fn cancel_in_flight(self: &Arc<Self>) {
        self.driver().cancel_in_flight();
        let below = graph::lock().nodes_below(self);
        below.iter().for_each(|node| node.driver().cancel_in_flight());
    }

    /// Whether discards reach the driver.
    pub fn is_discard_enabled(&self) -> bool {
        self.path.state.is_discard_enabled()
    }
}

impl Drop for BlockNode {
    fn drop(&mut self) {
        life::check_end(self);
        graph::lock().remove_node(self.id);
    }
}

/// The node of the edge that is a backing file.
fn backing(edges: &[Arc<Edge>]) -> Option<Arc<BlockNode>> {
    let is_backing = |edge: &&Arc<Edge>| edge.info().role().contains(ChildRole::COW);
    edges.iter().find(is_backing)?.node()
}

/// Requests. They come by the [children](crate::Child) of parents' drivers, or by backends, which have
/// counted them.
impl BlockNode {
    /// The request path, for changes. A backend has checked its own node; descendants may be read-only
    /// all the same (contract: C74).
    #[inline]
    pub(crate) fn writable(&self) -> io::Result<&RequestPath> {
        if self.is_read_only() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(&self.path)
    }

    /// Changes the length to `length` bytes; what is new reads as zeroes. Changes of length come one
    /// after the other. A caller that makes a device shorter sees to it that no request writes beyond
    /// the new end meanwhile, as [`BlockBackend::co_truncate`](crate::BlockBackend::co_truncate) does.
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EFBIG if `length` is beyond what a file can have.
    pub(crate) fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        let result =
            request_path::co_truncate(&self.path, co, length, how, &|| self.backing_length());
        self.tell_length();
        result
    }

    /// [`co_truncate`](Self::co_truncate), unless the length is more already: false then.
    pub(crate) fn co_grow(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<bool> {
        let result = request_path::co_grow(&self.path, co, length, how, &|| self.backing_length());
        self.tell_length();
        result
    }

    /// Has the driver look how long the storage is, as part of a request that is counted.
    pub(crate) fn co_look_at_length(&self, co: &Co<'_>) -> io::Result<u64> {
        let result = request_path::co_refresh_length(&self.path, co);
        self.tell_length();
        result
    }

    /// Length of the [backing](Self::backing) node, in bytes.
    fn backing_length(&self) -> u64 {
        self.backing().map_or(0, |node| node.length())
    }

    /// The node that has what the driver's own storage does not have.
    pub(crate) fn backing(&self) -> Option<Arc<BlockNode>> {
        backing(&self.edges)
    }

    /// Its edges to other nodes.
    pub(crate) fn edges(&self) -> &[Arc<Edge>] {
        &self.edges
    }

    /// All edges of its driver, those of the list included.
    pub(crate) fn all_edges(&self) -> Vec<Arc<Edge>> {
        let mut edges = self.edges.clone();
        if let Some(list) = self.list() {
            edges.extend(list.load().iter().map(|child| child.shared_edge()));
        }
        edges
    }

    /// [`all_edges`](Self::all_edges), each by the name of the option that says where it leads: those of
    /// the list by their places in it.
    pub(crate) fn edges_by_option(&self) -> Vec<(Cow<'static, str>, Arc<Edge>)> {
        let single = |edge: &Arc<Edge>| (edge.info().name().into(), Arc::clone(edge));
        let mut edges: Vec<_> = self.edges.iter().map(single).collect();
        if let Some(list) = self.list() {
            let children = list.load();
            let listed = children.iter().enumerate().map(|(place, child)| {
                (format!("{}.{place}", list.name()).into(), child.shared_edge())
            });
            edges.extend(listed);
        }
        edges
    }

    /// Whether its driver had this list when it was made.
    pub(crate) fn has_list(&self, id: ListId) -> bool {
        self.list().is_some_and(|list| list.id() == id)
    }

    /// The children of its driver that come and go.
    pub(crate) fn list(&self) -> Option<Arc<List>> {
        self.list.upgrade()
    }

    /// The node that its driver, if that is a filter, passes requests on to.
    pub(crate) fn filtered(&self) -> Option<Arc<BlockNode>> {
        let id = self.driver().filtered()?;
        self.edges.iter().find(|edge| edge.info().id() == id)?.node()
    }

    /// How many bytes are allocated in its storage; `None` if the driver cannot tell. A drain waits
    /// for it.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        let _own = self.enter_own();
        self.driver().co_allocated_bytes(co)
    }

    /// Looks up the length of the storage, and returns it in bytes. Waits while the node is
    /// drained, and a drain waits for it.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        let _own = self.co_begin_own(co);
        match self.gate.refusal() {
            Some(error) => Err(error),
            None => self.co_look_at_length(co),
        }
    }
}
