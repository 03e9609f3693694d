//! Names of files as a header has them: what they mean, and relative to what.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coblk_qapi::shorten;
use serde_json::Value;

/// A name that an image has for another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileName<'a> {
    /// A definition of a node, in JSON.
    Json(&'a str),
    /// A path, relative to the image unless it is absolute.
    Path(&'a Path),
    /// A name that begins with a protocol, which a driver may have.
    Protocol(String),
}

/// Why a name leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// It is relative, and the image has no directory.
    #[error(
        "cannot find the file '{0}': the name is relative, and the node of the image has no directory"
    )]
    NoDirectory(String),
    /// It belongs to a protocol that is not known.
    #[error("cannot find the file of the name '{0}': unknown protocol")]
    Protocol(String),
    /// It is of a known protocol, and none of its names.
    #[error("cannot find the file of the name {0}")]
    Wrong(String),
    /// It is a definition that an image must not have.
    #[error("the definition of a node in an image is refused: {0}")]
    Definition(String),
    /// It leads back to an image whose backing file is being opened.
    #[error("backing files form a loop: '{0}' is opened already")]
    Loop(String),
}

impl<'a> FileName<'a> {
    /// Reads the name of a backing file. A colon before any slash ends the name of a protocol.
    pub(crate) fn of_backing(name: &'a [u8]) -> FileName<'a> {
        let text = || String::from_utf8_lossy(name).into_owned();
        let colon = name.iter().position(|byte| *byte == b':');
        let slash = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
        let Some(colon) = colon.filter(|colon| *colon < slash) else { return FileName::path(name) };
        match (&name[..colon], str::from_utf8(&name[colon + 1..])) {
            (b"json", Ok(json)) => FileName::Json(json),
            // As QEMU has it, the rest is not relative to the image.
            (b"file", _) if name.get(colon + 1) == Some(&b'/') => {
                FileName::path(&name[colon + 1..])
            }
            _ => FileName::Protocol(text()),
        }
    }

    /// A name that is taken literally.
    pub(crate) fn path(name: &'a [u8]) -> FileName<'a> {
        FileName::Path(Path::new(OsStr::from_bytes(name)))
    }
}

/// The path of a name, as seen from an image at `image`, if that is a path.
pub(crate) fn resolve(name: &Path, image: Option<&Path>) -> Result<PathBuf, NameError> {
    if name.is_absolute() {
        return Ok(name.to_owned());
    }
    let no_directory = || NameError::NoDirectory(name.display().to_string());
    let directory = image.and_then(Path::parent).ok_or_else(no_directory)?;
    Ok(directory.join(name))
}

/// Drivers that a definition in an image may have: those that only read what is below them. Others write,
/// as a log does, whatever mode their node has.
const DRIVERS: [&str; 7] = ["file", "host_device", "nbd", "null-aio", "null-co", "qcow2", "raw"];

/// Checks a definition that an image names, and not an administrator: it makes nodes that read, and takes none
/// that are there.
pub(crate) fn check_definition(definition: &Value) -> Result<(), NameError> {
    let refused = |why: String| Err(NameError::Definition(why));
    let Value::Object(members) = definition else {
        return refused("a node is not described".to_owned());
    };
    for (name, value) in members {
        match (&**name, value) {
            ("driver", Value::String(driver)) if !DRIVERS.contains(&&**driver) => {
                return refused(format!("driver '{}'", shorten(driver)));
            }
            ("read-only", Value::Bool(true)) => {}
            ("driver" | "filename" | "offset" | "size" | "export", _) => {}
            ("server", server) => check_server(server)?,
            ("backing", Value::Null) => {}
            ("file" | "backing" | "data-file", child) => check_definition(child)?,
            (name, _) => return refused(format!("member '{}'", shorten(name))),
        }
    }
    Ok(())
}

/// Checks where a definition in an image looks for a server: by the network or at a path, and not at a
/// descriptor of this process.
fn check_server(server: &Value) -> Result<(), NameError> {
    let refused = |why: String| Err(NameError::Definition(why));
    let Value::Object(members) = server else {
        return refused("a server is not described".to_owned());
    };
    for (name, value) in members {
        match (&**name, value) {
            ("type", Value::String(kind)) if kind == "inet" || kind == "unix" => {}
            ("host" | "port" | "path", Value::String(_)) => {}
            (name, _) => return refused(format!("member 'server.{}'", shorten(name))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn q71_a_definition_in_an_image_reads_files_and_no_more() {
        let file = json!({"driver": "file", "filename": "a", "read-only": true});
        let good = json!({"driver": "qcow2", "backing": null, "data-file": file, "file":
            {"driver": "raw", "offset": 0, "size": 512, "file": file}});
        assert_eq!(check_definition(&good), Ok(()));
        let server = json!({"type": "inet", "host": "h", "port": "1"});
        let nbd = json!({"driver": "nbd", "export": "disk", "server": server});
        assert_eq!(check_definition(&nbd), Ok(()));
        for bad in [
            json!({"driver": "blklogwrites", "file": file, "log": file}),
            json!({"driver": "raw", "file": {"driver": "throttle", "file": file}}),
            json!({"driver": "raw", "file": "a-node-of-the-daemon"}),
            json!({"driver": "file", "filename": "a", "read-only": false}),
            json!({"driver": "file", "filename": "a", "locking": "off"}),
            json!({"driver": "file", "filename": "a", "node-name": "b"}),
            json!("a-node-of-the-daemon"),
            json!({"driver": "nbd", "server": {"type": "fd", "str": "3"}}),
            json!({"driver": "nbd", "server": server, "tls-creds": "an-object-of-the-daemon"}),
            json!({"driver": "nbd", "server": "h"}),
        ] {
            assert!(check_definition(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn q67_a_colon_before_any_slash_ends_a_protocol() {
        let path = |name: &'static str| FileName::Path(Path::new(name));
        let of = |name: &'static str| FileName::of_backing(name.as_bytes());
        assert_eq!(of("base.qcow2"), path("base.qcow2"));
        assert_eq!(of("./a:b"), path("./a:b"));
        assert_eq!(of("/folder/a:b"), path("/folder/a:b"));
        assert_eq!(of("file:/folder/a"), path("/folder/a"));
        assert_eq!(
            of("json:{\"driver\": \"null-co\"}"),
            FileName::Json("{\"driver\": \"null-co\"}")
        );
        for name in ["nbd://host/disk", "a:b", "file:a", ":"] {
            assert_eq!(of(name), FileName::Protocol(name.to_owned()));
        }
        assert_eq!(FileName::path(b"a:b"), path("a:b"));
        assert_eq!(
            FileName::of_backing(b"json:\xff"),
            FileName::Protocol("json:\u{fffd}".to_owned())
        );
    }

    #[test]
    fn q68_a_relative_name_needs_a_directory() {
        let resolve =
            |name: &str, image: Option<&str>| resolve(Path::new(name), image.map(Path::new));
        assert_eq!(resolve("base", Some("/folder/a")), Ok(PathBuf::from("/folder/base")));
        assert_eq!(resolve("../base", Some("dir/a")), Ok(PathBuf::from("dir/../base")));
        assert_eq!(resolve("base", Some("a")), Ok(PathBuf::from("base")));
        assert_eq!(resolve("/base", None), Ok(PathBuf::from("/base")));
        let error = resolve("base", None).unwrap_err();
        assert!(error.to_string().contains("no directory"), "{error}");
    }
}
