//! Numbers of the NBD protocol, by the names of its specification. All integers go big-endian.

pub mod answer;
pub mod fields;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;

use std::io::{self, ErrorKind};

/// First words of the server.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the server, and first of each option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First word of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub const FLAG_NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub const REP_ERR_POLICY: u32 = 0x8000_0002;
pub const REP_ERR_INVALID: u32 = 0x8000_0003;
pub const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub const REP_ERR_TOO_BIG: u32 = 0x8000_0009;
pub const REP_ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const TRANSMISSION_HAS_FLAGS: u16 = 1;
pub const TRANSMISSION_READ_ONLY: u16 = 1 << 1;
pub const TRANSMISSION_SEND_FLUSH: u16 = 1 << 2;
pub const TRANSMISSION_SEND_FUA: u16 = 1 << 3;
pub const TRANSMISSION_SEND_TRIM: u16 = 1 << 5;
pub const TRANSMISSION_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const TRANSMISSION_SEND_DF: u16 = 1 << 7;
pub const TRANSMISSION_CAN_MULTI_CONN: u16 = 1 << 8;
pub const TRANSMISSION_SEND_CACHE: u16 = 1 << 10;
pub const TRANSMISSION_SEND_FAST_ZERO: u16 = 1 << 11;

pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const CMD_FLAG_FUA: u16 = 1;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

pub const REPLY_FLAG_DONE: u16 = 1;
pub const REPLY_TYPE_NONE: u16 = 0;
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
pub const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
pub const REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
pub const REPLY_TYPE_ERROR: u16 = 0x8001;

pub const STATE_HOLE: u64 = 1;
pub const STATE_ZERO: u64 = 2;

pub const STATE_DIRTY: u64 = 1;

/// Metadata contexts: what is allocated, in which layer, and the beginning of those of dirty bitmaps, before
/// their names.
pub const BASE_ALLOCATION: &str = "base:allocation";
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Longest string: names of exports, descriptions, queries.
pub const MAX_STRING: usize = 4096;
/// Longest payload of a request or reply.
pub const MAX_PAYLOAD: u64 = 32 << 20;
/// Requests of one client in flight.
pub const MAX_REQUESTS: usize = 16;

/// The other side broke the protocol.
pub fn broken(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// The error number of the protocol for one of the system, as QEMU's server has them, but for the
/// last row: EINVAL tells a client that its request was wrong, and that is said only where it was. What
/// the protocol has no number for (no medium, a time-out, a cancelled request, a device that is gone)
/// is an I/O error.
pub fn error_code(errno: i32) -> u32 {
    match errno {
        libc::EPERM | libc::EACCES | libc::EROFS => EPERM,
        libc::ENOMEM | libc::ENOBUFS => ENOMEM,
        libc::EINVAL | libc::E2BIG | libc::EDOM | libc::ERANGE | libc::EXDEV => EINVAL,
        libc::ENOSPC | libc::EFBIG | libc::EDQUOT => ENOSPC,
        libc::EOVERFLOW => EOVERFLOW,
        libc::ENOTSUP | libc::ENOSYS => ENOTSUP,
        libc::ESHUTDOWN => ESHUTDOWN,
        _ => EIO,
    }
}

/// The error of the system for one that a server sends. What is not of the protocol is EINVAL, as it says.
pub fn errno_of(code: u32) -> i32 {
    match code {
        EPERM => libc::EPERM,
        EIO => libc::EIO,
        ENOMEM => libc::ENOMEM,
        ENOSPC => libc::ENOSPC,
        EOVERFLOW => libc::EOVERFLOW,
        ENOTSUP => libc::ENOTSUP,
        ESHUTDOWN => libc::ESHUTDOWN,
        _ => libc::EINVAL,
    }
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_numbers_of_the_protocol() {
        let numbers = [EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN];
        let of = |errnos: &[i32]| errnos.iter().map(|errno| error_code(*errno)).collect::<Vec<_>>();
        assert_eq!(of(&[libc::EPERM, libc::EACCES, libc::EROFS]), [EPERM; 3]);
        assert_eq!(of(&[libc::ENOSPC, libc::EFBIG, libc::EDQUOT]), [ENOSPC; 3]);
        assert_eq!(of(&[libc::ENOMEM, libc::ENOBUFS]), [ENOMEM; 2]);
        assert_eq!(of(&[libc::ENOTSUP, libc::EOPNOTSUPP, libc::ENOSYS]), [ENOTSUP; 3]);
        assert_eq!(of(&[libc::E2BIG, libc::EDOM, libc::ERANGE, libc::EXDEV]), [EINVAL; 4]);
        assert_eq!(
            of(&[libc::EINVAL, libc::EOVERFLOW, libc::ESHUTDOWN]),
            [EINVAL, EOVERFLOW, ESHUTDOWN]
        );
        let others = [libc::ECANCELED, libc::ENOMEDIUM, libc::ETIMEDOUT, libc::ENODEV, libc::EBADF];
        assert_eq!(of(&others), [EIO; 5]);
        assert!(numbers.iter().all(|number| error_code(errno_of(*number)) == *number));
        assert_eq!([errno_of(0), errno_of(2), errno_of(u32::MAX)], [libc::EINVAL; 3]);
        // Whatever a driver comes up with is one of the protocol, and no success.
        assert!((-5..5000).all(|errno| numbers.contains(&error_code(errno))));
    }
}
