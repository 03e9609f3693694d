//! What can be told of nodes.

use std::fs::OpenOptions;
use std::sync::Arc;

use coblk_block::drivers::{Engine, Null};
use coblk_block::filters::blkdebug::{BlkDebug, Rules};
use coblk_block::{BlockBackend, BlockNode, CacheMode, ChildInfo, Parent};

use crate::util::bench::{Bench, IMAGE_BYTES};

fn child(child: &'static str, node: &str) -> ChildInfo {
    ChildInfo { child: child.into(), node: node.to_owned() }
}

#[test]
fn a_node_tells_what_it_is() {
    let bench = Bench::new();
    let line = "driver=raw,node-name=d0,discard=unmap,file.driver=file,file.node-name=f0,\
                file.filename=$,file.aio=io_uring,file.cache.direct=on";
    let raw = bench.open(line).unwrap().describe();
    assert_eq!((raw.name.as_str(), raw.driver, raw.length), ("d0", "raw", IMAGE_BYTES));
    assert_eq!(raw.filename, Some(bench.image()), "all of the file");
    assert_eq!((raw.read_only, raw.discard, raw.engine), (false, true, None));
    assert_eq!(raw.children, [child("file", "f0")]);
    assert_eq!(raw.cache, CacheMode::default(), "asked of the child alone");
    let file = bench.blockdevs.node("f0").unwrap().describe();
    assert_eq!((file.driver, file.filename), ("file", Some(bench.image())));
    assert_eq!(file.engine, Some(Engine::IoUring));
    assert_eq!(file.cache, CacheMode { direct: true, no_flush: false });
    assert!(file.children.is_empty());
}

#[test]
fn children_inherit_caches_and_parts_have_no_filename() {
    let bench = Bench::new();
    let line = "driver=raw,node-name=d0,cache.no-flush=on,offset=512,read-only=on,\
                file.driver=file,file.node-name=f0,file.filename=$";
    let raw = bench.open(line).unwrap().describe();
    assert_eq!((raw.filename, raw.read_only), (None, true));
    let file = bench.blockdevs.node("f0").unwrap().describe();
    let cache = CacheMode { direct: false, no_flush: true };
    assert_eq!((raw.cache, file.cache, file.read_only), (cache, cache, true));
}

#[test]
fn filters_tell_their_children_by_role() {
    let bench = Bench::new();
    let line = "driver=blklogwrites,file.driver=null-co,file.node-name=n0,log.driver=null-aio,\
                log.node-name=n1";
    let log = bench.open(line).unwrap();
    assert_eq!(log.describe().children, [child("file", "n0"), child("log", "n1")]);
    let null = bench.blockdevs.node("n1").unwrap().describe();
    assert_eq!((null.driver, null.filename.as_deref()), ("null-aio", Some("null-aio://")));
    let debug = BlockNode::new("debug", BlkDebug::new(log, Rules::new(0)));
    assert_eq!(debug.children()[0].0, "image");
}

#[test]
fn parents_are_listed_while_they_are_there() {
    let bench = Bench::new();
    let disk = BlockNode::new("disk", Null::new(4096));
    assert!(disk.parents().is_empty());
    let above = BlockNode::new("above", BlkDebug::new(Arc::clone(&disk), Rules::new(0)));
    let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&disk));
    let node = Parent::Node { name: "above".to_owned(), child: "image".into() };
    assert_eq!(disk.parents(), [node, Parent::Backend { name: "drive".to_owned() }]);
    drop((above, backend));
    assert!(disk.parents().is_empty());
}

#[test]
fn what_is_allocated_is_what_the_file_system_says() {
    let bench = Bench::new();
    OpenOptions::new().write(true).open(bench.image()).unwrap().set_len(1 << 30).unwrap();
    let raw = bench.open("driver=raw,file.driver=file,file.filename=$").unwrap();
    assert_eq!(raw.length(), 1 << 30);
    let allocated = bench.ctx.run(|co| raw.co_allocated_bytes(co)).unwrap().unwrap();
    // The file system may have some more for itself.
    assert!((IMAGE_BYTES..2 * IMAGE_BYTES).contains(&allocated), "{allocated}");
    let null = BlockNode::new("null", Null::new(1 << 30));
    assert_eq!(bench.ctx.run(|co| null.co_allocated_bytes(co)).unwrap(), Some(0));
}
