//! The source of requests: on a kick the device pops what is available from the queue, understands
//! it, merges neighbours into runs, and for each run takes a coroutine and resumes it.
//!
//! ```text
//!   kick --> handle_output --> next_request --> take_request --> submit
//!              ^               pop, walk, parse    merge            |
//!              |                                                    v
//!        a bottom half,                          a coroutine: serve.rs, the block layer
//!        or an eventfd                                              |
//!                                                finish (queue.rs) <+
//! ```
//!
//! While it works, the driver is asked not to kick; before it goes, it asks for kicks again and
//! looks once more. A loop that polls adaptively looks at the ring by itself between kicks, and asks
//! for one only before it sleeps.

use std::iter::once;
use std::rc::Rc;

use coblk_aio::{AioContext, Batch, trace_event};

use crate::chain::Chain;
use crate::config::feature;
use crate::kind::{BlkStatus, Limits, RunKind, SECTOR_BYTES};
use crate::packed::PackedRing;
use crate::parse::{Operation, ParsedRequest};
use crate::queue::DeviceQueue;
use crate::range::parse_ranges;
use crate::ring::Ring;
use crate::run::{OpenRuns, OwnedRun, Run};
use crate::serve::serve;
use crate::virtqueue::{RingSlices, VirtqueueError};

/// Requests taken before the rest of the loop gets its turn, however fast the driver adds more.
const BUDGET: u32 = 4096;

impl DeviceQueue {
    /// A kick: takes all that is available, then interrupts the driver if some of it is done
    /// already.
    pub(crate) fn handle_output(self: &Rc<Self>, ctx: &AioContext) {
        // A block driver that polls the context could bring us here again, from within. The outer
        // call looks at the queue once more before it leaves.
        if !self.is_running() || self.in_kick.get() {
            return;
        }
        trace_event!("virtio_queue_notify", device = self.device_name(), queue = self.index());
        let kick = InKick::begin(self, ctx);
        match self.take_available(ctx) {
            Ok(Left::Nothing) => {}
            Ok(Left::Some) => self.kick_bh().schedule(),
            Err(error) => self.fail(error),
        }
        drop(kick);
        self.raise_interrupt(ctx);
    }

    fn take_available(self: &Rc<Self>, ctx: &AioContext) -> Result<Left, VirtqueueError> {
        let rings = self.ring.borrow().map(&self.mem)?;
        let mut budget = BUDGET;
        self.ring.borrow().disable_notification(&rings)?;
        loop {
            let available = u32::from(self.ring.borrow().available(&rings)?);
            if available > 0 {
                let taken = self.take_batch(ctx, &rings, available.min(budget));
                self.publish();
                budget -= taken?;
                if budget == 0 {
                    return Ok(Left::Some);
                }
            } else if self.is_polled.get() {
                return Ok(Left::Nothing);
            } else if self.ring.borrow().enable_notification(&rings)? {
                self.ring.borrow().disable_notification(&rings)?;
            } else {
                return Ok(Left::Nothing);
            }
        }
    }

    /// Takes up to `count` requests. Returns what they are of the budget.
    fn take_batch(
        self: &Rc<Self>,
        ctx: &AioContext,
        rings: &RingSlices<'_>,
        count: u32,
    ) -> Result<u32, VirtqueueError> {
        let mut open = OpenRuns::new();
        let mut chain = self.chain.take();
        let limits = self.shared.limits();
        let mut taken = 0;
        let outcome = (0..count).try_for_each(|_| {
            let request = self.next_request(rings, &mut chain, &limits)?;
            self.take_request(ctx, request, &mut chain, &limits, &mut open);
            taken += 1;
            Ok(())
        });
        // Also when the driver has broken the queue: what came before was good.
        self.submit_all(ctx, &mut open);
        self.chain.set(chain);
        match outcome {
            Ok(()) => Ok(count),
            // A driver that takes back what it has offered must not keep us here.
            Err(None) => Ok(taken.max(1)),
            Err(Some(error)) => Err(error),
        }
    }

