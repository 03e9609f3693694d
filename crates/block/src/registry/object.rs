//! [`NamedObject`]: an object, other than a node, that options of nodes name. [`ObjectFinder`] finds it.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use super::BlockdevError;
use super::names::Names;

/// A kind of objects that options name by their ids, such as throttle groups.
///
/// [`Blockdevs::add_object`](crate::Blockdevs::add_object) makes one known, and a driver finds it by its id
/// and type ([`Opening::object`](crate::Opening::object)). The ids of all kinds are of one name space.
pub trait NamedObject: Send + Sync + 'static {
    /// Its kind in messages: `throttle group`.
    const KIND: &'static str;

    /// Whether it is used, and so cannot be removed. A driver that finds an object begins to use it before it
    /// opens its children, as an object may be removed meanwhile.
    fn is_in_use(&self) -> bool;
}

/// Finds objects by their ids, for a driver that needs one after its node was opened. Any thread.
#[derive(Clone)]
pub struct ObjectFinder(Weak<Mutex<Names>>);

impl ObjectFinder {
    pub(super) fn new(names: Weak<Mutex<Names>>) -> ObjectFinder {
        ObjectFinder(names)
    }

    /// The object with this id.
    ///
    /// # Errors
    /// If there is none of this type.
    pub fn find<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, BlockdevError> {
        Names::known_object(self.0.upgrade().as_deref(), id)
    }
}

impl fmt::Debug for ObjectFinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectFinder")
    }
}
