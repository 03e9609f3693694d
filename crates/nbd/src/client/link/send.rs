//! Sending: small requests gather and go together, long ones go straight from where their data is.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice};

use coblk_aio::sync::CoQueue;
use coblk_aio::{Co, CoWaker, FdInterest, IoVector};

use super::Link;

/// A payload up to this length is copied, so that several requests go in one system call.
const MAX_COPIED: usize = 16 << 10;
/// Piece of a payload that is encrypted at a time.
const SECURE_PIECE: usize = 64 << 10;

/// What waits to be sent. No request's bytes come between those of another.
#[derive(Default)]
pub struct Sender {
    outbox: RefCell<Outbox>,
    /// A long request is on its way.
    busy: Cell<bool>,
    /// Long requests that wait for that.
    turns: CoQueue,
    /// The socket is full; its handler looks for room.
    full: Cell<bool>,
    /// The long request waits for that.
    waker: Cell<Option<CoWaker>>,
}

#[derive(Default)]
struct Outbox {
    /// Room, which is zeroed once and used again.
    room: Vec<u8>,
    /// What is there of it to be sent.
    start: usize,
    end: usize,
}

/// More room than this is given back when all has gone. As many requests as a link has, with payloads that are copied.
const MAX_KEPT: usize = 2 << 20;

impl Outbox {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.end]
    }

    fn push(&mut self, header: &[u8], payload: Option<&IoVector<'_>>) {
        let len = header.len() + payload.map_or(0, IoVector::len);
        if self.room.len() < self.end + len {
            self.make_room(len);
        }
        let after_header = self.end + header.len();
        let end = self.end + len;
        self.room[self.end..after_header].copy_from_slice(header);
        if let Some(payload) = payload {
            payload.copy_to(0, &mut self.room[after_header..end]);
        }
        self.end = end;
    }

    /// A server that is slower than its client may never take all: what has gone is not kept.
    #[cold]
    fn make_room(&mut self, len: usize) {
        // Once what has gone is half of it, so that each byte is moved once at most.
        if self.start >= self.room.len() / 2 {
            self.room.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let end = self.end + len;
        if self.room.len() < end {
            self.room.resize(end.next_power_of_two(), 0);
        }
    }

    fn note(&mut self, written: usize) {
        self.start += written;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if self.room.len() > MAX_KEPT {
                self.room = Vec::new();
            }
        }
    }
}

impl Sender {
    pub fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Nothing is sent any more.
    pub fn give_up(&self) {
        *self.outbox.borrow_mut() = Outbox::default();
        self.poke();
        self.turns.wake_all();
    }