    /// The next request. The error is `None` if there are less than the ring has said.
    #[inline]
    fn next_request(
        &self,
        rings: &RingSlices<'_>,
        chain: &mut Chain,
        limits: &Limits,
    ) -> Result<ParsedRequest, Option<VirtqueueError>> {
        let head = match &mut *self.ring.borrow_mut() {
            Ring::Split(ring) => {
                self.check_in_flight(ring.size())?;
                let head = ring.next_head(rings)?;
                let indirect = self.shared.has_feature(feature::INDIRECT_DESC);
                chain
                    .walk(&self.mem, &rings.desc, head, indirect)
                    .map_err(|source| VirtqueueError::Chain { head, source })?;
                head
            }
            // Out of line: split rings pay nothing for it but the branch.
            Ring::Packed(ring) => self.next_packed(ring, rings, chain)?,
        };
        trace_event!("virtqueue_pop", queue = self.index(), req = head);
        Ok(ParsedRequest::parse(&self.mem, head, chain, limits)?)
    }

    #[inline(never)]
    fn next_packed(
        &self,
        ring: &mut PackedRing,
        rings: &RingSlices<'_>,
        chain: &mut Chain,
    ) -> Result<u16, Option<VirtqueueError>> {
        self.check_in_flight(ring.size())?;
        let indirect = self.shared.has_feature(feature::INDIRECT_DESC);
        ring.take(&self.mem, rings, chain, indirect)?.ok_or(None)
    }

    /// A guest that offers a head again before it was answered could go on like that until we have no
    /// memory left.
    #[inline]
    fn check_in_flight(&self, size: u16) -> Result<(), VirtqueueError> {
        match self.in_flight() >= usize::from(size) {
            true => Err(VirtqueueError::TooManyInFlight { size }),
            false => Ok(()),
        }
    }

    #[inline]
    fn take_request(
        self: &Rc<Self>,
        ctx: &AioContext,
        request: ParsedRequest,
        chain: &mut Chain,
        limits: &Limits,
        open: &mut OpenRuns,
    ) {
        match request.operation {
            Operation::Read { len_bytes: 0, .. } | Operation::Write { len_bytes: 0, .. } => {
                self.answer(request, BlkStatus::Ok, 0);
            }
            Operation::Read { offset_bytes, len_bytes } => {
                trace_event!(
                    "virtio_blk_handle_read",
                    queue = self.index(),
                    req = request.head,
                    sector = offset_bytes / SECTOR_BYTES,
                    sectors = len_bytes / SECTOR_BYTES
                );
                let data = Transfer { kind: RunKind::Read, offset_bytes, len_bytes };
                self.take_transfer(ctx, request, data, chain, open);
            }
            Operation::Write { offset_bytes, len_bytes } => {
                trace_event!(
                    "virtio_blk_handle_write",
                    queue = self.index(),
                    req = request.head,
                    sector = offset_bytes / SECTOR_BYTES,
                    sectors = len_bytes / SECTOR_BYTES
                );
                let data = Transfer { kind: RunKind::Write, offset_bytes, len_bytes };
                self.take_transfer(ctx, request, data, chain, open);
            }
            Operation::GetId => {
                let (status, bytes) = self.write_id(chain);
                self.answer(request, status, bytes);
            }
            Operation::Invalid(kind) => {
                self.shared.backend.count_invalid(kind.request_kind());
                self.answer(request, BlkStatus::IoErr, 0);
            }
            Operation::Refuse(status) => self.answer(request, status, 0),
            Operation::Flush => self.take_barrier(ctx, request, RunKind::Flush, open, |_| Ok(())),
            Operation::Discard => {
                let parse = |run: &mut Run| {
                    parse_ranges(self, chain, limits, RunKind::Discard, &mut run.ranges)
                };
                self.take_barrier(ctx, request, RunKind::Discard, open, parse);
            }
            Operation::WriteZeroes => {
                let parse = |run: &mut Run| {
                    parse_ranges(self, chain, limits, RunKind::WriteZeroes, &mut run.ranges)
                };
                self.take_barrier(ctx, request, RunKind::WriteZeroes, open, parse);
            }
        }
    }

