//! A server that a test plays: it negotiates as servers do, and then does what the test says.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

/// How a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

/// A request of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub payload: Vec<u8>,
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// Flags of a server that can do all but more connections.
pub const ALL: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7;

/// One connection of a client.
pub struct Fake {
    pub stream: UnixStream,
    pub style: Style,
}

impl Fake {
    /// Negotiates an export of `size` bytes, in at most this style.
    pub fn negotiate(stream: UnixStream, most: Style, size: u64, flags: u16) -> io::Result<Fake> {
        let mut fake = Fake { stream, style: Style::Simple };
        let greeting = [&0x4e42_444d_4147_4943u64.to_be_bytes()[..], &IHAVEOPT.to_be_bytes()];
        fake.say(&[&greeting.concat()[..], &[0, 3]].concat())?;
        fake.hear::<4>()?;
        loop {
            let header = fake.hear::<16>()?;
            let option = u32::from_be_bytes(header[8..12].try_into().unwrap());
            let len = u32::from_be_bytes(header[12..].try_into().unwrap());
            let mut data = vec![0; len as usize];
            fake.stream.read_exact(&mut data)?;
            match option {
                11 if most == Style::Extended => fake.take(option, Style::Extended)?,
                8 if most >= Style::Structured => fake.take(option, Style::Structured)?,
                10 => {
                    let context = [&7u32.to_be_bytes()[..], b"base:allocation"].concat();
                    fake.reply(option, 4, &context)?;
                    fake.reply(option, 1, &[])?;
                }
                7 => {
                    let info = [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
                    fake.reply(option, 3, &info)?;
                    fake.reply(option, 1, &[])?;
                    return Ok(fake);
                }
                _ => fake.reply(option, 0x8000_0001, &[])?,
            }
        }
    }

    fn take(&mut self, option: u32, style: Style) -> io::Result<()> {
        self.style = style;
        self.reply(option, 1, &[])
    }

    pub fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let magic = 0x0003_e889_0455_65a9u64;
        let numbers = [option.to_be_bytes(), kind.to_be_bytes(), (data.len() as u32).to_be_bytes()];
        self.say(&[&magic.to_be_bytes()[..], numbers.as_flattened(), data].concat())
    }

    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn hear<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The next request.
    pub fn request(&mut self) -> io::Result<Asked> {
        let head: [u8; 24] = self.hear()?;
        let length = match self.style {
            Style::Extended => u64::from_be_bytes(self.hear()?),
            _ => u64::from(u32::from_be_bytes(self.hear()?)),
        };
        let command = u16::from_be_bytes(head[6..8].try_into().unwrap());
        let mut payload = vec![0; if command == WRITE { length as usize } else { 0 }];
        self.stream.read_exact(&mut payload)?;
        Ok(Asked {
            flags: u16::from_be_bytes(head[4..6].try_into().unwrap()),
            command,
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            offset: u64::from_be_bytes(head[16..].try_into().unwrap()),
            length,
            payload,
        })
    }

    /// The bytes of a simple reply.
    pub fn simple(code: u32, cookie: u64) -> Vec<u8> {
        [&0x6744_6698u32.to_be_bytes()[..], &code.to_be_bytes(), &cookie.to_be_bytes()].concat()
    }

    /// The bytes of a chunk, which says that so many follow.
    pub fn chunk(&self, last: bool, kind: u16, asked: &Asked, len: u64, data: &[u8]) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u16::from(last).to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&asked.cookie.to_be_bytes());
        if extended {
            bytes.extend_from_slice(&asked.offset.to_be_bytes());
            bytes.extend_from_slice(&len.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(len as u32).to_be_bytes());
        }
        bytes.extend_from_slice(data);
        bytes
    }

    /// An answer in the session's style, with the data of a read.
    pub fn answer(&self, asked: &Asked, code: u32, data: &[u8]) -> Vec<u8> {
        if self.style == Style::Simple {
            return [Fake::simple(code, asked.cookie), data.to_vec()].concat();
        }
        match (code, asked.command) {
            (0, READ) => {
                let data = [&asked.offset.to_be_bytes()[..], data].concat();
                self.chunk(true, 1, asked, data.len() as u64, &data)
            }
            (0, BLOCK_STATUS) => {
                let extent = self.extent(asked, 7);
                let kind = if self.style == Style::Extended { 6 } else { 5 };
                self.chunk(true, kind, asked, extent.len() as u64, &extent)
            }
            (0, _) => self.chunk(true, 0, asked, 0, &[]),
            (code, _) => {
                let error = [&code.to_be_bytes()[..], &[0, 0]].concat();
                self.chunk(true, 0x8001, asked, 6, &error)
            }
        }
    }

    /// All that was asked about is one extent of data.
    pub fn extent(&self, asked: &Asked, context: u32) -> Vec<u8> {
        let mut bytes = context.to_be_bytes().to_vec();
        if self.style == Style::Extended {
            bytes.extend_from_slice(&1u32.to_be_bytes());
            bytes.extend_from_slice(&asked.length.to_be_bytes());
            bytes.extend_from_slice(&0u64.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(asked.length as u32).to_be_bytes());
            bytes.extend_from_slice(&0u32.to_be_bytes());
        }
        bytes
    }
}
