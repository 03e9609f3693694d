//! Bytes of a stream as they come, and as they are asked for: [`Input`].

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use super::Wait;

/// What one system call may bring.
const AT_ONCE: usize = 256 << 10;

/// A buffer in front of a socket.
pub struct Input {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Input {
    /// An empty buffer.
    pub fn new() -> Input {
        Input { bytes: vec![0; AT_ONCE], begin: 0, end: 0 }
    }

    /// The next `len` bytes, if they have come.
    pub fn peek(&self, len: usize) -> Option<&[u8]> {
        self.bytes[self.begin..self.end].get(..len)
    }

    /// The first `len` bytes have been used.
    pub fn consume(&mut self, len: usize) {
        self.begin += len;
    }

    /// Waits until more has come; room is made for a message of `message_bytes`. False at the
    /// stream's end.
    ///
    /// # Errors
    /// As the socket says; if the stream ends within a message.
    pub fn fill(
        &mut self,
        mut stream: &UnixStream,
        wait: Wait,
        message_bytes: usize,
    ) -> io::Result<bool> {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.bytes.len() < message_bytes {
            self.bytes.resize(message_bytes, 0);
        }
        loop {
            match stream.read(&mut self.bytes[self.end..]) {
                Ok(0) if self.end > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.end += got;
                    return Ok(got > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && wait == Wait::Spinning =>
                {
                    std::hint::spin_loop();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn messages_may_be_cut_anywhere_and_be_longer_than_the_buffer() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let long = AT_ONCE + 5;
        let writer = std::thread::spawn(move || {
            theirs.write_all(b"ab").unwrap();
            theirs.write_all(&vec![7; long]).unwrap();
            theirs.write_all(b"x").unwrap();
        });
        let mut input = Input::new();
        while input.peek(2).is_none() {
            assert!(input.fill(&ours, Wait::Blocking, 2).unwrap());
        }
        assert_eq!(input.peek(2).unwrap(), b"ab");
        input.consume(2);
        while input.peek(long).is_none() {
            assert!(input.fill(&ours, Wait::Blocking, long).unwrap());
        }
        assert!(input.peek(long).unwrap().iter().all(|byte| *byte == 7));
        input.consume(long);
        writer.join().unwrap();
        while input.peek(1).is_none() {
            assert!(input.fill(&ours, Wait::Blocking, 1).unwrap());
        }
        // It ends behind unused bytes, and then behind none.
        assert!(input.fill(&ours, Wait::Blocking, 2).is_err());
        input.consume(1);
        assert!(!input.fill(&ours, Wait::Blocking, 2).unwrap());
    }
}
