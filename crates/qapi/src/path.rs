//! Paths in options: `#[serde(with = "coblk_qapi::path")]`. The system takes any bytes for one, and a
//! command line may hold them.
//!
//! A tree of options is text. A byte of a command line that is not UTF-8 is one of the last 128 characters
//! there, which no text has use for: the last two are none, and the others have no meaning. Where the
//! command line has one of these its bytes are taken in the same way, so that each text is that of one
//! command line. A path is made of the bytes; another value that has such a character is refused.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

/// The character of a byte is so much more than it.
const FIRST: u32 = 0x10_FF00;

/// The name by which a deserializer knows a path.
pub(crate) const PATH: &str = "coblk_qapi::path";

pub(crate) fn is_byte(character: char) -> bool {
    u32::from(character) >= FIRST + 0x80
}

/// Whether a text has bytes in it that are not UTF-8.
pub(crate) fn has_bytes(text: &str) -> bool {
    // All of these begin so, and little else does.
    text.as_bytes().contains(&0xF4) && text.chars().any(is_byte)
}

/// A text of any bytes.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let push = |text: &mut String, bytes: &[u8]| {
        text.extend(bytes.iter().filter_map(|byte| char::from_u32(FIRST + u32::from(*byte))));
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match is_byte(character) {
                true => push(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes()),
                false => text.push(character),
            }
        }
        push(&mut text, chunk.invalid());
    }
    text
}

/// The bytes of a text.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match is_byte(character) {
            true => bytes.push((u32::from(character) - FIRST) as u8),
            false => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Reads a path.
///
/// # Errors
/// If it is no text, or has a zero, which ends paths.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    HostPath::deserialize(deserializer).map(|path| path.0)
}

/// Writes a path, for [`to_argument`](crate::to_argument).
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escape(path.as_os_str().as_bytes()))
}

/// Of an `Option`: `#[serde(default, with = "coblk_qapi::path::option")]`.
pub mod option {
    use super::{Deserialize, Deserializer, HostPath, PathBuf, Serializer};

    /// As [`path::deserialize`](super::deserialize).
    ///
    /// # Errors
    /// As there.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<HostPath>::deserialize(from).map(|path| path.map(|path| path.0))
    }

    /// As [`path::serialize`](super::serialize).
    ///
    /// # Errors
    /// As there.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => super::serialize(path, to),
            None => to.serialize_none(),
        }
    }
}

struct HostPath(PathBuf);

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostPath, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = HostPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<HostPath, E> {
                self.visit_bytes(text.as_bytes())
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<HostPath, E> {
                match bytes.contains(&0) {
                    true => Err(E::custom("a path has no zeroes")),
                    false => Ok(HostPath(OsStr::from_bytes(bytes).into())),
                }
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                it: D,
            ) -> Result<HostPath, D::Error> {
                it.deserialize_str(self)
            }
        }
        deserializer.deserialize_newtype_struct(PATH, Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_that_of_one_command_line() {
        let last = "\u{10FF7F}\u{10FF80}\u{10FFE9}\u{10FFFF}".as_bytes();
        for bytes in
            [b"".as_slice(), b"a=b,c", "é\u{10FFFD}".as_bytes(), b"\xe9.img", b"\xf4\x8f", last]
        {
            let text = escape(bytes);
            assert_eq!(unescape(&text), bytes, "{bytes:x?}");
            let is_text = !bytes.contains(&0xF4) && std::str::from_utf8(bytes).is_ok();
            assert_eq!(!has_bytes(&text), is_text, "{bytes:x?}");
        }
        let all: Vec<u8> = (1..=255).collect();
        assert_eq!(unescape(&escape(&all)), all);
        assert!(!has_bytes("\u{10FF7F}"));
    }
}
