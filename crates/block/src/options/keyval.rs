//! Options as they are written on command lines: `driver=raw,file.driver=file,file.filename=a.img`.

use serde_json::{Map, Value};

use super::error::{OptionsError, shorten};

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
pub fn parse(text: &str, implied: &str) -> Result<Map<String, Value>, OptionsError> {
    let mut tree = Map::new();
    for (index, option) in split(text).iter().enumerate() {
        let (name, value) = match option.split_once('=') {
            Some(both) => both,
            None if option.is_empty() => return Err(bad(text, "an option is empty")),
            None if index == 0 => (implied, option.as_str()),
            None => return Err(bad(option, "expected '=' and a value after it")),
        };
        let names: Vec<&str> = name.split('.').collect();
        if names.iter().any(|it| it.is_empty()) || names.len() > MAX_NAMES {
            return Err(bad(name, "not a name"));
        }
        insert(&mut tree, &names, value).map_err(|why| bad(name, why))?;
    }
    let mut tree = Value::Object(tree);
    make_lists(&mut tree, "")?;
    match tree {
        Value::Object(tree) => Ok(tree),
        _ => Err(bad(text, "the first name is a number")),
    }
}

fn bad(option: &str, why: &'static str) -> OptionsError {
    OptionsError::Keyval { option: shorten(option), why }
}

/// At single commas; two are one that belongs to the value.
fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        if next != ',' || chars.next_if_eq(&',').is_some() {
            // There is always a last one.
            options.last_mut().into_iter().for_each(|it| it.push(next));
        } else {
            options.push(String::new());
        }
    }
    // A comma at the very end is allowed, and so is nothing at all.
    if options.last().is_some_and(String::is_empty) {
        options.pop();
    }
    options
}

fn insert(
    mut tree: &mut Map<String, Value>,
    names: &[&str],
    value: &str,
) -> Result<(), &'static str> {
    let Some((last, groups)) = names.split_last() else { return Ok(()) };
    for group in groups {
        let inner = tree.entry(*group).or_insert_with(|| Value::Object(Map::new()));
        tree = inner.as_object_mut().ok_or("it has a value already, and so no options")?;
    }
    match tree.insert((*last).to_owned(), Value::String(value.to_owned())) {
        Some(Value::Object(_)) => Err("it has options already, and so no value"),
        // As QEMU has it: the last one counts.
        _ => Ok(()),
    }
}

/// Groups whose names are 0, 1, and so on are lists.
fn make_lists(value: &mut Value, path: &str) -> Result<(), OptionsError> {
    let Value::Object(group) = value else { return Ok(()) };
    for (name, inner) in group.iter_mut() {
        make_lists(inner, &format!("{path}{name}."))?;
    }
    let is_number = |name: &String| name.bytes().all(|it| it.is_ascii_digit());
    if group.is_empty() || !group.keys().any(is_number) {
        return Ok(());
    }
    let count = group.len();
    let items: Option<Vec<Value>> =
        (0..count.min(MAX_LIST)).map(|index| group.remove(&index.to_string())).collect();
    match items {
        Some(items) if items.len() == count => {
            *value = Value::Array(items);
            Ok(())
        }
        _ => Err(bad(path.trim_end_matches('.'), "a list has the names 0, 1, 2 and so on")),
    }
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
    }

    #[test]
    fn what_is_no_option_is_named() {
        for (text, name) in [
            ("a=1,=2", "''"),
            ("a=1,read-only", "'read-only'"),
            ("a=1,b..c=2", "'b..c'"),
            ("a=1,a.b=2", "'a.b'"),
            ("a.b=1,a=2", "'a'"),
            ("a.0=1,a.2=2", "'a'"),
            ("a.0=1,a.x=2", "'a'"),
            ("0=1", "'0=1'"),
            (&format!("{}=1", ["x"; 40].join(".")), "'x.x"),
        ] {
            let error = parse(text, "driver").unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
