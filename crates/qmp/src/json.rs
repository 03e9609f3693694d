//! Writing a JSON value as QEMU does.

use std::io;

use serde::ser::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Writes a value, on one line unless `pretty`. Only ASCII, so that it goes through any terminal, and
/// with a line's end.
///
/// # Panics
/// Never: what is written are strings, numbers, and structures that hold them.
pub fn write(value: &impl Serialize, pretty: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    let result = if pretty {
        let formatter = PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut Serializer::with_formatter(&mut text, formatter))
    } else {
        value.serialize(&mut Serializer::with_formatter(&mut text, Spaced))
    };
    debug_assert!(result.is_ok(), "{result:?}");
    if !text.is_ascii() {
        text = escape(&String::from_utf8_lossy(&text));
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// What is not ASCII can only be in strings.
fn escape(text: &str) -> Vec<u8> {
    let mut escaped = String::with_capacity(text.len() * 2);
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04X}"));
            }
        }
    }
    escaped.into_bytes()
}

/// A space after commas and colons: there are scripts that look for `"return": {}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_qemu_does() {
        let value = json!({"return": {"a": [1, 2], "b": "é\n€🦀"}});
        let line = "{\"return\": {\"a\": [1, 2], \"b\": \"\\u00E9\\n\\u20AC\\uD83E\\uDD80\"}}\r\n";
        assert_eq!(String::from_utf8(write(&value, false)).unwrap(), line);
        let pretty = "{\n    \"return\": {\n        \"a\": []\n    }\n}\r\n";
        let value = json!({"return": {"a": []}});
        assert_eq!(String::from_utf8(write(&value, true)).unwrap(), pretty);
    }
}
