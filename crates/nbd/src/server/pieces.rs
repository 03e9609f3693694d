//! A READ or WRITE for whose data there is no room: in pieces, by the connection's own coroutine.
//!
//! A client comes to this that keeps much memory, or while others do. It is served all the same, one
//! such request at a time, and holds one piece however slowly it takes or sends its data.

use std::io;
use std::rc::Rc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::WriteFlags;

use crate::protocol::reply::Style;
use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::memory::PIECE;
use crate::server::message::{Message, Payload};
use crate::server::receiver::Receiver;
use crate::server::rules::Session;

/// Serves a request that was checked.
///
/// # Errors
/// If the connection cannot go on.
pub fn serve(
    co: &Co<'_>,
    client: &Rc<Client>,
    receiver: &mut Receiver,
    session: &Session,
    request: &Request,
) -> io::Result<()> {
    // No other reply may come between the pieces of one.
    client.link.wait_for_requests(co, receiver, 1)?;
    client.link.in_flight.set(1);
    let done = match request.command {
        CMD_READ => read(co, client, session, request),
        _ => write(co, client, receiver, session, request),
    };
    if done.is_err() {
        // No answer follows.
        client.link.in_flight.set(0);
    }
    done
}

/// The length of the piece at `offset` of a request.
fn piece_len(request: &Request, offset: u64) -> usize {
    (request.offset + request.length - offset).min(PIECE as u64) as usize
}

fn read(co: &Co<'_>, client: &Rc<Client>, session: &Session, request: &Request) -> io::Result<()> {
    let style = session.terms.style;
    let in_chunks = style != Style::Simple && !request.has(CMD_FLAG_DF);
    let (mut at, end) = (request.offset, request.offset + request.length);
    while at < end {
        client.link.give_way(co);
        let mut data = client.memory.uncounted(&client.share, piece_len(request, at))?;
        let next = at + data.len() as u64;
        let backend = &session.backend;
        let done = guarded(co, || backend.co_preadv(co, at, &mut IoVectorMut::from(&mut data[..])));
        let last = next == end;
        let message = match done {
            Ok(()) if in_chunks => Message::part(style, request, at, Payload::Buffer(data), last),
            Ok(()) if at == request.offset => Message::beginning(style, request, data, last),
            Ok(()) => Message::continuation(data, last),
            Err(errno) if in_chunks || at == request.offset => {
                client.link.post(Message::error(style, request, errno));
                return Ok(());
            }
            Err(_) => return Err(broken("a read failed when half of its data was sent")),
        };
        client.link.post(message);
        client.link.wait_sent(co)?;
        at = next;
    }
    Ok(())
}

fn write(
    co: &Co<'_>,
    client: &Rc<Client>,
    receiver: &mut Receiver,
    session: &Session,
    request: &Request,
) -> io::Result<()> {
    let durable = request.has(CMD_FLAG_FUA) || session.terms.write_through;
    let backend = &session.backend;
    let plain = WriteFlags::empty();
    let (mut at, end) = (request.offset, request.offset + request.length);
    let mut data = client.memory.uncounted(&client.share, piece_len(request, at))?;
    let mut done = Ok(());
    while at < end {
        client.link.give_way(co);
        data.truncate(piece_len(request, at));
        // All of it, also when a piece has failed: it would be taken for requests.
        receiver.fill(co, &client.link, &mut data)?;
        if done.is_ok() {
            done = guarded(co, || backend.co_pwritev(co, at, &IoVector::from(&data[..]), plain));
        }
        at += data.len() as u64;
    }
    if durable && done.is_ok() {
        // Once, and not with each piece: nothing is answered before.
        done = guarded(co, || backend.co_flush(co));
    }
    client.link.post(match done {
        Ok(()) => Message::success(session.terms.style, request),
        Err(errno) => Message::error(session.terms.style, request, errno),
    });
    Ok(())
}

/// What a request came to, with the errno if it failed. Also if it panicked.
fn guarded(co: &Co<'_>, request: impl FnOnce() -> io::Result<()>) -> Result<(), i32> {
    match co.catch_unwind(request) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        // The hook has reported it.
        Err(_) => Err(libc::EIO),
    }
}
