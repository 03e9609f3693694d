//! What a request coroutine does: one run, through the block layer, and an answer to each guest
//! request in it.

use std::any::Any;
use std::io;
use std::thread;

use coblk_aio::{Co, trace_event};
use coblk_block::{GivenBack, Merged, WriteFlags, ZeroFlags};

use crate::chain::Segment;
use crate::kind::{BlkStatus, ByteRange, RunKind};
use crate::queue::DeviceQueue;
use crate::request::CompletedRequest;
use crate::run::{BadAddress, Lists, Member, OwnedRun, Run};

/// Serves a run. A panic below fails the requests of this run and nothing else.
pub(crate) fn serve(co: &Co<'_>, mut owned: OwnedRun) {
    let (queue, run) = owned.parts();
    serve_run(co, queue, run);
    if queue.is_abandoned() {
        // The bottom half of a dropped device does not run.
        queue.raise_interrupt(co.context());
    }
}

#[inline]
fn serve_run(co: &Co<'_>, queue: &DeviceQueue, run: &mut Run) {
    let mut performed = attempt(co, queue, run);
    while matches!(performed, Ok(Err(Failure::GivenBack))) {
        if take_back(co, queue, &mut run.members) {
            return;
        }
        performed = attempt(co, queue, run);
    }
    let merged = run.members.len() - 1;
    if merged > 0 && !matches!(performed, Ok(Ok(Merged::Split))) {
        queue.shared.backend.count_merged(run.kind.request_kind(), merged as u64);
    }
    match performed {
        Ok(Ok(Merged::Done)) => answer_all(queue, run, BlkStatus::Ok),
        Ok(Ok(Merged::Split)) => serve_one_by_one(co, queue, run),
        Ok(Err(failure)) => {
            let status = failure.status(co, queue, run, (run.offset_bytes, run.len_bytes));
            answer_all(queue, run, status);
        }
        Err(panic) => {
            log_panic(queue, run, &*panic);
            answer_all(queue, run, BlkStatus::IoErr);
        }
    }
}

/// Why a run failed.
enum Failure {
    /// A data segment is not in guest memory.
    Address,
    Io(io::Error),
    /// It is to be done all over: a queue of the device stops, and the backend holds nothing meanwhile; or
    /// the driver has gone in the middle of it.
    GivenBack,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if GivenBack::is_in(&error) { Failure::GivenBack } else { Failure::Io(error) }
    }
}

impl From<BadAddress> for Failure {
    fn from(_: BadAddress) -> Self {
        Failure::Address
    }
}

impl Failure {
    #[cold]
    fn status(&self, co: &Co<'_>, queue: &DeviceQueue, run: &Run, range: (u64, u64)) -> BlkStatus {
        match self {
            Failure::Address => {
                tracing::debug!(queue = queue.index(), "data outside guest memory");
                BlkStatus::IoErr
            }
            Failure::GivenBack => BlkStatus::IoErr,
            Failure::Io(error) => {
                log_error(co, queue, run.kind, range, error);
                let hint = matches!(run.kind, RunKind::Discard | RunKind::WriteZeroes);
                if hint && error.kind() == io::ErrorKind::Unsupported {
                    BlkStatus::Unsupported
                } else {
                    BlkStatus::IoErr
                }
            }
        }
    }
}

fn log_error(
    co: &Co<'_>,
    queue: &DeviceQueue,
    kind: RunKind,
    (offset, bytes): (u64, u64),
    error: &io::Error,
) {
    let errno = error.raw_os_error().unwrap_or(0);
    let now_ns = co.context().now_ns();
    let admitted = queue.shared.error_log.borrow_mut().admit(kind, errno, now_ns);
    if let Some(unlogged) = admitted {
        tracing::warn!(
            device = queue.device_name(),
            queue = queue.index(),
            ?kind,
            offset,
            bytes,
            %error,
            unlogged,
            "request failed; others like it are logged at most once a second"
        );
    }
}

#[inline]
fn attempt(
    co: &Co<'_>,
    queue: &DeviceQueue,
    run: &mut Run,
) -> thread::Result<Result<Merged, Failure>> {
    let performed = co.catch_unwind(|| perform(co, queue, run));
    Run::ended(&queue.mem, run.kind, &run.segments);
    performed
}

#[inline]
fn perform(co: &Co<'_>, queue: &DeviceQueue, run: &mut Run) -> Result<Merged, Failure> {
    match run.kind {
        RunKind::Read | RunKind::Write if run.members.len() > 1 => {
            return transfer_merged(co, queue, run);
        }
        RunKind::Read | RunKind::Write => {
            let Run { kind, offset_bytes, ref segments, ref mut lists, .. } = *run;
            transfer(co, queue, lists, kind, offset_bytes, segments)?;
        }
        RunKind::Flush => queue.shared.backend.co_flush(co)?,
        RunKind::Discard | RunKind::WriteZeroes => {
            run.ranges.iter().try_for_each(|range| clear(co, queue, run.kind, range))?;
        }
    }
    Ok(Merged::Done)
}

fn transfer_merged(co: &Co<'_>, queue: &DeviceQueue, run: &mut Run) -> Result<Merged, Failure> {
    let backend = &queue.shared.backend;
    let Run { kind, offset_bytes, ref segments, ref mut lists, .. } = *run;
    let performed = if kind == RunKind::Read {
        lists.with_target(&queue.mem, segments, |target| {
            backend.co_preadv_merged(co, offset_bytes, target)
        })
    } else {
        let flags = write_flags(queue);
        lists.with_source(&queue.mem, segments, |source| {
            backend.co_pwritev_merged(co, offset_bytes, source, flags)
        })
    };
    // A bad address is that of one member.
    Ok(performed.unwrap_or(Ok(Merged::Split))?)
}