    /// A read or write: joins a run, or opens one.
    #[inline]
    fn take_transfer(
        self: &Rc<Self>,
        ctx: &AioContext,
        request: ParsedRequest,
        transfer: Transfer,
        chain: &Chain,
        open: &mut OpenRuns,
    ) {
        let Transfer { kind, offset_bytes, len_bytes } = transfer;
        let data = if kind == RunKind::Read { chain.writable() } else { chain.readable() };
        if let Some(slot) = open.joinable(kind, offset_bytes, data, len_bytes) {
            open.join(slot, request.start(self), data, len_bytes);
            return;
        }
        let mut owned = OwnedRun::new(self, kind, offset_bytes);
        owned.parts().1.push(request.start(self), data, len_bytes);
        if !self.shared.config.merge_requests {
            self.submit(ctx, owned);
        } else if let Some(oldest) = open.open(owned) {
            self.submit(ctx, oldest);
        }
    }

    /// A request that is not merged, and that no read or write overtakes.
    fn take_barrier(
        self: &Rc<Self>,
        ctx: &AioContext,
        request: ParsedRequest,
        kind: RunKind,
        open: &mut OpenRuns,
        prepare: impl FnOnce(&mut Run) -> Result<(), BlkStatus>,
    ) {
        self.submit_all(ctx, open);
        let mut owned = OwnedRun::new(self, kind, 0);
        let (_, run) = owned.parts();
        match prepare(run) {
            Ok(()) => {
                run.push(request.start(self), &[], 0);
                self.submit(ctx, owned);
            }
            Err(status) => {
                self.shared.backend.count_invalid(kind.request_kind());
                self.answer(request, status, 0);
            }
        }
    }

    fn submit_all(&self, ctx: &AioContext, open: &mut OpenRuns) {
        while let Some(run) = open.take_oldest() {
            self.submit(ctx, run);
        }
    }

    /// Takes a coroutine for a run and resumes it. It may have ended when this returns.
    #[inline]
    fn submit(&self, ctx: &AioContext, mut owned: OwnedRun) {
        let (_, run) = owned.parts();
        trace_event!(
            "virtio_blk_submit_multireq",
            queue = self.index(),
            kind = ?run.kind,
            offset = run.offset_bytes,
            bytes = run.len_bytes,
            requests = run.members.len()
        );
        // Without a stack the closure is dropped, and its requests with it, which answers them.
        if let Err(error) = ctx.try_spawn("virtio-blk", move |co| serve(co, owned)) {
            let device = self.device_name();
            tracing::error!(device, %error, "no coroutine for a request; it fails");
        }
    }

    /// Answers a request that needs no I/O.
    fn answer(&self, request: ParsedRequest, status: BlkStatus, data_bytes: u64) {
        let completed = request.start(self).complete(self, status, data_bytes);
        self.finish(once(completed));
    }

    /// GET_ID: as much of the serial, padded with zero bytes, as the guest has room for.
    fn write_id(&self, chain: &Chain) -> (BlkStatus, u64) {
        let mut id = &self.shared.id[..];
        for segment in chain.writable() {
            let (part, rest) = id.split_at(id.len().min(segment.len_bytes as usize));
            if self.mem.write(part, segment.addr).is_err() {
                return (BlkStatus::IoErr, 0);
            }
            id = rest;
        }
        (BlkStatus::Ok, (self.shared.id.len() - id.len()) as u64)
    }
}

/// What is left in the queue.
enum Left {
    Nothing,
    Some,
}

/// A read or write.
#[derive(Clone, Copy)]
struct Transfer {
    kind: RunKind,
    offset_bytes: u64,
    len_bytes: u64,
}

/// A kick is being handled, until this is dropped.
struct InKick<'a> {
    queue: &'a DeviceQueue,
    _batch: Batch<'a>,
}

impl<'a> InKick<'a> {
    fn begin(queue: &'a DeviceQueue, ctx: &'a AioContext) -> InKick<'a> {
        queue.in_kick.set(true);
        queue.begin_groups();
        InKick { queue, _batch: ctx.begin_batch() }
    }
}

impl Drop for InKick<'_> {
    fn drop(&mut self) {
        self.queue.in_kick.set(false);
    }
}
