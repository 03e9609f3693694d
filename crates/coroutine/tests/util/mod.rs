//! Helpers for the tests of this folder.
#![allow(dead_code, reason = "not every test file uses all of them")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitStatus, Output};
use std::rc::Rc;

/// The message with which `action` panics.
pub fn panic_message<R>(action: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(action)) else {
        panic!("should have panicked");
    };
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload.downcast::<&str>().expect("a panic with a message").to_string(),
    }
}

/// Counts how often it is dropped, with all its clones.
#[derive(Clone, Default)]
pub struct Dropped(Rc<Cell<usize>>);

impl Dropped {
    pub fn times(&self) -> usize {
        self.0.get()
    }

    /// A value that is counted when it is dropped.
    pub fn token(&self) -> Token {
        Token(self.0.clone())
    }
}

pub struct Token(Rc<Cell<usize>>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Runs `body` in a process of its own: this test binary once more, with nothing but the test
/// `name` in it, which is where this is called from. Returns what came of it, and nothing within
/// that process.
fn in_child(name: &str, body: impl FnOnce()) -> Option<Output> {
    const MARK: &str = "COBLK_TEST_CHILD";
    if std::env::var_os(MARK).is_some_and(|value| value == *name) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(MARK, name);
    Some(command.output().unwrap())
}

/// As [`in_child`], for a body that is meant to end its process. Returns how it ended and what it
/// wrote to standard error.
pub fn dies_in_child(name: &str, body: impl FnOnce()) -> Option<(ExitStatus, String)> {
    let output = in_child(name, body)?;
    assert!(!output.status.success());
    Some((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// As [`in_child`], for a body that is meant to succeed.
pub fn succeeds_in_child(name: &str, body: impl FnOnce()) {
    if let Some(output) = in_child(name, body) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    }
}
