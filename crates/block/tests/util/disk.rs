//! A disk in memory that records what it is asked, checks that it fits its limits, and fails or
//! stops where a test wants it to.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, CoWaker, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockLimits, ReadFlags, Truncate, WriteFlags, ZeroFlags};

/// What the disk was asked, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read(u64, u64),
    Write(u64, u64, WriteFlags),
    Zeroes(u64, u64, ZeroFlags),
    Discard(u64, u64),
    Flush,
    Truncate(u64),
}

/// What happens to a request that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    Fail(i32),
    /// It waits for [`Disk::release`], and then goes.
    Hold,
    /// Its driver panics.
    Panic,
}

type Judge = Box<dyn FnMut(Op) -> Verdict + Send>;

/// What a discarded byte reads as.
pub const DISCARDED: u8 = 0xDD;

pub struct Disk {
    limits: BlockLimits,
    length: AtomicU64,
    data: Mutex<Vec<u8>>,
    /// What a power cut would leave.
    durable: Mutex<Vec<u8>>,
    ops: Mutex<Vec<Op>>,
    judge: Mutex<Judge>,
    held: Mutex<VecDeque<CoWaker>>,
    /// What held requests fail with, if not 0.
    held_errno: AtomicI32,
}

impl Disk {
    /// A disk of zeroes.
    pub fn new(length: u64, limits: BlockLimits) -> Arc<Disk> {
        let stored = length.next_multiple_of(u64::from(limits.request_alignment));
        Arc::new(Disk {
            limits,
            length: AtomicU64::new(length),
            data: Mutex::new(vec![0; stored as usize]),
            durable: Mutex::new(vec![0; stored as usize]),
            ops: Mutex::default(),
            judge: Mutex::new(Box::new(|_| Verdict::Go)),
            held: Mutex::default(),
            held_errno: AtomicI32::new(0),
        })
    }

    /// Who decides about requests from now on.
    pub fn judge(&self, judge: impl FnMut(Op) -> Verdict + Send + 'static) {
        *self.judge.lock().unwrap() = Box::new(judge);
    }

    /// Lets the oldest request go that is held. False if there is none.
    pub fn release(&self) -> bool {
        let waker = self.held.lock().unwrap().pop_front();
        waker.map(CoWaker::wake).is_some()
    }

    /// Those that are held will fail.
    pub fn fail_held(&self, errno: i32) {
        self.held_errno.store(errno, Ordering::SeqCst);
    }

    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// What it was asked since the last call.
    pub fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut *self.ops.lock().unwrap())
    }

    pub fn data(&self) -> Vec<u8> {
        self.data.lock().unwrap().clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.durable.lock().unwrap().clone()
    }

    /// Its bytes from now on; what is left of the last block stays.
    pub fn set(&self, data: &[u8]) {
        self.data.lock().unwrap()[..data.len()].copy_from_slice(data);
    }

    pub fn fill(&self, byte: u8) {
        self.data.lock().unwrap().fill(byte);
    }

    fn check(&self, offset: u64, ranges: &[libc::iovec], bytes: usize) {
        let (limits, alignment) = (&self.limits, u64::from(self.limits.request_alignment));
        assert!((offset | bytes as u64).is_multiple_of(alignment), "{offset}+{bytes}");
        assert!(bytes as u64 <= limits.max_transfer && ranges.len() <= limits.max_iov);
        let memory = limits.memory_alignment as usize;
        assert!(ranges.iter().all(|it| (it.iov_base as usize | it.iov_len).is_multiple_of(memory)));
        let end = self.length.load(Ordering::SeqCst).next_multiple_of(alignment);
        assert!(offset + bytes as u64 <= end, "{offset}+{bytes} of {end}");
    }

    /// Records the request, waits if it is to, and runs it in a job, so that a simulated context
    /// decides when.
    fn serve(&self, co: &Co<'_>, op: Op, run: impl FnOnce(&mut Vec<u8>) + Send) -> io::Result<()> {
        self.ops.lock().unwrap().push(op);
        let verdict = (self.judge.lock().unwrap())(op);
        match verdict {
            Verdict::Go => {}
            Verdict::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Verdict::Panic => panic!("the driver is told to panic"),
            Verdict::Hold => {
                co.suspend_with(|waker| self.held.lock().unwrap().push_back(waker));
                let errno = self.held_errno.swap(0, Ordering::SeqCst);
                if errno != 0 {
                    return Err(io::Error::from_raw_os_error(errno));
                }
            }
        }
        let work = || run(&mut self.data.lock().unwrap());
        match co.context().simulation() {
            Some(_) => co.context().thread_pool().submit_co(co, work),
            None => work(),
        }
        Ok(())
    }
}

/// The driver of a [`Disk`], which the test keeps a handle on.
pub struct OnDisk(pub Arc<Disk>);

impl BlockDriver for OnDisk {
    fn format_name(&self) -> &'static str {
        "test-disk"
    }

    fn length(&self) -> u64 {
        self.0.length.load(Ordering::SeqCst)
    }

    fn limits(&self) -> BlockLimits {
        self.0.limits
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let bytes = target.len();
        self.0.check(offset, target.as_iovecs(), bytes);
        self.0.serve(co, Op::Read(offset, bytes as u64), |data| {
            target.copy_from(0, &data[offset as usize..][..bytes]);
        })
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let bytes = source.len();
        self.0.check(offset, source.as_iovecs(), bytes);
        self.0.serve(co, Op::Write(offset, bytes as u64, flags), |data| {
            source.copy_to(0, &mut data[offset as usize..][..bytes]);
        })
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        // No more than it must: what is written after its call is not covered.
        let covered = self.0.data();
        self.0.serve(co, Op::Flush, |_| {})?;
        *self.0.durable.lock().unwrap() = covered;
        Ok(())
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.0.serve(co, Op::Zeroes(offset, bytes, flags), |data| {
            data[offset as usize..][..bytes as usize].fill(0);
        })
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.serve(co, Op::Discard(offset, bytes), |data| {
            data[offset as usize..][..bytes as usize].fill(DISCARDED);
        })
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, _: Truncate) -> io::Result<()> {
        self.0.serve(co, Op::Truncate(length), |data| data.resize(length as usize, 0))?;
        self.0.length.store(length, Ordering::SeqCst);
        Ok(())
    }
}
