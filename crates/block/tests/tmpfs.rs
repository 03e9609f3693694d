//! Files in memory: a file system with lengths that no disk has.

mod util;

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::drivers::File;
use coblk_block::options::NodeOptions;
use coblk_block::{BlockBackend, BlockNode, Blockdevs, MAX_LENGTH};
use util::errno;

/// An image in memory, of bytes that are not zero.
fn image(bytes: usize) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new_in("/dev/shm").expect("a tmpfs");
    std::fs::write(image.path(), vec![7; bytes]).unwrap();
    image
}

#[test]
fn no_node_is_longer_than_can_be_asked_for() {
    let (ctx, blockdevs) = (AioContext::new().unwrap(), Blockdevs::new());
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
    }
    set_length(i64::MAX as u64);
    assert_eq!(errno(ctx.run(|co| node.co_refresh_length(co))), libc::EFBIG);
    assert_eq!(node.length(), MAX_LENGTH);
    blockdevs.resize(&ctx, "n", 4096).unwrap();
}
