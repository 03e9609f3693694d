//! Reading one JSON value as QEMU does: strings may be in apostrophes, and an object has no two members
//! of one name, of which a sender and a reader might take different ones.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::splitter::Splitter;

/// Reads the one value that `text` holds. It is at most [`MAX_BYTES`](crate::MAX_BYTES) long.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Value, Error> {
    let mut splitter = Splitter::default();
    // A word ends where something else begins.
    let text = format!("{text}\n");
    let mut input = text.as_bytes();
    let value = splitter.next(&mut input);
    let value = value.ok_or_else(|| Error::other("JSON parse error, premature EOI"))?;
    let value = parse_one(&value.map_err(Error::other)?)?;
    match splitter.next(&mut input) {
        None if splitter.is_empty() => Ok(value),
        _ => Err(Error::other("Expecting at most one JSON value")),
    }
}

/// Reads one of the values that a [`Splitter`] has found.
///
/// # Errors
/// What is wrong with it.
pub fn parse_one(text: &[u8]) -> Result<Value, Error> {
    let value = serde_json::from_slice::<Strict>(text);
    value.map(|strict| strict.0).map_err(|why| Error::other(format!("JSON parse error, {why}")))
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
                return Err(serde::de::Error::custom("duplicate key"));
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
        assert_eq!(
            parse_one(text.as_bytes()).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
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
            assert!(parse_one(text).is_err(), "{}", text.escape_ascii());
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(parse_one(&deep).is_err());
    }

    #[test]
    fn a_text_is_one_value_and_its_strings_may_be_in_apostrophes() {
        assert_eq!(parse(r#"{'a"b': 'it\'s'} "#).unwrap(), json!({"a\"b": "it's"}));
        assert_eq!(parse("17").unwrap(), json!(17));
        for (text, expected) in [
            ("", "JSON parse error, premature EOI"),
            ("{'a': 1", "JSON parse error, premature EOI"),
            ("{'a': 1}x", "Expecting at most one JSON value"),
            ("{'a': 1} {'a'", "Expecting at most one JSON value"),
            ("{'a': 1, 'a': 1}", "JSON parse error, duplicate key"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
