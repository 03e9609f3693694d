//! Options as they are written on command lines: `driver=raw,file.driver=file,file.filename=a.img`.

use serde_json::{Map, Value};

use crate::error::{Error, shorten};

/// Names in one option.
const MAX_NAMES: usize = 32;
/// The longest list that indices can make.
const MAX_LIST: usize = 1024;

/// Makes a tree of a list of `name.name=value`, as on QEMU's command lines. In values a comma is
/// written twice. Names that are numbers make lists. The first may be a value alone: that of
/// `implied`. All values are texts.
///
/// # Errors
/// Which option is not of that form.
pub fn parse(text: &str, implied: &str) -> Result<Map<String, Value>, Error> {
    let mut tree = Map::new();
    for (index, option) in split(text).iter().enumerate() {
        let (name, value) = match option.split_once('=') {
            Some(both) => both,
            None if index == 0 && !option.is_empty() => (implied, option.as_str()),
            None if option.is_empty() => return Err(invalid("")),
            None => {
                let option = shorten(option);
                return Err(Error::other(format!("Expected '=' after parameter '{option}'")));
            }
        };
        let names: Vec<&str> = name.split('.').collect();
        let is_good = names.iter().enumerate().all(|(place, name)| is_name(name, place > 0));
        if !is_good || names.len() > MAX_NAMES {
            return Err(invalid(name));
        }
        insert(&mut tree, &names, value)?;
    }
    for (name, group) in &mut tree {
        make_lists(group, name)?;
    }
    Ok(tree)
}

fn invalid(name: &str) -> Error {
    Error::other(format!("Invalid parameter '{}'", shorten(name)))
}

/// A letter, and then letters, digits, `-` and `_`; or, within a group, a number.
fn is_name(name: &str, may_be_number: bool) -> bool {
    let good = |it: char| it.is_ascii_alphanumeric() || "-_".contains(it);
    let is_word = name.starts_with(|it: char| it.is_ascii_alphabetic()) && name.chars().all(good);
    is_word || may_be_number && is_number(name)
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|it| it.is_ascii_digit())
}

/// At single commas; two are one that belongs to the value.
fn split(text: &str) -> Vec<String> {
    let mut options = Vec::new();
    let mut option = String::new();
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        // In a name a comma is what it always is.
        if next != ',' || option.contains('=') && chars.next_if_eq(&',').is_some() {
            option.push(next);
        } else {
            options.push(std::mem::take(&mut option));
        }
    }
    // A comma at the very end is allowed, and so is nothing at all.
    if !option.is_empty() {
        options.push(option);
    }
    options
}

fn insert(mut tree: &mut Map<String, Value>, names: &[&str], value: &str) -> Result<(), Error> {
    let Some((last, groups)) = names.split_last() else { return Ok(()) };
    for (depth, group) in groups.iter().enumerate() {
        let inner = tree.entry(*group).or_insert_with(|| Value::Object(Map::new()));
        tree = inner.as_object_mut().ok_or_else(|| inconsistent(&names[..=depth].join(".")))?;
    }
    match tree.insert((*last).to_owned(), Value::String(value.to_owned())) {
        Some(Value::Object(_)) => Err(inconsistent(&names.join("."))),
        // As QEMU has it: the last one counts.
        _ => Ok(()),
    }
}

/// It has a value and members, or members that are numbers and others that are not.
fn inconsistent(group: &str) -> Error {
    Error::other(format!("Parameters '{}.*' used inconsistently", shorten(group)))
}

/// Groups whose names are 0, 1, and so on are lists.
fn make_lists(value: &mut Value, path: &str) -> Result<(), Error> {
    let Value::Object(group) = value else { return Ok(()) };
    for (name, inner) in group.iter_mut() {
        make_lists(inner, &format!("{path}.{name}"))?;
    }
    match group.keys().filter(|name| is_number(name)).count() {
        0 => return Ok(()),
        numbers if numbers == group.len() => {}
        _ => return Err(inconsistent(path)),
    }
    let count = group.len();
    if count > MAX_LIST {
        return Err(Error::other(format!("Parameters '{}.*': too many", shorten(path))));
    }
    let item = |index: usize| {
        let missing = || Error::other(format!("Parameter '{}.{index}' missing", shorten(path)));
        group.remove(&index.to_string()).ok_or_else(missing)
    };
    *value = Value::Array((0..count).map(item).collect::<Result<_, _>>()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dots_make_groups_and_numbers_make_lists() {
        let tree =
            parse("raw,file.driver=file,file.filename=a,,b.img,file.cache.direct=on", "driver");
        let expected = json!({"driver": "raw", "file": {
            "driver": "file", "filename": "a,b.img", "cache": {"direct": "on"}}});
        assert_eq!(Value::Object(tree.unwrap()), expected);
        let tree = parse("a.1.x=2,a.0.x=1,b=1,b=2,", "driver").unwrap();
        let expected = json!({"a": [{"x": "1"}, {"x": "2"}], "b": "2"});
        assert_eq!(Value::Object(tree), expected);
        assert!(parse("", "driver").unwrap().is_empty());
        assert_eq!(Value::Object(parse("a=b=c,,", "driver").unwrap()), json!({"a": "b=c,"}));
    }

    /// In the words of QEMU's daemon, which was asked.
    #[test]
    fn what_is_no_option_is_named() {
        let deep = format!("{}=1", ["x"; 40].join("."));
        for (text, expected) in [
            ("a=1,=2", "Invalid parameter ''"),
            ("=2", "Invalid parameter ''"),
            (",a=1", "Invalid parameter ''"),
            ("raw,,a=1", "Invalid parameter ''"),
            ("a=1,read-only", "Expected '=' after parameter 'read-only'"),
            ("a=1,b..c=2", "Invalid parameter 'b..c'"),
            ("a=1,a.2=2", "Parameters 'a.*' used inconsistently"),
            ("a.b=1,a=2", "Parameters 'a.*' used inconsistently"),
            ("a.0=1,a.2=2", "Parameter 'a.1' missing"),
            ("a.0=1,a.x=2", "Parameters 'a.*' used inconsistently"),
            ("0=1", "Invalid parameter '0'"),
            ("5a=1", "Invalid parameter '5a'"),
            ("x-y.5a=1", "Invalid parameter 'x-y.5a'"),
            ("ä=1", "Invalid parameter 'ä'"),
            (&deep, "Invalid parameter 'x.x"),
        ] {
            let error = parse(text, "driver").unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
