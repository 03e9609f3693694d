//! [`Probe`]: a block driver in memory that notes what it is asked, and can be told to wait or fail.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk::block::ReadFlags;
use coblk::{BlockDriver, BlockLimits, Co, CoWaker, IoVector, IoVectorMut, WriteFlags, ZeroFlags};

/// What a driver was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Offset, and the length of each range.
    Read(u64, Vec<usize>),
    /// Offset, the length of each range, and whether durably.
    Write(u64, Vec<usize>, bool),
    /// Offset and bytes.
    Zeroes(u64, u64),
    /// Offset and bytes.
    Discard(u64, u64),
    /// To make all durable.
    Flush,
    /// The first drain begins.
    DrainedBegin,
    /// The last drain ends.
    DrainedEnd,
}

/// A block driver in memory. A handle: clones are the same driver.
#[derive(Clone)]
pub struct Probe {
    shared: Arc<Shared>,
}

struct Shared {
    limits: BlockLimits,
    read_only: bool,
    memory: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    /// Errors for the next calls; 0 means success.
    errors: Mutex<VecDeque<i32>>,
    can_zero: AtomicBool,
    panics: AtomicBool,
    holds: AtomicBool,
    held: Mutex<VecDeque<CoWaker>>,
    /// Nothing may come in.
    quiet: AtomicBool,
    violations: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Probe {
    /// A driver of `bytes` zero bytes without limits.
    pub fn new(bytes: usize) -> Probe {
        Probe::with(bytes, BlockLimits::default(), false)
    }

    /// A driver with these limits.
    pub fn with_limits(bytes: usize, limits: BlockLimits) -> Probe {
        Probe::with(bytes, limits, false)
    }

    /// A driver that says it cannot be written.
    pub fn read_only(bytes: usize) -> Probe {
        Probe::with(bytes, BlockLimits::default(), true)
    }

    fn with(bytes: usize, limits: BlockLimits, read_only: bool) -> Probe {
        let shared = Shared {
            limits,
            read_only,
            memory: Mutex::new(vec![0; bytes]),
            calls: Mutex::default(),
            errors: Mutex::default(),
            can_zero: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            held: Mutex::default(),
            quiet: AtomicBool::new(false),
            violations: AtomicUsize::new(0),
        };
        Probe { shared: Arc::new(shared) }
    }

    /// What it holds.
    pub fn memory(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.shared.memory)
    }

    /// What it was asked since the last call of this, in order.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.shared.calls))
    }

    /// How much it was asked since then.
    pub fn count_calls(&self) -> usize {
        lock(&self.shared.calls).len()
    }

    /// The next calls end like this: 0 for success, or an errno.
    pub fn next_results(&self, errnos: &[i32]) {
        lock(&self.shared.errors).extend(errnos);
    }

    /// Whether it zeroes by itself, or fails with ENOTSUP (as it does at first).
    pub fn set_can_zero(&self, can_zero: bool) {
        self.shared.can_zero.store(can_zero, Ordering::SeqCst);
    }

    /// Whether requests panic.
    pub fn set_panics(&self, panics: bool) {
        self.shared.panics.store(panics, Ordering::SeqCst);
    }

    /// Whether requests wait, after they have been noted, until [`release`](Self::release).
    pub fn set_holds(&self, holds: bool) {
        self.shared.holds.store(holds, Ordering::SeqCst);
    }

    /// How many requests wait.
    pub fn held(&self) -> usize {
        lock(&self.shared.held).len()
    }

    /// Lets the oldest request that waits go on.
    pub fn release(&self) {
        let oldest = lock(&self.shared.held).pop_front();
        oldest.expect("a request that waits").wake();
    }

    /// From now on a request that comes in is a [violation](Self::violations), or no longer.
    pub fn set_quiet(&self, quiet: bool) {
        self.shared.quiet.store(quiet, Ordering::SeqCst);
    }

    /// Requests that came in, or ended, while all was to be quiet.
    pub fn violations(&self) -> usize {
        self.shared.violations.load(Ordering::SeqCst)
    }

    fn note(&self, call: Call) {
        lock(&self.shared.calls).push(call);
    }

    fn check_quiet(&self) {
        if self.shared.quiet.load(Ordering::SeqCst) {
            self.shared.violations.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Notes a request, and ends it as it was told.
    fn request(&self, co: &Co<'_>, call: Call) -> io::Result<()> {
        self.check_quiet();
        self.note(call);
        assert!(!self.shared.panics.load(Ordering::SeqCst), "told to panic");
        if self.shared.holds.load(Ordering::SeqCst) {
            co.suspend_with(|waker| lock(&self.shared.held).push_back(waker));
        }
        self.check_quiet();
        match lock(&self.shared.errors).pop_front() {
            None | Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The lengths of the ranges, whose addresses must be aligned as the limits say.
fn ranges(limits: &BlockLimits, ranges: &[libc::iovec]) -> Vec<usize> {
    let alignment = limits.memory_alignment as usize;
    for range in ranges {
        let address = range.iov_base as usize;
        assert!(address.is_multiple_of(alignment), "memory at {address:#x}, not at {alignment}");
    }
    ranges.iter().map(|range| range.iov_len).collect()
}

impl BlockDriver for Probe {
    fn format_name(&self) -> &'static str {
        "probe"
    }
    fn length(&self) -> u64 {
        self.memory().len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.shared.read_only
    }
    fn limits(&self) -> BlockLimits {
        self.shared.limits
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let lengths = ranges(&self.shared.limits, target.as_iovecs());
        self.request(co, Call::Read(offset, lengths))?;
        target.copy_from(0, &self.memory()[offset as usize..]);
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let lengths = ranges(&self.shared.limits, source.as_iovecs());
        self.request(co, Call::Write(offset, lengths, flags.contains(WriteFlags::FUA)))?;
        let from = offset as usize;
        source.copy_to(0, &mut self.memory()[from..from + source.len()]);
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.request(co, Call::Flush)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        self.request(co, Call::Zeroes(offset, bytes))?;
        if !self.shared.can_zero.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        self.memory()[offset as usize..(offset + bytes) as usize].fill(0);
        Ok(())
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.request(co, Call::Discard(offset, bytes))
    }

    fn drained_begin(&self) {
        self.note(Call::DrainedBegin);
    }

    fn drained_end(&self) {
        self.note(Call::DrainedEnd);
    }
}
