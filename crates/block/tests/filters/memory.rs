//! [`Memory`]: a disk that is a vector, and notes its requests; and contexts to use it from.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::{BlockDriver, BlockLimits, BlockNode, ReadFlags, WriteFlags, ZeroFlags};

/// A disk in memory. A handle: clones are the same disk.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    request_alignment: u32,
    bytes: Mutex<Vec<u8>>,
    /// Kind, offset and bytes of each request, in the order in which they came.
    log: Mutex<Vec<(&'static str, u64, u64)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub fn new(bytes: usize) -> Memory {
        Memory::aligned(bytes, 1)
    }

    pub fn aligned(bytes: usize, request_alignment: u32) -> Memory {
        let shared =
            Shared { request_alignment, bytes: Mutex::new(vec![0; bytes]), log: Mutex::default() };
        Memory { shared: Arc::new(shared) }
    }

    pub fn node(&self, name: &str) -> Arc<BlockNode> {
        BlockNode::new(name, self.clone())
    }

    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.shared.bytes)
    }

    pub fn take_log(&self) -> Vec<(&'static str, u64, u64)> {
        std::mem::take(&mut lock(&self.shared.log))
    }

    fn note(&self, kind: &'static str, offset: u64, bytes: u64) {
        lock(&self.shared.log).push((kind, offset, bytes));
    }
}

impl BlockDriver for Memory {
    fn format_name(&self) -> &'static str {
        "memory"
    }
    fn length(&self) -> u64 {
        self.bytes().len() as u64
    }
    fn limits(&self) -> BlockLimits {
        BlockLimits { request_alignment: self.shared.request_alignment, ..BlockLimits::default() }
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        self.note("read", offset, target.len() as u64);
        target.copy_from(0, &self.bytes()[offset as usize..]);
        Ok(())
    }
    fn co_pwritev(
        &self,
        _: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        self.note("write", offset, source.len() as u64);
        let from = offset as usize;
        source.copy_to(0, &mut self.bytes()[from..from + source.len()]);
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        self.note("flush", 0, 0);
        Ok(())
    }
    fn co_pwrite_zeroes(
        &self,
        _: &Co<'_>,
        offset: u64,
        bytes: u64,
        _: ZeroFlags,
    ) -> io::Result<()> {
        self.note("zeroes", offset, bytes);
        self.bytes()[offset as usize..(offset + bytes) as usize].fill(0);
        Ok(())
    }
    fn co_pdiscard(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.note("discard", offset, bytes);
        Ok(())
    }
}

/// A simulated context, whose clock moves by itself.
pub fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().expect("a context")
}

/// The errno of a result that must be an error.
#[track_caller]
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("an error").raw_os_error().expect("an error with an errno")
}
