//! Bytes of an instant: a parent's driver reads them by its edge to a driver that keeps them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockBackend, BlockLimits, BlockNode, Child, ChildRole, ChildSlot, Extent, Filter, ReadFlags,
    SnapshotReads, WriteFlags,
};

use crate::util::disk::{Disk, OnDisk, Verdict};
use crate::util::errno;

const BLOCK: u64 = 512;
const BLOCKS: u64 = 8;
const LENGTH: u64 = BLOCK * BLOCKS;

/// Keeps each block as it was when the filter was made, before the first write to it.
struct CopyBeforeWrite {
    file: Child,
    kept: Mutex<BTreeMap<u64, Vec<u8>>>,
    given_up: Mutex<BTreeSet<u64>>,
}

impl CopyBeforeWrite {
    fn blocks(offset: u64, bytes: u64) -> impl Iterator<Item = u64> {
        offset / BLOCK..(offset + bytes).div_ceil(BLOCK)
    }
}

impl Filter for CopyBeforeWrite {
    fn name(&self) -> &'static str {
        "keeps"
    }
    fn child(&self) -> &Child {
        &self.file
    }
    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        Some(self)
    }
    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        for block in Self::blocks(offset, source.len() as u64) {
            let mut old = vec![0; BLOCK as usize];
            self.file.co_read(co, block * BLOCK, &mut old)?;
            if !self.given_up.lock().unwrap().contains(&block) {
                self.kept.lock().unwrap().entry(block).or_insert(old);
            }
        }
        self.file.co_pwritev(co, offset, source, flags)
    }
}

impl SnapshotReads for CopyBeforeWrite {
    fn co_snapshot_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let bytes = target.len();
        for block in Self::blocks(offset, bytes as u64) {
            if self.given_up.lock().unwrap().contains(&block) {
                return Err(io::Error::from_raw_os_error(libc::EACCES));
            }
            let mut old = vec![0; BLOCK as usize];
            let kept = self.kept.lock().unwrap().get(&block).cloned();
            match kept {
                Some(kept) => old = kept,
                None => self.file.co_read(co, block * BLOCK, &mut old)?,
            }
            let start = offset.max(block * BLOCK);
            let end = (offset + bytes as u64).min((block + 1) * BLOCK);
            let at = (start - block * BLOCK) as usize;
            let part = &old[at..at + (end - start) as usize];
            let mut piece = target.slice((start - offset) as usize, part.len());
            piece.copy_from(0, part);
        }
        Ok(())
    }
    fn co_snapshot_block_status(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let block = offset / BLOCK;
        if self.given_up.lock().unwrap().contains(&block) {
            return Ok(Extent::unallocated((block + 1) * BLOCK - offset));
        }
        // Longer than it was asked for, and nothing for the last block: the layer has to see to that.
        Ok(Extent::data(if block == BLOCKS - 1 { 0 } else { bytes + BLOCK }))
    }
    fn co_snapshot_pdiscard(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        for block in Self::blocks(offset, bytes) {
            self.given_up.lock().unwrap().insert(block);
            self.kept.lock().unwrap().remove(&block);
        }
        Ok(())
    }
}

/// Has the bytes of its child's instant.
struct Access(Child);

impl Filter for Access {
    fn name(&self) -> &'static str {
        "access"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.0.co_snapshot_preadv(co, offset, target, flags)
    }
    fn status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.0.co_snapshot_block_status(co, offset, bytes)
    }
}

/// Keeps nothing but what is there now, and has no status and discard of its own.
struct OnlyReads(Child);

impl Filter for OnlyReads {
    fn name(&self) -> &'static str {
        "only-reads"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        Some(self)
    }
}

impl SnapshotReads for OnlyReads {
    fn co_snapshot_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.0.co_preadv(co, offset, target, flags)
    }
}

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    image: Arc<BlockNode>,
    keeps: Arc<BlockNode>,
}

fn scene() -> Scene {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(LENGTH, BlockLimits::default());
    disk.fill(1);
    let image = BlockNode::new("image", OnDisk(Arc::clone(&disk)));
    let file = Child::new("file", ChildRole::FILTER, Arc::clone(&image));
    let keeps = CopyBeforeWrite { file, kept: Mutex::default(), given_up: Mutex::default() };
    Scene { ctx, disk, image, keeps: BlockNode::new("keeps", keeps) }
}

fn child(node: &Arc<BlockNode>) -> Child {
    Child::new("file", ChildRole::FILTER, Arc::clone(node))
}

fn read(co: &Co<'_>, child: &Child, offset: u64, target: &mut [u8]) -> io::Result<()> {
    child.co_snapshot_preadv(co, offset, &mut IoVectorMut::from(target), ReadFlags::empty())
}

#[test]
fn the_bytes_of_an_instant_stay_after_writes() {
    let Scene { ctx, keeps, .. } = scene();
    let access = BlockNode::new("access", Access(child(&keeps)));
    let writer = BlockBackend::new(&ctx, "writer", keeps);
    let reader = BlockBackend::new(&ctx, "reader", access);
    ctx.run(|co| {
        writer.co_write(co, 700, &[2; 1000]).unwrap();
        let (mut now, mut then) = ([0; LENGTH as usize], [0; LENGTH as usize]);
        writer.co_read(co, 0, &mut now).unwrap();
        reader.co_read(co, 0, &mut then).unwrap();
        assert!(now[700..1700] == [2; 1000] && then == [1; LENGTH as usize]);
        let mut part = [0; 601];
        reader.co_read(co, 699, &mut part).unwrap();
        assert_eq!(part, [1; 601], "any offset and length");
        let extent = reader.co_block_status(co, 100, 1000).unwrap();
        assert_eq!(extent, Extent::data(1000), "cut to what was asked for");
    });
}

