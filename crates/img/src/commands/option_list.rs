//! Options of a new image as text, as `cluster_size=2M,lazy_refcounts`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use coblk::qapi::from_keyval;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Options of a new image, by the names that QEMU's tools have for them.
pub(crate) type CreateOptions = Map<String, Value>;

/// Formats of images that QEMU's tools know, and that have no driver here. A backing file may have them.
const FOREIGN_FORMATS: [&str; 11] =
    ["bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"];

/// Reads options of a new image, which may be given in several parts. One without a value is switched on, or
/// off if `no` is before its name.
///
/// # Errors
/// If a text is no list of options.
pub(crate) fn create_options(texts: &[OsString]) -> Result<CreateOptions, Failure> {
    let mut options = Map::new();
    for text in texts {
        let whole = with_values(text)?;
        let members: Map<String, Value> = from_keyval(whole, "").map_err(|error| {
            Failure::new(format!("Invalid options '{}': {error}", text.display()))
        })?;
        options.extend(members);
    }
    Ok(options)
}

/// Whether a backing file may be said to have this format.
pub(crate) fn is_format(drivers: &[&str], name: &str) -> bool {
    drivers.contains(&name) || FOREIGN_FORMATS.contains(&name)
}

/// The same list, in which each option has a value.
fn with_values(text: &OsStr) -> Result<OsString, Failure> {
    let mut whole = Vec::new();
    for member in members(text.as_bytes()) {
        if member.is_empty() {
            return Err(Failure::new(format!("Invalid option list: {}", text.display())));
        }
        if !whole.is_empty() {
            whole.push(b',');
        }
        match member.strip_prefix(b"no") {
            _ if member.contains(&b'=') => whole.extend(member),
            Some(name) => whole.extend([name, b"=off"].concat()),
            None => whole.extend([member, b"=on"].concat()),
        }
    }
    Ok(OsString::from_vec(whole))
}

/// What is between commas; two of them are one in a value.
fn members(text: &[u8]) -> Vec<&[u8]> {
    let (mut members, mut start, mut at) = (Vec::new(), 0, 0);
    while at < text.len() {
        match &text[at..] {
            [b',', b',', ..] => at += 2,
            [b',', ..] => {
                members.push(&text[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    members.push(&text[start..]);
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_a_value() {
        for (text, whole) in [
            ("lazy_refcounts", "lazy_refcounts=on"),
            ("nolazy_refcounts,size=1M", "lazy_refcounts=off,size=1M"),
            ("nonocow", "nocow=off"),
            ("backing_file=a,,b,nocow=on", "backing_file=a,,b,nocow=on"),
            ("backing_file=a,,,size=no", "backing_file=a,,,size=no"),
        ] {
            assert_eq!(with_values(OsStr::new(text)).unwrap(), whole, "{text}");
        }
        for text in ["", ",", ",size=1M", "size=1M,", "a=1,,,"] {
            assert!(with_values(OsStr::new(text)).is_err(), "{text}");
        }
    }
}
