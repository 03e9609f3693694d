//! [`Faulty`]: disks in memory whose requests are counted together, and of which some meet a fault.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{Co, CoWaker, IoVector, IoVectorMut};
use coblk_block::{
    BlockDriver, BlockLimits, BlockNode, ReadFlags, Truncate, WriteFlags, ZeroFlags,
};

use super::super::disk::{Disk, OnDisk};
use super::BLOCK;
use super::plan::{Fault, PANIC};

/// The disks of a run.
pub struct Disks {
    pub all: Vec<Arc<Disk>>,
    pub nodes: Vec<Arc<BlockNode>>,
    pub moments: Arc<Mutex<Moments>>,
    limits: BlockLimits,
    length: u64,
}

/// The requests of all disks. Counted from the start of the job on.
#[derive(Default)]
pub struct Moments {
    pub is_counting: bool,
    count: u64,
    at: u64,
    fault: Option<(Fault, u64)>,
    /// The disk that meets the fault.
    disk: Option<usize>,
    /// The request has come.
    pub has_come: bool,
    pub held: Vec<CoWaker>,
    /// Nothing is held any more.
    pub is_over: bool,
}

pub fn lock(moments: &Mutex<Moments>) -> MutexGuard<'_, Moments> {
    moments.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moments {
    /// The disk that has met the fault.
    pub fn disk(&self) -> Option<usize> {
        self.disk
    }

    /// A request arrives at a disk.
    fn arrive(&mut self, disk: usize) -> Fault {
        if !self.is_counting || self.is_over {
            return Fault::None;
        }
        if self.count == self.at {
            (self.has_come, self.disk) = (true, Some(disk));
        }
        self.count += 1;
        match &mut self.fault {
            Some((fault, left)) if self.disk == Some(disk) && *left > 0 => {
                *left -= 1;
                *fault
            }
            _ => Fault::None,
        }
    }
}

impl Disks {
    pub fn new((length, limits): (u64, BlockLimits), at: u64, fault: (Fault, u64)) -> Disks {
        let moments = Moments { at, fault: Some(fault), ..Moments::default() };
        let (all, nodes) = Default::default();
        Disks { all, nodes, moments: Arc::new(Mutex::new(moments)), limits, length }
    }

    /// One more disk, and a node of this name on it.
    pub fn add(&mut self, name: &str) -> (Arc<Disk>, Arc<BlockNode>) {
        let disk = Disk::new(self.length, self.limits);
        let (inner, moments) = (OnDisk(Arc::clone(&disk)), Arc::clone(&self.moments));
        let node = BlockNode::new(name, Faulty { inner, number: self.all.len(), moments });
        self.all.push(Arc::clone(&disk));
        self.nodes.push(Arc::clone(&node));
        (disk, node)
    }
}

/// The driver of a disk of a run.
pub struct Faulty {
    inner: OnDisk,
    number: usize,
    moments: Arc<Mutex<Moments>>,
}

impl Faulty {
    /// Runs a request of which `half` does a part.
    fn run(
        &self,
        co: &Co<'_>,
        whole: impl FnOnce() -> io::Result<()>,
        half: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let fault = lock(&self.moments).arrive(self.number);
        match fault {
            Fault::None => whole(),
            Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Fault::Short => {
                half()?;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Fault::Hang => {
                co.suspend_with(|waker| lock(&self.moments).held.push(waker));
                whole()
            }
            Fault::Panic => std::panic::panic_any(PANIC),
        }
    }

    fn part(bytes: u64) -> u64 {
        bytes / 2 / BLOCK * BLOCK
    }
}

impl BlockDriver for Faulty {
    fn format_name(&self) -> &'static str {
        "faulty"
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn limits(&self) -> BlockLimits {
        self.inner.limits()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.run(co, || self.inner.co_preadv(co, offset, target, flags), || Ok(()))
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let half = || {
            let bytes = Self::part(source.len() as u64) as usize;
            let mut data = vec![0; bytes];
            source.copy_to(0, &mut data);
            match bytes {
                0 => Ok(()),
                _ => self.inner.co_pwritev(co, offset, &IoVector::from(&data[..]), flags),
            }
        };
        self.run(co, || self.inner.co_pwritev(co, offset, source, flags), half)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.run(co, || self.inner.co_flush(co), || Ok(()))
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let half = || match Self::part(bytes) {
            0 => Ok(()),
            part => self.inner.co_pwrite_zeroes(co, offset, part, flags),
        };
        self.run(co, || self.inner.co_pwrite_zeroes(co, offset, bytes, flags), half)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let half = || match Self::part(bytes) {
            0 => Ok(()),
            part => self.inner.co_pdiscard(co, offset, part),
        };
        self.run(co, || self.inner.co_pdiscard(co, offset, bytes), half)
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, truncate: Truncate) -> io::Result<()> {
        self.inner.co_truncate(co, length, truncate)
    }
}
