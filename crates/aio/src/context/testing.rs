//! Contexts for tests.

use std::io;

use super::{AioContext, AioContextBuilder};
use crate::panics::PanicPolicy;

/// For tests of crates that use contexts: a failed assertion in a callback or a coroutine has to fail
/// its test, and not only to be reported. No part of the stable interface.
#[doc(hidden)]
impl AioContext {
    pub fn for_test() -> io::Result<AioContext> {
        Self::test_builder().build()
    }

    /// Waits as `COBLK_WAIT_MODE` says, so that all tests can be run in each mode.
    pub fn test_builder() -> AioContextBuilder {
        let builder = Self::builder().on_panic(PanicPolicy::Stop);
        match std::env::var("COBLK_WAIT_MODE") {
            Ok(mode) if !mode.is_empty() => builder.wait_mode(mode.parse().expect("a wait mode")),
            _ => builder,
        }
    }
}
