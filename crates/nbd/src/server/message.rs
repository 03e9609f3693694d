//! [`Message`]: bytes for a client, with the memory that its payload lies in.

use std::ops::Range;
use std::rc::Rc;

use crate::protocol::reply::{Chunk, Header, Style};
use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::memory::Buffer;

/// What follows the header.
pub enum Payload {
    None,
    Bytes(Vec<u8>),
    Buffer(Buffer),
    /// Of a buffer that several messages share.
    Part(Rc<Buffer>, Range<usize>),
}

/// A header and what follows it.
pub struct Message {
    header: Header,
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

    /// The state of a range in one context, as `status.rs` has written it.
    pub fn block_status(style: Style, request: &Request, extents: Buffer, last: bool) -> Message {
        let kind = match style {
            Style::Extended => REPLY_TYPE_BLOCK_STATUS_EXT,
            Style::Simple | Style::Structured => REPLY_TYPE_BLOCK_STATUS,
        };
        let chunk = Chunk { kind, last, body: &[], len: extents.len() as u64 };
        Self::chunk(style, request, &chunk, Payload::Buffer(extents))
    }

    pub fn parts(&self) -> [&[u8]; 2] {
        [self.header.bytes(), self.payload.bytes()]
    }

    pub fn len(&self) -> usize {
        self.header.bytes().len() + self.payload.bytes().len()
    }

    fn bare(payload: Payload) -> Message {
        Message { header: Header::empty(), payload, answers: true }
    }

    fn simple(request: &Request, code: u32, payload: Payload) -> Message {
        Message { header: Header::simple(request, code), payload, answers: true }
    }

    fn nothing(style: Style, request: &Request) -> Message {
        let chunk = Chunk { kind: REPLY_TYPE_NONE, last: true, body: &[], len: 0 };
        Self::chunk(style, request, &chunk, Payload::None)
    }

    fn chunk(style: Style, request: &Request, chunk: &Chunk<'_>, payload: Payload) -> Message {
        Message { header: Header::chunk(style, request, chunk), payload, answers: chunk.last }
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