    fn poke(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Link {
    /// Sends a request, or has it sent soon: at once if it is the only one, else with the others of this
    /// iteration of the loop.
    ///
    /// # Errors
    /// If the link is lost.
    pub fn co_send(
        &self,
        co: &Co<'_>,
        header: &[u8],
        payload: Option<&IoVector<'_>>,
    ) -> io::Result<()> {
        match payload {
            Some(payload) if payload.len() > MAX_COPIED => self.co_send_long(co, header, payload),
            _ => {
                self.sender.outbox.borrow_mut().push(header, payload);
                if self.in_flight() == 1 {
                    self.flush();
                } else {
                    self.flush_later();
                }
                Ok(())
            }
        }
    }

    pub fn has_sent_all(&self) -> bool {
        self.sender.outbox.borrow().is_empty()
            && !self.sender.busy.get()
            && !self.transport.has_unsent()
    }

    /// Says that no more requests come.
    pub fn say_goodbye(&self) {
        let goodbye = crate::protocol::request::Request {
            flags: 0,
            command: crate::protocol::CMD_DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        let header = goodbye.header(self.facts.is_extended());
        if !self.sender.busy.get() {
            self.sender.outbox.borrow_mut().push(&header, None);
            self.flush();
        }
    }

    pub fn flush_later(&self) {
        if let Some(flusher) = &*self.flusher.borrow() {
            flusher.schedule();
        }
    }

    /// Sends what has gathered, unless a long request is on its way, which does that when it has gone.
    pub fn flush(&self) {
        if !self.sender.busy.get()
            && let Err(error) = self.send_gathered()
        {
            self.fail(&error);
        }
    }

    /// The socket has room again.
    pub fn room_to_send(&self) {
        if self.sender.busy.get() {
            self.sender.poke();
        } else {
            self.flush();
        }
    }

    /// Sends what the socket takes; whether that is all.
    fn send_gathered(&self) -> io::Result<bool> {
        while !self.lost.get() {
            let mut outbox = self.sender.outbox.borrow_mut();
            let is_empty = outbox.is_empty();
            if is_empty && !self.transport.has_unsent() {
                drop(outbox);
                self.set_full(false);
                return Ok(true);
            }
            let result = match is_empty {
                true => self.transport.push().map(|()| None),
                false => {
                    let bytes = IoSlice::new(outbox.bytes());
                    self.transport.write(&[bytes]).map(Some)
                }
            };
            match result {
                Ok(written) => outbox.note(written.unwrap_or(0)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    drop(outbox);
                    self.set_full(true);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn set_full(&self, full: bool) {
        if self.sender.full.replace(full) != full {
            self.rewatch(if full { FdInterest::ReadWrite } else { FdInterest::Read });
        }
    }

    fn co_send_long(&self, co: &Co<'_>, header: &[u8], payload: &IoVector<'_>) -> io::Result<()> {
        while self.sender.busy.get() && !self.lost.get() {
            self.sender.turns.wait(co);
        }
        let mut sending = Sending::begin(self)?;
        let mut result = self.co_send_gathered(co);
        if result.is_ok() {
            result = match self.transport.is_secure() {
                true => self.co_send_secure(co, header, payload),
                false => self.co_send_plain(co, header, payload),
            };
        }
        if let Err(error) = &result {
            self.fail(error);
        }
        sending.is_over = true;
        result
    }

    fn co_send_gathered(&self, co: &Co<'_>) -> io::Result<()> {
        while !self.send_gathered()? {
            self.co_wait_for_room(co)?;
        }
        Ok(())
    }

    fn co_send_plain(&self, co: &Co<'_>, header: &[u8], payload: &IoVector<'_>) -> io::Result<()> {
        if payload.len() >= self.transport.long() {
            self.co_send_vector(co, &IoVector::from(header))?;
            return self.co_send_vector(co, payload);
        }
        let mut message = IoVector::from(header);
        message.extend(payload);
        self.co_send_vector(co, &message)
    }

    fn co_send_vector(&self, co: &Co<'_>, bytes: &IoVector<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = bytes.slice(done, bytes.len() - done);
            match self.transport.write_vectored(&rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    done += sent;
                    // The socket is full, and the loop tells when there is room: another try would only say so.
                    if done < bytes.len() {
                        self.co_wait_for_room(co)?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.co_wait_for_room(co)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// By pieces, each of which is gathered and encrypted.
    fn co_send_secure(&self, co: &Co<'_>, header: &[u8], payload: &IoVector<'_>) -> io::Result<()> {
        let (mut header, mut done) = (header, 0);
        while done < payload.len() {
            let piece = payload.slice(done, SECURE_PIECE.min(payload.len() - done));
            self.sender.outbox.borrow_mut().push(header, Some(&piece));
            (header, done) = (&[], done + piece.len());
            self.co_send_gathered(co)?;
        }
        Ok(())
    }

    /// Waits until the socket has room.
    ///
    /// # Errors
    /// If the link is lost.
    fn co_wait_for_room(&self, co: &Co<'_>) -> io::Result<()> {
        struct ForgetOnUnwind<'a>(&'a Cell<Option<CoWaker>>);
        impl Drop for ForgetOnUnwind<'_> {
            fn drop(&mut self) {
                drop(self.0.take());
            }
        }
        if !self.lost.get() {
            self.set_full(true);
        }
        if !self.lost.get() {
            let _forget = ForgetOnUnwind(&self.sender.waker);
            co.suspend_for("an NBD server to read", |waker| {
                self.sender.waker.set(Some(waker));
            });
        }
        match self.lost.get() {
            true => Err(ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// A long request on its way. When its coroutine is unwound, the link is lost: a part may have gone.
struct Sending<'a> {
    link: &'a Link,
    is_over: bool,
}

impl<'a> Sending<'a> {
    fn begin(link: &'a Link) -> io::Result<Sending<'a>> {
        if link.lost.get() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        link.sender.busy.set(true);
        Ok(Sending { link, is_over: false })
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let link = self.link;
        link.sender.busy.set(false);
        if !self.is_over {
            link.fail(&io::Error::new(ErrorKind::ConnectionAborted, "a request was cut off"));
        }
        if !link.lost.get() {
            link.flush_later();
        }
        link.sender.turns.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that always takes a part: never all, and never nothing.
    #[test]
    fn what_has_gone_is_not_kept_though_the_rest_never_goes() {
        let bytes: Vec<u8> = (0..MAX_COPIED + 256).map(|at| at as u8).collect();
        let (mut outbox, mut random) = (Outbox::default(), fastrand::Rng::with_seed(1));
        let (mut pushed, mut sent) = (0, 0);
        for _ in 0..200 {
            while outbox.bytes().len() < 64 * (MAX_COPIED + 32) {
                let payload = &bytes[pushed % 256..][..random.usize(1..=MAX_COPIED)];
                outbox.push(&[], Some(&IoVector::from(payload)));
                pushed += payload.len();
            }
            let takes = random.usize(1..outbox.bytes().len().min(200 << 10));
            for at in (0..takes).step_by(97) {
                assert_eq!(outbox.bytes()[at], (sent + at) as u8);
            }
            sent += takes;
            outbox.note(takes);
            assert!(outbox.room.len() <= 4 << 20, "{} bytes are kept", outbox.room.len());
        }
    }
}
