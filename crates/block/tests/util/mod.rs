//! Helpers of the request path's tests.
#![allow(dead_code)] // Each test file uses some of them.

pub mod bench;
pub mod disk;
pub mod layer;
pub mod mapped;
pub mod model;
pub mod scripted;
pub mod ticker;

use std::time::Duration;

use coblk_aio::{AioContext, SimulationOptions};

/// Whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the seed if the test panics while this lives.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// A simulated context.
pub fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().unwrap()
}

/// The errno of a failed request.
#[track_caller]
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("the request has succeeded"),
        Err(error) => error.raw_os_error().expect("an errno"),
    }
}
