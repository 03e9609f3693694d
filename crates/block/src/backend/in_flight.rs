//! Lists of the requests in flight, for messages that say what is in the way.
//!
//! Each request notes itself in its coroutine ([`Co::note`]), which is a few plain stores; only a
//! listing looks up whose it is.

use std::fmt;
use std::time::Duration;

use coblk_aio::{AioContext, Co};

use crate::accounting::RequestKind;
use crate::backend::root::Request;
use crate::graph::{self, UserId};

/// A request that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The name of the backend that it came to.
    pub backend: String,
    /// The node that the backend was on when the listing was made.
    pub node: String,
    /// Its kind.
    pub kind: RequestKind,
    /// Its offset in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// How long it has been in flight, by a clock that ticks every few milliseconds.
    pub age: Duration,
    /// The name of what its coroutine waits for.
    pub waits_for: &'static str,
}

impl fmt::Display for RequestInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestInfo { backend, node, kind, offset, bytes, age, waits_for } = self;
        let kind = kind.name();
        write!(f, "node '{node}', backend '{backend}': {kind}")?;
        if *bytes > 0 {
            write!(f, " of {bytes} bytes at offset {offset}")?;
        }
        write!(f, ", {:.1} s old, waits for {waits_for}", age.as_secs_f64())
    }
}

/// The requests of a context that have not ended, the youngest first. Home thread.
pub fn requests_in_flight(ctx: &AioContext) -> Vec<RequestInfo> {
    let coroutines = ctx.coroutines();
    let request = |coroutine: coblk_aio::CoroutineInfo| {
        let note = coroutine.note?;
        let (user, kind) = from_tag(note.tag)?;
        let (backend, node) = graph::lock().backend_and_node(user)?;
        Some(RequestInfo {
            backend,
            node,
            kind,
            offset: note.offset,
            bytes: note.bytes,
            age: note.age,
            waits_for: coroutine.waits_for,
        })
    };
    coroutines.into_iter().filter_map(request).collect()
}

const KIND_BITS: u32 = 4;
const _: () = assert!(RequestKind::COUNT < 1 << KIND_BITS);

/// Not 0, as there is no user with that number.
#[inline]
fn tag(user: UserId, kind: RequestKind) -> u64 {
    user.number() << KIND_BITS | kind.index() as u64
}

fn from_tag(tag: u64) -> Option<(UserId, RequestKind)> {
    let kind = RequestKind::ALL.get((tag & ((1 << KIND_BITS) - 1)) as usize)?;
    Some((UserId::from_number(tag >> KIND_BITS), *kind))
}

/// Runs a request of a backend that is listed meanwhile.
#[inline]
pub(crate) fn noted<R>(
    co: &Co<'_>,
    request: &mut Option<Request>,
    kind: RequestKind,
    (offset, bytes): (u64, u64),
    run: impl FnOnce(&mut Option<Request>) -> R,
) -> R {
    if let Some(request) = request {
        co.note(tag(request.user(), kind), offset, bytes);
    }
    let result = run(request);
    co.clear_note();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::Null;
    use crate::{BlockBackend, BlockNode};

    #[test]
    fn a_request_is_listed_until_it_ends() {
        let ctx = AioContext::for_test().unwrap();
        let node = BlockNode::new("disk", Null::new(1 << 20).deferred(true));
        let backend = BlockBackend::new(&ctx, "drive", node);
        let request = backend.clone();
        ctx.spawn("request", move |co| {
            request.co_pdiscard(co, 4096, 512).unwrap();
            request.co_flush(co).unwrap();
        });
        let listed = requests_in_flight(&ctx);
        assert_eq!(listed.len(), 1, "{listed:?}");
        // A discard is not supported, so it is the flush that waits.
        assert_eq!(listed[0].kind, RequestKind::Flush);
        let line = listed[0].to_string();
        assert!(line.starts_with("node 'disk', backend 'drive': flush, 0."), "{line}");
        ctx.try_poll();
        assert_eq!(requests_in_flight(&ctx), []);
        let zeroes = backend.clone();
        ctx.spawn("request", move |co| {
            zeroes.co_pwrite_zeroes(co, 4096, 512, crate::ZeroFlags::empty()).unwrap();
        });
        let line = requests_in_flight(&ctx)[0].to_string();
        assert!(line.contains("write-zeroes of 512 bytes at offset 4096, 0."), "{line}");
        ctx.try_poll();
    }
}
