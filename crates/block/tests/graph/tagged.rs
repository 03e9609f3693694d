//! [`Tagged`]: a disk that tells who it is, takes its time, and notes what should not happen; and
//! [`Both`]: a driver on two nodes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockBackend, BlockDriver, BlockNode, Child, ChildRole, EdgeId, ReadFlags, Truncate, WriteFlags,
};

/// A disk on which every byte reads as its tag. A handle: clones are the same disk.
#[derive(Clone)]
pub struct Tagged {
    shared: Arc<Shared>,
}

struct Shared {
    tag: u8,
    length: u64,
    /// Requests go on only when it is false.
    held: AtomicBool,
    in_flight: AtomicU64,
    served: AtomicU64,
    /// Requests that came, or were there, while the node was quiet.
    violations: AtomicU64,
    quiet: AtomicBool,
    hooks: Mutex<String>,
}

impl Tagged {
    pub fn new(tag: u8) -> Tagged {
        Tagged::with_length(tag, 4096)
    }

    pub fn with_length(tag: u8, length: u64) -> Tagged {
        let shared = Shared {
            tag,
            length,
            held: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            served: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            hooks: Mutex::default(),
        };
        Tagged { shared: Arc::new(shared) }
    }

    pub fn node(&self, name: &str) -> Arc<BlockNode> {
        BlockNode::new(name, self.clone())
    }

    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::SeqCst);
    }

    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// From now on nothing may be in flight, until it may.
    pub fn set_quiet(&self, quiet: bool) {
        self.shared.quiet.store(quiet, Ordering::SeqCst);
        let in_flight = if quiet { self.in_flight() } else { 0 };
        self.shared.violations.fetch_add(in_flight, Ordering::SeqCst);
    }

    pub fn violations(&self) -> u64 {
        self.shared.violations.load(Ordering::SeqCst)
    }

    /// `(` for each begin of a drain, `)` for each end.
    pub fn hooks(&self) -> String {
        self.shared.hooks.lock().unwrap().clone()
    }

    fn serve(&self, co: &Co<'_>) {
        self.take_time(co);
        self.shared.served.fetch_add(1, Ordering::SeqCst);
    }

    fn take_time(&self, co: &Co<'_>) {
        let shared = &self.shared;
        if shared.quiet.load(Ordering::SeqCst) {
            shared.violations.fetch_add(1, Ordering::SeqCst);
        }
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        co.yield_now();
        while shared.held.load(Ordering::SeqCst) {
            co.yield_now();
        }
        shared.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDriver for Tagged {
    fn format_name(&self) -> &'static str {
        "tagged"
    }
    fn length(&self) -> u64 {
        self.shared.length
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        self.serve(co);
        target.fill_from(0, self.shared.tag);
        Ok(())
    }
    fn co_pwritev(&self, co: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        self.serve(co);
        Ok(())
    }
    /// Not counted: changes of the graph flush, too.
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.take_time(co);
        Ok(())
    }
    fn co_truncate(&self, co: &Co<'_>, _: u64, _: Truncate) -> io::Result<()> {
        self.serve(co);
        Ok(())
    }
    fn drained_begin(&self) {
        self.shared.hooks.lock().unwrap().push('(');
    }
    fn drained_end(&self) {
        self.shared.hooks.lock().unwrap().push(')');
    }
}

/// Stands on two nodes; reads the first, writes to both.
pub struct Both(pub Child, pub Child);

impl Both {
    pub fn node(name: &str, first: &Arc<BlockNode>, second: &Arc<BlockNode>) -> Arc<BlockNode> {
        let child = |name, node| Child::new(name, ChildRole::FILTER, Arc::clone(node));
        BlockNode::new(name, Both(child("first", first), child("second", second)))
    }
}

impl BlockDriver for Both {
    fn format_name(&self) -> &'static str {
        "both"
    }
    fn length(&self) -> u64 {
        self.0.length()
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.0.id(), self.1.id()]
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.0.co_preadv(co, offset, target, flags)
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.0.co_pwritev(co, offset, source, flags)?;
        self.1.co_pwritev(co, offset, source, flags)
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.0.co_flush(co)?;
        self.1.co_flush(co)
    }
}

/// Reads a byte.
pub fn co_read(co: &Co<'_>, backend: &BlockBackend) -> io::Result<u8> {
    let mut byte = [0];
    backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut byte[..])).map(|()| byte[0])
}

/// Reads a byte.
pub fn read(ctx: &AioContext, backend: &BlockBackend) -> io::Result<u8> {
    ctx.run(|co| co_read(co, backend))
}
