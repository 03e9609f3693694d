//! [`WeakBlockdevs`]: a way to a set of nodes that may be gone by then.

use std::fmt;
use std::sync::{Mutex, Weak};

use super::Blockdevs;
use crate::registry::{Drivers, EventListener, Names, Registry};

/// A way to a set of nodes that does not keep them open, from [`Blockdevs::downgrade`]. Any thread.
#[derive(Clone)]
pub struct WeakBlockdevs {
    drivers: Drivers,
    names: Weak<Mutex<Names>>,
    events: EventListener,
}

impl WeakBlockdevs {
    /// The set, if it is still there.
    pub fn upgrade(&self) -> Option<Blockdevs> {
        let (drivers, events) = (self.drivers.clone(), self.events.clone());
        let registry = Registry { drivers, names: self.names.upgrade()?, events };
        Some(Blockdevs { registry })
    }
}

impl fmt::Debug for WeakBlockdevs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakBlockdevs").finish_non_exhaustive()
    }
}

impl Blockdevs {
    /// A way to this set that does not keep its nodes open.
    pub fn downgrade(&self) -> WeakBlockdevs {
        let Registry { drivers, events, .. } = &self.registry;
        let (drivers, events) = (drivers.clone(), events.clone());
        WeakBlockdevs { drivers, names: self.registry.weak_names(), events }
    }
}
