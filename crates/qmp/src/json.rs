//! Reading one JSON value, and writing one as QEMU does.

use std::fmt;
use std::io;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Serializer, Value};

/// Reads the one value that `text` holds.
///
/// # Errors
/// Also if an object has two members of one name: they could mean different things to the client and
/// to us.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(text).map(|strict| strict.0)
}

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

/// A value without two members of one name.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom("duplicate key"));
            }
            let Strict(value) = members.next_value()?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_they_are() {
        let text =
            r#"{"a": [null, true, 18446744073709551615, -1, 1.5, "é\u00e9"], "b": {"a": {}}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn what_is_not_one_value_is_refused() {
        for text in [
            &b""[..],
            b"{",
            b"{]",
            b"}",
            b"{} {}",
            b"{\"a\": 01}",
            b"nul",
            b"\"\\ud800\"",
            b"\"\xf3\x80\"",
            b"{\"a\": 1, \"a\": 1}",
            b"[{\"b\": {\"a\": 1, \"a\": 2}}]",
            b"{\"a\": 1,}",
            b"1e999",
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(parse(&deep).is_err());
    }

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
