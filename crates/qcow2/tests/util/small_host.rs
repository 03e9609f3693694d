//! [`SmallHost`]: a file in memory whose host has space for so many pages.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, Blockdevs, ReadFlags, Truncate,
    WriteFlags, ZeroFlags,
};
use coblk_qcow2::Qcow2;
use serde_json::{Value, json};

pub const PAGE: usize = 4096;

/// A file. A handle: clones are the same.
#[derive(Clone)]
pub struct SmallHost(Arc<Mutex<State>>);

struct State {
    content: Vec<u8>,
    /// Pages that take space.
    there: BTreeSet<usize>,
    /// Pages that there is space for.
    room: usize,
    /// The next read of so many bytes, or more, waits.
    held_from: Option<usize>,
    is_holding: bool,
    /// Discards wait.
    holds_punches: bool,
    /// How many wait.
    held: usize,
    /// Offsets of reads.
    reads: Vec<u64>,
    flushes: usize,
}

impl SmallHost {
    /// A file with this content, for which there is just the space.
    pub fn new(content: Vec<u8>) -> SmallHost {
        let pages = content.len().div_ceil(PAGE);
        SmallHost(Arc::new(Mutex::new(State {
            content,
            there: (0..pages).collect(),
            room: pages,
            held_from: None,
            is_holding: false,
            holds_punches: false,
            held: 0,
            reads: Vec::new(),
            flushes: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The host has space for so many pages more, or fewer.
    pub fn add_room(&self, pages: usize) {
        self.state().room += pages;
    }

    /// Pages that there is space for, and none are.
    pub fn free(&self) -> usize {
        let state = self.state();
        state.room - state.there.len()
    }

    /// The next read of so many bytes, or more, waits until it is released.
    pub fn hold_read(&self, held_from: usize) {
        let mut state = self.state();
        (state.held_from, state.is_holding) = (Some(held_from), true);
    }

    /// Discards wait until they are released.
    pub fn hold_punches(&self) {
        self.state().holds_punches = true;
    }

    /// What waits goes on.
    pub fn release(&self) {
        let mut state = self.state();
        (state.held_from, state.is_holding, state.holds_punches) = (None, false, false);
    }

    /// How many reads and discards wait.
    pub fn held(&self) -> usize {
        self.state().held
    }

    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// How many flushes there were.
    pub fn flushes(&self) -> usize {
        self.state().flushes
    }

    /// Offsets of reads since this was asked last.
    pub fn take_reads(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().reads)
    }
}

impl State {
    /// Has space for a range, or for none of it.
    fn have(&mut self, range: Range<usize>) -> io::Result<()> {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        let missing = pages.clone().filter(|page| !self.there.contains(page)).count();
        if self.there.len() + missing > self.room {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.there.extend(pages);
        Ok(())
    }

    fn punch(&mut self, range: Range<usize>) {
        self.content[range.clone()].fill(0);
        let pages = range.start.div_ceil(PAGE)..range.end / PAGE;
        self.there.retain(|page| !pages.contains(page));
    }
}

impl BlockDriver for SmallHost {
    fn format_name(&self) -> &'static str {
        "small-host"
    }

    fn length(&self) -> u64 {
        self.state().content.len() as u64
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        co.yield_now();
        self.state().reads.push(offset);
        let bytes = target.len();
        let is_held = self.state().held_from.take_if(|from| bytes >= *from).is_some();
        if is_held {
            self.state().held += 1;
            while self.state().is_holding {
                co.sleep(Duration::from_millis(1));
            }
            self.state().held -= 1;
        }
        let state = self.state();
        target.copy_from(0, &state.content[offset as usize..][..target.len()]);
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        co.yield_now();
        let mut state = self.state();
        let range = offset as usize..offset as usize + source.len();
        state.have(range.clone())?;
        source.copy_to(0, &mut state.content[range]);
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        co.yield_now();
        self.state().flushes += 1;
        Ok(())
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        _: ZeroFlags,
    ) -> io::Result<()> {
        co.yield_now();
        let mut state = self.state();
        let range = offset as usize..(offset + bytes) as usize;
        state.have(range.clone())?;
        state.content[range].fill(0);
        Ok(())
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        co.yield_now();
        if self.state().holds_punches {
            self.state().held += 1;
            while self.state().holds_punches {
                co.sleep(Duration::from_millis(1));
            }
            self.state().held -= 1;
        }
        self.state().punch(offset as usize..(offset + bytes) as usize);
        Ok(())
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, _: Truncate) -> io::Result<()> {
        co.yield_now();
        let mut state = self.state();
        state.content.resize(length as usize, 0);
        let pages = (length as usize).div_ceil(PAGE);
        state.there.retain(|page| *page < pages);
        Ok(())
    }
}

/// A node on an image whose file has a small host.
pub struct Disk<'a> {
    pub ctx: &'a AioContext,
    pub blockdevs: Blockdevs,
    pub backend: Option<BlockBackend>,
}

impl Disk<'_> {
    pub fn open<'a>(ctx: &'a AioContext, host: &SmallHost, more: Value) -> Disk<'a> {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        blockdevs.adopt(BlockNode::new("file", host.clone())).unwrap();
        let mut options = json!({"driver": "qcow2", "node-name": "disk", "file": "file"});
        let members = more.as_object().unwrap().clone();
        members.into_iter().for_each(|(name, value)| options[name] = value);
        let options = NodeOptions::from_value(options).unwrap();
        let node = blockdevs.open(ctx, options).unwrap_or_else(|error| panic!("{error}"));
        let backend = BackendOptions::new("writer").open(ctx, node).unwrap();
        Disk { ctx, blockdevs, backend: Some(backend) }
    }

    pub fn backend(&self) -> &BlockBackend {
        self.backend.as_ref().unwrap()
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.backend().pwritev(self.ctx, offset, &IoVector::from(data), WriteFlags::empty())
    }

    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xdb; bytes];
        self.backend().preadv(self.ctx, offset, &mut IoVectorMut::from(&mut data[..])).unwrap();
        data
    }

    pub fn discard(&self, offset: u64, bytes: u64) {
        self.backend().pdiscard(self.ctx, offset, bytes).unwrap();
    }

    pub fn flush(&self) -> std::io::Result<()> {
        self.backend().flush(self.ctx)
    }

    pub fn close(mut self) {
        self.backend = None;
        self.blockdevs.close(self.ctx, "disk").unwrap();
        self.blockdevs.close(self.ctx, "file").unwrap();
    }
}
