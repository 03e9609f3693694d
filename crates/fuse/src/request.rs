//! [`Request`]: what the kernel asks for, read from bytes.
//!
//! The bytes come from the kernel, and are trusted no more than a client's: what does not fit is
//! [`Malformed`].

use crate::abi::{MAX_TRANSFER, op};

/// What every request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole request.
    pub length: u32,
    /// Its kind.
    pub opcode: u32,
    /// Its number, which the answer has.
    pub unique: u64,
    /// The inode.
    pub node: u64,
}

impl Header {
    /// Bytes of it.
    pub const BYTES: usize = 40;

    /// Reads it; `None` if there is too little.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let mut fields = Fields(bytes.get(..Header::BYTES)?);
        let (length, opcode) = (fields.u32()?, fields.u32()?);
        Some(Header { length, opcode, unique: fields.u64()?, node: fields.u64()? })
    }
}

/// Bytes between the header of a write and its data.
pub const WRITE_BYTES: usize = 40;
/// Bytes behind the header that a request other than a write may need to be understood.
pub const MAX_BODY: usize = 88;

/// A request that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The times of a file that a request sets, in seconds and nanoseconds since 1970.
pub type Time = (u64, u32);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Init(Init),
    Destroy,
    /// No answer is expected.
    Forget,
    Interrupt,
    Lookup,
    GetAttr,
    SetAttr(SetAttr),
    Open {
        /// Those of open(2).
        flags: u32,
    },
    Release,
    StatFs,
    Read {
        offset: u64,
        size: u32,
    },
    Write(Write),
    Flush,
    Fsync,
    Fallocate(Fallocate),
    Lseek {
        offset: u64,
        whence: u32,
    },
    Ioctl,
    /// Anything else.
    Other,
}

/// The kernel's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    /// Both words.
    pub flags: u64,
}

/// New attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Which of them; see [`attr`](crate::abi::attr).
    pub valid: u32,
    pub size: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Data to be written; it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub offset: u64,
    /// Bytes, at most [`MAX_TRANSFER`].
    pub size: u32,
    /// The flags that the file is open with, and those of this write, in the words of open(2).
    pub flags: u32,
}

/// A range to be stored otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallocate {
    pub offset: u64,
    pub length: u64,
    /// That of fallocate(2).
    pub mode: u32,
}

impl Request {
    /// Reads a request of which the kernel has given `received` bytes in all. `body` is what follows the
    /// header, without the data of a write, or at least [`MAX_BODY`] bytes of it.
    ///
    /// # Errors
    /// If lengths contradict each other, or fields are missing.
    pub fn parse(header: &Header, body: &[u8], received: usize) -> Result<Request, Malformed> {
        if header.length as usize != received || received < Header::BYTES {
            return Err(Malformed);
        }
        Self::of(header, Fields(body), received).ok_or(Malformed)
    }

    fn of(header: &Header, mut fields: Fields<'_>, received: usize) -> Option<Request> {
        Some(match header.opcode {
            op::READ => {
                fields.skip(8)?;
                let (offset, size) = (fields.u64()?, fields.u32()?);
                fits(size).then_some(Request::Read { offset, size })?
            }
            op::WRITE => {
                fields.skip(8)?;
                let (offset, size) = (fields.u64()?, fields.u32()?);
                // Flags of the write itself, and the lock's owner.
                fields.skip(12)?;
                let flags = fields.u32()?;
                let is_whole = received == Header::BYTES + WRITE_BYTES + size as usize;
                (fits(size) && is_whole).then_some(Request::Write(Write { offset, size, flags }))?
            }
            op::INIT => Request::Init(init(&mut fields)?),
            op::SETATTR => Request::SetAttr(set_attr(&mut fields)?),
            op::OPEN => Request::Open { flags: fields.u32()? },
            op::FALLOCATE => {
                fields.skip(8)?;
                let (offset, length, mode) = (fields.u64()?, fields.u64()?, fields.u32()?);
                Request::Fallocate(Fallocate { offset, length, mode })
            }
            op::LSEEK => {
                fields.skip(8)?;
                Request::Lseek { offset: fields.u64()?, whence: fields.u32()? }
            }
            op::DESTROY => Request::Destroy,
            op::FORGET | op::BATCH_FORGET => Request::Forget,
            op::INTERRUPT => Request::Interrupt,
            op::LOOKUP => Request::Lookup,
            op::GETATTR => Request::GetAttr,
            op::RELEASE => Request::Release,
            op::STATFS => Request::StatFs,
            op::FLUSH => Request::Flush,
            op::FSYNC => Request::Fsync,
            op::IOCTL => Request::Ioctl,
            _ => Request::Other,
        })
    }
}

