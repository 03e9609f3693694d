//! One request on a link, from its header to its last answer: all that a server may say to it.

use std::io::{self, ErrorKind};

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::Link;
use super::coverage::Coverage;
use crate::protocol::answer::Body;
use crate::protocol::request::Request;
use crate::protocol::*;

/// Chunks that say why a request fails.
const MAX_ERRORS: usize = 16;
/// Longest chunk that says so: a message, with its length and an offset.
const MAX_ERROR_LEN: u64 = MAX_STRING as u64 + 14;
/// Longest chunk of extents. One is asked for; a server may tell of more.
const MAX_STATUS_LEN: u64 = 1 << 20;

/// Where the data of an answer goes.
pub enum Sink<'a, 'b> {
    /// There is none.
    Nothing,
    /// As long as the request.
    Data(&'a mut IoVectorMut<'b>),
    /// Length and flags of the first extent.
    Extent(&'a mut Option<(u64, u64)>),
}

/// Why a request has failed.
#[derive(Debug)]
pub enum Fault {
    /// The link was lost: the request may have been carried out, and may not.
    Lost,
    /// The server says so, with an errno.
    Refused(i32),
}

impl Link {
    /// Carries a request out. It is neither longer nor of another kind than the server takes.
    pub fn co_transact(
        &self,
        co: &Co<'_>,
        request: Request,
        payload: Option<&IoVector<'_>>,
        sink: &mut Sink<'_, '_>,
    ) -> Result<(), Fault> {
        self.co_wait_for_slot(co);
        if self.lost.get() {
            return Err(Fault::Lost);
        }
        let mut request = request;
        let index = self.slots.borrow_mut().enter(&mut request);
        let mut place = Place { link: self, index, is_answered: false };
        let mut asking = Asking { link: self, co, index, request, sink, state: State::default() };
        let header = request.header(self.facts.is_extended());
        let result = self.co_send(co, &header, payload).and_then(|()| asking.co_answer());
        let state = asking.state;
        if let Err(error) = result {
            // Also what the server has sent breaks the link.
            self.fail(&error);
            return Err(Fault::Lost);
        }
        place.is_answered = true;
        drop(place);
        if state.errno != Some(libc::ESHUTDOWN) {
            self.carried_out.set(true);
        }
        match state.errno {
            None => Ok(()),
            Some(errno) => Err(Fault::Refused(errno)),
        }
    }
}

/// The place of a request in the slots. When it is left without an answer, that would come for no request.
struct Place<'a> {
    link: &'a Link,
    index: usize,
    is_answered: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let link = self.link;
        if !self.is_answered {
            link.fail(&io::Error::new(ErrorKind::ConnectionAborted, "a request was given up"));
        }
        let waker = link.slots.borrow_mut().leave(self.index);
        drop(waker);
        if self.is_answered {
            link.turn.set(None);
            link.advance();
        }
        link.wake_for_room();
    }
}

/// What has been answered so far.
#[derive(Default)]
struct State {
    errno: Option<i32>,
    errors: usize,
    coverage: Coverage,
}

struct Asking<'a, 'co, 's, 'b> {
    link: &'a Link,
    co: &'a Co<'co>,
    index: usize,
    request: Request,
    sink: &'a mut Sink<'s, 'b>,
    state: State,
}

/// # Errors
/// If the server breaks the protocol, or the link is lost.
impl Asking<'_, '_, '_, '_> {
    fn co_answer(&mut self) -> io::Result<()> {
        loop {
            let answer = self.link.co_turn(self.co, self.index)?;
            match answer.body {
                Body::Simple(code) => self.simple(code)?,
                Body::Chunk(kind, len) => self.chunk(kind, len, answer.last)?,
            }
            if answer.last {
                return self.end();
            }
            self.link.turn.set(None);
            self.link.advance();
        }
    }

    /// All must have been answered that was asked.
    fn end(&mut self) -> io::Result<()> {
        let Request { offset, length, .. } = self.request;
        if self.state.errno.is_some() {
            return Ok(());
        }
        match self.sink {
            Sink::Data(_) if !self.state.coverage.is_all(offset..offset + length) => {
                Err(broken("the server leaves a part of a read out"))
            }
            Sink::Extent(None) => Err(broken("the server tells of no extent")),
            _ => Ok(()),
        }
    }

    fn simple(&mut self, code: u32) -> io::Result<()> {
        if code != 0 {
            self.state.errno = Some(errno_of(code));
            return Ok(());
        }
        let Request { offset, length, .. } = self.request;
        if let Sink::Data(target) = self.sink {
            self.link.co_take(self.co, self.index, target, 0, length as usize)?;
            let _ = self.state.coverage.add(offset..offset + length);
        }
        Ok(())
    }

