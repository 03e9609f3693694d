//! [`Terms`]: the outcome of a negotiation; [`Session`]: that, with the disk; [`Rules`]: checks of a request.

use std::sync::Arc;

use coblk_block::{BlockBackend, DirtyBitmap};

use crate::protocol::reply::Style;
use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::contexts::Context;

/// What was agreed on with a client. Any thread.
#[derive(Clone)]
pub struct Terms {
    pub style: Style,
    /// The metadata contexts that the client has chosen, by their numbers.
    pub contexts: Arc<[Context]>,
    pub rules: Rules,
    /// Every write is durable before it is answered.
    pub write_through: bool,
    /// Those that the client may look at.
    pub bitmaps: Arc<[(String, Arc<DirtyBitmap>)]>,
}

/// A client's use of an export, in the context that serves it.
pub struct Session {
    pub backend: BlockBackend,
    pub terms: Terms,
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
    /// Whether the client has chosen metadata contexts.
    pub contexts: bool,
}

impl Rules {
    /// # Errors
    /// The errno to answer with.
    pub fn check(&self, request: &Request) -> Result<(), i32> {
        let allowed = match request.command {
            CMD_READ if self.structured => CMD_FLAG_FUA | CMD_FLAG_DF,
            CMD_READ | CMD_FLUSH | CMD_TRIM | CMD_CACHE => CMD_FLAG_FUA,
            CMD_WRITE if self.extended => CMD_FLAG_FUA | CMD_FLAG_PAYLOAD_LEN,
            CMD_WRITE => CMD_FLAG_FUA,
            CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS if self.contexts => CMD_FLAG_FUA | CMD_FLAG_REQ_ONE,
            _ => return Err(libc::EINVAL),
        };
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if request.flags & !allowed != 0 {
            return Err(libc::EINVAL);
        }
        if writes && self.read_only {
            return Err(libc::EPERM);
        }
        if request.command == CMD_FLUSH {
            let is_plain = request.offset == 0 && request.length == 0;
            return if is_plain { Ok(()) } else { Err(libc::EINVAL) };
        }
        let end = request.offset.checked_add(request.length);
        if end.is_none_or(|end| end > self.size) {
            let grows = matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES);
            return Err(if grows { libc::ENOSPC } else { libc::EINVAL });
        }
        let carries = matches!(request.command, CMD_READ | CMD_WRITE | CMD_CACHE);
        if carries && request.length > MAX_PAYLOAD {
            return Err(libc::EINVAL);
        }
        if request.command == CMD_BLOCK_STATUS && request.length == 0 {
            return Err(libc::EINVAL);
        }
        Ok(())
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
            assert_eq!(RULES.check(&request), expected, "{request:?}");
        }
        let read_only = Rules { read_only: true, ..RULES };
        assert_eq!(read_only.check(&request(CMD_TRIM, 0, 0, 1)), Err(libc::EPERM));
        let no_contexts = Rules { contexts: false, ..RULES };
        assert_eq!(no_contexts.check(&request(CMD_BLOCK_STATUS, 0, 0, 1)), Err(libc::EINVAL));
        let large = Rules { size: u64::MAX, ..RULES };
        assert_eq!(large.check(&request(CMD_READ, 0, 0, MAX_PAYLOAD + 1)), Err(libc::EINVAL));
    }
}
