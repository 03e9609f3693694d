//! [`Exports`]: what a server offers, by name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::protocol::MAX_STRING;
use crate::server::export::{NbdExport, NbdExportError};

#[derive(Default)]
pub struct Exports(RefCell<BTreeMap<String, Rc<NbdExport>>>);

impl Exports {
    pub fn get(&self, name: &str) -> Option<Rc<NbdExport>> {
        self.0.borrow().get(name).cloned()
    }

    /// The names of all, with their descriptions.
    pub fn names(&self) -> Vec<(String, String)> {
        let exports = self.0.borrow();
        let names = exports
            .values()
            .map(|export| (export.name.clone(), export.description.clone().unwrap_or_default()));
        names.collect()
    }

    /// # Errors
    /// If the name is taken, name or description are longer than 4096 bytes, or there is no medium.
    pub fn add(&self, export: NbdExport) -> Result<(), NbdExportError> {
        if export.name.len() > MAX_STRING {
            return Err(NbdExportError::TooLong("name"));
        }
        if export.description.as_ref().is_some_and(|text| text.len() > MAX_STRING) {
            return Err(NbdExportError::TooLong("description"));
        }
        if export.length().is_none() {
            return Err(NbdExportError::NoMedium(export.name));
        }
        let mut exports = self.0.borrow_mut();
        if exports.contains_key(&export.name) {
            return Err(NbdExportError::NameTaken(export.name));
        }
        exports.insert(export.name.clone(), Rc::new(export));
        Ok(())
    }

    pub fn remove(&self, name: &str) {
        self.0.borrow_mut().remove(name);
    }
}
