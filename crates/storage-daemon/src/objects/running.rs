//! [`Objects`]: the objects that there are, and their life.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use coblk::aio::PoolShare;
use coblk::aio::sync::CoMutex;
use coblk::export::SharedObject;
use coblk::qapi::Deferred;
use serde_json::{Map, Value};

use super::object_type::{ObjectPlace, ObjectType};
use super::registry::ObjectTypes;
use crate::error::DaemonError;
use crate::options::{ObjectOptions, OptionError, is_identifier};

/// The objects of a daemon, by id, and the types of objects that there can be.
pub struct Objects {
    types: ObjectTypes,
    running: RefCell<BTreeMap<String, Entry>>,
}

/// An object, as a list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its id.
    pub id: String,
    /// Its type, as in options.
    pub kind: &'static str,
}

struct Entry {
    kind: &'static str,
    object: Rc<dyn AnyObject>,
}

/// An object, whatever its type.
pub(super) trait AnyObject {
    fn shared(&self) -> SharedObject;

    fn is_held(&self) -> bool;

    fn options(&self) -> Map<String, Value>;

    fn values(&self) -> Map<String, Value>;

    fn release(&self, place: &ObjectPlace<'_, '_>) -> Result<(), DaemonError>;

    fn co_set(
        &self,
        place: &ObjectPlace<'_, '_>,
        property: &str,
        value: Value,
    ) -> Result<(), DaemonError>;
}

/// An object, with what it was made by and of.
pub(super) struct Running<T: ObjectType> {
    of: Rc<T>,
    object: Arc<T::Object>,
    options: RefCell<T::Options>,
    /// One change at a time, as each begins with what the one before has left.
    changing: CoMutex<()>,
}

impl<T: ObjectType> Running<T> {
    pub(super) fn new(of: Rc<T>, object: Arc<T::Object>, options: T::Options) -> Running<T> {
        Running { of, object, options: RefCell::new(options), changing: CoMutex::new(()) }
    }
}

impl<T: ObjectType> AnyObject for Running<T> {
    fn shared(&self) -> SharedObject {
        Arc::clone(&self.object) as SharedObject
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.object) > 1
    }

    fn options(&self) -> Map<String, Value> {
        match serde_json::to_value(&*self.options.borrow()) {
            Ok(Value::Object(options)) => options,
            // They are no struct.
            _ => Map::new(),
        }
    }

    fn values(&self) -> Map<String, Value> {
        self.of.values(&self.options.borrow())
    }

    fn release(&self, place: &ObjectPlace<'_, '_>) -> Result<(), DaemonError> {
        self.of.release(place, &self.object)
    }

    fn co_set(
        &self,
        place: &ObjectPlace<'_, '_>,
        property: &str,
        value: Value,
    ) -> Result<(), DaemonError> {
        let _change = self.changing.lock(place.co);
        let options = self.options.borrow().clone();
        let options = self.of.co_set(place, &self.object, &options, property, value)?;
        self.options.replace(options);
        Ok(())
    }
}

impl Objects {
    /// None yet.
    pub fn new(types: ObjectTypes) -> Objects {
        Objects { types, running: RefCell::default() }
    }

    /// The types that there can be.
    pub fn types(&self) -> &ObjectTypes {
        &self.types
    }

    /// Makes an object. `check` says whether it may still be kept, after what may suspend.
    ///
    /// # Errors
    /// If the id is no identifier or is taken, there is no such type, or it cannot be made.
    pub fn co_add(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &ObjectOptions,
        check: impl Fn() -> Result<(), DaemonError>,
    ) -> Result<(), DaemonError> {
        let (kind, make) = self.types.read(options)?;
        if !is_identifier(&options.id) {
            let text = "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', \
                        starting with a letter";
            return Err(OptionError::other(text).into());
        }
        self.check_new(&options.id)?;
        let object = make(place)?;
        // Meanwhile another command may have been faster, or the daemon may end.
        if let Err(refused) = check().and_then(|()| self.check_new(&options.id)) {
            if let Err(error) = object.release(place) {
                tracing::error!(id = options.id, %error, "an object that is not kept is in use");
            }
            co_drop(place, vec![object]);
            return Err(refused);
        }
        self.running.borrow_mut().insert(options.id.clone(), Entry { kind, object });
        Ok(())
    }

