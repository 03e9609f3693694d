//! Receiving: whose turn it is, and how a request takes what is its own.

use std::cell::Cell;
use std::io::{self, ErrorKind};

use coblk_aio::{Co, IoVectorMut};

use super::Link;
use super::inbox::CAPACITY;
use crate::protocol::answer::{self, Answer, Body, MAGIC_LEN};
use crate::protocol::reply::Style;
use crate::protocol::*;

/// Of a payload so much may be read ahead and copied: that is cheaper than a call for it alone, and what
/// follows it comes with it.
pub const MAX_COPIED: usize = 16 << 10;
/// What is read ahead where long data may follow: headers, and answers without data.
const SHORT_AHEAD: usize = 512;

/// An answer whose header was read, and whose payload is next.
#[derive(Clone, Copy)]
pub struct Turn {
    pub index: usize,
    pub answer: Answer,
}

impl Link {
    /// There may be something to read: resumes the request that waits for it.
    pub fn go_on(&self) {
        match self.turn.get() {
            Some(turn) => self.wake(turn.index),
            None => self.advance(),
        }
    }

    /// Looks for the next answer, and resumes the request that it is for. The last one has been taken.
    pub fn advance(&self) {
        debug_assert!(self.turn.get().is_none());
        while !self.lost.get() {
            let step = match self.next_answer() {
                Ok(None) => self.receive(),
                Ok(Some(turn)) => {
                    self.turn.set(Some(turn));
                    return self.wake(turn.index);
                }
                Err(error) => Err(error),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Looks for what requests wait for, before a loop that polls sleeps; whether there is something.
    pub fn look(&self) -> bool {
        if self.lost.get() || self.in_flight() == 0 {
            return false;
        }
        if self.readable.get() {
            return true;
        }
        if self.turn.get().is_some() {
            self.readable.set(self.transport.has_input());
            return self.readable.get();
        }
        self.readable.set(true);
        match self.receive() {
            Ok(has_come) => has_come,
            // It is met once more by what this leads to.
            Err(_) => {
                self.readable.set(true);
                true
            }
        }
    }

    fn wake(&self, index: usize) {
        let waker = self.slots.borrow_mut().take_waker(index);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next header, if it is here.
    ///
    /// # Errors
    /// If it is none, or answers no request.
    fn next_answer(&self) -> io::Result<Option<Turn>> {
        let mut inbox = self.inbox.borrow_mut();
        let Some(magic) = inbox.peek(MAGIC_LEN).and_then(|bytes| bytes.try_into().ok()) else {
            return Ok(None);
        };
        let len = answer::header_len(self.facts.style, magic);
        let len = len.ok_or_else(|| broken("the server sends what is no answer"))?;
        let Some(answer) = inbox.peek(len).and_then(Answer::parse) else { return Ok(None) };
        inbox.skip(len);
        let found = self.slots.borrow().find(answer.cookie);
        let (index, asked) = found.ok_or_else(|| broken("the server answers no request"))?;
        if asked.command == CMD_READ
            && self.facts.style > Style::Simple
            && matches!(answer.body, Body::Simple(_))
        {
            return Err(broken("the server answers a read in the simple way"));
        }
        Ok(Some(Turn { index, answer }))
    }

    /// Reads ahead; false if there is nothing.
    ///
    /// # Errors
    /// Also at the end.
    fn receive(&self) -> io::Result<bool> {
        if !self.readable.get() {
            return Ok(false);
        }
        // Within a payload that is copied all of it is to come.
        let most = if self.turn.get().is_some() { CAPACITY } else { self.ahead(0) };
        let result = self.inbox.borrow_mut().receive(&self.transport, most);
        self.note(result)
    }

    /// How much may be read ahead. While reads are in flight that are longer than what is copied, besides `own` ones,
    /// a header and no more: their data is to go straight to where it belongs.
    fn ahead(&self, own: usize) -> usize {
        match self.slots.borrow().long_reads() > own {
            true => SHORT_AHEAD,
            false => CAPACITY,
        }
    }

    /// What a read that brought so many bytes says, and whether it could have brought more.
    fn note(&self, result: io::Result<(usize, bool)>) -> io::Result<bool> {
        match result {
            Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
            Ok((bytes, is_short)) => {
                // A short read has emptied the socket, and what comes later is reported. Of TLS a part may
                // be here and no further.
                let is_all = is_short && !self.transport.is_secure();
                self.readable.set(!is_all || self.hung_up.get());
                self.received.set(self.received.get() + bytes as u64);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable.set(false);
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// What the coroutine of a request does, while it is its turn.
impl Link {
    /// Waits until an answer is for this request.
    ///
    /// # Errors
    /// If the link is lost.
    pub fn co_turn(&self, co: &Co<'_>, index: usize) -> io::Result<Answer> {
        loop {
            if self.lost.get() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match self.turn.get() {
                Some(turn) if turn.index == index => return Ok(turn.answer),
                _ => self.suspend(co, index),
            }
        }
    }

    /// Moves the next `len` bytes to `target`, from `at` on.
    ///
    /// # Errors
    /// If the link is lost.
    pub fn co_take(
        &self,
        co: &Co<'_>,
        index: usize,
        target: &mut IoVectorMut<'_>,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let mut done = self.inbox.borrow_mut().take(target, at, len);
        while done < len {
            if self.lost.get() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if !self.readable.get() {
                self.suspend(co, index);
                continue;
            }
            if len - done <= MAX_COPIED || self.transport.is_secure() {
                if self.receive()? {
                    done += self.inbox.borrow_mut().take(target, at + done, len - done);
                }
                continue;
            }
            let came = Cell::new(0);
            let result = self.inbox.borrow_mut().receive_past(
                &self.transport,
                target,
                (at + done, len - done),
                self.ahead(1),
            );
            let result = result.map(|(own, all, is_short)| {
                came.set(own);
                (all, is_short)
            });
            self.note(result)?;
            done += came.get();
        }
        Ok(())
    }

    /// The next bytes.
    pub fn co_array<const N: usize>(&self, co: &Co<'_>, index: usize) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.co_take(co, index, &mut IoVectorMut::from(&mut bytes[..]), 0, N)?;
        Ok(bytes)
    }

    /// Passes over the next `len` bytes.
    pub fn co_skip(&self, co: &Co<'_>, index: usize, mut len: u64) -> io::Result<()> {
        let mut waste = [0; 512];
        while len > 0 {
            let piece = len.min(waste.len() as u64) as usize;
            self.co_take(co, index, &mut IoVectorMut::from(&mut waste[..]), 0, piece)?;
            len -= piece as u64;
        }
        Ok(())
    }

    fn suspend(&self, co: &Co<'_>, index: usize) {
        let _forget = ForgetOnUnwind { link: self, index };
        co.suspend_for("an NBD server", |waker| {
            drop(self.slots.borrow_mut().set_waker(index, Some(waker)));
        });
    }
}

struct ForgetOnUnwind<'a> {
    link: &'a Link,
    index: usize,
}

impl Drop for ForgetOnUnwind<'_> {
    fn drop(&mut self) {
        let waker = self.link.slots.borrow_mut().take_waker(self.index);
        drop(waker);
    }
}
