//! One request, carried out in a coroutine of its own.

use std::io;
use std::rc::Rc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockBackend, WriteFlags, ZeroFlags};

use crate::protocol::request::Request;
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::memory::Buffer;
use crate::server::message::Message;
use crate::server::rules::Session;
use crate::server::{sparse, status};

/// Starts a request that was checked; its reply follows. READ and CACHE have room for data in
/// `buffer`, a write has its data there.
pub fn start(
    co: &Co<'_>,
    client: &Rc<Client>,
    session: &Rc<Session>,
    request: Request,
    buffer: Option<Buffer>,
) {
    let client = Rc::clone(client);
    let (session, style) = (Rc::clone(session), session.terms.style);
    if co.context().ensure_stack().is_err() {
        return client.link.answer(Message::error(style, &request, libc::ENOMEM));
    }
    co.context().spawn("nbd_request", move |co| {
        let done = co.catch_unwind(|| execute(co, &client, &session, &request, buffer));
        let errno = match done {
            Ok(Ok(message)) => return client.link.answer(message),
            Ok(Err(error)) => error.raw_os_error().unwrap_or(libc::EIO),
            // The hook has reported it.
            Err(_) => libc::EIO,
        };
        client.link.answer(Message::error(style, &request, errno));
    });
}

fn execute(
    co: &Co<'_>,
    client: &Rc<Client>,
    session: &Session,
    request: &Request,
    buffer: Option<Buffer>,
) -> io::Result<Message> {
    let Request { offset, length, .. } = *request;
    let (backend, style) = (&session.backend, session.terms.style);
    let fua = request.has(CMD_FLAG_FUA) || session.terms.write_through;
    match (request.command, buffer) {
        (CMD_READ, Some(mut data)) => {
            if !data.is_empty() {
                backend.co_preadv(co, offset, &mut IoVectorMut::from(&mut data[..]))?;
            }
            return Ok(sparse::reply(client, style, request, data));
        }
        (CMD_WRITE, Some(data)) => {
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags)?;
        }
        (CMD_FLUSH, _) => backend.co_flush(co)?,
        (CMD_TRIM, _) => {
            co.while_wanted(&client.link.wanted, || backend.co_pdiscard(co, offset, length))?;
            if fua {
                backend.co_flush(co)?;
            }
        }
        (CMD_WRITE_ZEROES, _) => {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::FUA, fua);
            flags.set(ZeroFlags::MAY_UNMAP, !request.has(CMD_FLAG_NO_HOLE));
            flags.set(ZeroFlags::NO_FALLBACK, request.has(CMD_FLAG_FAST_ZERO));
            let zero = || backend.co_pwrite_zeroes(co, offset, length, flags);
            co.while_wanted(&client.link.wanted, zero)?;
        }
        (CMD_CACHE, Some(mut piece)) => {
            co.while_wanted(&client.link.wanted, || read_ahead(co, backend, request, &mut piece))?;
        }
        (CMD_BLOCK_STATUS, _) => return status::reply(co, client, session, request),
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    Ok(Message::success(style, request))
}

/// Reads a range for the host to keep.
fn read_ahead(
    co: &Co<'_>,
    backend: &BlockBackend,
    request: &Request,
    piece: &mut [u8],
) -> io::Result<()> {
    let (mut at, end) = (request.offset, request.offset + request.length);
    while at < end && co.is_wanted() {
        let bytes = (end - at).min(piece.len() as u64);
        backend.co_preadv(co, at, &mut IoVectorMut::from(&mut piece[..bytes as usize]))?;
        at += bytes;
    }
    Ok(())
}
