//! Messages to a client: replies in each of the protocol's three styles.

use std::ops::Range;
use std::rc::Rc;

use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::memory::Buffer;

/// The longest header: that of an extended chunk that tells of a hole.
const MAX_HEADER: usize = 44;

/// How a client wants its replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    #[default]
    Simple,
    Structured,
    Extended,
}

/// What follows the header.
pub enum Payload {
    None,
    Bytes(Vec<u8>),
    Buffer(Buffer),
    /// Of a buffer that several messages share.
    Part(Rc<Buffer>, Range<usize>),
}

/// A chunk of a structured reply.
struct Chunk<'a> {
    kind: u16,
    /// No other follows.
    last: bool,
    /// What is short, and goes with the header.
    body: &'a [u8],
    /// Length of what follows the body, in bytes.
    len: u64,
}

/// A header and what follows it.
pub struct Message {
    header: [u8; MAX_HEADER],
    header_len: usize,
    payload: Payload,
    /// Whether it answers a request, which is then no longer in flight.
    pub answers: bool,
}

impl Message {
    /// Bytes as they are, such as those of the handshake.
    pub fn raw(bytes: Vec<u8>) -> Message {
        Message { answers: false, ..Self::bare(Payload::Bytes(bytes)) }
    }

    /// That `request` succeeded, and has nothing to tell.
    pub fn success(style: Style, request: &Request) -> Message {
        match style {
            Style::Simple | Style::Structured => Self::simple(request, 0, Payload::None),
            Style::Extended => Self::nothing(style, request),
        }
    }

    /// That `request` failed. May follow chunks with a part of the data.
    pub fn error(style: Style, request: &Request, errno: i32) -> Message {
        let code = error_code(errno);
        if style == Style::Simple {
            return Self::simple(request, code, Payload::None);
        }
        // The error, and the length of a message in words: there is none.
        let mut body = [0; 6];
        body[..4].copy_from_slice(&code.to_be_bytes());
        let chunk = Chunk { kind: REPLY_TYPE_ERROR, last: true, body: &body, len: 0 };
        Self::chunk(style, request, &chunk, Payload::None)
    }

    /// All that a read has read, in one chunk.
    pub fn data(style: Style, request: &Request, data: Buffer) -> Message {
        if data.is_empty() && style != Style::Simple {
            return Self::nothing(style, request);
        }
        Self::beginning(style, request, data, true)
    }

    /// The beginning of what a read reads; the rest follows in messages without headers.
    pub fn beginning(style: Style, request: &Request, data: Buffer, answers: bool) -> Message {
        let message = if style == Style::Simple {
            Self::simple(request, 0, Payload::Buffer(data))
        } else {
            let body = &request.offset.to_be_bytes();
            let kind = REPLY_TYPE_OFFSET_DATA;
            let chunk = Chunk { kind, last: true, body, len: request.length };
            Self::chunk(style, request, &chunk, Payload::Buffer(data))
        };
        Message { answers, ..message }
    }

    /// More of the data of a chunk that was begun.
    pub fn continuation(data: Buffer, answers: bool) -> Message {
        Message { answers, ..Self::bare(Payload::Buffer(data)) }
    }

    /// A chunk with a part of what a read has read, from `offset` on.
    pub fn part(
        style: Style,
        request: &Request,
        offset: u64,
        data: Payload,
        last: bool,
    ) -> Message {
        let (kind, len) = (REPLY_TYPE_OFFSET_DATA, data.bytes().len() as u64);
        let chunk = Chunk { kind, last, body: &offset.to_be_bytes(), len };
        Self::chunk(style, request, &chunk, data)
    }

    /// A chunk that tells of `len` zeroes from `offset` on.
    pub fn hole(style: Style, request: &Request, offset: u64, len: usize, last: bool) -> Message {
        let mut body = [0; 12];
        body[..8].copy_from_slice(&offset.to_be_bytes());
        // At most 32 MiB.
        body[8..].copy_from_slice(&(len as u32).to_be_bytes());
        let chunk = Chunk { kind: REPLY_TYPE_OFFSET_HOLE, last, body: &body, len: 0 };
        Self::chunk(style, request, &chunk, Payload::None)
    }

    /// What is known of a range, as `status.rs` has written it.
    pub fn block_status(style: Style, request: &Request, extents: Buffer) -> Message {
        let kind = match style {
            Style::Extended => REPLY_TYPE_BLOCK_STATUS_EXT,
            Style::Simple | Style::Structured => REPLY_TYPE_BLOCK_STATUS,
        };
        let chunk = Chunk { kind, last: true, body: &[], len: extents.len() as u64 };
        Self::chunk(style, request, &chunk, Payload::Buffer(extents))
    }

    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.header[..self.header_len], self.payload.bytes()]
    }

    pub fn len(&self) -> usize {
        self.header_len + self.payload.bytes().len()
    }

    fn bare(payload: Payload) -> Message {
        Message { header: [0; MAX_HEADER], header_len: 0, payload, answers: true }
    }

    fn simple(request: &Request, code: u32, payload: Payload) -> Message {
        let mut message = Self::bare(payload);
        message.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        message.put(&code.to_be_bytes());
        message.put(&request.cookie.to_be_bytes());
        message
    }

    fn nothing(style: Style, request: &Request) -> Message {
        let chunk = Chunk { kind: REPLY_TYPE_NONE, last: true, body: &[], len: 0 };
        Self::chunk(style, request, &chunk, Payload::None)
    }

    fn chunk(style: Style, request: &Request, chunk: &Chunk<'_>, payload: Payload) -> Message {
        let len = chunk.body.len() as u64 + chunk.len;
        let mut message = Message { answers: chunk.last, ..Self::bare(payload) };
        let extended = style == Style::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        message.put(&magic.to_be_bytes());
        message.put(&if chunk.last { REPLY_FLAG_DONE } else { 0 }.to_be_bytes());
        message.put(&chunk.kind.to_be_bytes());
        message.put(&request.cookie.to_be_bytes());
        if extended {
            message.put(&request.offset.to_be_bytes());
            message.put(&len.to_be_bytes());
        } else {
            // Within 32 MiB and a header.
            message.put(&(len as u32).to_be_bytes());
        }
        message.put(chunk.body);
        message
    }

    fn put(&mut self, bytes: &[u8]) {
        self.header[self.header_len..self.header_len + bytes.len()].copy_from_slice(bytes);
        self.header_len += bytes.len();
    }
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::None => &[],
            Payload::Bytes(bytes) => bytes,
            Payload::Buffer(buffer) => buffer,
            Payload::Part(buffer, range) => &buffer[range.clone()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_form_the_client_chose() {
        let request = Request { flags: 0, command: CMD_READ, cookie: 7, offset: 512, length: 1 };
        let lens = [Style::Simple, Style::Structured, Style::Extended]
            .map(|style| Message::error(style, &request, libc::EIO).len());
        assert_eq!(lens, [16, 26, 38]);
        let lens = [Style::Structured, Style::Extended]
            .map(|style| Message::hole(style, &request, 512, 4096, true).len());
        assert_eq!(lens, [20 + 12, 32 + 12]);
    }
}
