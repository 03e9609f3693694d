//! [`Request`]: the header of a request, and what is wrong with it.

use crate::protocol::*;

/// Length of a request's header in bytes.
pub const COMPACT_LEN: usize = 28;
/// The same where extended headers were negotiated.
pub const EXTENDED_LEN: usize = 32;

/// A request as the client sent it. Its numbers are not to be trusted before
/// [`check`](Self::check).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    /// The client's own, sent back to it.
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Length of the export in bytes.
    pub size: u64,
    pub read_only: bool,
    /// Whether the client may ask for one chunk only: it negotiated structured replies.
    pub structured: bool,
    pub extended: bool,
    /// Whether the client has chosen the metadata context.
    pub contexts: bool,
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

    /// # Errors
    /// The errno to answer with.
    pub fn check(&self, rules: &Rules) -> Result<(), i32> {
        let allowed = match self.command {
            CMD_READ if rules.structured => CMD_FLAG_FUA | CMD_FLAG_DF,
            CMD_READ | CMD_FLUSH | CMD_TRIM | CMD_CACHE => CMD_FLAG_FUA,
            CMD_WRITE if rules.extended => CMD_FLAG_FUA | CMD_FLAG_PAYLOAD_LEN,
            CMD_WRITE => CMD_FLAG_FUA,
            CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS if rules.contexts => CMD_FLAG_FUA | CMD_FLAG_REQ_ONE,
            _ => return Err(libc::EINVAL),
        };
        let writes = matches!(self.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if self.flags & !allowed != 0 {
            return Err(libc::EINVAL);
        }
        if writes && rules.read_only {
            return Err(libc::EPERM);
        }
        if self.command == CMD_FLUSH {
            let is_plain = self.offset == 0 && self.length == 0;
            return if is_plain { Ok(()) } else { Err(libc::EINVAL) };
        }
        let end = self.offset.checked_add(self.length);
        if end.is_none_or(|end| end > rules.size) {
            let grows = matches!(self.command, CMD_WRITE | CMD_WRITE_ZEROES);
            return Err(if grows { libc::ENOSPC } else { libc::EINVAL });
        }
        let carries = matches!(self.command, CMD_READ | CMD_WRITE | CMD_CACHE);
        if carries && self.length > MAX_PAYLOAD {
            return Err(libc::EINVAL);
        }
        if self.command == CMD_BLOCK_STATUS && self.length == 0 {
            return Err(libc::EINVAL);
        }
        Ok(())
    }
}

/// Takes big-endian integers off the front of bytes.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        size: 1 << 20,
        read_only: false,
        structured: true,
        extended: false,
        contexts: true,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u64) -> Request {
        Request { flags, command, cookie: 7, offset, length }
    }

    #[test]
    fn requests_are_checked_against_the_export() {
        let cases = [
            (request(CMD_READ, 0, 0, 1 << 20), Ok(())),
            (request(CMD_READ, 0, 1, 1 << 20), Err(libc::EINVAL)),
            (request(CMD_WRITE, 0, 1, 1 << 20), Err(libc::ENOSPC)),
            (request(CMD_WRITE, 0, u64::MAX, 2), Err(libc::ENOSPC)),
            (request(CMD_WRITE, CMD_FLAG_DF, 0, 1), Err(libc::EINVAL)),
            (request(CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO, 0, 1), Ok(())),
            (request(CMD_FLUSH, 0, 0, 1), Err(libc::EINVAL)),
            (request(CMD_BLOCK_STATUS, 0, 0, 0), Err(libc::EINVAL)),
            (request(8, 0, 0, 1), Err(libc::EINVAL)),
        ];
        for (request, expected) in cases {
            assert_eq!(request.check(&RULES), expected, "{request:?}");
        }
        let read_only = Rules { read_only: true, ..RULES };
        assert_eq!(request(CMD_TRIM, 0, 0, 1).check(&read_only), Err(libc::EPERM));
        let no_contexts = Rules { contexts: false, ..RULES };
        assert_eq!(request(CMD_BLOCK_STATUS, 0, 0, 1).check(&no_contexts), Err(libc::EINVAL));
        let large = Rules { size: u64::MAX, ..RULES };
        assert_eq!(request(CMD_READ, 0, 0, MAX_PAYLOAD + 1).check(&large), Err(libc::EINVAL));
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
