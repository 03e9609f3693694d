//! [`from_arguments`]: the arguments of a command as a Rust type.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::QmpError;

/// Makes a `T` of the arguments of a command, as [`coblk_qapi`] reads them. A command without arguments
/// takes `()`.
///
/// # Errors
/// A [`GenericError`](crate::ErrorClass::GenericError) that names the member: one that is missing, of
/// the wrong type, of a value it cannot have, or unexpected.
pub fn from_arguments<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    coblk_qapi::from_value(Value::Object(arguments)).map_err(QmpError::generic)
}