fn fits(size: u32) -> bool {
    size as usize <= MAX_TRANSFER
}

fn init(fields: &mut Fields<'_>) -> Option<Init> {
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let (max_readahead, low) = (fields.u32()?, fields.u32()?);
    // Kernels before 5.17 have one word.
    let high = fields.u32().unwrap_or(0);
    let flags = u64::from(low) | u64::from(high) << 32;
    Some(Init { major, minor, max_readahead, flags })
}

fn set_attr(fields: &mut Fields<'_>) -> Option<SetAttr> {
    let valid = fields.u32()?;
    fields.skip(4 + 8)?;
    let size = fields.u64()?;
    fields.skip(8)?;
    let (atime, mtime, ctime) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (atime_ns, mtime_ns, ctime_ns) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let mode = fields.u32()?;
    fields.skip(4)?;
    Some(SetAttr {
        valid,
        size,
        atime: (atime, atime_ns),
        mtime: (mtime, mtime_ns),
        ctime: (ctime, ctime_ns),
        mode,
        uid: fields.u32()?,
        gid: fields.u32()?,
    })
}

/// Fields one after the other, in the machine's order of bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*field))
    }

    fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*field))
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(opcode: u32, length: usize) -> Header {
        Header { length: length as u32, opcode, unique: 7, node: 1 }
    }

    #[test]
    fn a_header_has_its_fields_in_their_places() {
        let mut bytes = [0; Header::BYTES];
        bytes[..4].copy_from_slice(&48u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&op::OPEN.to_ne_bytes());
        bytes[8..16].copy_from_slice(&7u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&1u64.to_ne_bytes());
        assert_eq!(Header::parse(&bytes), Some(header(op::OPEN, 48)));
        assert_eq!(Header::parse(&bytes[..39]), None);
    }

    #[test]
    fn lengths_that_contradict_each_other_are_malformed() {
        let mut body = [0; WRITE_BYTES];
        let parse = |body: &[u8], opcode, received| {
            Request::parse(&header(opcode, received), body, received)
        };
        let write = Request::Write(Write { offset: 0, size: 0, flags: 0 });
        assert_eq!(parse(&body, op::WRITE, 80), Ok(write));
        assert_eq!(parse(&body, op::WRITE, 81), Err(Malformed));
        assert!(parse(&body[..39], op::WRITE, 80).is_ok());
        assert_eq!(parse(&body[..35], op::WRITE, 80), Err(Malformed));
        let (read, size) = (parse(&body, op::READ, 80), (MAX_TRANSFER + 1) as u32);
        assert_eq!(read, Ok(Request::Read { offset: 0, size: 0 }));
        body[16..20].copy_from_slice(&size.to_ne_bytes());
        assert_eq!(parse(&body, op::READ, 80), Err(Malformed));
        assert_eq!(parse(&body, op::WRITE, 80 + size as usize), Err(Malformed));
        assert_eq!(Request::parse(&header(op::FLUSH, 41), &body, 40), Err(Malformed));
        assert_eq!(Request::parse(&header(op::FLUSH, 39), &body, 39), Err(Malformed));
        assert_eq!(parse(&[], op::SETATTR, 40), Err(Malformed));
        assert_eq!(parse(&[], 4711, 40), Ok(Request::Other));
    }
}
