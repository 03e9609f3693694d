//! [`Nbd`]: the driver.

use std::io;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};
use coblk_block::{
    Background, BlockDriver, BlockLimits, Extent, ReadFlags, Truncate, WriteFlags, ZeroFlags,
};

use crate::client::connection::Connection;
use crate::client::link::Sink;
use crate::client::making::Reason;
use crate::client::shared::Shared;
use crate::client::{lanes, moves};
use crate::protocol::request::Request;
use crate::protocol::*;

/// An export of an NBD server as a node. Opened by options: the driver `nbd`.
pub struct Nbd {
    shared: Arc<Shared>,
    background: Background,
}

impl Nbd {
    pub(super) fn new(shared: Arc<Shared>, background: Background) -> Nbd {
        Nbd { shared, background }
    }

    fn has(&self, flag: u16) -> bool {
        self.shared.facts.has(flag)
    }

    #[inline]
    fn co_request(
        &self,
        co: &Co<'_>,
        (command, flags): (u16, u16),
        (offset, length): (u64, u64),
        payload: Option<&IoVector<'_>>,
        sink: &mut Sink<'_, '_>,
    ) -> io::Result<()> {
        let request = Request { flags, command, cookie: 0, offset, length };
        match lanes::find(self.shared.number, co.context()) {
            Some(connection) => connection.co_request(co, request, payload, sink),
            None => moves::co_request_elsewhere(co, &self.shared, request, payload, sink),
        }
    }
}

impl BlockDriver for Nbd {
    fn format_name(&self) -> &'static str {
        "nbd"
    }

    fn length(&self) -> u64 {
        self.shared.size()
    }

    fn is_read_only(&self) -> bool {
        self.has(TRANSMISSION_READ_ONLY)
    }

    fn limits(&self) -> BlockLimits {
        self.shared.facts.limits()
    }

    fn background(&self) -> Option<&Background> {
        Some(&self.background)
    }

    fn filename(&self) -> Option<String> {
        self.shared.target.uri()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        if target.is_empty() {
            // What a server answers to a request of no bytes is for it to choose.
            return Ok(());
        }
        let range = (offset, target.len() as u64);
        if flags.contains(ReadFlags::PREFETCH) {
            return self.co_request(co, (CMD_CACHE, 0), range, None, &mut Sink::Nothing);
        }
        self.co_request(co, (CMD_READ, 0), range, None, &mut Sink::Data(target))
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let fua = if flags.contains(WriteFlags::FUA) { CMD_FLAG_FUA } else { 0 };
        let range = (offset, source.len() as u64);
        if source.is_empty() {
            // Durable ones of nothing are there for their flush.
            return if fua == 0 { Ok(()) } else { self.co_flush(co) };
        }
        self.co_request(co, (CMD_WRITE, fua), range, Some(source), &mut Sink::Nothing)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.has(TRANSMISSION_SEND_FLUSH) {
            return Ok(());
        }
        self.co_request(co, (CMD_FLUSH, 0), (0, 0), None, &mut Sink::Nothing)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let is_fast = flags.contains(ZeroFlags::NO_FALLBACK);
        let needed = if is_fast { TRANSMISSION_SEND_FAST_ZERO } else { 0 };
        let needed = needed | TRANSMISSION_SEND_WRITE_ZEROES;
        if self.shared.facts.flags & needed != needed {
            return Err(not_supported());
        }
        let mut how = 0;
        for (wanted, flag) in [
            (flags.contains(ZeroFlags::FUA), CMD_FLAG_FUA),
            (!flags.contains(ZeroFlags::MAY_UNMAP), CMD_FLAG_NO_HOLE),
            (is_fast, CMD_FLAG_FAST_ZERO),
        ] {
            how |= if wanted { flag } else { 0 };
        }
        self.co_request(co, (CMD_WRITE_ZEROES, how), (offset, bytes), None, &mut Sink::Nothing)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        if !self.has(TRANSMISSION_SEND_TRIM) {
            return Err(not_supported());
        }
        self.co_request(co, (CMD_TRIM, 0), (offset, bytes), None, &mut Sink::Nothing)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let limits = self.limits();
        if self.shared.facts.context.is_none() {
            return Ok(Extent::data(bytes));
        }
        // Whole blocks, of which the answer may be a part.
        let block = u64::from(limits.request_alignment);
        let start = offset / block * block;
        let end = (offset + bytes).div_ceil(block) * block;
        let length = (end.min(self.length()) - start).min(limits.max_pdiscard);
        let mut found = None;
        let sink = &mut Sink::Extent(&mut found);
        self.co_request(co, (CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE), (start, length), None, sink)?;
        // There is one, as was checked.
        let (known, flags) = found.unwrap_or((length, 0));
        let bytes = (start + known.min(length)).saturating_sub(offset).clamp(1, bytes);
        let (hole, zero) = (flags & STATE_HOLE != 0, flags & STATE_ZERO != 0);
        Ok(Extent { data: !hole, zero, ..Extent::data(bytes) })
    }

    fn co_truncate(&self, _: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        match length.cmp(&self.length()) {
            std::cmp::Ordering::Greater => refused("Cannot grow NBD nodes"),
            std::cmp::Ordering::Less if how.exact => refused("Cannot resize NBD nodes"),
            _ => Ok(()),
        }
    }

    fn co_refresh_length(&self, _: &Co<'_>) -> io::Result<u64> {
        Ok(self.shared.refresh_size())
    }

    fn co_set_home(&self, co: &Co<'_>, home: AioHandle) {
        moves::co_move(co, &self.shared, &self.background.home(), &home);
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        moves::co_close(co, &self.shared);
        Ok(())
    }

    fn cancel_in_flight(&self) {
        self.shared.tell(Connection::cancel);
        self.shared.give_up_making(Reason::Cancelled);
    }

    fn drained_begin(&self) {
        self.shared.set_quiesced(true);
        self.shared.tell(Connection::quiesce);
        self.shared.give_up_making(Reason::Drained);
    }

    fn drained_end(&self) {
        self.shared.set_quiesced(false);
        self.shared.tell(|connection, _| connection.resume());
    }
}

impl Drop for Nbd {
    /// Where it was not closed.
    fn drop(&mut self) {
        self.shared.tell(|connection, _| connection.close());
        self.shared.give_up_making(Reason::Drained);
    }
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}
