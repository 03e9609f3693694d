//! TLS by rustls: a session, of either side.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use coblk_aio::net::Stream;
use rustls::Connection;

use super::identity::distinguished_name;

/// TLS on one socket. Never blocks.
pub struct Session(Box<Connection>);

impl Session {
    pub fn new(connection: impl Into<Connection>) -> Session {
        Session(Box::new(connection.into()))
    }

    pub fn read(&mut self, socket: &Stream, target: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(target) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if let Err(error) = self.receive(socket) {
                // The peer is told why, if it listens.
                let _ = self.push(socket);
                return Err(error);
            }
        }
    }

    /// Encrypts what there is room for, and sends what the socket takes of it.
    pub fn write(&mut self, socket: &Stream, source: &[IoSlice<'_>]) -> io::Result<usize> {
        // Or there might be no room.
        self.push(socket)?;
        let taken = self.0.writer().write_vectored(source)?;
        match self.push(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    pub fn has_unsent(&self) -> bool {
        self.0.wants_write()
    }

    pub fn push(&mut self, socket: &Stream) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(&mut Plain(socket))?;
        }
        Ok(())
    }

    /// Takes a step of the handshake. If it fails, [`push`](Self::push) tells the peer why.
    pub fn shake_hands(&mut self, socket: &Stream) -> io::Result<bool> {
        if self.0.is_handshaking() {
            self.receive(socket)?;
        }
        Ok(!self.0.is_handshaking())
    }

    /// The distinguished name of the peer's certificate.
    pub fn peer_identity(&self) -> Option<String> {
        self.0.peer_certificates()?.first().and_then(distinguished_name)
    }

    fn receive(&mut self, socket: &Stream) -> io::Result<()> {
        if self.0.read_tls(&mut Plain(socket))? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let processed = self.0.process_new_packets();
        processed.map(drop).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

/// The socket itself, as rustls wants it.
struct Plain<'a>(&'a Stream);

impl Read for Plain<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.0.read(target)
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        self.0.write(&[IoSlice::new(source)])
    }

    fn write_vectored(&mut self, source: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write(source)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