#[inline]
fn write_flags(queue: &DeviceQueue) -> WriteFlags {
    if queue.shared.is_writethrough() { WriteFlags::FUA } else { WriteFlags::empty() }
}

#[inline]
fn transfer(
    co: &Co<'_>,
    queue: &DeviceQueue,
    lists: &mut Lists,
    kind: RunKind,
    offset_bytes: u64,
    segments: &[Segment],
) -> Result<(), Failure> {
    let backend = &queue.shared.backend;
    if kind == RunKind::Read {
        lists.with_target(&queue.mem, segments, |target| {
            backend.co_preadv(co, offset_bytes, target)
        })??;
    } else {
        let flags = write_flags(queue);
        lists.with_source(&queue.mem, segments, |source| {
            backend.co_pwritev(co, offset_bytes, source, flags)
        })??;
    }
    Ok(())
}

fn clear(
    co: &Co<'_>,
    queue: &DeviceQueue,
    kind: RunKind,
    range: &ByteRange,
) -> Result<(), Failure> {
    let backend = &queue.shared.backend;
    let (offset, bytes) = (range.offset_bytes, range.len_bytes);
    co.while_wanted(&queue.wanted, || {
        let cleared = if kind == RunKind::Discard {
            backend.co_pdiscard(co, offset, bytes)
        } else {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::MAY_UNMAP, range.unmap);
            flags.set(ZeroFlags::FUA, queue.shared.is_writethrough());
            backend.co_pwrite_zeroes(co, offset, bytes, flags)
        };
        cleared.map_err(|error| match error.raw_os_error() {
            Some(libc::ECANCELED) if !co.is_wanted() => Failure::GivenBack,
            _ => error.into(),
        })
    })
}

/// The merged request failed. Who is to blame? Each guest request gets its own try, so that only
/// those fail, are counted and are told of, that have to.
#[cold]
fn serve_one_by_one(co: &Co<'_>, queue: &DeviceQueue, run: &mut Run) {
    let mut lists = Lists::default();
    for index in 0..run.members.len() {
        let Some(tried) = try_one(co, queue, run, index, &mut lists) else { continue };
        let status = match tried {
            Ok(Ok(())) => BlkStatus::Ok,
            Ok(Err(failure)) => {
                let offset_bytes =
                    run.parts().nth(index).map_or(0, |(offset_bytes, _)| offset_bytes);
                let range = (offset_bytes, run.members[index].len_bytes);
                failure.status(co, queue, run, range)
            }
            Err(panic) => {
                log_panic(queue, run, &*panic);
                BlkStatus::IoErr
            }
        };
        let (kind, members) = (run.kind, &mut run.members[index..=index]);
        queue.finish(complete(queue, kind, members, status));
    }
}

/// What one member comes to; `None` if its queue has taken it back.
fn try_one(
    co: &Co<'_>,
    queue: &DeviceQueue,
    run: &mut Run,
    index: usize,
    lists: &mut Lists,
) -> Option<thread::Result<Result<(), Failure>>> {
    loop {
        let (offset_bytes, segments) = run.parts().nth(index)?;
        let kind = run.kind;
        let tried = co.catch_unwind(|| transfer(co, queue, lists, kind, offset_bytes, segments));
        Run::ended(&queue.mem, kind, segments);
        if !matches!(tried, Ok(Err(Failure::GivenBack))) {
            return Some(tried);
        }
        if take_back(co, queue, &mut run.members[index..=index]) {
            return None;
        }
    }
}

/// The backend gives requests back because a queue stops. If it is theirs, it takes them back; if
/// not, they are to be tried again, once the other has stopped.
#[cold]
fn take_back(co: &Co<'_>, queue: &DeviceQueue, members: &mut [Member]) -> bool {
    let stops = !queue.co_goes_on(co);
    if stops {
        queue.put_back(members.iter_mut().filter_map(|member| member.request.take()));
    }
    stops
}

#[inline]
fn answer_all(queue: &DeviceQueue, run: &mut Run, status: BlkStatus) {
    trace_event!(
        "virtio_blk_rw_complete",
        queue = queue.index(),
        offset = run.offset_bytes,
        requests = run.members.len(),
        ?status
    );
    queue.finish(complete(queue, run.kind, &mut run.members, status));
}

#[inline]
fn complete(
    queue: &DeviceQueue,
    kind: RunKind,
    members: &mut [Member],
    status: BlkStatus,
) -> impl Iterator<Item = CompletedRequest> {
    members.iter_mut().filter_map(move |member| {
        let read = kind == RunKind::Read && status == BlkStatus::Ok;
        let data_bytes = if read { member.len_bytes } else { 0 };
        member.request.take().map(|request| request.complete(queue, status, data_bytes))
    })
}

#[cold]
fn log_panic(queue: &DeviceQueue, run: &Run, panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(
        device = queue.device_name(),
        queue = queue.index(),
        kind = ?run.kind,
        offset = run.offset_bytes,
        bytes = run.len_bytes,
        panic = message,
        "a request panicked; it fails, the device goes on"
    );
}
