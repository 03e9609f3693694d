//! Writes of nothing but zeroes, and images that are shared by force.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coblk_aio::sys::faults::Faults;
use coblk_aio::{AioContext, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::drivers::File;
use coblk_block::{BackendOptions, BlockBackend, BlockNode, DetectZeroes, RequestKind, WriteFlags};

use crate::util::bench::{Bench, IMAGE_BYTES};
use crate::util::errno;

const MIB: usize = 1 << 20;

/// Writes zeroes over all of the image but for one byte, and all of it again; how much of it is
/// stored then.
fn stored_after_zeroes(options: &str) -> u64 {
    let bench = Bench::new();
    let node = bench.open(&format!("file,node-name=f0,filename=$,{options}")).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let mut data = vec![0; MIB];
    data[MIB - 1] = 1;
    for data in [data, vec![0; MIB]] {
        backend.pwritev(&bench.ctx, 0, &IoVector::from(&data[..]), WriteFlags::FUA).unwrap();
        let mut back = vec![7; MIB];
        backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut back[..])).unwrap();
        assert!(back == data, "{options}");
    }
    // It was a write, whatever became of it.
    assert_eq!(backend.statistics().of(RequestKind::Write).operations, 2);
    fs::metadata(bench.image()).unwrap().blocks() * 512
}

#[test]
fn zeroes_are_found_and_give_their_place_back_if_that_is_allowed() {
    for options in ["detect-zeroes=off", "detect-zeroes=on", "detect-zeroes=on,discard=unmap"] {
        assert!(stored_after_zeroes(options) >= IMAGE_BYTES, "{options}");
    }
    let unmap = "detect-zeroes=unmap,discard=unmap";
    assert!(stored_after_zeroes(unmap) < IMAGE_BYTES / 2);
    assert!(stored_after_zeroes(&format!("{unmap},cache.direct=on")) < IMAGE_BYTES / 2);
}

#[test]
fn a_write_of_nothing_is_no_zeroes_and_flushes() {
    let bench = Bench::new();
    // Here every system call fails that is made.
    let faults = Faults::default().error_per_mille(1000);
    let options = SimulationOptions::new(1).faults(faults);
    let faulty = AioContext::test_builder().simulated(options).build().unwrap();
    for (name, detect) in [("f0", "off"), ("f1", "on"), ("f2", "unmap,discard=unmap")] {
        let line = format!("file,node-name={name},filename=$,detect-zeroes={detect}");
        let backend = BlockBackend::new(&faulty, name, bench.open(&line).unwrap());
        let nothing = |flags| backend.pwritev(&faulty, 0, &IoVector::new(), flags);
        assert_eq!(errno(nothing(WriteFlags::FUA)), libc::EIO, "{detect}");
    }
}

#[test]
fn detect_zeroes_changes_by_a_reopen_and_needs_discard_for_unmap() {
    let bench = Bench::new();
    let refusal = "option 'detect-zeroes': 'unmap' needs discard=unmap";
    bench.refused("null-co,node-name=n0,detect-zeroes=unmap", refusal);
    let node = bench.open("null-co,node-name=n0,detect-zeroes=on").unwrap();
    assert_eq!(node.describe().detect_zeroes, DetectZeroes::On);
    let reopen = |line: &str| {
        let options = coblk_block::options::NodeOptions::from_keyval(line).unwrap();
        bench.blockdevs.reopen(&bench.ctx, vec![options])
    };
    let error = reopen("null-co,node-name=n0,detect-zeroes=unmap").unwrap_err().to_string();
    assert!(error.contains(refusal), "{error}");
    reopen("null-co,node-name=n0,detect-zeroes=unmap,discard=unmap").unwrap();
    assert_eq!(node.describe().detect_zeroes, DetectZeroes::Unmap);
    reopen("null-co,node-name=n0").unwrap();
    assert_eq!(node.describe().detect_zeroes, DetectZeroes::Off);
    let error = reopen("null-co,node-name=n0,read-only=on,force-share=on").unwrap_err();
    assert_eq!(error.to_string(), "node 'n0': cannot change the option 'force-share'");
}

#[test]
fn who_reads_by_force_keeps_nobody_out() {
    let bench = Bench::new();
    let line = "raw,node-name=d0,force-share=on,file.driver=file,file.filename=$";
    bench.refused(line, "node 'd0': option 'force-share': needs read-only=on");
    let node = bench.open(&format!("{line},read-only=on")).unwrap();
    // Not even those who would exclude each other.
    let first = BackendOptions::new("first").open(&bench.ctx, node.clone()).unwrap();
    let second = BackendOptions::new("second").open(&bench.ctx, node).unwrap();
    let stranger = || {
        let file = File::options().open(bench.image()).unwrap();
        let device = BackendOptions::new("stranger").share_rw(true);
        device.open(&bench.ctx, BlockNode::new("stranger", file))
    };
    let writer = stranger().unwrap();
    writer.pwritev(&bench.ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    let mut data = [0; 513];
    second.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert_eq!((data[511], data[512]), (1, 7));
    let write = first.pwritev(&bench.ctx, 0, &IoVector::from(&[1; 5][..]), WriteFlags::empty());
    assert_eq!(errno(write), libc::EPERM);
    drop(writer);
    // Without force it does.
    let bench_node = bench.open("file,node-name=f1,filename=$,read-only=on").unwrap();
    let third = BackendOptions::new("third").open(&bench.ctx, bench_node).unwrap();
    assert!(stranger().is_err());
    drop(third);
    stranger().unwrap();
}