    fn check_new(&self, id: &str) -> Result<(), DaemonError> {
        match self.running.borrow().contains_key(id) {
            true => Err(DaemonError::DuplicateObject(id.to_owned())),
            false => Ok(()),
        }
    }

    /// Deletes an object. Its end may suspend; no other command finds it then.
    ///
    /// # Errors
    /// If there is none, or others refer to it.
    pub fn co_remove(&self, place: &ObjectPlace<'_, '_>) -> Result<(), DaemonError> {
        let id = place.id;
        let removed = {
            let mut running = self.running.borrow_mut();
            let entry = running.get(id).ok_or_else(|| DaemonError::NoSuchObject(id.to_owned()))?;
            // A command that changes it holds it as well.
            if entry.object.is_held() || Rc::strong_count(&entry.object) > 1 {
                return Err(DaemonError::ObjectInUse(id.to_owned()));
            }
            entry.object.release(place)?;
            running.remove(id)
        };
        co_drop(place, removed.into_iter().map(|entry| entry.object).collect());
        Ok(())
    }

    /// Changes a property.
    ///
    /// # Errors
    /// If there is no such object, or [its type](ObjectType::co_set) refuses.
    pub fn co_set(
        &self,
        place: &ObjectPlace<'_, '_>,
        property: &str,
        value: Value,
    ) -> Result<(), DaemonError> {
        let object = self.running.borrow().get(place.id).map(|entry| Rc::clone(&entry.object));
        let object = object.ok_or_else(|| DaemonError::NoSuchObject(place.id.to_owned()))?;
        object.co_set(place, property, value)
    }

    /// The object of this id, whatever its type.
    pub fn any(&self, id: &str) -> Option<SharedObject> {
        self.running.borrow().get(id).map(|entry| entry.object.shared())
    }

    /// The object of this id. `None` if there is none, or it is something else. It is in use as long as it
    /// is held.
    pub fn find<T: Send + Sync + 'static>(&self, id: &str) -> Option<Arc<T>> {
        self.any(id)?.downcast().ok()
    }

    /// All objects that are a `T`, by id.
    pub fn all<T: Send + Sync + 'static>(&self) -> Vec<(String, Arc<T>)> {
        let running = self.running.borrow();
        let found = running.iter().filter_map(|(id, entry)| {
            let object: Arc<dyn Any + Send + Sync> = entry.object.shared();
            Some((id.clone(), object.downcast().ok()?))
        });
        found.collect()
    }

    /// All of them, by id.
    pub fn infos(&self) -> Vec<ObjectInfo> {
        let running = self.running.borrow();
        running.iter().map(|(id, entry)| ObjectInfo { id: id.clone(), kind: entry.kind }).collect()
    }

    /// The options that make all of them again, by id.
    pub fn options(&self) -> Vec<ObjectOptions> {
        let running = self.running.borrow();
        let options = running.iter().map(|(id, Entry { kind, object })| ObjectOptions {
            kind: (*kind).to_owned(),
            id: id.clone(),
            others: Deferred::new(object.options()),
        });
        options.collect()
    }

    /// The type of an object and its properties as they are now. `None` if there is no such object.
    pub fn properties(&self, id: &str) -> Option<(&'static str, Map<String, Value>)> {
        let running = self.running.borrow();
        let entry = running.get(id)?;
        Some((entry.kind, entry.object.values()))
    }

    /// Takes all out. They end with what is returned, which may block.
    pub(crate) fn take(&self) -> Vec<SharedObject> {
        let objects = self.running.take();
        objects.into_values().map(|entry| entry.object.shared()).collect()
    }
}

/// Ends objects: elsewhere, so that the loop goes on.
fn co_drop(place: &ObjectPlace<'_, '_>, objects: Vec<Rc<dyn AnyObject>>) {
    let shared: Vec<SharedObject> = objects.iter().map(|object| object.shared()).collect();
    drop(objects);
    PoolShare::once(place.co, move || drop(shared));
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.infos()).finish()
    }
}
