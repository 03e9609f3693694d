//! [`EventData`] and [`EventSink`]: how a driver tells the owner of the nodes what happened to one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use coblk_qapi::{Error, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// An event of a driver: a struct with what it tells; derive `Serialize`, for the event, and `Deserialize`,
/// for its schema. The node is not among it: the layer adds `node-name`. A member that is `None` is left out.
///
/// ```
/// use coblk_block::{DriverEvent, EventData};
///
/// #[derive(serde::Deserialize, serde::Serialize)]
/// struct Corrupted {
///     msg: String,
///     offset: Option<u64>,
///     fatal: bool,
/// }
///
/// impl EventData for Corrupted {
///     const NAME: &'static str = "BLOCK_IMAGE_CORRUPTED";
///
///     fn kind(&self) -> &'static str {
///         if self.fatal { "fatal" } else { "" }
///     }
/// }
///
/// let event = DriverEvent::of(&Corrupted { msg: "L2".to_owned(), offset: None, fatal: true });
/// assert_eq!((event.name, event.kind, event.data.len()), ("BLOCK_IMAGE_CORRUPTED", "fatal", 2));
/// ```
pub trait EventData: Serialize + DeserializeOwned {
    /// Its name, as QMP writes names of events: `BLOCK_IMAGE_CORRUPTED`.
    const NAME: &'static str;

    /// Events come in storms. Of those with the same node, name and kind, the last one is always told,
    /// and the storage daemon leaves out those before it that come within a second. An event that no
    /// other of its name may hide, such as a fatal one, has a kind of its own.
    fn kind(&self) -> &'static str {
        ""
    }
}

/// A type of events that a driver [declares](super::Driver::EVENTS), with its schema.
#[derive(Clone, Copy)]
pub struct EventType {
    name: &'static str,
    schema: fn() -> Result<Schema, Error>,
}

impl EventType {
    /// Events that tell an `E`.
    pub const fn of<E: EventData>() -> EventType {
        EventType { name: E::NAME, schema: Schema::of::<E> }
    }

    /// Their name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What they tell, with the node.
    ///
    /// # Errors
    /// If that cannot be found by reading the type: what went wrong.
    pub fn schema(&self) -> Result<Schema, Error> {
        let Schema::Object(mut shape) = (self.schema)()? else {
            return Err(Error::other(format!("what '{}' tells has no members", self.name)));
        };
        let node = Schema::with("node-name", Schema::Builtin("str"));
        if let Schema::Object(node) = node {
            shape.members.extend(node.members);
        }
        Ok(Schema::Object(shape))
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Something that happened to a node and that a user may want to know, whatever its type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverEvent {
    /// The node. [`EventSink::tell`] enters it.
    pub node_name: String,
    /// Its name, as QMP writes names of events: `BLOCK_IMAGE_CORRUPTED`.
    pub name: &'static str,
    /// Which events of this name stand for each other: see [`EventData::kind`].
    pub kind: &'static str,
    /// What it tells, without the node.
    pub data: Map<String, Value>,
}

impl DriverEvent {
    /// An event that tells `event`, of no node yet.
    pub fn of<E: EventData>(event: &E) -> DriverEvent {
        let mut data = match serde_json::to_value(event) {
            Ok(Value::Object(data)) => data,
            // Only that of a struct has a schema.
            _ => Map::new(),
        };
        data.retain(|_, value| !value.is_null());
        DriverEvent { node_name: String::new(), name: E::NAME, kind: event.kind(), data }
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

    pub(super) fn sink(&self, node_name: &str, declared: &'static [EventType]) -> EventSink {
        EventSink { node_name: node_name.into(), declared, listener: self.clone() }
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
    declared: &'static [EventType],
    listener: EventListener,
}

impl EventSink {
    /// Tells of an event. If [no listener](crate::Blockdevs::set_event_listener) is set, it is lost. One that
    /// the driver does not [declare](super::Driver::EVENTS), which no schema has, is an error in the log, and
    /// is not told.
    ///
    /// Takes a lock and allocates: not for what happens on each request. Does not block.
    pub fn tell<E: EventData>(&self, event: &E) {
        if !self.declared.iter().any(|declared| declared.name == E::NAME) {
            tracing::error!(
                node = &*self.node_name,
                event = E::NAME,
                "the driver does not declare it"
            );
            return;
        }
        let node_name = (*self.node_name).to_owned();
        self.listener.tell(DriverEvent { node_name, ..DriverEvent::of(event) });
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSink").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}