    fn chunk(&mut self, kind: u16, len: u64, last: bool) -> io::Result<()> {
        match kind {
            REPLY_TYPE_NONE if len == 0 && last => Ok(()),
            REPLY_TYPE_OFFSET_DATA => self.data(len),
            REPLY_TYPE_OFFSET_HOLE if len == 12 => self.hole(),
            REPLY_TYPE_BLOCK_STATUS | REPLY_TYPE_BLOCK_STATUS_EXT => self.extents(kind, len),
            kind if kind & ERROR_BIT != 0 => self.error(len),
            _ => Err(broken("the server sends a chunk of a kind or length that there is not")),
        }
    }

    fn data(&mut self, len: u64) -> io::Result<()> {
        let offset = u64::from_be_bytes(self.field(len, 9)?);
        let at = self.cover(offset, len - 8)?;
        let Sink::Data(target) = self.sink else { return Err(not_asked()) };
        // Within the request, and so within memory.
        self.link.co_take(self.co, self.index, target, at, (len - 8) as usize)
    }

    fn hole(&mut self) -> io::Result<()> {
        let offset = u64::from_be_bytes(self.field(12, 12)?);
        let len = u32::from_be_bytes(self.link.co_array(self.co, self.index)?);
        let at = self.cover(offset, u64::from(len))?;
        let Sink::Data(target) = self.sink else { return Err(not_asked()) };
        target.slice(at, len as usize).fill_from(0, 0);
        Ok(())
    }

    /// Checks that a part of a read is one, and new; where in the request it begins.
    fn cover(&mut self, offset: u64, len: u64) -> io::Result<usize> {
        let request = &self.request;
        let at = offset.checked_sub(request.offset);
        let at = at.filter(|at| len > 0 && *at <= request.length && len <= request.length - at);
        let at = at.ok_or_else(|| broken("the server sends data that was not asked for"))?;
        match self.state.coverage.add(offset..offset + len) {
            true => Ok(at as usize),
            false => Err(broken("the server sends a part of a read twice")),
        }
    }

    fn extents(&mut self, kind: u16, len: u64) -> io::Result<()> {
        let is_extended = kind == REPLY_TYPE_BLOCK_STATUS_EXT;
        let (before, each) = if is_extended { (8, 16) } else { (4, 8) };
        let fits =
            len >= before + each && (len - before).is_multiple_of(each) && len <= MAX_STATUS_LEN;
        if !fits || is_extended != self.link.facts.is_extended() {
            return Err(broken("the server sends extents of another length than they have"));
        }
        let context = u32::from_be_bytes(self.link.co_array(self.co, self.index)?);
        if is_extended {
            let count = u32::from_be_bytes(self.link.co_array(self.co, self.index)?);
            if u64::from(count) != (len - before) / each {
                return Err(broken("the server sends another number of extents than it says"));
            }
        }
        let (bytes, flags) = match is_extended {
            true => (
                u64::from_be_bytes(self.link.co_array(self.co, self.index)?),
                u64::from_be_bytes(self.link.co_array(self.co, self.index)?),
            ),
            false => (
                u64::from(u32::from_be_bytes(self.link.co_array(self.co, self.index)?)),
                u64::from(u32::from_be_bytes(self.link.co_array(self.co, self.index)?)),
            ),
        };
        let Sink::Extent(extent) = self.sink else { return Err(not_asked()) };
        let is_ours = Some(context) == self.link.facts.context;
        if !is_ours || bytes == 0 || extent.replace((bytes, flags)).is_some() {
            return Err(broken("the server sends extents that were not asked for"));
        }
        self.link.co_skip(self.co, self.index, len - before - each)
    }

    fn error(&mut self, len: u64) -> io::Result<()> {
        let code = u32::from_be_bytes(self.field(len, 6)?);
        let text_len = u16::from_be_bytes(self.link.co_array(self.co, self.index)?);
        self.state.errors += 1;
        if code == 0 || u64::from(text_len) > len - 6 || len > MAX_ERROR_LEN {
            return Err(broken("the server sends an error that is none"));
        }
        if self.state.errors > MAX_ERRORS {
            return Err(broken("the server sends errors without end"));
        }
        self.state.errno = self.state.errno.or(Some(errno_of(code)));
        self.link.co_skip(self.co, self.index, len - 6)
    }

    /// The first bytes of a chunk that has at least `min` of them.
    fn field<const N: usize>(&self, len: u64, min: u64) -> io::Result<[u8; N]> {
        if len < min {
            return Err(broken("the server sends a chunk that is cut off"));
        }
        self.link.co_array(self.co, self.index)
    }
}

/// Kinds of chunks that are errors have it.
const ERROR_BIT: u16 = 1 << 15;

fn not_asked() -> io::Error {
    broken("the server sends data to a request that has none")
}
