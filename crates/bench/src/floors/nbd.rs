//! The smallest honest NBD server: fixed newstyle, simple replies, one thread, a system call for
//! what has come and one for all answers to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::input::Input;
use super::store::Store;
use super::{Wait, invalid};

/// Longest data of a request; the specification's advice.
const MAX_DATA_BYTES: u32 = 32 << 20;
/// Longest data of an option.
const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Answers that are collected before they are sent.
const ENOUGH_BYTES: usize = 1 << 20;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
/// That there are flags, and nothing else.
const EXPORT_FLAGS: u16 = 1;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Serves one client until it leaves.
///
/// # Errors
/// If it breaks the protocol, or the socket fails.
pub fn serve(mut stream: &UnixStream, wait: Wait, store: &Store) -> io::Result<()> {
    if !negotiate(&mut stream, store.len_bytes())? {
        return Ok(());
    }
    stream.set_nonblocking(wait == Wait::Spinning)?;
    let (mut input, mut output) = (Input::new(), Output::default());
    loop {
        let mut message_bytes = REQUEST_BYTES;
        while let Some(header) = input.peek(REQUEST_BYTES) {
            let request = Request::parse(header)?;
            message_bytes = REQUEST_BYTES + request.data_bytes();
            if request.command == DISCONNECT {
                return output.send(stream);
            }
            let Some(message) = input.peek(message_bytes) else { break };
            request.answer(&message[REQUEST_BYTES..], store, &mut output);
            input.consume(message_bytes);
            message_bytes = REQUEST_BYTES;
            if output.len >= ENOUGH_BYTES {
                output.send(stream)?;
            }
        }
        output.send(stream)?;
        if !input.fill(stream, wait, message_bytes)? {
            return Ok(());
        }
    }
}

