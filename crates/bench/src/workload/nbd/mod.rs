//! A lean NBD client: one thread, as many requests in flight as it is told, many to a system call.
//!
//! It takes simple replies, whose every field it checks, and throws the data away: what it costs
//! itself must not hide what servers cost. It sleeps while there is no reply, as a kernel's client
//! does.

mod handshake;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Job;
use super::pattern::{Kind, Offsets};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
/// Bytes of a request before its data.
const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply before its data.
const REPLY_BYTES: usize = 16;
/// What one system call may bring.
const INPUT_BYTES: usize = 256 << 10;
/// Data of requests up to this length is sent with the requests of others.
const SMALL_BYTES: usize = 64 << 10;
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, and the requests to make on it.
pub struct NbdClient {
    socket: UnixStream,
    offsets: Offsets,
    /// What a write writes.
    block: Vec<u8>,
    flight: Flight,
    output: Vec<u8>,
    replies: Replies,
}

impl NbdClient {
    /// Connects to the export `name` of the server at `socket`.
    ///
    /// # Errors
    /// If there is no server, it refuses, or the export is too small for the job.
    pub fn connect(socket: &Path, name: &str, job: &Job) -> io::Result<NbdClient> {
        let mut socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let size_bytes = handshake::go(&mut socket, name)?;
        let range_bytes = job.range_bytes.min(size_bytes);
        Ok(NbdClient {
            socket,
            offsets: Offsets::new(job.pattern, range_bytes, job.block_bytes as u64, job.seed)?,
            block: (0..job.block_bytes).map(|index| (index % 251) as u8).collect(),
            flight: Flight::new(job.depth),
            output: Vec::new(),
            replies: Replies::default(),
        })
    }

    /// Makes `ops` requests.
    ///
    /// # Errors
    /// If the server fails one, says what it must not, or says nothing for ten seconds.
    pub fn run(&mut self, ops: u64) -> io::Result<()> {
        let (mut left, mut input) = (ops, vec![0; INPUT_BYTES]);
        while left > 0 || !self.flight.is_empty() {
            while left > 0
                && let Some(cookie) = self.flight.begin()
            {
                left -= 1;
                self.send(cookie)?;
            }
            self.socket.write_all(&self.output)?;
            self.output.clear();
            let got = self.socket.read(&mut input).map_err(name_timeout)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.replies.take(&input[..got], &mut self.flight)?;
        }
        Ok(())
    }

    /// Puts a request into the output, or with much data onto the wire.
    fn send(&mut self, cookie: u64) -> io::Result<()> {
        let (kind, offset) = self.offsets.next();
        let (command, data) = match kind {
            Kind::Read => (READ, &self.block[..0]),
            Kind::Write => (WRITE, &self.block[..]),
        };
        self.output.extend(request(command, cookie, offset, self.block.len() as u32));
        if data.len() <= SMALL_BYTES {
            self.output.extend_from_slice(data);
        } else {
            self.socket.write_all(&self.output)?;
            self.output.clear();
            self.socket.write_all(data)?;
        }
        self.replies.data_bytes = self.block.len() - data.len();
        Ok(())
    }
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

fn name_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no reply comes"),
        _ => error,
    }
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server says {what}"))
}

/// Which requests are in flight, by cookie.
struct Flight {
    /// The cookie of each place, 0 for a free one.
    places: Vec<u64>,
    free: Vec<usize>,
    next: u64,
}

impl Flight {
    fn new(depth: usize) -> Flight {
        Flight { places: vec![0; depth], free: (0..depth).collect(), next: 0 }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// A cookie that no request had before, if there is a place.
    fn begin(&mut self) -> Option<u64> {
        let place = self.free.pop()?;
        self.next += 1;
        self.places[place] = self.next << 16 | place as u64;
        Some(self.places[place])
    }

    fn end(&mut self, cookie: u64) -> io::Result<()> {
        let place = (cookie & 0xffff) as usize;
        match self.places.get_mut(place) {
            Some(it) if *it == cookie && cookie != 0 => *it = 0,
            _ => return Err(broken(format!("cookie {cookie:#x}, which nothing in flight has"))),
        }
        self.free.push(place);
        Ok(())
    }
}

/// Takes replies from a stream that is cut anywhere.
#[derive(Default)]
struct Replies {
    /// Data behind each reply.
    data_bytes: usize,
    /// Data that is still to come of the last one.
    skip: usize,
    header: [u8; REPLY_BYTES],
    header_len: usize,
}

impl Replies {
    fn take(&mut self, mut input: &[u8], flight: &mut Flight) -> io::Result<()> {
        loop {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            input = &input[skipped..];
            if input.is_empty() {
                return Ok(());
            }
            let part = (REPLY_BYTES - self.header_len).min(input.len());
            self.header[self.header_len..][..part].copy_from_slice(&input[..part]);
            self.header_len += part;
            input = &input[part..];
            if self.header_len == REPLY_BYTES {
                self.header_len = 0;
                flight.end(cookie_of(self.header)?)?;
                self.skip = self.data_bytes;
            }
        }
    }
}

fn cookie_of(header: [u8; REPLY_BYTES]) -> io::Result<u64> {
    let field = |range: std::ops::Range<usize>| {
        header[range].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    if field(0..4) != u64::from(REPLY_MAGIC) {
        return Err(broken(format!("{:#x} where a reply begins", field(0..4))));
    }
    match field(4..8) {
        0 => Ok(field(8..16)),
        error => Err(broken(format!("error {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(error: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes
    }

    #[test]
    fn replies_may_be_cut_anywhere() {
        for piece in [1, 7, 16, 17, 1000] {
            let mut flight = Flight::new(3);
            let cookies: Vec<u64> = std::iter::from_fn(|| flight.begin()).collect();
            assert_eq!(cookies.len(), 3);
            let mut replies = Replies { data_bytes: 5, ..Replies::default() };
            let mut stream = Vec::new();
            for cookie in cookies.iter().rev() {
                stream.extend(reply(0, *cookie));
                stream.extend(b"data.");
            }
            for piece in stream.chunks(piece) {
                replies.take(piece, &mut flight).unwrap();
            }
            assert!(flight.is_empty());
            assert_eq!((replies.skip, replies.header_len), (0, 0));
        }
    }

    #[test]
    fn wrong_replies_are_named() {
        let mut flight = Flight::new(2);
        let cookie = flight.begin().unwrap();
        let mut take = |bytes: Vec<u8>| Replies::default().take(&bytes, &mut flight);
        for (bytes, says) in [
            (vec![0; 16], "where a reply begins"),
            (reply(5, cookie), "error 5"),
            (reply(0, cookie + 1), "nothing in flight"),
            (reply(0, 0), "nothing in flight"),
            (reply(0, 0xffff), "nothing in flight"),
        ] {
            let error = take(bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        take(reply(0, cookie)).unwrap();
        assert!(take(reply(0, cookie)).is_err(), "twice");
    }

    #[test]
    fn a_request_has_its_fields_where_they_belong() {
        let bytes = request(WRITE, 0x0102_0304_0506_0708, 4096, 512);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    }
}
