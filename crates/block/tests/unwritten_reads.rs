//! What a reader finds in its buffer is what was read, or zeroes: never what was there before.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, IoThread, IoVectorMut};
use coblk_block::drivers::{Null, Raw};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{
    BlockBackend, BlockLimits, BlockNode, ErrorPolicies, ErrorPolicy, Merged, RemoteBackend,
};

use crate::util::disk::{Disk, OnDisk};

const IGNORE: ErrorPolicies =
    ErrorPolicies { read: ErrorPolicy::Ignore, write: ErrorPolicy::Report };

/// A disk of sevens whose reads of the second sector fail.
fn failing() -> Arc<BlockNode> {
    let disk = Disk::new(1 << 20, BlockLimits::default());
    disk.fill(7);
    let rules = Rules::new(1);
    // Some of it is read before it fails.
    rules.add(Rule::short(100).within(512..1024));
    BlockNode::new("debug", BlkDebug::new(BlockNode::new("disk", OnDisk(disk)), rules))
}

fn backend(ctx: &AioContext) -> BlockBackend {
    let backend = BlockBackend::new(ctx, "drive", failing());
    backend.set_error_policies(IGNORE);
    backend
}

#[test]
fn an_ignored_read_is_zeroes() {
    let ctx = AioContext::for_test().unwrap();
    let backend = backend(&ctx);
    // In two ranges of memory, blocking and from a coroutine.
    let mut stale = [0x55; 2048];
    let (first, second) = stale.split_at_mut(700);
    let mut target = IoVectorMut::from(first);
    target.push(second);
    backend.preadv(&ctx, 0, &mut target).expect("an ignored error");
    assert_eq!(stale, [0; 2048]);
    let mut stale = [0x55; 512];
    ctx.run(|co| backend.co_preadv(co, 512, &mut IoVectorMut::from(&mut stale[..]))).unwrap();
    assert_eq!(stale, [0; 512]);
    // With a callback.
    let seen = Rc::new(RefCell::new(None));
    let answer = Rc::clone(&seen);
    backend.aio_preadv(&ctx, 512, vec![0x55; 512], move |_, result, buffer| {
        answer.replace(Some((result.is_ok(), buffer)));
    });
    ctx.run_until(|| seen.borrow().is_some());
    assert_eq!(seen.take(), Some((true, vec![0; 512])));
    // One that does not fail is what it is.
    let mut sector = [0x55; 512];
    backend.preadv(&ctx, 1024, &mut IoVectorMut::from(&mut sector[..])).unwrap();
    assert_eq!(sector, [7; 512]);
}

#[test]
fn an_ignored_part_of_a_merged_read_is_zeroes() {
    let ctx = AioContext::for_test().unwrap();
    let backend = backend(&ctx);
    let mut stale = [0x55; 1536];
    let merged = ctx.run(|co| {
        let merged = backend.co_preadv_merged(co, 0, &mut IoVectorMut::from(&mut stale[..]));
        assert_eq!(merged.unwrap(), Merged::Split);
        // As a device does then.
        stale.chunks_mut(512).enumerate().try_for_each(|(index, part)| {
            backend.co_preadv(co, index as u64 * 512, &mut IoVectorMut::from(part))
        })
    });
    merged.expect("an ignored error");
    let expected: Vec<u8> = [[7; 512], [0; 512], [7; 512]].concat();
    assert_eq!(stale[..], expected);
}

#[test]
fn an_ignored_remote_read_is_zeroes() {
    let thread = IoThread::new("io").unwrap();
    let disk: RemoteBackend = thread
        .handle()
        .spawn("open", |co| backend(co.context()).remote())
        .wait()
        .expect("the context lives");
    let (result, buffer) = disk.preadv(512, vec![0x55; 512]).wait().unwrap();
    result.expect("an ignored error");
    assert_eq!(buffer, [0; 512]);
}

/// A server that sends what it has read has to know that null writes nothing to its buffer.
#[test]
fn a_backend_knows_that_reads_may_leave_its_buffer() {
    let ctx = AioContext::for_test().unwrap();
    let null = BlockNode::new("null", Null::new(1 << 20));
    let zeroes = BlockNode::new("zeroes", Null::new(1 << 20).read_zeroes(true));
    let disk = BlockNode::new("disk", OnDisk(Disk::new(1 << 20, BlockLimits::default())));
    let raw = BlockNode::new("raw", Raw::new(Arc::clone(&null)));
    let top = BlockNode::new("top", BlkDebug::new(Arc::clone(&raw), Rules::new(1)));
    let on = |node: &Arc<BlockNode>| BlockBackend::new(&ctx, "drive", Arc::clone(node));
    assert!(on(&null).leaves_reads_unwritten());
    assert!(!on(&zeroes).leaves_reads_unwritten() && !on(&disk).leaves_reads_unwritten());
    assert!(!BlockBackend::empty(&ctx, "drive").leaves_reads_unwritten());
    // Through filters, and also when the node far below becomes another, or the own one.
    let backend = on(&top);
    assert!(backend.leaves_reads_unwritten());
    null.replace(&ctx, &disk).unwrap();
    assert!(!backend.leaves_reads_unwritten());
    disk.replace(&ctx, &null).unwrap();
    assert!(backend.leaves_reads_unwritten());
    top.replace(&ctx, &zeroes).unwrap();
    assert!(!backend.leaves_reads_unwritten());
}
