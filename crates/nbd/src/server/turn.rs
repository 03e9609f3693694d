//! [`Turn`]: how much of the loop's time a client has had.

use std::cell::Cell;

/// Requests, options and pieces that a client may have read in a row, while other clients wait for their turn.
const MAX_STEPS: usize = 64;
/// Bytes that may be read, carried out or sent for it meanwhile; the request that exceeds them is the
/// last.
pub const MAX_BYTES: usize = 1 << 20;

/// What was done for a client since others have last had a chance.
#[derive(Default)]
pub struct Turn {
    steps: Cell<usize>,
    bytes: Cell<usize>,
}

impl Turn {
    /// A request, an option or a piece.
    pub fn step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    pub fn charge(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    pub fn is_over(&self) -> bool {
        self.steps.get() > MAX_STEPS || self.bytes.get() >= MAX_BYTES
    }

    /// Others have had a chance.
    pub fn begin(&self) {
        self.steps.set(0);
        self.bytes.set(0);
    }
}
