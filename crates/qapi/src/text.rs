//! Options as a text that makes the same options again.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde::ser::{Error, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::path;

/// Writes options as [`from_argument`](crate::from_argument) reads them: as `name=value`, with the
/// value of `implied` alone at the beginning; or as JSON if they have a value that cannot be written
/// so, such as an empty list. A member that is null is left out. It is UTF-8 unless there is a
/// [path](path) that is not.
///
/// # Panics
/// If they are no struct or map, or one of their maps has names that are no texts.
pub fn to_argument(options: &impl Serialize, implied: &str) -> OsString {
    let mut value = serde_json::to_value(options).expect("options have names that are texts");
    drop_nulls(&mut value);
    let members = value.as_object().expect("options have members");
    let text = keyval(members, implied).unwrap_or_else(|| value.to_string());
    OsString::from_vec(path::unescape(&text))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn keyval(members: &Map<String, Value>, implied: &str) -> Option<String> {
    let mut options = Vec::new();
    let first = members.get(implied).and_then(Value::as_str);
    // Alone it ends at a comma, and has nothing in it that makes it look like a member, or like JSON.
    let first = first.filter(|text| !text.is_empty() && !text.contains(['=', ',', '{']));
    options.extend(first.map(str::to_owned));
    for (name, value) in members {
        if first.is_none() || name != implied {
            push(&mut options, name, value)?;
        }
    }
    Some(options.join(","))
}

/// `None` if there is no such way to write it.
fn push(options: &mut Vec<String>, name: &str, value: &Value) -> Option<()> {
    let value = match value {
        Value::Object(members) if !members.is_empty() => {
            return members
                .iter()
                .try_for_each(|(inner, value)| push(options, &format!("{name}.{inner}"), value));
        }
        Value::Array(items) if !items.is_empty() => {
            let mut items = items.iter().enumerate();
            return items
                .try_for_each(|(place, value)| push(options, &format!("{name}.{place}"), value));
        }
        Value::Object(_) | Value::Array(_) | Value::Null => return None,
        Value::Bool(flag) => if *flag { "on" } else { "off" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.replace(',', ",,"),
    };
    options.push(format!("{name}={value}"));
    Some(())
}

/// The `Serialize` of a type that is read in [`Parts`](crate::Parts): one object with the members of
/// `common`, of the variant of an enum, and of `tag`, which says which variant it is.
///
/// # Errors
/// Those of the serializer.
pub fn write_variant<S: Serializer>(
    serializer: S,
    tag: &'static str,
    variant: &impl Serialize,
    common: &impl Serialize,
) -> Result<S::Ok, S::Error> {
    let value = |part: Result<Value, serde_json::Error>| part.map_err(S::Error::custom);
    let mut members = match value(serde_json::to_value(common))? {
        Value::Object(members) => members,
        other => return Err(S::Error::custom(format!("no members: {other}"))),
    };
    let word = match value(serde_json::to_value(variant))? {
        Value::String(word) => word,
        Value::Object(variant) => match variant.into_iter().next() {
            Some((word, Value::Object(own))) => {
                members.extend(own);
                word
            }
            _ => return Err(S::Error::custom("no variant with members")),
        },
        other => return Err(S::Error::custom(format!("no variant: {other}"))),
    };
    members.insert(tag.to_owned(), word.into());
    let mut written = Value::Object(members);
    drop_nulls(&mut written);
    written.serialize(serializer)
}
