//! BLOCK_STATUS: the state of a range, in the form in which it is sent.

use std::io;
use std::ops::DerefMut;
use std::rc::Rc;

use coblk_aio::Co;
use coblk_block::{BlockBackend, DirtyBits};

use crate::protocol::reply::Style;
use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::contexts::Context;
use crate::server::memory::{Buffer, SMALL};
use crate::server::message::Message;
use crate::server::rules::Session;

/// Bytes of an extent.
const EXTENT: usize = 16;
/// Bytes before the first extent, at most.
const HEAD: usize = 8;
/// So often the node is asked for a reply: neighbours of one kind may be joined without end.
const MAX_PARTS: usize = 4096;

/// Tells of at least the beginning of the range, in each context that the client has chosen; neighbours of
/// one kind are joined. A client asks again for the rest. Sends all but the last chunk, and returns that.
pub fn reply(
    co: &Co<'_>,
    client: &Rc<Client>,
    session: &Session,
    request: &Request,
) -> io::Result<Message> {
    let terms = &session.terms;
    // All chunks of a reply take no more than one small buffer, but for one extent each.
    let room = (SMALL / terms.contexts.len().max(1)).saturating_sub(HEAD) / EXTENT;
    let most = if request.has(CMD_FLAG_REQ_ONE) { 1 } else { room.max(1) };
    let mut sent: Option<Message> = None;
    for (index, context) in terms.contexts.iter().enumerate() {
        if let Some(message) = sent.take() {
            client.link.post(message);
        }
        let buffer = client.memory.uncounted(&client.share, HEAD + most * EXTENT)?;
        let mut list = Extents::new(terms.style, context.id(), most, buffer);
        match context {
            Context::Allocation => allocation(co, &session.backend, request, &mut list)?,
            Context::Depth => depth(co, &session.backend, request, &mut list)?,
            Context::Bitmap(place) => {
                let bitmap = terms.bitmaps.get(*place as usize);
                let (_, bitmap) = bitmap.ok_or(io::ErrorKind::NotFound)?;
                dirty(bitmap.bits(), request, &mut list);
            }
        }
        let last = index + 1 == terms.contexts.len();
        sent = Some(list.message(request, last));
    }
    sent.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// What is data, and what reads as zeroes.
fn allocation(
    co: &Co<'_>,
    backend: &BlockBackend,
    request: &Request,
    list: &mut Extents<Buffer>,
) -> io::Result<()> {
    each_part(request, list, |at, bytes| {
        let status = backend.co_block_status(co, at, bytes)?;
        let hole = if status.data { 0 } else { STATE_HOLE };
        Ok((status.bytes, hole | if status.zero { STATE_ZERO } else { 0 }))
    })
}

/// Which layer has the data, counted from 1; 0 if none has.
fn depth(
    co: &Co<'_>,
    backend: &BlockBackend,
    request: &Request,
    list: &mut Extents<Buffer>,
) -> io::Result<()> {
    each_part(request, list, |at, bytes| {
        let found = backend.co_status_above(co, None, at, bytes)?;
        Ok((found.extent.bytes, if found.extent.allocated { found.depth as u64 } else { 0 }))
    })
}

fn each_part(
    request: &Request,
    list: &mut Extents<Buffer>,
    mut state: impl FnMut(u64, u64) -> io::Result<(u64, u64)>,
) -> io::Result<()> {
    let (mut at, end) = (request.offset, request.offset + request.length);
    for _ in 0..MAX_PARTS {
        if at == end || list.is_full() {
            break;
        }
        let (bytes, state) = state(at, end - at)?;
        // A node that has become shorter.
        if bytes == 0 {
            break;
        }
        list.add(bytes, state);
        at += bytes;
    }
    if at == request.offset { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
}

/// What is dirty.
fn dirty<B: DerefMut<Target = [u8]>>(bits: &DirtyBits, request: &Request, list: &mut Extents<B>) {
    let (mut at, end) = (request.offset, request.offset + request.length);
    while at < end && !list.is_full() {
        match bits.next_dirty_range(at..end) {
            Some(dirty) => {
                list.add(dirty.start - at, 0);
                list.add(dirty.end - dirty.start, STATE_DIRTY);
                at = dirty.end;
            }
            None => {
                list.add(end - at, 0);
                at = end;
            }
        }
    }
}

/// Lengths and states behind the number of the context.
struct Extents<B> {
    style: Style,
    buffer: B,
    /// Bytes written.
    len: usize,
    count: usize,
    most: usize,
    /// The last, which may become longer.
    run: Option<(u64, u64)>,
}

impl<B: DerefMut<Target = [u8]>> Extents<B> {
    /// At most so many, which `buffer` has room for.
    fn new(style: Style, context: u32, most: usize, buffer: B) -> Extents<B> {
        let mut extents = Extents { style, buffer, len: 0, count: 0, most, run: None };
        extents.put(&context.to_be_bytes());
        if style == Style::Extended {
            // Their number, when it is known.
            extents.put(&[0; 4]);
        }
        extents
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Nothing is added any more.
    fn is_full(&self) -> bool {
        self.count == self.most
    }

    fn add(&mut self, more: u64, state: u64) {
        if more == 0 || self.is_full() {
            return;
        }
        match &mut self.run {
            Some((bytes, last)) if *last == state => *bytes += more,
            _ => {
                self.end_run();
                if !self.is_full() {
                    self.run = Some((more, state));
                }
            }
        }
    }

    fn end_run(&mut self) {
        let Some((bytes, state)) = self.run.take() else { return };
        self.count += 1;
        if self.style == Style::Extended {
            self.put(&bytes.to_be_bytes());
            self.put(&state.to_be_bytes());
        } else {
            // The request was 32 bits long, and so are its parts.
            self.put(&(bytes as u32).to_be_bytes());
            self.put(&(state as u32).to_be_bytes());
        }
    }
}

impl Extents<Buffer> {
    fn message(mut self, request: &Request, last: bool) -> Message {
        self.end_run();
        if self.style == Style::Extended {
            let count = (self.count as u32).to_be_bytes();
            self.buffer[4..8].copy_from_slice(&count);
        }
        self.buffer.truncate(self.len);
        Message::block_status(self.style, request, self.buffer, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(style: Style, most: usize, parts: &[(u64, u64)]) -> (usize, Vec<u8>) {
        let mut list = Extents::new(style, 7, most, vec![0; HEAD + most * EXTENT]);
        parts.iter().for_each(|(bytes, state)| list.add(*bytes, *state));
        list.end_run();
        list.buffer.truncate(list.len);
        (list.count, list.buffer)
    }

    #[test]
    fn j120_neighbours_of_one_kind_are_one_extent() {
        let parts = [(512, 1), (512, 1), (0, 0), (512, 1), (1024, 0), (512, 1)];
        let (count, bytes) = extents(Style::Structured, 10, &parts);
        assert_eq!((count, bytes.len()), (3, 4 + 3 * 8));
        assert_eq!(bytes[4..12], [0, 0, 6, 0, 0, 0, 0, 1]);
        let (count, bytes) = extents(Style::Extended, 2, &parts);
        assert_eq!((count, bytes.len()), (2, 8 + 2 * 16));
        assert_eq!(extents(Style::Structured, 1, &parts).0, 1);
    }

    #[test]
    fn j120_what_is_dirty_ends_with_the_request() {
        let bits = DirtyBits::new(1 << 20, 4096).unwrap();
        bits.mark(8192..16384);
        let request = Request { flags: 0, command: 7, cookie: 1, offset: 10000, length: 10000 };
        let mut list = Extents::new(Style::Structured, 2, 100, vec![0; HEAD + 100 * EXTENT]);
        dirty(&bits, &request, &mut list);
        list.end_run();
        let words: Vec<u32> = list.buffer[4..list.len]
            .chunks(4)
            .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [6384, 1, 3616, 0]);
    }
}
