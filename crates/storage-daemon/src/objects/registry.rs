//! [`ObjectTypes`]: the types of objects that there are, and what each makes of its options.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use coblk::qapi::{Deferred, Schema, shorten};

use super::authz::{AuthzListFileType, AuthzListType, AuthzSimpleType};
use super::iothread::IothreadType;
use super::object_type::{ObjectPlace, ObjectType, Property};
use super::running::{AnyObject, Running};
use super::secret::SecretType;
use super::throttle_group::ThrottleGroupType;
use super::tls_creds_x509::TlsCredsX509Type;
use crate::error::DaemonError;
use crate::options::{OBJECT_TAG, ObjectCommon, ObjectOptions, OptionError};

/// Makes an object of options that have been read.
pub(super) type Make =
    Box<dyn FnOnce(&ObjectPlace<'_, '_>) -> Result<Rc<dyn AnyObject>, DaemonError>>;

/// A type, whatever its properties are.
trait AnyType {
    fn read(self: Rc<Self>, options: &Deferred) -> Result<Make, OptionError>;

    fn schema(&self) -> Result<Schema, OptionError>;

    fn properties(&self) -> Vec<Property>;
}

impl<T: ObjectType> AnyType for T {
    fn read(self: Rc<Self>, options: &Deferred) -> Result<Make, OptionError> {
        let options: T::Options = options.read()?;
        Ok(Box::new(move |place| {
            let object = Arc::new(self.co_make(place, &options)?);
            Ok(Rc::new(Running::new(self, object, options)))
        }))
    }

    fn schema(&self) -> Result<Schema, OptionError> {
        Schema::of::<T::Options>()
    }

    fn properties(&self) -> Vec<Property> {
        ObjectType::properties(self)
    }
}

/// Types of objects, by name.
pub struct ObjectTypes(BTreeMap<&'static str, Rc<dyn AnyType>>);

impl Default for ObjectTypes {
    /// Those of this crate.
    fn default() -> ObjectTypes {
        let mut types = ObjectTypes(BTreeMap::new());
        types.add(AuthzListType);
        types.add(AuthzListFileType);
        types.add(AuthzSimpleType);
        types.add(IothreadType);
        types.add(SecretType);
        types.add(ThrottleGroupType);
        types.add(TlsCredsX509Type);
        types
    }
}

impl ObjectTypes {
    /// Adds one.
    ///
    /// # Panics
    /// If there is one of this name.
    pub fn add<T: ObjectType>(&mut self, new: T) {
        let previous = self.0.insert(T::NAME, Rc::new(new));
        assert!(previous.is_none(), "two types of objects are called '{}'", T::NAME);
    }

    /// The names of all, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// The properties of a type. `None` if there is none of this name.
    pub fn properties(&self, kind: &str) -> Option<Vec<Property>> {
        self.0.get(kind).map(|kind| kind.properties())
    }

    /// The schema of the properties of a type. `None` if there is none of this name.
    ///
    /// # Errors
    /// If it cannot be found by reading them: what went wrong.
    pub fn schema_of(&self, kind: &str) -> Option<Result<Schema, OptionError>> {
        self.0.get(kind).map(|kind| kind.schema())
    }

    /// The options of an object of any type: those of `object-add`.
    ///
    /// # Errors
    /// If the schema of a type's properties cannot be found by reading them: what went wrong.
    pub fn schema(&self) -> Result<Schema, OptionError> {
        let schema = |(name, kind): (&&'static str, &Rc<dyn AnyType>)| {
            Ok(((*name).to_owned(), kind.schema()?))
        };
        let variants = self.0.iter().map(schema).collect::<Result<Vec<_>, _>>()?;
        Ok(Schema::of::<ObjectCommon>()?.with_variants(OBJECT_TAG, variants))
    }

    /// Reads the options of a type, and finds its name.
    pub(super) fn read(
        &self,
        options: &ObjectOptions,
    ) -> Result<(&'static str, Make), OptionError> {
        let Some((name, kind)) = self.0.get_key_value(options.kind.as_str()) else {
            let (kind, names) = (shorten(&options.kind), self.names().join(", "));
            return Err(OptionError::other(format!(
                "Parameter '{OBJECT_TAG}' does not accept value '{kind}'; there is {names}"
            )));
        };
        Ok((name, Rc::clone(kind).read(&options.others)?))
    }
}

impl fmt::Debug for ObjectTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
