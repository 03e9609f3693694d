//! Filters that ask for larger blocks than there are in what is below: its end is within a block.

use coblk_aio::{IoVector, IoVectorMut};
use coblk_block::filters::blklogwrites::ReplayLog;
use coblk_block::{BlockBackend, WriteFlags, ZeroFlags};

use crate::util::bench::Bench;

/// Not whole blocks of 4096 bytes.
const BYTES: usize = 10 * 512;

/// Everything up to the last byte can be read and written, and nothing beyond it comes to be.
fn the_end_is_as_good_as_any_other_place(bench: &Bench, node: &str) {
    let node = bench.blockdevs.node(node).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    assert_eq!(backend.length().unwrap(), BYTES as u64);
    let mut expected = vec![7; BYTES];
    let check = |expected: &[u8]| {
        let mut data = vec![1; BYTES];
        backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
        assert_eq!(data, expected);
        let mut last = [1];
        backend
            .preadv(&bench.ctx, BYTES as u64 - 1, &mut IoVectorMut::from(&mut last[..]))
            .unwrap();
        assert_eq!(last[0], expected[BYTES - 1]);
        assert_eq!(std::fs::read(bench.image()).unwrap(), expected);
    };
    check(&expected);
    for (at, bytes, flags) in [
        (BYTES - 1, 1, WriteFlags::empty()),
        (4096, BYTES - 4096, WriteFlags::FUA),
        (5, BYTES - 5, WriteFlags::empty()),
    ] {
        let data = vec![at as u8 ^ 0x55; bytes];
        backend.pwritev(&bench.ctx, at as u64, &IoVector::from(&data[..]), flags).unwrap();
        expected[at..at + bytes].copy_from_slice(&data);
        check(&expected);
    }
    backend.pwrite_zeroes(&bench.ctx, 4000, BYTES as u64 - 4000, ZeroFlags::empty()).unwrap();
    expected[4000..].fill(0);
    check(&expected);
    backend.flush(&bench.ctx).unwrap();
}

fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::write(bench.image(), vec![7; BYTES]).unwrap();
    bench
}

#[test]
fn blkdebug_with_larger_blocks() {
    let bench = bench();
    bench.open("blkdebug,node-name=n,image.driver=file,image.filename=$,align=4096").unwrap();
    the_end_is_as_good_as_any_other_place(&bench, "n");
}

#[test]
fn blklogwrites_with_larger_sectors_and_its_replay() {
    let bench = bench();
    bench.open("raw,node-name=log,file.driver=file,file.filename=$.log").err().expect("not yet");
    std::fs::write(bench.image() + ".log", vec![0; 1 << 20]).unwrap();
    bench.open("file,node-name=log,filename=$.log").unwrap();
    let line = "blklogwrites,node-name=n,file.driver=file,file.filename=$,log=log,";
    bench.open(&format!("{line}log-sector-size=4096")).unwrap();
    the_end_is_as_good_as_any_other_place(&bench, "n");
    let written = std::fs::read(bench.image()).unwrap();
    bench.blockdevs.close(&bench.ctx, "n").unwrap();
    // From what it was at first, by the log alone.
    std::fs::write(bench.image(), vec![7; BYTES]).unwrap();
    let (log, image) =
        (bench.blockdevs.node("log").unwrap(), bench.open("file,node-name=i,filename=$"));
    let image = image.unwrap();
    bench.ctx.run(|co| {
        let mut log = ReplayLog::open(co, log).unwrap();
        let entries = log.entries();
        assert_eq!(log.co_apply_next(co, entries, &image).unwrap(), entries);
    });
    assert_eq!(std::fs::read(bench.image()).unwrap(), written);
}

/// What is known of a range is told in whole blocks of the node, so that clients can ask for them.
#[test]
fn extents_are_whole_blocks() {
    let bench = bench();
    // Data in pieces of the file system's blocks.
    let file = std::fs::File::create(bench.image()).unwrap();
    file.set_len(300_000).unwrap();
    for at in [65536, 135_168] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at).unwrap();
    }
    bench.open("blkdebug,node-name=n,image.driver=file,image.filename=$,align=32768").unwrap();
    let node = bench.blockdevs.node("n").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let length = backend.length().unwrap();
    let (mut at, mut extents) = (0, Vec::new());
    while at < length {
        let status = backend.block_status(&bench.ctx, at, length - at).unwrap();
        let end = at + status.bytes;
        assert!(end.is_multiple_of(32768) || end == length, "{at} {status:?}");
        extents.push((status.data, at / 32768));
        at = end;
    }
    assert_eq!(extents, [(false, 0), (true, 2), (false, 3), (true, 4), (false, 5)]);
    // From within a block, and up to one.
    let status = backend.block_status(&bench.ctx, 70_000, 10).unwrap();
    assert_eq!((status.data, status.bytes), (true, 10));
    let status = backend.block_status(&bench.ctx, 90_000, 90_000).unwrap();
    assert_eq!((status.data, status.bytes), (true, 98304 - 90_000));
}
