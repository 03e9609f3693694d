//! `blkdebug`: makes requests fail, wait, or end half-way, by rules. For tests.

mod options;
mod rules;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};

pub use options::{BlkDebugOptions, DebugConstraints, InjectError, SetState};
pub use rules::{KindCounts, Rule, RuleCounts, RuleId, Rules};

use crate::accounting::RequestKind;
use crate::driver::BlockLimits;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::EdgeInfo;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::driver::permissions::Permissions;
use crate::driver::role::ChildRole;
use crate::filter::sleep;
use crate::graph::Child;
use crate::graph::filter::Filter;
use crate::graph::node::BlockNode;

/// A filter that disturbs requests by [`Rules`].
///
/// ```
/// # use coblk_aio::{AioContext, IoVectorMut};
/// # use coblk_block::{BlockBackend, BlockNode, RequestKind, drivers::Null};
/// use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
///
/// let rules = Rules::new(1);
/// rules.add(Rule::fail(libc::EIO).on(RequestKind::Read).nth(2).once());
/// let disk = BlockNode::new("disk", Null::new(1 << 20));
/// let node = BlockNode::new("debug", BlkDebug::new(disk, rules.clone()));
///
/// # let ctx = AioContext::new()?;
/// # let backend = BlockBackend::new(&ctx, "drive", node);
/// # let mut sector = [0u8; 512];
/// let mut read = || backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut sector[..]));
/// assert!(read().is_ok() && read().is_err() && read().is_ok());
/// assert_eq!(rules.kind_counts(RequestKind::Read).failed, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct BlkDebug {
    child: Child,
    rules: Rules,
    /// Whatever `child` does.
    limits: BlockLimits,
    /// Held of `child` besides what its users need.
    take: Permissions,
    /// Not shared with others.
    unshare: Permissions,
}

impl BlkDebug {
    /// A filter on `child`.
    pub fn new(child: Arc<BlockNode>, rules: Rules) -> BlkDebug {
        BlkDebug::on(Child::new("image", ChildRole::FILTER, child), rules)
    }

    fn on(child: Child, rules: Rules) -> BlkDebug {
        let (limits, nothing) = (BlockLimits::passing_on(), Permissions::empty());
        BlkDebug { child, rules, limits, take: nothing, unshare: nothing }
    }

    /// Waits as long as the rules say, and then tells how the request goes on.
    fn judge(&self, co: &Co<'_>, kind: RequestKind, range: Range<u64>) -> Verdict {
        let strike = self.rules.judge(kind, &range);
        if let Some(delay) = strike.delay {
            sleep(co, delay);
        }
        let Some(errno) = strike.errno else { return Verdict::Pass };
        let block = u64::from(self.child.limits().request_alignment);
        let bytes = strike.short_bytes.unwrap_or(0).min(range.end - range.start);
        Verdict::Fail { errno, after_bytes: bytes - bytes % block }
    }
}

/// A write, or zeroes, on their way.
struct Done<'a>(&'a Rules);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.reach(DebugEvent::PwritevDone);
    }
}

/// How a request goes on.
enum Verdict {
    Pass,
    /// Fails, but this much of it is done first.
    Fail {
        errno: i32,
        after_bytes: u64,
    },
}

impl Verdict {
    /// Does `request` with all its bytes, or with as many as it may before it fails.
    fn carry_out(self, bytes: u64, request: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
        match self {
            Verdict::Pass => request(bytes),
            Verdict::Fail { errno, after_bytes } => {
                if after_bytes > 0 {
                    request(after_bytes)?;
                }
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// The range of a request; the request path has checked that it ends within the length.
fn range(offset: u64, bytes: u64) -> Range<u64> {
    offset..offset + bytes
}

impl Filter for BlkDebug {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn child(&self) -> &Child {
        &self.child
    }

    fn limits(&self) -> BlockLimits {
        self.limits
    }

    fn child_permissions(
        &self,
        _edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        (held | self.take, shared - self.unshare)
    }

    fn wants_debug_events(&self) -> bool {
        true
    }

    fn debug_event(&self, event: DebugEvent) {
        self.rules.reach(event);
    }

    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let bytes = target.len() as u64;
        let verdict = self.judge(co, RequestKind::Read, range(offset, bytes));
        verdict.carry_out(bytes, |part| {
            if part == bytes {
                return self.child.co_preadv_blocks(co, offset, target, flags);
            }
            self.child.co_preadv_blocks(co, offset, &mut target.slice(0, part as usize), flags)
        })
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let bytes = source.len() as u64;
        self.rules.reach(DebugEvent::Pwritev);
        let _done = Done(&self.rules);
        let verdict = self.judge(co, RequestKind::Write, range(offset, bytes));
        verdict.carry_out(bytes, |part| {
            if part == bytes {
                return self.child.co_pwritev_blocks(co, offset, source, flags);
            }
            self.child.co_pwritev_blocks(co, offset, &source.slice(0, part as usize), flags)
        })
    }

    fn flush(&self, co: &Co<'_>) -> io::Result<()> {
        let verdict = self.judge(co, RequestKind::Flush, 0..0);
        verdict.carry_out(0, |_| self.child.co_flush(co))
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        self.rules.reach(DebugEvent::PwritevZero);
        let _done = Done(&self.rules);
        let verdict = self.judge(co, RequestKind::WriteZeroes, range(offset, bytes));
        verdict.carry_out(bytes, |part| self.child.co_pwrite_zeroes(co, offset, part, flags))
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let verdict = self.judge(co, RequestKind::Discard, range(offset, bytes));
        verdict.carry_out(bytes, |part| self.child.co_pdiscard(co, offset, part))
    }
}
