//! QEMU's option language, once: `name=value,name.name=value` as on its command lines, or JSON as in its
//! monitor, into any type that serde can make; and such a type back into a text. Errors name the
//! parameter with its path, in QEMU's words.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Deserialize, Serialize)]
//! #[serde(rename_all = "kebab-case")]
//! struct Export {
//!     id: String,
//!     #[serde(default)]
//!     writable: bool,
//!     num_queues: Option<u16>,
//! }
//!
//! let export: Export = coblk_qapi::from_argument("e0,writable=on,num-queues=4", "id")?;
//! assert_eq!(export, coblk_qapi::from_argument("{'id': 'e0', 'writable': true, 'num-queues': 4}", "id")?);
//! assert_eq!(coblk_qapi::to_argument(&export, "id"), "e0,num-queues=4,writable=on");
//!
//! let error = coblk_qapi::from_argument::<Export>("e0,num-queues=70000", "id").unwrap_err();
//! assert_eq!(error.to_string(), "Parameter 'num-queues' expects uint16_t");
//! # Ok::<(), coblk_qapi::Error>(())
//! ```
//!
//! # How types are written
//!
//! A struct is a group of members: derive `Deserialize`, and nothing else. It need not deny unknown
//! fields: a member that no part of an object has taken is refused at its end.
//!
//! An object one of whose members (`driver`, `type`) says which others there are is read in [`Parts`]: a
//! struct of the common members, and an enum with a variant a kind. The attributes `flatten`, `untagged`
//! and `tag` of serde are not for such types: these read through a buffer that forgets the notation
//! and the path.
//!
//! `json.rs` and `splitter.rs` read JSON as QEMU does, `keyval.rs` makes a tree of a command line,
//! `tree.rs` and `object.rs` hand either to serde, `text.rs` writes, `schema/` tells what a
//! type can be told.

#![forbid(unsafe_code)]

mod alternate;
mod deferred;
mod error;
pub mod json;
mod keyval;
mod number;
mod object;
mod parts;
pub mod path;
mod schema;
mod splitter;
mod text;
mod tree;
mod types;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use alternate::{WordOrObject, word_or_object};
pub use deferred::Deferred;
pub use error::{Error, shorten};
pub use parts::{FromParts, Parts, parts};
pub use schema::{Member, Schema, Schemas, Shape};
pub use splitter::{MAX_BYTES, Splitter};
pub use text::{to_argument, write_variant};
use tree::{Notation, Tree};
pub use types::{OneOrMany, Only, Size, StrOrNull, Unsupported, is_identifier};

/// Reads the text of an option: JSON if it begins with a brace, else `name=value` separated by commas,
/// where the first may be a value alone, that of `implied`. Only a [path] that is not in JSON may
/// be other than UTF-8.
///
/// # Errors
/// Which parameter is wrong, in QEMU's words.
pub fn from_argument<T: DeserializeOwned>(
    text: impl AsRef<OsStr>,
    implied: &str,
) -> Result<T, Error> {
    let text = text.as_ref();
    if !text.as_bytes().starts_with(b"{") {
        return from_keyval(text, implied);
    }
    let json = text.to_str();
    from_json(
        json.ok_or_else(|| Error::other("JSON parse error, invalid UTF-8 sequence in string"))?,
    )
}

/// Reads `name=value` separated by commas. The first may be a value alone, that of `implied`. In a value
/// a comma is written twice.
///
/// # Errors
/// Which parameter is wrong, in QEMU's words.
pub fn from_keyval<T: DeserializeOwned>(
    text: impl AsRef<OsStr>,
    implied: &str,
) -> Result<T, Error> {
    let text = path::escape(text.as_ref().as_bytes());
    let tree = Value::Object(keyval::parse(&text, implied)?);
    T::deserialize(Tree::new(tree, Notation::Keyval))
}

/// Reads one JSON value, with QEMU's extension: strings may be in apostrophes.
///
/// # Errors
/// What is no JSON, an object with two members of one name, and which parameter is wrong.
pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    from_value(json::parse(text)?)
}

/// Reads a JSON value that has been parsed.
///
/// # Errors
/// Which parameter is wrong, in QEMU's words.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Tree::new(value, Notation::Json))
}

#[cfg(test)]
mod tests;
