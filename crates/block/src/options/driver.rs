//! [`DriverConfig`]: which driver a node has, and that driver's own options.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use coblk_qapi::Deferred;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{NodeRef, NodeRefOrNull, TAG};

/// The options of a driver: a struct of its own; derive `Deserialize` and `Serialize`, see
/// [`coblk_qapi`].
///
/// A member that is a node is a [`NodeRef`], one of a [slot](crate::ChildSlot) an `Option` of a
/// [`NodeRefOrNull`], and one of a [list](crate::ChildList) a `Vec` of `NodeRef`s; all are visited.
///
/// ```
/// use coblk_block::options::{DriverOptions, NodeRef, NodeRefOrNull};
///
/// #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
/// struct MirrorOptions {
///     file: NodeRef,
///     backing: Option<NodeRefOrNull>,
/// }
///
/// impl DriverOptions for MirrorOptions {
///     fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
///         visit("file", &mut self.file);
///     }
///
///     fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
///         visit("backing", &mut self.backing);
///     }
/// }
/// ```
pub trait DriverOptions:
    DeserializeOwned + Serialize + Clone + PartialEq + Debug + Send + Sync + 'static
{
    /// Calls `visit` with each child that there is, by the name of its option, which is the name of the
    /// node's edge to it, too.
    fn visit_children(&mut self, _visit: &mut dyn FnMut(&str, &mut NodeRef)) {}

    /// Calls `visit` with each option that says which child a slot has, also where it is left out. Its
    /// name is that of the slot. A reopen fills and empties these slots.
    fn visit_slots(&mut self, _visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {}

    /// Calls `visit` with the option that has the children of the driver's
    /// [list](crate::Opening::co_list), also where it is empty. Its name is that of the list. A reopen
    /// changes, adds and removes these children.
    fn visit_list(&mut self, _visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>)) {}
}

/// Options of any driver.
pub(crate) trait AnyOptions: Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn is_equal(&self, other: &dyn AnyOptions) -> bool;
    fn duplicate(&self) -> Arc<dyn AnyOptions>;
    /// With the children that slots have, and those of the list, such as `children.0`.
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef));
    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>));
    fn visit_list(&mut self, visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>));
    /// As they are written.
    fn members(&self) -> Result<Map<String, Value>, serde_json::Error>;
}

impl<T: DriverOptions> AnyOptions for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_equal(&self, other: &dyn AnyOptions) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }

    fn duplicate(&self) -> Arc<dyn AnyOptions> {
        Arc::new(self.clone())
    }

    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        DriverOptions::visit_children(self, visit);
        DriverOptions::visit_slots(self, &mut |name, slot| {
            if let Some(NodeRefOrNull(Some(child))) = slot {
                visit(name, child);
            }
        });
        DriverOptions::visit_list(self, &mut |name, list| {
            for (place, child) in list.iter_mut().enumerate() {
                visit(&format!("{name}.{place}"), child);
            }
        });
    }

    fn visit_list(&mut self, visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>)) {
        DriverOptions::visit_list(self, visit);
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        DriverOptions::visit_slots(self, visit);
    }

    fn members(&self) -> Result<Map<String, Value>, serde_json::Error> {
        match serde_json::to_value(self)? {
            Value::Object(members) => Ok(members),
            _ => Ok(Map::new()),
        }
    }
}

/// A driver by its name, with its own options: as they were written, until
/// [`Drivers::resolve`](crate::Drivers::resolve) reads them, or as the driver's type.
///
/// Options that were written are equal if they were written in the same way.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    name: String,
    pub(crate) own: OwnOptions,
}

#[derive(Clone, Debug)]
pub(crate) enum OwnOptions {
    Written(Deferred),
    Typed(Arc<dyn AnyOptions>),
}

impl DriverConfig {
    /// The driver called `name`, with these options.
    pub fn new(name: impl Into<String>, options: impl DriverOptions) -> DriverConfig {
        DriverConfig { name: name.into(), own: OwnOptions::Typed(Arc::new(options)) }
    }

    pub(super) fn written(name: String, options: Deferred) -> DriverConfig {
        DriverConfig { name, own: OwnOptions::Written(options) }
    }

    /// The name of the driver.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its options, if they have been read.
    pub(crate) fn typed(&self) -> Option<&Arc<dyn AnyOptions>> {
        match &self.own {
            OwnOptions::Typed(options) => Some(options),
            OwnOptions::Written(_) => None,
        }
    }

