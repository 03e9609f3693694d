//! The file driver: transfers that fall short, calls that are interrupted, and flushes that fail,
//! by seed in simulated contexts and with both engines.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use coblk_aio::sys::faults::Faults;
use coblk_aio::{AioContext, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::drivers::{Engine, File, FileOptions};
use coblk_block::{BlockBackend, BlockNode, WriteFlags, ZeroFlags};
use tempfile::NamedTempFile;

use crate::util::model::{self, Model};
use crate::util::{Seed, errno};

const PLAIN: WriteFlags = WriteFlags::empty();
const ENGINES: [Engine; 2] = [Engine::Threads, Engine::IoUring];

/// An image of zeroes, on a disk: what is in memory may not know O_DIRECT.
fn image(length: u64) -> NamedTempFile {
    let image = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(length).unwrap();
    image
}

fn node(image: &NamedTempFile, options: FileOptions) -> Arc<BlockNode> {
    BlockNode::new("image", options.open(image.path()).unwrap())
}

fn faulty(seed: u64, faults: Faults) -> AioContext {
    AioContext::test_builder()
        .simulated(SimulationOptions::new(seed).faults(faults))
        .build()
        .unwrap()
}

#[test]
fn c82_short_transfers_and_interrupts_are_invisible_in_every_engine() {
    for seed in 0..60 {
        let _seed = Seed(seed);
        let image = image(16 << 10);
        let node = node(&image, File::options().engine(ENGINES[seed as usize % 2]));
        let faults = Faults::default().short_per_mille(400).interrupted_per_mille(300);
        let ctx = faulty(seed, faults);
        let backend = BlockBackend::new(&ctx, "drive", node);
        let model = Model {
            seed,
            length: 16 << 10,
            longest_stripe: 1000,
            authors: 8,
            requests_each: 40,
            may_fail: false,
            disk: None,
        };
        model::run(&ctx, &backend, &model, 0..8);
    }
}

#[test]
fn c82_interrupts_with_o_direct_and_errors_fail_only_their_request() {
    for seed in 0..20 {
        let _seed = Seed(seed);
        let image = image(64 << 10);
        let options = File::options().direct(true).engine(ENGINES[seed as usize % 2]);
        let faults =
            Faults::default().interrupted_per_mille(300).error_per_mille(50).no_space_per_mille(50);
        let ctx = faulty(seed, faults);
        let backend = BlockBackend::new(&ctx, "drive", node(&image, options));
        let model = Model {
            seed,
            length: 64 << 10,
            longest_stripe: 5000,
            authors: 12,
            requests_each: 30,
            may_fail: true,
            disk: None,
        };
        model::run(&ctx, &backend, &model, 0..12);
    }
}

#[test]
fn c82_a_short_read_at_the_end_is_filled_with_zeroes() {
    for (engine, direct) in [(0, false), (1, false), (0, true), (1, true)] {
        let image = image(0);
        image.as_file().write_all_at(&[7; 5000], 0).unwrap();
        let ctx = AioContext::for_test().unwrap();
        let node = node(&image, File::options().engine(ENGINES[engine]).direct(direct));
        let backend = BlockBackend::new(&ctx, "drive", node);
        assert_eq!(backend.length().unwrap(), 5120);
        for start in [0, 4096, 5000] {
            let mut data = vec![0xEE; 5120 - start];
            backend.preadv(&ctx, start as u64, &mut IoVectorMut::from(&mut data[..])).unwrap();
            let mut expected = vec![7; 5000 - start];
            expected.resize(data.len(), 0);
            assert_eq!(data, expected);
        }
        // Another process has cut the image: that is no end of the device, it is a loss.
        image.as_file().set_len(4200).unwrap();
        let mut data = vec![0; 1024];
        let result = backend.preadv(&ctx, 4096, &mut IoVectorMut::from(&mut data[..]));
        assert_eq!(errno(result), libc::EIO);
    }
}

#[test]
fn c82_a_write_that_finds_no_space_says_so() {
    for engine in ENGINES {
        let image = image(64 << 10);
        let ctx = faulty(1, Faults::default().no_space_per_mille(1000));
        let node = node(&image, File::options().engine(engine));
        let backend = BlockBackend::new(&ctx, "drive", node);
        let result = backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 4096][..]), PLAIN);
        assert_eq!(errno(result), libc::ENOSPC);
    }
}

#[test]
fn c83_after_a_failed_buffered_flush_every_later_one_fails() {
    for (engine, direct) in [(0, false), (1, false), (0, true), (1, true)] {
        let image = image(64 << 10);
        let node = node(&image, File::options().engine(ENGINES[engine]).direct(direct));
        let ctx = AioContext::for_test().unwrap();
        let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
        let broken = faulty(1, Faults::default().error_per_mille(1000));
        let theirs = BlockBackend::new(&broken, "broken", node);
        let write = || {
            let flags = if direct { WriteFlags::FUA } else { PLAIN };
            backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 4096][..]), flags)
        };
        write().unwrap();
        backend.flush(&ctx).unwrap();
        write().unwrap();
        if direct {
            // Nothing is kept in a page cache: the next attempt is as good as the first.
            backend.pwrite_zeroes(&ctx, 0, 512, ZeroFlags::empty()).unwrap();
            assert_eq!(errno(theirs.flush(&broken)), libc::EIO);
            backend.flush(&ctx).unwrap();
            continue;
        }
        assert_eq!(errno(theirs.flush(&broken)), libc::EIO);
        for _ in 0..3 {
            assert_eq!(errno(backend.flush(&ctx)), libc::EIO);
            write().unwrap();
        }
        let durable = backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 512][..]), WriteFlags::FUA);
        assert_eq!(errno(durable), libc::EIO);
    }
}

#[test]
fn c83_an_interrupted_flush_has_not_failed() {
    for engine in ENGINES {
        let image = image(64 << 10);
        let ctx = faulty(3, Faults::default().interrupted_per_mille(800));
        let node = node(&image, File::options().engine(engine));
        let backend = BlockBackend::new(&ctx, "drive", node);
        for _ in 0..20 {
            backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 512][..]), PLAIN).unwrap();
            backend.flush(&ctx).unwrap();
        }
    }
}

#[test]
fn without_flushes_none_reaches_the_disk() {
    for engine in ENGINES {
        let image = image(64 << 10);
        let broken = faulty(1, Faults::default().error_per_mille(1000));
        let ctx = AioContext::for_test().unwrap();
        for (no_flush, expected) in [(true, None), (false, Some(libc::EIO))] {
            let node = node(&image, File::options().engine(engine).no_flush(no_flush));
            let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
            backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 512][..]), PLAIN).unwrap();
            let theirs = BlockBackend::new(&broken, "broken", node);
            let result = theirs.flush(&broken).map_err(|error| error.raw_os_error());
            assert_eq!(result.err().flatten(), expected);
        }
    }
}
