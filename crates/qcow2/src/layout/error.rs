//! [`FormatError`]: why an image is refused.

use std::borrow::Cow;
use std::io;

/// Why bytes are no image, or not one that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct FormatError {
    errno: i32,
    why: Cow<'static, str>,
}

impl FormatError {
    /// The errno that QEMU has for it.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The image contradicts itself: EINVAL.
    pub(crate) fn invalid(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::EINVAL, why: why.into() }
    }

    /// The image is of a kind that is not known: ENOTSUP.
    pub(crate) fn unsupported(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::ENOTSUP, why: why.into() }
    }

    /// The image is larger than is allowed: EFBIG.
    pub(crate) fn too_big(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::EFBIG, why: why.into() }
    }

    /// There is no room for it: ENOSPC.
    pub(crate) fn no_space(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::ENOSPC, why: why.into() }
    }

    /// It is not known what the image has: EIO.
    pub(crate) fn io(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::EIO, why: why.into() }
    }

    /// The image must not be written: EACCES.
    pub(crate) fn no_access(why: impl Into<Cow<'static, str>>) -> FormatError {
        FormatError { errno: libc::EACCES, why: why.into() }
    }
}

impl From<FormatError> for io::Error {
    /// Keeps the text where there is a kind for the errno, as requests fail with an errno alone.
    fn from(error: FormatError) -> io::Error {
        let kind = match error.errno {
            libc::EINVAL => io::ErrorKind::InvalidInput,
            libc::ENOTSUP => io::ErrorKind::Unsupported,
            libc::EFBIG => io::ErrorKind::FileTooLarge,
            libc::ENOSPC => io::ErrorKind::StorageFull,
            libc::EACCES => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
