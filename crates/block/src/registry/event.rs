//! [`DriverEvent`] and [`EventSink`]: how a driver tells the owner of the nodes what happened to one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

/// Something that happened to a node and that a user may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverEvent {
    /// The node. [`EventSink::tell`] enters it.
    pub node_name: String,
    /// Its name, as QMP writes names of events: `BLOCK_IMAGE_CORRUPTED`.
    pub name: &'static str,
    /// Which events of this name stand for each other: see [`kind`](Self::kind).
    pub kind: &'static str,
    /// What it tells, without the node.
    pub data: Map<String, Value>,
}

impl DriverEvent {
    /// An event without data.
    pub fn new(name: &'static str) -> DriverEvent {
        DriverEvent { node_name: String::new(), name, kind: "", data: Map::new() }
    }

    /// With a member of its data.
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> DriverEvent {
        self.data.insert(member.to_owned(), value.into());
        self
    }

    /// Events come in storms. Of those with the same node, name and kind, the last one is always told,
    /// and the storage daemon leaves out those before it that come within a second. An event that no
    /// other of its name may hide, such as a fatal one, has a kind of its own.
    pub fn kind(mut self, kind: &'static str) -> DriverEvent {
        self.kind = kind;
        self
    }

    /// Whether two events have the same node, name and kind.
    pub fn is_like(&self, other: &DriverEvent) -> bool {
        let key = |event: &DriverEvent| (event.name, event.kind);
        key(self) == key(other) && self.node_name == other.node_name
    }
}

type Listener = Arc<dyn Fn(DriverEvent) + Send + Sync>;

/// The listener of a set of nodes, if it has one.
#[derive(Clone, Default)]
pub(crate) struct EventListener(Arc<Mutex<Option<Listener>>>);

impl EventListener {
    pub(crate) fn set(&self, listener: impl Fn(DriverEvent) + Send + Sync + 'static) {
        let listener: Listener = Arc::new(listener);
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(listener);
        // Its end may run code of its owner: outside the lock.
        drop(before);
    }

    pub(super) fn sink(&self, node_name: &str) -> EventSink {
        EventSink { node_name: node_name.into(), listener: self.clone() }
    }

    fn tell(&self, event: DriverEvent) {
        // Called outside the lock, as it may tell of something, or set another.
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(event);
        }
    }
}

/// Where a driver tells what happened to its node, for as long as it likes. Any thread; clones are
/// cheap. [`Opening::events`](super::Opening::events) makes it.
#[derive(Clone)]
pub struct EventSink {
    node_name: Arc<str>,
    listener: EventListener,
}

impl EventSink {
    /// Tells of an event. If [no listener](crate::Blockdevs::set_event_listener) is set, it is lost.
    ///
    /// Takes a lock and allocates: not for what happens on each request. Does not block.
    pub fn tell(&self, event: DriverEvent) {
        self.listener.tell(DriverEvent { node_name: (*self.node_name).to_owned(), ..event });
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSink").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}
