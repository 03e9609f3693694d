//! One request, carried out in a coroutine of its own.

use std::io;
use std::rc::Rc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockBackend, BlockStatusKind, WriteFlags, ZeroFlags};

use crate::connection::{Connection, Session};
use crate::export::NbdExport;
use crate::memory::Buffer;
use crate::protocol::*;
use crate::reply::{Message, Style};
use crate::request::Request;

/// Parts of a range that one reply tells of; a client asks again for the rest.
const MAX_EXTENTS: usize = 4096;
/// What is read at once only to have it in the cache.
const CACHE_PIECE: usize = 256 << 10;

/// Starts a request that was checked; its reply follows. A read has room for its data in `buffer`, a
/// write has its data there.
pub fn start(
    co: &Co<'_>,
    client: &Rc<Connection>,
    session: &Session,
    request: Request,
    buffer: Option<Buffer>,
) {
    let client = Rc::clone(client);
    let export = Rc::clone(&session.export);
    let style = session.style;
    co.context().spawn("nbd_request", move |co| {
        let done = co.catch_unwind(|| execute(co, &export, style, &request, buffer));
        let errno = match done {
            Ok(Ok(message)) => return client.answer(message, co.context()),
            Ok(Err(error)) => error.raw_os_error().unwrap_or(libc::EIO),
            // The hook has reported it.
            Err(_) => libc::EIO,
        };
        client.answer(Message::error(style, &request, errno), co.context());
    });
}

fn execute(
    co: &Co<'_>,
    export: &NbdExport,
    style: Style,
    request: &Request,
    buffer: Option<Buffer>,
) -> io::Result<Message> {
    let Request { offset, length, .. } = *request;
    let backend = &export.backend;
    let fua = request.has(CMD_FLAG_FUA) || export.write_through;
    match (request.command, buffer) {
        (CMD_READ, Some(mut data)) => {
            if !data.is_empty() {
                backend.co_preadv(co, offset, &mut IoVectorMut::from(&mut data[..]))?;
            }
            return Ok(Message::data(style, request, data));
        }
        (CMD_WRITE, Some(data)) => {
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags)?;
        }
        (CMD_FLUSH, _) => backend.co_flush(co)?,
        (CMD_TRIM, _) => {
            backend.co_pdiscard(co, offset, length)?;
            if fua {
                backend.co_flush(co)?;
            }
        }
        (CMD_WRITE_ZEROES, _) => {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::FUA, fua);
            flags.set(ZeroFlags::MAY_UNMAP, !request.has(CMD_FLAG_NO_HOLE));
            flags.set(ZeroFlags::NO_FALLBACK, request.has(CMD_FLAG_FAST_ZERO));
            backend.co_pwrite_zeroes(co, offset, length, flags)?;
        }
        (CMD_CACHE, _) => read_ahead(co, backend, offset, length)?,
        (CMD_BLOCK_STATUS, _) => {
            let extents = extents(co, backend, request)?;
            return Ok(Message::block_status(style, request, &extents));
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    Ok(Message::success(style, request))
}

/// Reads a range for the host to keep.
fn read_ahead(co: &Co<'_>, backend: &BlockBackend, offset: u64, length: u64) -> io::Result<()> {
    let mut piece = vec![0; CACHE_PIECE.min(length as usize)];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let bytes = (end - at).min(CACHE_PIECE as u64);
        backend.co_preadv(co, at, &mut IoVectorMut::from(&mut piece[..bytes as usize]))?;
        at += bytes;
    }
    Ok(())
}

/// What is known of a range, neighbours of one kind joined; at least its beginning.
fn extents(co: &Co<'_>, backend: &BlockBackend, request: &Request) -> io::Result<Vec<(u64, u64)>> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let (mut at, end) = (request.offset, request.offset + request.length);
    let most = if request.has(CMD_FLAG_REQ_ONE) { 1 } else { MAX_EXTENTS };
    while at < end {
        let is_full = extents.len() == most;
        let status = backend.co_block_status(co, at, end - at)?;
        let state = match status.kind {
            BlockStatusKind::Data => 0,
            BlockStatusKind::Zero => STATE_ZERO,
            BlockStatusKind::Hole => STATE_ZERO | STATE_HOLE,
        };
        match extents.last_mut() {
            Some((bytes, last)) if *last == state => *bytes += status.bytes,
            _ if is_full => break,
            _ => extents.push((status.bytes, state)),
        }
        at += status.bytes;
    }
    Ok(extents)
}
