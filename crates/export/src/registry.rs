//! [`ExportTypes`]: the types of exports that there are, and what each makes of its options.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use coblk_qapi::{Deferred, Error, Schema};

use crate::error::ExportError;
use crate::export::Export;
use crate::export_type::{ExportType, Exporting};
use crate::options::{Common, ExportOptions, TAG};

/// Makes an export of options that have been read.
pub(crate) type Make = Box<dyn FnOnce(&Exporting<'_, '_>) -> Result<Box<dyn Export>, ExportError>>;

/// A type, whatever its options are.
trait AnyType {
    fn read(self: Rc<Self>, options: &Deferred) -> Result<Make, Error>;

    fn schema(&self) -> Result<Schema, Error>;
}

impl<T: ExportType> AnyType for T {
    fn read(self: Rc<Self>, options: &Deferred) -> Result<Make, Error> {
        let options: T::Options = options.read()?;
        Ok(Box::new(move |exporting| self.co_make(exporting, options)))
    }

    fn schema(&self) -> Result<Schema, Error> {
        Schema::of::<T::Options>()
    }
}

/// Types of exports, by name.
#[derive(Default)]
pub struct ExportTypes(BTreeMap<&'static str, Rc<dyn AnyType>>);

impl fmt::Debug for ExportTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl ExportTypes {
    /// None.
    pub fn new() -> ExportTypes {
        ExportTypes::default()
    }

    /// Adds one.
    ///
    /// # Panics
    /// If there is one of this name.
    pub fn add<T: ExportType>(&mut self, new: T) {
        let previous = self.0.insert(T::NAME, Rc::new(new));
        assert!(previous.is_none(), "two types of exports are called '{}'", T::NAME);
    }

    /// The names of all, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// The options of an export of any of them: those of `block-export-add`.
    ///
    /// # Errors
    /// If the schema of a type's options cannot be found by reading them: what went wrong.
    pub fn schema(&self) -> Result<Schema, Error> {
        let variants = self.0.iter().map(|(name, kind)| Ok(((*name).to_owned(), kind.schema()?)));
        let variants = variants.collect::<Result<Vec<_>, Error>>()?;
        Ok(Schema::of::<Common>()?.with_variants(TAG, variants))
    }

    /// Reads the options of a type, and finds its name.
    pub(crate) fn read(&self, options: &ExportOptions) -> Result<(&'static str, Make), Error> {
        let Some((name, kind)) = self.0.get_key_value(options.kind.as_str()) else {
            return Err(Error::not_accepted(TAG, &options.kind, &self.names()));
        };
        Ok((name, Rc::clone(kind).read(&options.others)?))
    }
}
