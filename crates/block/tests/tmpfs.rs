//! Files in memory: a file system without FALLOC_FL_ZERO_RANGE, and with lengths that no disk has.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use coblk_aio::{AioContext, IoVectorMut};
use coblk_block::drivers::File;
use coblk_block::options::NodeOptions;
use coblk_block::{BlockBackend, BlockNode, Blockdevs, MAX_LENGTH, ZeroFlags};

use crate::util::errno;

/// An image in memory, of bytes that are not zero.
fn image(bytes: usize) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new_in("/dev/shm").expect("a tmpfs");
    std::fs::write(image.path(), vec![7; bytes]).unwrap();
    image
}

fn blocks(image: &tempfile::NamedTempFile) -> u64 {
    image.path().metadata().unwrap().blocks()
}

#[test]
fn zeroes_are_fast_and_keep_their_place_unless_they_may_go() {
    let image = image(1 << 20);
    let ctx = AioContext::for_test().unwrap();
    let file = File::options().open(image.path()).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
    let full = blocks(&image);
    let zero = |offset, bytes, flags| backend.pwrite_zeroes(&ctx, offset, bytes, flags);
    zero(65536, 131_072, ZeroFlags::NO_FALLBACK).expect("punched, and allocated anew");
    assert_eq!(blocks(&image), full);
    zero(262_144, 65536, ZeroFlags::NO_FALLBACK | ZeroFlags::MAY_UNMAP).expect("punched");
    assert_eq!(blocks(&image), full - 128);
    let mut expected = vec![7; 1 << 20];
    expected[65536..196_608].fill(0);
    expected[262_144..327_680].fill(0);
    assert_eq!(std::fs::read(image.path()).unwrap(), expected);
}

/// One that ends within a sector is longer afterwards, as after a write there.
#[test]
fn zeroes_at_the_end_of_a_file_that_is_not_whole_sectors() {
    let image = image(1000);
    let ctx = AioContext::for_test().unwrap();
    let file = File::options().open(image.path()).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
    backend.pwrite_zeroes(&ctx, 512, 512, ZeroFlags::NO_FALLBACK).unwrap();
    let mut data = vec![1; 1024];
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert_eq!(data, [vec![7; 512], vec![0; 512]].concat());
}

#[test]
fn no_node_is_longer_than_can_be_asked_for() {
    let (ctx, blockdevs) =
        (AioContext::for_test().unwrap(), Blockdevs::new(coblk_block::drivers()));
    let image = image(4096);
    let name = image.path().to_str().unwrap();
    let open = |line: &str| blockdevs.open(&ctx, NodeOptions::from_keyval(line).unwrap());
    let refused = |line: &str| {
        let error = open(line).err().expect("refused").to_string();
        assert!(error.contains(&format!("more than {MAX_LENGTH}")), "{line}: {error}");
        assert!(blockdevs.node("n").is_none());
    };
    for length in [MAX_LENGTH + 1, 1 << 63, u64::MAX] {
        refused(&format!("null-co,node-name=n,size={length}"));
        assert!(BlockNode::try_new("n", coblk_block::drivers::Null::new(length)).is_err());
    }
    let set_length = |length| image.as_file().set_len(length).unwrap();
    set_length(MAX_LENGTH + 1);
    refused(&format!("file,node-name=n,filename={name}"));
    set_length(i64::MAX as u64);
    refused(&format!("raw,node-name=n,file.driver=file,file.filename={name}"));
    assert!(File::options().open(name).is_err());
    // As long as it may be, and no longer, by whatever change.
    set_length(MAX_LENGTH);
    let node = open(&format!("file,node-name=n,filename={name}")).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let sector = coblk_aio::IoVector::from(&[7; 512][..]);
    let flags = coblk_block::WriteFlags::empty();
    backend.pwritev(&ctx, MAX_LENGTH - 512, &sector, flags).expect("the last sector");
    for length in [MAX_LENGTH + 1, i64::MAX as u64, u64::MAX] {
        assert_eq!(errno(backend.truncate(&ctx, length)), libc::EFBIG);
        assert!(blockdevs.resize(&ctx, "n", length).is_err());
        assert_eq!(image.as_file().metadata().unwrap().len(), MAX_LENGTH, "it was made longer");
    }
    set_length(i64::MAX as u64);
    assert_eq!(errno(ctx.run(|co| node.co_refresh_length(co))), libc::EFBIG);
    assert_eq!(node.length(), MAX_LENGTH);
    blockdevs.resize(&ctx, "n", 4096).unwrap();
}
