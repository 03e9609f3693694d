//! [`ObjectType`]: a type of objects, and what it is given to make one.

use std::fmt;
use std::rc::Rc;

use coblk::export::Exports;
use coblk::qapi::Schema;
use coblk::{Blockdevs, Co};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::DaemonError;

/// A type of objects: a value in [`ObjectTypes`](super::ObjectTypes), which may hold what its objects share.
///
/// Its properties are a struct of its own; derive `Deserialize` and `Serialize`, see [`coblk::qapi`]. A
/// parameter that is neither among them nor `id` is refused.
pub trait ObjectType: 'static {
    /// Its name: `qom-type` in options.
    const NAME: &'static str;

    /// Its properties. What is written of them is read again as the same.
    type Options: DeserializeOwned + Serialize + Clone + 'static;

    /// What others find by the id of an object. An object is in use, and not deleted, as long as others
    /// hold it. Its end is on a worker thread, and may block.
    type Object: Send + Sync + 'static;

    /// Makes an object. May suspend.
    ///
    /// # Errors
    /// If it cannot be made. Nothing is left of it then.
    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &Self::Options,
    ) -> Result<Self::Object, DaemonError>;

    /// Takes back what [`co_make`](Self::co_make) has told others of the object: it is about to be deleted.
    /// Must not suspend.
    ///
    /// # Errors
    /// If it is in use, in a way that does not show by a handle on it.
    fn release(
        &self,
        _place: &ObjectPlace<'_, '_>,
        _object: &Self::Object,
    ) -> Result<(), DaemonError> {
        Ok(())
    }

    /// Changes a property, and returns all. May suspend.
    ///
    /// # Errors
    /// If it stays as it was when the object was made, or cannot have that value. Nothing has changed then.
    fn co_set(
        &self,
        _place: &ObjectPlace<'_, '_>,
        _object: &Self::Object,
        _options: &Self::Options,
        property: &str,
        _value: Value,
    ) -> Result<Self::Options, DaemonError> {
        Err(DaemonError::FixedProperty(property.to_owned()))
    }

    /// The values of all properties, with the defaults of those that were not given.
    fn values(&self, options: &Self::Options) -> Map<String, Value> {
        match serde_json::to_value(options) {
            Ok(Value::Object(values)) => values,
            // They are no struct.
            _ => Map::new(),
        }
    }

    /// The names of the properties, and their types as `qom-list` calls them.
    fn properties(&self) -> Vec<Property> {
        let Ok(Schema::Object(shape)) = Schema::of::<Self::Options>() else { return Vec::new() };
        let property = |name, schema: &Schema| {
            let kind = match schema {
                Schema::Builtin("str") => "string",
                Schema::Builtin("bool") => "bool",
                Schema::Builtin(_) => "int",
                Schema::Enum(_) => "enum",
                _ => "struct",
            };
            Property { name, kind: kind.to_owned() }
        };
        shape.members.into_iter().map(|member| property(member.name, &member.schema)).collect()
    }
}

/// A property, as `qom-list` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its type, in QAPI's words.
    pub kind: String,
}

impl Property {
    /// One of this type.
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Property {
        Property { name: name.into(), kind: kind.into() }
    }
}

/// Where an object is made, changed and deleted.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct ObjectPlace<'a, 'co> {
    /// The coroutine, in the context of the daemon.
    pub co: &'a Co<'co>,
    /// The object's id.
    pub id: &'a str,
    /// The nodes that there are.
    pub blockdevs: &'a Blockdevs,
    /// The exports that there are.
    pub exports: &'a Exports,
}

impl fmt::Debug for ObjectPlace<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPlace").field("id", &self.id).finish_non_exhaustive()
    }
}

/// For a type that its owner keeps a handle to.
impl<T: ObjectType> ObjectType for Rc<T> {
    const NAME: &'static str = T::NAME;
    type Options = T::Options;
    type Object = T::Object;

    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &T::Options,
    ) -> Result<T::Object, DaemonError> {
        T::co_make(self, place, options)
    }

    fn release(&self, place: &ObjectPlace<'_, '_>, object: &T::Object) -> Result<(), DaemonError> {
        T::release(self, place, object)
    }

    fn co_set(
        &self,
        place: &ObjectPlace<'_, '_>,
        object: &T::Object,
        options: &T::Options,
        property: &str,
        value: Value,
    ) -> Result<T::Options, DaemonError> {
        T::co_set(self, place, object, options, property, value)
    }

    fn values(&self, options: &T::Options) -> Map<String, Value> {
        T::values(self, options)
    }

    fn properties(&self) -> Vec<Property> {
        T::properties(self)
    }
}
