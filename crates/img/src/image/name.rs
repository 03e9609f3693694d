//! Names of images on the command line: paths, definitions in JSON, lists of options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use coblk::drivers::{NbdNodeOptions, RbdOptions};
use coblk::options::NodeOptions;

use crate::failure::Failure;

/// A text in which a comma is no end, for a list of options.
pub(crate) fn escape_commas(text: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        escaped.push(*byte);
        if *byte == b',' {
            escaped.push(b',');
        }
    }
    OsString::from_vec(escaped)
}

/// The path of a file name, which may begin with `file:`.
///
/// # Errors
/// If it names another protocol: there is no driver.
pub(crate) fn path_of(name: &OsStr) -> Result<&Path, Failure> {
    let bytes = name.as_bytes();
    let Some(colon) = bytes.iter().position(|it| *it == b':') else { return Ok(Path::new(name)) };
    let is_path = bytes[..colon].contains(&b'/');
    match &bytes[..colon] {
        b"file" => Ok(Path::new(OsStr::from_bytes(&bytes[colon + 1..]))),
        _ if is_path => Ok(Path::new(name)),
        protocol => {
            let (name, protocol) = (name.display(), OsStr::from_bytes(protocol).display());
            Err(Failure::new(format!("Could not open '{name}': Unknown protocol '{protocol}'")))
        }
    }
}

/// Where the bytes of an image are.
pub(super) enum Place<'a> {
    Path(&'a Path),
    /// An export of an NBD server, or an image of a Ceph cluster, as a list of options.
    Network(OsString),
}

impl Place<'_> {
    /// What a file name means: a path, an export of an NBD server, or an RBD image.
    ///
    /// # Errors
    /// As [`path_of`]; also if what is named cannot have that name.
    pub(super) fn of(name: &OsStr) -> Result<Place<'_>, Failure> {
        let Some(text) = name.to_str() else { return Ok(Place::Path(path_of(name)?)) };
        let nbd = NbdNodeOptions::from_filename(text).map(|it| it.map(NodeOptions::new));
        let rbd = || RbdOptions::from_filename(text).map(|it| it.map(NodeOptions::new));
        match nbd.or_else(rbd) {
            None => Ok(Place::Path(path_of(name)?)),
            Some(Ok(options)) => Ok(Place::Network(coblk::qapi::to_argument(&options, ""))),
            Some(Err(why)) => Err(Failure::new(format!("Could not open {why}"))),
        }
    }

    /// The options of a node that has its bytes, with a prefix such as `file.`.
    pub(super) fn options(&self, prefix: &str, engine: &str) -> OsString {
        match self {
            Place::Path(path) => protocol_options(path, prefix, engine),
            Place::Network(options) => {
                let members = members(options.as_bytes());
                let members: Vec<Vec<u8>> =
                    members.map(|member| [prefix.as_bytes(), member].concat()).collect();
                OsString::from_vec(members.join(&b","[..]))
            }
        }
    }
}

/// The options of a node that has the bytes of a path, with a prefix such as `file.`.
fn protocol_options(path: &Path, prefix: &str, engine: &str) -> OsString {
    let is_device = path
        .metadata()
        .map(|it| it.file_type())
        .is_ok_and(|kind| kind.is_block_device() || kind.is_char_device());
    let driver = if is_device { "host_device" } else { "file" };
    let mut text =
        OsString::from(format!("{prefix}driver={driver},{prefix}aio={engine},{prefix}filename="));
    text.push(escape_commas(path.as_os_str()));
    text
}

/// Whether a list of options has a member of this name, or below it.
pub(super) fn has_member(text: &OsStr, name: &[u8]) -> bool {
    members(text.as_bytes()).any(|member| {
        member
            .strip_prefix(name)
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'=' | b'.')))
    })
}

/// The members of a list below a name, without it.
pub(super) fn below(text: &OsStr, prefix: &[u8]) -> OsString {
    let below: Vec<&[u8]> =
        members(text.as_bytes()).filter_map(|member| member.strip_prefix(prefix)).collect();
    OsString::from_vec(below.join(&b","[..]))
}

/// The members of a list; two commas are none.
fn members(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut at = 0;
        while at < text.len() {
            match (text[at], text.get(at + 1)) {
                (b',', Some(b',')) => at += 2,
                (b',', _) => break,
                _ => at += 1,
            }
        }
        rest = text.get(at + 1..);
        Some(&text[..at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_end_at_a_single_comma() {
        let text = OsStr::new("file.filename=a,,b,driver=raw,file.driver=file");
        assert!(has_member(text, b"driver") && has_member(text, b"file"));
        assert!(!has_member(text, b"fil") && !has_member(text, b"b"));
        assert_eq!(below(text, b"file."), "filename=a,,b,driver=file");
        assert_eq!(escape_commas(OsStr::new("a,b")), "a,,b");
    }

    #[test]
    fn a_protocol_ends_before_any_slash() {
        assert_eq!(path_of(OsStr::new("a.img")).unwrap(), Path::new("a.img"));
        assert_eq!(path_of(OsStr::new("file:a:b")).unwrap(), Path::new("a:b"));
        assert_eq!(path_of(OsStr::new("./a:b")).unwrap(), Path::new("./a:b"));
        assert!(path_of(OsStr::new("http://a")).is_err());
    }
}
