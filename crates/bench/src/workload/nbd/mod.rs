//! A lean NBD client: one thread, as many requests in flight as it is told, many to a system call.
//!
//! It takes simple replies, whose every field it checks, and throws the data away: what it costs
//! itself must not hide what servers cost. It sleeps while there is no reply, as a kernel's client
//! does.

pub mod clients;
mod handshake;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Job;
use super::pace::Pace;
use super::pattern::{Kind, Offsets};
use super::stopwatch::Stopwatch;

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
        self.flight.watch.look();
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
            self.flight.watch.look();
            self.replies.take(&input[..got], &mut self.flight)?;
        }
        Ok(())
    }

    /// Makes `per_s` requests a second for `time`, whether those before are done or not, and looks
    /// for replies all the time: what it measures has no wake-up of this client in it. How many
    /// it has made: fewer, if no place was free.
    ///
    /// # Errors
    /// As [`run`](NbdClient::run).
    pub fn run_at_rate(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        if per_s == 0 {
            std::thread::sleep(time);
            return Ok(0);
        }
        self.socket.set_nonblocking(true)?;
        let made = self.paced(per_s, time);
        self.socket.set_nonblocking(false)?;
        made
    }

    fn paced(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        let mut input = vec![0; INPUT_BYTES];
        let mut heard_ns = self.flight.watch.look();
        let mut pace = Pace::new(heard_ns, per_s, time);
        loop {
            let now_ns = self.flight.watch.look();
            while let Some(due_ns) = pace.due(now_ns).filter(|_| !pace.is_over(now_ns))
                && let Some(cookie) = self.flight.begin()
            {
                self.flight.watch.begin_due(place_of(cookie), due_ns);
                pace.advance();
                let data = self.encode(cookie);
                self.output.extend_from_slice(&self.block[..data]);
            }
            match ready(self.socket.write(&self.output))? {
                None | Some(0) => {}
                Some(sent) => drop(self.output.drain(..sent)),
            }
            match ready(self.socket.read(&mut input))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(got) => {
                    heard_ns = self.flight.watch.look();
                    self.replies.take(&input[..got], &mut self.flight)?;
                }
                None if self.flight.is_empty() && pace.is_over(now_ns) => break,
                None if self.flight.is_empty() => heard_ns = now_ns,
                None if Duration::from_nanos(now_ns - heard_ns) > PATIENCE => {
                    return Err(name_timeout(io::ErrorKind::WouldBlock.into()));
                }
                None => std::hint::spin_loop(),
            }
        }
        let made = pace.made();
        // They have waited at least so long.
        pace.missed().for_each(|due_ns| self.flight.watch.record_since(due_ns));
        Ok(made)
    }

    /// How long the requests since the last call took, in nanoseconds.
    pub fn take_latencies(&mut self) -> Histogram<u64> {
        self.flight.watch.take()
    }

    /// Puts a request into the output, or with much data onto the wire.
    fn send(&mut self, cookie: u64) -> io::Result<()> {
        let data_bytes = self.encode(cookie);
        let data = &self.block[..data_bytes];
        if data.len() <= SMALL_BYTES {
            self.output.extend_from_slice(data);
        } else {
            self.socket.write_all(&self.output)?;
            self.output.clear();
            self.socket.write_all(data)?;
        }
        Ok(())
    }

    /// Puts the next request into the output, without its data, of which it says the length.
    fn encode(&mut self, cookie: u64) -> usize {
        let (kind, offset) = self.offsets.next();
        let (command, data_bytes) = match kind {
            Kind::Read => (READ, 0),
            Kind::Write => (WRITE, self.block.len()),
        };
        self.output.extend(request(command, cookie, offset, self.block.len() as u32));
        self.replies.data_bytes = self.block.len() - data_bytes;
        data_bytes
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

/// What a socket that does not wait says; `None` if it would have to.
fn ready(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The place of a request, which its cookie ends with.
fn place_of(cookie: u64) -> usize {
    (cookie & 0xffff) as usize
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
    watch: Stopwatch,
}

impl Flight {
    fn new(depth: usize) -> Flight {
        let (places, free) = (vec![0; depth], (0..depth).collect());
        Flight { places, free, next: 0, watch: Stopwatch::new(depth) }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// A cookie that no request had before, if there is a place.
    fn begin(&mut self) -> Option<u64> {
        let place = self.free.pop()?;
        self.next += 1;
        self.watch.begin(place);
        self.places[place] = self.next << 16 | place as u64;
        Some(self.places[place])
    }

    fn end(&mut self, cookie: u64) -> io::Result<()> {
        let place = place_of(cookie);
        match self.places.get_mut(place) {
            Some(it) if *it == cookie && cookie != 0 => *it = 0,
            _ => return Err(broken(format!("cookie {cookie:#x}, which nothing in flight has"))),
        }
        self.watch.end(place);
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
