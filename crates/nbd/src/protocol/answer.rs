//! [`Answer`]: the header of a message that answers a request, as a client reads it.

use super::fields::Fields;
use super::reply::Style;
use super::*;

/// Bytes that tell how long a header is.
pub const MAGIC_LEN: usize = 4;

/// A simple reply, or a chunk. Its numbers are not to be trusted before they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the request.
    pub cookie: u64,
    /// No other follows.
    pub last: bool,
    pub body: Body,
}

/// What an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A simple reply: an error number of the protocol, or 0; then the data of a READ follows.
    Simple(u32),
    /// A chunk, of a kind, and the length of what follows in bytes.
    Chunk(u16, u64),
}

/// Length of a header by its first four bytes, in bytes; `None` if the session has no such answers.
pub fn header_len(style: Style, magic: [u8; MAGIC_LEN]) -> Option<usize> {
    match (u32::from_be_bytes(magic), style) {
        // Requests without data may be answered in the simple way.
        (SIMPLE_REPLY_MAGIC, Style::Simple | Style::Structured) => Some(16),
        (STRUCTURED_REPLY_MAGIC, Style::Structured) => Some(20),
        (EXTENDED_REPLY_MAGIC, Style::Extended) => Some(32),
        _ => None,
    }
}

impl Answer {
    /// Reads a header of [its length](header_len).
    pub fn parse(bytes: &[u8]) -> Option<Answer> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        if magic == SIMPLE_REPLY_MAGIC {
            let code = fields.u32()?;
            return Some(Answer { cookie: fields.u64()?, last: true, body: Body::Simple(code) });
        }
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        let len = match magic {
            EXTENDED_REPLY_MAGIC => {
                // The offset of the request, which its cookie tells.
                fields.u64()?;
                fields.u64()?
            }
            _ => u64::from(fields.u32()?),
        };
        let last = flags & REPLY_FLAG_DONE != 0;
        Some(Answer { cookie, last, body: Body::Chunk(kind, len) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::{Chunk, Header};
    use super::super::request::Request;
    use super::*;

    fn read(style: Style, header: &Header) -> Option<Answer> {
        let bytes = header.bytes();
        let len = header_len(style, bytes[..MAGIC_LEN].try_into().unwrap())?;
        Answer::parse(&bytes[..len])
    }

    #[test]
    fn what_a_server_answers_is_what_a_client_reads() {
        let request = Request { flags: 0, command: CMD_READ, cookie: 77, offset: 5, length: 9 };
        let simple = Answer { cookie: 77, last: true, body: Body::Simple(22) };
        let header = Header::simple(&request, 22);
        assert_eq!(read(Style::Simple, &header), Some(simple));
        assert_eq!(read(Style::Structured, &header), Some(simple));
        assert_eq!(read(Style::Extended, &header), None);
        let chunk = Chunk { kind: REPLY_TYPE_OFFSET_DATA, last: false, body: &[0; 8], len: 9 };
        let wanted = Answer { cookie: 77, last: false, body: Body::Chunk(1, 17) };
        for style in [Style::Structured, Style::Extended] {
            let header = Header::chunk(style, &request, &chunk);
            assert_eq!(read(style, &header), Some(wanted));
            assert_eq!(read(Style::Simple, &header), None);
        }
    }
}
