//! BLOCK_STATUS: the state of a range, in the form in which it is sent.

use std::io;
use std::rc::Rc;

use coblk_aio::Co;
use coblk_block::BlockBackend;

use crate::protocol::reply::Style;
use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::memory::{Buffer, SMALL};
use crate::server::message::Message;

/// Parts of a range that one reply tells of; a client asks again for the rest.
const MAX_EXTENTS: u32 = ((SMALL - 8) / 16) as u32;

/// Tells of at least the beginning of the range; neighbours of one kind are joined.
pub fn reply(
    co: &Co<'_>,
    client: &Rc<Client>,
    backend: &BlockBackend,
    style: Style,
    request: &Request,
) -> io::Result<Message> {
    let most = if request.has(CMD_FLAG_REQ_ONE) { 1 } else { MAX_EXTENTS };
    // One extent takes no more than the smallest buffer.
    let room = if most == 1 { 24 } else { SMALL };
    let mut list = Extents::new(style, client.memory.uncounted(&client.share, room)?);
    let (mut at, end) = (request.offset, request.offset + request.length);
    let mut run: Option<(u64, u64)> = None;
    while at < end {
        let status = backend.co_block_status(co, at, end - at)?;
        let hole = if status.data { 0 } else { STATE_HOLE };
        let state = hole | if status.zero { STATE_ZERO } else { 0 };
        at += status.bytes;
        run = match run {
            Some((bytes, last)) if last == state => Some((bytes + status.bytes, state)),
            Some((bytes, last)) => {
                list.push(bytes, last);
                if list.count == most {
                    return Ok(list.message(request));
                }
                Some((status.bytes, state))
            }
            None => Some((status.bytes, state)),
        };
    }
    if let Some((bytes, state)) = run {
        list.push(bytes, state);
    }
    Ok(list.message(request))
}

/// Lengths and states behind the number of the context.
struct Extents {
    style: Style,
    buffer: Buffer,
    /// Bytes written.
    len: usize,
    count: u32,
}

impl Extents {
    fn new(style: Style, buffer: Buffer) -> Extents {
        let mut extents = Extents { style, buffer, len: 0, count: 0 };
        extents.put(&BASE_ALLOCATION_ID.to_be_bytes());
        if style == Style::Extended {
            // Their number, when it is known.
            extents.put(&[0; 4]);
        }
        extents
    }

    fn push(&mut self, bytes: u64, state: u64) {
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

    fn message(mut self, request: &Request) -> Message {
        if self.style == Style::Extended {
            self.buffer[4..8].copy_from_slice(&self.count.to_be_bytes());
        }
        self.buffer.truncate(self.len);
        Message::block_status(self.style, request, self.buffer)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}
