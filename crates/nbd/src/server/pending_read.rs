//! [`PendingRead`]: a read that a coroutine waits for, done in its place by a loop that polls.
//!
//! The coroutine lends its own room with the wait, and the loop does that one read when the bytes come: no
//! system call asks whether there is input, and leaves it there. A coroutine that waits for something else,
//! such as requests to end or replies to go, has lent nothing, and nothing is received for it.

use std::io;

/// A read that a coroutine waits for.
pub struct PendingRead {
    buffer: Vec<u8>,
    /// Where in the buffer the room begins. There is some.
    from: usize,
    /// Bytes, the end of the stream or an error, once the read is done.
    result: Option<io::Result<usize>>,
}

impl PendingRead {
    pub fn new(buffer: Vec<u8>, from: usize) -> PendingRead {
        PendingRead { buffer, from, result: None }
    }

    pub fn is_done(&self) -> bool {
        self.result.is_some()
    }

    /// Reads, unless that was done before: there is one result to give. Whether it is done now.
    pub fn try_now(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> Option<io::Result<usize>>,
    ) -> bool {
        if self.result.is_none() {
            self.result = receive(&mut self.buffer[self.from..]);
        }
        self.is_done()
    }

    /// Gives the buffer back; the result if the read was done.
    pub fn end(self, buffer: &mut Vec<u8>) -> Option<io::Result<usize>> {
        *buffer = self.buffer;
        self.result
    }
}