/// Options until the client goes to the export, whatever it calls it; false if it leaves instead.
fn negotiate(stream: &mut (impl Read + Write), len_bytes: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x01")?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let (option, len) = (be(&header[8..12]) as u32, be(&header[12..]) as u32);
        if header[..8] != *OPTION_MAGIC || len > MAX_OPTION_BYTES {
            return Err(invalid("no option, or one that is too long"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        match option {
            OPT_GO => {
                let mut info = vec![0, 0];
                info.extend(len_bytes.to_be_bytes());
                info.extend(EXPORT_FLAGS.to_be_bytes());
                stream.write_all(&option_reply(option, REP_INFO, &info))?;
                stream.write_all(&option_reply(option, REP_ACK, &[]))?;
                return Ok(true);
            }
            OPT_ABORT => {
                stream.write_all(&option_reply(option, REP_ACK, &[]))?;
                return Ok(false);
            }
            _ => stream.write_all(&option_reply(option, REP_ERR_UNSUP, &[]))?,
        }
    }
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

struct Request {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
}

impl Request {
    fn parse(header: &[u8]) -> io::Result<Request> {
        let magic = be(&header[..4]);
        if magic != u64::from(REQUEST_MAGIC) {
            return Err(invalid(format!("{magic:#x} where a request begins")));
        }
        let mut cookie = [0; 8];
        cookie.copy_from_slice(&header[8..16]);
        let (command, offset) = (be(&header[6..8]) as u16, be(&header[16..24]));
        let request = Request { command, cookie, offset, len: be(&header[24..]) as u32 };
        // A read that is too long can be refused; data that is too long would have to be taken.
        if command == WRITE && request.len > MAX_DATA_BYTES {
            return Err(invalid(format!("a write of {} bytes", request.len)));
        }
        Ok(request)
    }

    /// Bytes that follow the request.
    fn data_bytes(&self) -> usize {
        if self.command == WRITE { self.len as usize } else { 0 }
    }

    fn answer(&self, data: &[u8], store: &Store, output: &mut Output) {
        let fits = store.holds(self.offset, u64::from(self.len)) && self.len <= MAX_DATA_BYTES;
        match self.command {
            READ if fits => {
                let reply = output.room(REPLY_BYTES + self.len as usize);
                if store.read(self.offset, &mut reply[REPLY_BYTES..]).is_ok() {
                    self.head(0, reply);
                } else {
                    output.len -= self.len as usize + REPLY_BYTES;
                    self.refuse(EIO, output);
                }
            }
            WRITE if fits => match store.write(self.offset, data) {
                Ok(()) => self.refuse(0, output),
                Err(_) => self.refuse(EIO, output),
            },
            WRITE => self.refuse(ENOSPC, output),
            _ => self.refuse(EINVAL, output),
        }
    }

    /// A reply without data; an error of 0 is none.
    fn refuse(&self, error: u32, output: &mut Output) {
        self.head(error, output.room(REPLY_BYTES));
    }

    fn head(&self, error: u32, reply: &mut [u8]) {
        reply[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        reply[4..8].copy_from_slice(&error.to_be_bytes());
        reply[8..REPLY_BYTES].copy_from_slice(&self.cookie);
    }
}

/// Answers to be sent. It keeps its memory, and does not clear bytes that are overwritten anyway.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    len: usize,
}

impl Output {
    /// The next `len` bytes.
    fn room(&mut self, len: usize) -> &mut [u8] {
        let begin = self.len;
        self.len += len;
        if self.bytes.len() < self.len {
            self.bytes.resize(self.len, 0);
        }
        &mut self.bytes[begin..self.len]
    }

    fn send(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        let mut rest = &self.bytes[..self.len];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A server that sleeps has a socket that waits.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
        self.len = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::JoinHandle;

    /// A file of a known pattern, and a server of it on one end of a socket.
    fn server(wait: Wait) -> (tempfile::NamedTempFile, UnixStream, JoinHandle<io::Result<()>>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pattern()).unwrap();
        let store = Store::open(Some(file.path())).unwrap();
        let (theirs, ours) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(&ours, wait, &store));
        (file, theirs, server)
    }

    fn pattern() -> Vec<u8> {
        (0..1u32 << 20).map(|index| (index / 512 * 7 + index % 251) as u8).collect()
    }

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn read<const N: usize>(mut stream: &UnixStream) -> [u8; N] {
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn go(mut stream: &UnixStream) {
        assert_eq!(&read::<18>(stream), b"NBDMAGICIHAVEOPT\0\x01");
        stream.write_all(&[0, 0, 0, 1]).unwrap();
        // Structured replies are not for it.
        stream.write_all(&option(8, &[])).unwrap();
        assert_eq!(read::<20>(stream)[12..16], REP_ERR_UNSUP.to_be_bytes());
        stream.write_all(&option(OPT_GO, b"\0\0\0\x04disk\0\0")).unwrap();
        let info = read::<32>(stream);
        assert_eq!(info[12..22], [0, 0, 0, 3, 0, 0, 0, 12, 0, 0]);
        assert_eq!(info[22..30], (1u64 << 20).to_be_bytes());
        assert_eq!(read::<20>(stream)[12..], [0, 0, 0, 1, 0, 0, 0, 0]);
    }

    fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    /// The error and the cookie of the next reply.
    fn reply(stream: &UnixStream) -> (u32, u64) {
        let bytes = read::<16>(stream);
        assert_eq!(bytes[..4], REPLY_MAGIC.to_be_bytes());
        (be(&bytes[4..8]) as u32, be(&bytes[8..]))
    }

    #[test]
    fn reads_and_writes_what_the_file_has() {
        for wait in Wait::ALL {
            let (file, mut stream, server) = server(wait);
            go(&stream);
            // Many at once, and the last cut in two.
            let mut bytes = request(READ, 1, 4096, 512);
            bytes.extend(request(WRITE, 2, 8192, 512));
            bytes.extend([9; 512]);
            bytes.extend(request(READ, 3, 8192 - 8, 16));
            stream.write_all(&bytes[..bytes.len() - 5]).unwrap();
            assert_eq!(reply(&stream), (0, 1));
            assert_eq!(read::<512>(&stream)[..], pattern()[4096..4608]);
            assert_eq!(reply(&stream), (0, 2));
            stream.write_all(&bytes[bytes.len() - 5..]).unwrap();
            assert_eq!(reply(&stream), (0, 3));
            let edge = read::<16>(&stream);
            assert_eq!((&edge[..8], &edge[8..]), (&pattern()[8184..8192], &[9; 8][..]));
            stream.write_all(&request(DISCONNECT, 4, 0, 0)).unwrap();
            server.join().unwrap().unwrap();
            let mut wanted = pattern();
            wanted[8192..8704].fill(9);
            assert_eq!(std::fs::read(file.path()).unwrap(), wanted, "{wait:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let (file, mut stream, server) = server(Wait::Blocking);
        go(&stream);
        for (bytes, error) in [
            (request(READ, 1, (1 << 20) - 1, 2), EINVAL),
            (request(READ, 1, u64::MAX, 1), EINVAL),
            (request(READ, 1, 0, u32::MAX), EINVAL),
            (request(9, 1, 0, 512), EINVAL),
            ([request(WRITE, 1, 1 << 20, 3), vec![1; 3]].concat(), ENOSPC),
            ([request(WRITE, 1, u64::MAX, 3), vec![1; 3]].concat(), ENOSPC),
        ] {
            stream.write_all(&bytes).unwrap();
            assert_eq!(reply(&stream), (error, 1));
        }
        // What follows is understood.
        stream.write_all(&request(READ, 2, 0, 4)).unwrap();
        assert_eq!(reply(&stream), (0, 2));
        assert_eq!(read::<4>(&stream)[..], pattern()[..4]);
        drop(stream);
        server.join().unwrap().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern());
    }

    #[test]
    fn a_client_that_breaks_the_protocol_loses_its_connection() {
        for (bytes, says) in [
            (request(WRITE, 1, 0, MAX_DATA_BYTES + 1), "a write of 33554433 bytes"),
            (vec![0; REQUEST_BYTES], "0x0 where a request begins"),
        ] {
            let (file, mut stream, server) = server(Wait::Spinning);
            go(&stream);
            stream.write_all(&bytes).unwrap();
            drop(stream);
            let error = server.join().unwrap().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(std::fs::read(file.path()).unwrap(), pattern());
        }
        let mut long = option(OPT_GO, &[]);
        long[12..].copy_from_slice(&(MAX_OPTION_BYTES + 1).to_be_bytes());
        for bytes in [long, vec![b'x'; 16]] {
            let (_file, mut stream, server) = server(Wait::Blocking);
            stream.write_all(&[&[0; 4], &bytes[..]].concat()).unwrap();
            assert!(server.join().unwrap().unwrap_err().to_string().contains("no option"));
        }
        // Its stream ends within a write: nothing of it is written.
        let (file, mut stream, server) = server(Wait::Blocking);
        go(&stream);
        stream.write_all(&[request(WRITE, 1, 0, 512), vec![1; 511]].concat()).unwrap();
        drop(stream);
        assert!(server.join().unwrap().is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern());
    }
}