    /// Its options, if they have been read and are of this type.
    pub fn options<T: DriverOptions>(&self) -> Option<&T> {
        self.typed()?.as_any().downcast_ref()
    }

    /// Calls `visit` with each child. Options that have not been read have none.
    pub(crate) fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        if let Some(options) = self.typed_mut() {
            options.visit_children(visit);
        }
    }

    /// Its options, not shared with others.
    fn typed_mut(&mut self) -> Option<&mut (dyn AnyOptions + 'static)> {
        let OwnOptions::Typed(options) = &mut self.own else { return None };
        if Arc::get_mut(options).is_none() {
            *options = options.duplicate();
        }
        Arc::get_mut(options)
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        if let Some(options) = self.typed_mut() {
            options.visit_slots(visit);
        }
    }

    fn visit_list(&mut self, visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>)) {
        if let Some(options) = self.typed_mut() {
            options.visit_list(visit);
        }
    }

    /// The children, by the names of their options.
    pub(crate) fn children(&self) -> Vec<(String, NodeRef)> {
        let mut children = Vec::new();
        self.clone().visit_children(&mut |name, child| {
            children.push((name.to_owned(), child.clone()));
        });
        children
    }

    /// What the options say of each slot, by the names of the slots; `None` if it is left out.
    pub(crate) fn slots(&self) -> Vec<(String, Option<NodeRefOrNull>)> {
        let mut slots = Vec::new();
        self.clone().visit_slots(&mut |name, slot| slots.push((name.to_owned(), slot.clone())));
        slots
    }

    /// Says which child a slot has.
    pub(crate) fn set_slot(&mut self, name: &str, new: &NodeRefOrNull) {
        self.visit_slots(&mut |slot_name, slot| {
            if slot_name == name {
                *slot = Some(new.clone());
            }
        });
    }

    /// The children of the list, by the name of its option, if there is a list.
    pub(crate) fn list(&self) -> Option<(String, Vec<NodeRef>)> {
        let mut found = None;
        self.clone().visit_list(&mut |name, list| found = Some((name.to_owned(), list.clone())));
        found
    }

    /// Says which children the list has.
    pub(crate) fn set_list(&mut self, new: &[NodeRef]) {
        self.visit_list(&mut |_, list| *list = new.to_vec());
    }

    /// Puts other nodes in the place of children, by the names of their options.
    pub(crate) fn set_children(&mut self, new: &BTreeMap<String, NodeRef>) {
        self.visit_children(&mut |name, child| {
            if let Some(new) = new.get(name) {
                child.clone_from(new);
            }
        });
    }

    /// The first option that differs and is not among these names. Children are none.
    pub(crate) fn other_that_differs(&self, new: &DriverConfig, names: &[&str]) -> Option<String> {
        if self.name != new.name {
            return Some(TAG.to_owned());
        }
        let members = [self, new].map(DriverConfig::members_without_children);
        let [Ok(now), Ok(new)] = members else {
            // What cannot be written cannot be told apart by its members.
            return (self != new).then(|| TAG.to_owned());
        };
        let all = now.keys().chain(new.keys());
        let mut other = all.filter(|name| !names.contains(&name.as_str()));
        let value =
            |of: &Map<String, Value>, name: &str| of.get(name).filter(|it| !it.is_null()).cloned();
        other.find(|name| value(&now, name) != value(&new, name)).cloned()
    }

    fn members_without_children(&self) -> Result<Map<String, Value>, serde_json::Error> {
        let mut config = self.clone();
        config.visit_slots(&mut |_, slot| *slot = None);
        config.visit_list(&mut |_, list| list.clear());
        config.visit_children(&mut |_, child| *child = NodeRef::Name(String::new()));
        config.members()
    }

    /// Its options as they are written.
    pub(super) fn members(&self) -> Result<Map<String, Value>, serde_json::Error> {
        match &self.own {
            OwnOptions::Typed(options) => options.members(),
            OwnOptions::Written(options) => match serde_json::to_value(options)? {
                Value::Object(members) => Ok(members),
                _ => Ok(Map::new()),
            },
        }
    }
}

impl PartialEq for DriverConfig {
    fn eq(&self, other: &DriverConfig) -> bool {
        let same = match (&self.own, &other.own) {
            (OwnOptions::Written(own), OwnOptions::Written(other)) => own == other,
            (OwnOptions::Typed(own), OwnOptions::Typed(other)) => own.is_equal(&**other),
            _ => false,
        };
        same && self.name == other.name
    }
}