#[test]
fn what_is_given_up_of_an_instant_is_not_kept_any_more() {
    let Scene { ctx, disk, keeps, .. } = scene();
    let edge = child(&keeps);
    ctx.run(|co| {
        edge.co_snapshot_pdiscard(co, BLOCK, 2 * BLOCK).unwrap();
        assert_eq!(errno(read(co, &edge, BLOCK, &mut [0; 1])), libc::EACCES);
        read(co, &edge, 0, &mut [0; BLOCK as usize]).unwrap();
        let extent = edge.co_snapshot_block_status(co, BLOCK + 12, 2000).unwrap();
        assert_eq!(extent, Extent::unallocated(500));
    });
    assert_eq!(disk.data(), [1; LENGTH as usize], "the bytes of now stay");
}

#[test]
fn a_child_without_an_instant_says_so() {
    let Scene { ctx, image, .. } = scene();
    let only_reads = BlockNode::new("only-reads", OnlyReads(child(&image)));
    let (without, reads) = (child(&image), child(&only_reads));
    ctx.run(|co| {
        assert_eq!(errno(read(co, &without, 0, &mut [0; 1])), libc::ENOTSUP);
        assert_eq!(errno(without.co_snapshot_block_status(co, 0, 1)), libc::ENOTSUP);
        assert_eq!(errno(without.co_snapshot_pdiscard(co, 0, 1)), libc::ENOTSUP);
        read(co, &reads, 0, &mut [0; 1]).unwrap();
        let all = reads.co_snapshot_block_status(co, 0, LENGTH).unwrap();
        assert_eq!(all, Extent { end: true, ..Extent::data(LENGTH) });
        assert_eq!(errno(reads.co_snapshot_pdiscard(co, 0, 1)), libc::ENOTSUP);
    });
}

#[test]
fn requests_to_an_instant_end_with_the_child() {
    let Scene { ctx, disk, keeps, .. } = scene();
    let edge = child(&keeps);
    let slot = ChildSlot::new("backing", ChildRole::FILTER, Some(Arc::clone(&keeps)));
    disk.take_ops();
    ctx.run(|co| {
        let in_slot = slot.get().unwrap();
        for (offset, bytes) in [(LENGTH, 1), (LENGTH - 1, 2), (u64::MAX, 1), (u64::MAX, 2)] {
            let mut target = vec![0; bytes];
            let bytes = bytes as u64;
            assert_eq!(errno(read(co, &edge, offset, &mut target)), libc::EIO);
            assert_eq!(errno(edge.co_snapshot_block_status(co, offset, bytes)), libc::EIO);
            assert_eq!(errno(in_slot.co_snapshot_block_status(co, offset, bytes)), libc::EIO);
            assert_eq!(errno(edge.co_snapshot_pdiscard(co, offset, bytes)), libc::EIO);
            assert_eq!(errno(in_slot.co_snapshot_pdiscard(co, offset, bytes)), libc::EIO);
        }
        // The driver says that it knows of no bytes.
        let last = LENGTH - BLOCK;
        assert_eq!(errno(edge.co_snapshot_block_status(co, last, BLOCK)), libc::EIO);
        // Nothing is no request.
        read(co, &edge, LENGTH, &mut []).unwrap();
        assert_eq!(edge.co_snapshot_block_status(co, LENGTH, 0).unwrap().bytes, 0);
        edge.co_snapshot_pdiscard(co, last + 1, 0).unwrap();
        assert!(disk.take_ops().is_empty(), "the driver was not asked");
        let mut bytes = [0; 2];
        let target = &mut IoVectorMut::from(&mut bytes[..]);
        in_slot.co_snapshot_preadv(co, LENGTH - 2, target, ReadFlags::empty()).unwrap();
        assert_eq!(bytes, [1, 1]);
    });
}

#[test]
fn a_drain_waits_for_a_read_of_an_instant() {
    let Scene { ctx, disk, keeps, .. } = scene();
    let access = BlockNode::new("access", Access(child(&keeps)));
    let reader = BlockBackend::new(&ctx, "reader", access);
    disk.judge(|_| Verdict::Hold);
    let (was_read, drained) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let seen = Rc::clone(&was_read);
    ctx.spawn("read", move |co| {
        reader.co_read(co, 0, &mut [0; 1]).unwrap();
        seen.set(true);
    });
    ctx.run_until(|| disk.held() == 1);
    let (seen, before) = (Rc::clone(&drained), Rc::clone(&was_read));
    ctx.spawn("drain", move |co| {
        let _section = keeps.co_drain(co);
        assert!(before.get(), "the read comes first");
        seen.set(true);
    });
    while ctx.try_poll() {}
    assert!(!drained.get());
    assert!(disk.release());
    ctx.run_until(|| drained.get());
}
