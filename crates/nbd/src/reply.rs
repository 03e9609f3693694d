//! Messages to a client: replies in each of the protocol's three styles.

use crate::memory::Buffer;
use crate::protocol::*;
use crate::request::Request;

/// The longest header: that of an extended chunk with an offset.
const MAX_HEADER: usize = 40;

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
        let payload = Payload::Bytes(bytes);
        Message { header: [0; MAX_HEADER], header_len: 0, payload, answers: false }
    }

    /// That `request` succeeded, and has nothing to tell.
    pub fn success(style: Style, request: &Request) -> Message {
        match style {
            Style::Simple | Style::Structured => Self::simple(request, 0, Payload::None),
            Style::Extended => Self::chunk(style, request, REPLY_TYPE_NONE, &[], Payload::None),
        }
    }

    /// That `request` failed.
    pub fn error(style: Style, request: &Request, errno: i32) -> Message {
        let code = error_code(errno);
        if style == Style::Simple {
            return Self::simple(request, code, Payload::None);
        }
        // The error, and the length of a message in words: there is none.
        let mut body = [0; 6];
        body[..4].copy_from_slice(&code.to_be_bytes());
        Self::chunk(style, request, REPLY_TYPE_ERROR, &body, Payload::None)
    }

    /// What a read has read. One chunk, so that asking for one chunk is always granted.
    pub fn data(style: Style, request: &Request, data: Buffer) -> Message {
        if style == Style::Simple {
            return Self::simple(request, 0, Payload::Buffer(data));
        }
        if data.is_empty() {
            return Self::chunk(style, request, REPLY_TYPE_NONE, &[], Payload::None);
        }
        let offset = request.offset.to_be_bytes();
        Self::chunk(style, request, REPLY_TYPE_OFFSET_DATA, &offset, Payload::Buffer(data))
    }

    /// What is known of a range: lengths and states.
    pub fn block_status(style: Style, request: &Request, extents: &[(u64, u64)]) -> Message {
        let mut body = BASE_ALLOCATION_ID.to_be_bytes().to_vec();
        if style == Style::Extended {
            body.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for (length, state) in extents {
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(&state.to_be_bytes());
            }
            let kind = REPLY_TYPE_BLOCK_STATUS_EXT;
            return Self::chunk(style, request, kind, &[], Payload::Bytes(body));
        }
        // The request was 32 bits long, and so are its parts.
        for (length, state) in extents {
            body.extend_from_slice(&(*length as u32).to_be_bytes());
            body.extend_from_slice(&(*state as u32).to_be_bytes());
        }
        Self::chunk(style, request, REPLY_TYPE_BLOCK_STATUS, &[], Payload::Bytes(body))
    }

    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.header[..self.header_len], self.payload.bytes()]
    }

    pub fn len(&self) -> usize {
        self.header_len + self.payload.bytes().len()
    }

    fn simple(request: &Request, code: u32, payload: Payload) -> Message {
        let mut message =
            Message { header: [0; MAX_HEADER], header_len: 0, payload, answers: true };
        message.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        message.put(&code.to_be_bytes());
        message.put(&request.cookie.to_be_bytes());
        message
    }

    /// The only chunk of a reply; `body` is short and goes with the header.
    fn chunk(style: Style, request: &Request, kind: u16, body: &[u8], payload: Payload) -> Message {
        let len = (body.len() + payload.bytes().len()) as u64;
        let mut message =
            Message { header: [0; MAX_HEADER], header_len: 0, payload, answers: true };
        let extended = style == Style::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        message.put(&magic.to_be_bytes());
        message.put(&REPLY_FLAG_DONE.to_be_bytes());
        message.put(&kind.to_be_bytes());
        message.put(&request.cookie.to_be_bytes());
        if extended {
            message.put(&request.offset.to_be_bytes());
            message.put(&len.to_be_bytes());
        } else {
            // Within 32 MiB and a header.
            message.put(&(len as u32).to_be_bytes());
        }
        message.put(body);
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
        let status = Message::block_status(Style::Structured, &request, &[(4, 0), (8, 3)]);
        assert_eq!(status.len(), 20 + 4 + 16);
        let status = Message::block_status(Style::Extended, &request, &[(4, 0), (8, 3)]);
        assert_eq!(status.len(), 32 + 8 + 32);
    }
}
