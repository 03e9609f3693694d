//! Names of files as a header has them: what they mean, and relative to what.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A name that an image has for another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileName<'a> {
    /// A definition of a node, in JSON.
    Json(&'a str),
    /// A path, relative to the image unless it is absolute.
    Path(&'a Path),
    /// A name of a protocol that no driver has.
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

#[cfg(test)]
mod tests {
    use super::*;

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
