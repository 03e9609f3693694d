//! `throttle`: limits how much passes, in bytes and operations a second, shared by the nodes of a
//! group.

mod bucket;
mod config;
mod group;
mod limits;

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coblk_aio::{Co, IoVector, IoVectorMut};

use self::bucket::Direction;
pub use self::config::ThrottleNodeOptions;
use self::group::MemberId;
pub use self::group::ThrottleGroup;
pub use self::limits::{Rate, ThrottleError, ThrottleLimits};
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::driver::role::ChildRole;
use crate::graph::Child;
use crate::graph::filter::Filter;
use crate::graph::node::BlockNode;

/// A filter that lets requests pass at the pace of its [`ThrottleGroup`].
///
/// The requests of a node pass in their order; nodes of one group take turns, reads and writes
/// apart. Zeroes and discards are writes; a flush never waits. A drain does not wait for the pace:
/// what it finds waiting passes at once, and is counted.
///
/// ```
/// # use coblk_block::{BlockNode, drivers::Null};
/// use coblk_block::filters::throttle::{Rate, Throttle, ThrottleGroup, ThrottleLimits};
///
/// // 100 operations a second, and 1000 a second for half a minute after a rest.
/// let iops_total = Rate::new(100).burst(1000, 30);
/// let limits = ThrottleLimits { iops_total, ..ThrottleLimits::default() };
/// let group = ThrottleGroup::new("guests", limits)?;
/// let disk = BlockNode::new("disk", Null::new(1 << 30));
/// let node = BlockNode::new("throttled", Throttle::new(disk, &group));
/// # Ok::<(), coblk_block::filters::throttle::ThrottleError>(())
/// ```
pub struct Throttle {
    child: Child,
    /// Changes while nothing is in flight.
    membership: ArcSwap<Membership>,
}

/// A place in a group.
struct Membership {
    group: ThrottleGroup,
    member: MemberId,
}

impl Membership {
    fn new(group: &ThrottleGroup) -> Arc<Membership> {
        Arc::new(Membership { group: group.clone(), member: group.join() })
    }

    fn set_released(&self, released: bool) {
        self.group.set_released(self.member, released);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.group.leave(self.member);
    }
}

impl Throttle {
    /// A filter on `child`, in `group`.
    pub fn new(child: Arc<BlockNode>, group: &ThrottleGroup) -> Throttle {
        Throttle::on(Child::new("file", ChildRole::FILTER, child), Membership::new(group))
    }

    fn on(child: Child, membership: Arc<Membership>) -> Throttle {
        Throttle { child, membership: ArcSwap::new(membership) }
    }

    fn pass(&self, co: &Co<'_>, direction: Direction, bytes: u64) {
        let membership = self.membership.load();
        membership.group.pass(co, membership.member, direction, bytes);
    }
}

impl Filter for Throttle {
    fn name(&self) -> &'static str {
        "throttle"
    }

    fn child(&self) -> &Child {
        &self.child
    }

    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.pass(co, Direction::Read, target.len() as u64);
        self.child.co_preadv(co, offset, target, flags)
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.pass(co, Direction::Write, source.len() as u64);
        self.child.co_pwritev(co, offset, source, flags)
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        self.pass(co, Direction::Write, bytes);
        self.child.co_pwrite_zeroes(co, offset, bytes, flags)
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.pass(co, Direction::Write, bytes);
        self.child.co_pdiscard(co, offset, bytes)
    }

    fn drained_begin(&self) {
        self.membership.load().set_released(true);
    }

    fn drained_end(&self) {
        self.membership.load().set_released(false);
    }
}
