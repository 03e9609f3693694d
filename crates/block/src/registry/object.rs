//! [`NamedObject`]: an object, other than a node, that options of nodes name.

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
