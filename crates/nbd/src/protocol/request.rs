//! [`Request`]: the header of a request.

use smallvec::SmallVec;

use super::fields::Fields;
use super::*;

/// Length of a request's header in bytes.
pub const COMPACT_LEN: usize = 28;
/// The same where extended headers were negotiated.
pub const EXTENDED_LEN: usize = 32;

/// A request as the client sent it. Its numbers are not to be trusted before
/// they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    /// The client's own, sent back to it.
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

impl Request {
    /// `None` if these are not the bytes of a request.
    pub fn parse_compact(bytes: &[u8]) -> Option<Request> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let request = Request {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: u64::from(fields.u32()?),
        };
        (magic == REQUEST_MAGIC && fields.0.is_empty()).then_some(request)
    }

    /// `None` if these are not the bytes of a request with an extended header.
    pub fn parse_extended(bytes: &[u8]) -> Option<Request> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let request = Request {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u64()?,
        };
        (magic == EXTENDED_REQUEST_MAGIC && fields.0.is_empty()).then_some(request)
    }

    /// Its bytes, as a client sends them. A compact header has lengths up to 4 GiB, to which requests are cut.
    pub fn header(&self, extended: bool) -> SmallVec<[u8; EXTENDED_LEN]> {
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut bytes = SmallVec::new();
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.command.to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        match extended {
            true => bytes.extend_from_slice(&self.length.to_be_bytes()),
            false => bytes.extend_from_slice(&(self.length as u32).to_be_bytes()),
        }
        bytes
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// How many bytes follow the header. With extended headers a flag says whether there are any, but
    /// QEMU's client does not set it, so a write has its payload without.
    pub fn payload_len(&self, extended: bool) -> u64 {
        let follows = if extended {
            self.has(CMD_FLAG_PAYLOAD_LEN) || self.command == CMD_WRITE
        } else {
            self.command == CMD_WRITE
        };
        if follows { self.length } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_is_what_a_server_reads() {
        let request =
            Request { flags: 3, command: 6, cookie: !7, offset: 1 << 40, length: 9 << 20 };
        assert_eq!(Request::parse_compact(&request.header(false)), Some(request));
        let request = Request { length: 5 << 32, ..request };
        assert_eq!(Request::parse_extended(&request.header(true)), Some(request));
        assert_eq!(Request::parse_compact(&request.header(true)), None);
    }

    #[test]
    fn headers_have_one_length_and_one_magic() {
        let mut bytes = [0u8; COMPACT_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[27] = 9;
        assert_eq!(Request::parse_compact(&bytes).map(|request| request.length), Some(9));
        assert_eq!(Request::parse_compact(&bytes[..27]), None);
        assert_eq!(Request::parse_extended(&bytes), None);
        bytes[0] = 0;
        assert_eq!(Request::parse_compact(&bytes), None);
    }
}
