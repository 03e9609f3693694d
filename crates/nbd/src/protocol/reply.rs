//! [`Header`]: the beginning of each message that answers a request, in the protocol's three styles.

use super::request::Request;
use super::*;

/// The longest one: that of an extended chunk that tells of a hole.
const MAX_LEN: usize = 44;

/// How a client wants its replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    #[default]
    Simple,
    Structured,
    Extended,
}

/// A chunk of a structured reply.
pub struct Chunk<'a> {
    pub kind: u16,
    /// No other follows.
    pub last: bool,
    /// What is short, and goes with the header.
    pub body: &'a [u8],
    /// Length of what follows the body, in bytes.
    pub len: u64,
}

/// Bytes before a payload.
pub struct Header {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Header {
    /// None.
    pub fn empty() -> Header {
        Header { bytes: [0; MAX_LEN], len: 0 }
    }

    /// A simple reply, with an error number of the protocol or 0.
    pub fn simple(request: &Request, code: u32) -> Header {
        let mut header = Self::empty();
        header.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        header.put(&code.to_be_bytes());
        header.put(&request.cookie.to_be_bytes());
        header
    }

    /// A chunk, structured or extended.
    pub fn chunk(style: Style, request: &Request, chunk: &Chunk<'_>) -> Header {
        let len = chunk.body.len() as u64 + chunk.len;
        let extended = style == Style::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let mut header = Self::empty();
        header.put(&magic.to_be_bytes());
        header.put(&if chunk.last { REPLY_FLAG_DONE } else { 0 }.to_be_bytes());
        header.put(&chunk.kind.to_be_bytes());
        header.put(&request.cookie.to_be_bytes());
        if extended {
            header.put(&request.offset.to_be_bytes());
            header.put(&len.to_be_bytes());
        } else {
            // Within 32 MiB and a header.
            header.put(&(len as u32).to_be_bytes());
        }
        header.put(chunk.body);
        header
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}
