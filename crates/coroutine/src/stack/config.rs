//! How large stacks are, and how they are guarded: decided once for the process.

use std::fmt;

use super::{ARENA, GuardKind, page_bytes};

/// How large stacks are, and how they are guarded.
///
/// ```
/// use coblk_coroutine::{StackConfig, configure_stacks};
///
/// configure_stacks(StackConfig::new(256 << 10))?;
/// # Ok::<(), coblk_coroutine::StackConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "stacks are configured by `configure_stacks`"]
pub struct StackConfig {
    /// How much of one can be used; rounded up to an even number of pages. 1 MiB unless told
    /// otherwise. The guard page comes on top of it.
    ///
    /// This is address space: memory is used page by page, as frames reach it. The kernel's page
    /// tables take 2 KiB besides for a stack of 1 MiB, and a quarter of that for one of 256 KiB.
    pub size_bytes: usize,
    /// How the page below a stack is made to fault. `None` takes the cheapest that the kernel has.
    pub guard: Option<GuardKind>,
}

impl StackConfig {
    /// The smallest size that is accepted. A panic with its backtrace needs most of it.
    pub const MIN_SIZE_BYTES: usize = 32 << 10;
    /// The largest size that is accepted.
    pub const MAX_SIZE_BYTES: usize = 1 << 30;

    /// Stacks of which so much can be used, guarded in the cheapest way.
    pub fn new(size_bytes: usize) -> StackConfig {
        StackConfig { size_bytes, ..StackConfig::default() }
    }

    /// How the page below a stack is made to fault.
    pub fn guard(self, guard: GuardKind) -> StackConfig {
        StackConfig { guard: Some(guard), ..self }
    }
}

impl Default for StackConfig {
    fn default() -> StackConfig {
        StackConfig { size_bytes: 1 << 20, guard: None }
    }
}

/// Decides how stacks are made, before the first coroutine of the process is created.
///
/// # Errors
///
/// If the size is out of bounds, or a stack exists already: all stacks of a process are alike, so
/// that any of them can serve any coroutine.
pub fn configure_stacks(config: StackConfig) -> Result<(), StackConfigError> {
    ARENA.configure(validate(config)?)
}

/// What is wrong with a [`StackConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackConfigError {
    /// The size is not between the two bounds.
    SizeOutOfBounds {
        /// The size asked for.
        size_bytes: usize,
    },
    /// Stacks have been made already.
    StacksExist,
}

impl fmt::Display for StackConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StackConfigError::SizeOutOfBounds { size_bytes } => write!(
                formatter,
                "a coroutine stack of {size_bytes} bytes is not between {} and {}",
                StackConfig::MIN_SIZE_BYTES,
                StackConfig::MAX_SIZE_BYTES
            ),
            StackConfigError::StacksExist => {
                write!(
                    formatter,
                    "coroutine stacks have been made already with another configuration"
                )
            }
        }
    }
}

impl std::error::Error for StackConfigError {}

/// The configuration with its size rounded up to an even number of pages.
///
/// With its guard page a stack then is an odd number of pages long. Were it a power of two, the
/// topmost pages of all stacks, which are all that most of them use, would compete for one set of
/// the TLB: with 1000 coroutines that take turns, a resume took twice as long.
fn validate(config: StackConfig) -> Result<StackConfig, StackConfigError> {
    let size_bytes = config.size_bytes;
    if !(StackConfig::MIN_SIZE_BYTES..=StackConfig::MAX_SIZE_BYTES).contains(&size_bytes) {
        return Err(StackConfigError::SizeOutOfBounds { size_bytes });
    }
    Ok(StackConfig { size_bytes: size_bytes.next_multiple_of(2 * page_bytes()), ..config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded_and_rounded_up() {
        let config = |size_bytes| StackConfig { size_bytes, guard: None };
        for size_bytes in [0, StackConfig::MIN_SIZE_BYTES - 1, StackConfig::MAX_SIZE_BYTES + 1] {
            let error = validate(config(size_bytes)).unwrap_err();
            assert_eq!(error, StackConfigError::SizeOutOfBounds { size_bytes });
            assert!(error.to_string().contains(&size_bytes.to_string()));
        }
        let page = page_bytes();
        assert_eq!(validate(config(10 * page + 1)).map(|config| config.size_bytes / page), Ok(12));
    }

    #[test]
    fn stacks_that_exist_cannot_be_configured() {
        let stack = super::super::allocate().unwrap();
        assert_eq!(configure_stacks(StackConfig::default()), Err(StackConfigError::StacksExist));
        // SAFETY: nothing was put on it.
        unsafe { super::super::free(stack) };
    }
}
