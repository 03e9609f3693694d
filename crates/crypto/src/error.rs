//! [`CryptoError`].

/// Why a header, a key or an option cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// It contradicts itself, or the limits.
    #[error("{0}")]
    Invalid(String),
    /// It may be right, and is not known here.
    #[error("{0}")]
    Unsupported(String),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl CryptoError {
    pub(crate) fn invalid(why: impl Into<String>) -> CryptoError {
        CryptoError::Invalid(why.into())
    }

    pub(crate) fn unsupported(why: impl Into<String>) -> CryptoError {
        CryptoError::Unsupported(why.into())
    }
}

/// Fills `target` with random bytes of the system.
pub(crate) fn fill_random(target: &mut [u8]) -> Result<(), CryptoError> {
    getrandom::fill(target).map_err(|error| CryptoError::Random(error.to_string()))
}
