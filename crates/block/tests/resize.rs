//! Changes of length from outside, and who is told.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::mpsc;

use coblk_aio::{AioContext, IoThread, IoVector, IoVectorMut};
use coblk_block::drivers::Null;
use coblk_block::{BackendOptions, BlockBackend, BlockNode, WriteFlags};

use crate::util::bench::{Bench, IMAGE_BYTES};
use crate::util::{PATIENCE, errno};

/// The lengths that a backend's listener is told.
fn listen(backend: &BlockBackend) -> Rc<RefCell<Vec<u64>>> {
    let told = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&told);
    backend.set_length_listener(move |_, length| log.borrow_mut().push(length));
    told
}

fn settle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

#[test]
fn a_stack_grows_and_shrinks_while_requests_run() {
    let bench = Bench::new();
    let node = bench.open("raw,node-name=d0,file.driver=file,file.filename=$").unwrap();
    let device = BackendOptions::new("device").share_resize(true);
    let backend = device.open(&bench.ctx, node).unwrap();
    let told = listen(&backend);
    let lengths = [3 * IMAGE_BYTES, IMAGE_BYTES / 2, 2 * IMAGE_BYTES];
    for (round, length) in lengths.into_iter().enumerate() {
        for at in 0..64 {
            let data = vec![round as u8 + 1; 4096];
            backend.aio_pwritev(&bench.ctx, at * 4096, data, WriteFlags::empty(), |_, it, _| {
                it.unwrap();
            });
        }
        bench.blockdevs.resize(&bench.ctx, "d0", length).unwrap();
        bench.ctx.run_until(|| backend.in_flight() == 0);
        settle(&bench.ctx);
        assert_eq!(told.borrow().last(), Some(&length));
        assert_eq!(fs::metadata(bench.image()).unwrap().len(), length);
        assert_eq!(fs::read(bench.image()).unwrap()[..64 * 4096], vec![round as u8 + 1; 64 * 4096]);
    }
    assert_eq!(*told.borrow(), lengths);
    // What was cut off did not come back.
    let mut data = [1; 4096];
    backend.preadv(&bench.ctx, IMAGE_BYTES, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert_eq!(data, [0; 4096]);
}

#[test]
fn a_write_past_the_new_end_fails_and_within_it_does_not() {
    let bench = Bench::new();
    let node = bench.open("file,node-name=f0,filename=$").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    bench.blockdevs.resize(&bench.ctx, "f0", 8192).unwrap();
    let sector = [1; 512];
    let write =
        |at| backend.pwritev(&bench.ctx, at, &IoVector::from(&sector[..]), WriteFlags::empty());
    assert_eq!(errno(write(8192)), libc::EIO);
    write(8192 - 512).unwrap();
}

#[test]
fn who_does_not_share_resize_is_named() {
    let bench = Bench::new();
    let node = bench.open("raw,node-name=d0,file.driver=file,file.filename=$").unwrap();
    let resize = |name: &str| bench.blockdevs.resize(&bench.ctx, name, 4096);
    let device = BackendOptions::new("device").open(&bench.ctx, node).unwrap();
    assert_eq!(
        resize("d0").unwrap_err().to_string(),
        "backend 'block_resize' needs resize permission on node 'd0', which backend 'device' does \
         not share"
    );
    drop(device);
    resize("d0").unwrap();
    assert_eq!(resize("d1").unwrap_err().to_string(), "there is no node 'd1'");
    bench.open("null-co,node-name=n0,read-only=on").unwrap();
    assert_eq!(resize("n0").unwrap_err().to_string(), "node 'n0' is read-only");
    bench.open("null-co,node-name=n1").unwrap();
    let error = resize("n1").unwrap_err().to_string();
    assert!(error.starts_with("node 'n1': Operation not supported"), "{error}");
    let error = bench.blockdevs.resize(&bench.ctx, "d0", u64::MAX).unwrap_err().to_string();
    assert!(error.starts_with("node 'd0': File too large"), "{error}");
}

#[test]
fn backends_on_every_context_and_node_above_are_told_once() {
    let bench = Bench::new();
    let top = bench.open("raw,node-name=d0,file.driver=file,file.node-name=f0,file.filename=$");
    let (thread, (sender, lengths)) = (IoThread::new("io").unwrap(), mpsc::channel());
    let node = top.unwrap();
    let spawned = thread.handle().spawn("listen", move |co| {
        let backend = BlockBackend::new(co.context(), "elsewhere", node);
        backend.set_length_listener(move |_, length| sender.send(length).unwrap());
        backend.remote()
    });
    let elsewhere = spawned.wait().unwrap();
    let file = bench.blockdevs.node("f0").unwrap();
    let below = BlockBackend::new(&bench.ctx, "below", file.clone());
    let told = listen(&below);
    bench.blockdevs.resize(&bench.ctx, "f0", 8192).unwrap();
    assert_eq!(lengths.recv_timeout(PATIENCE).unwrap(), 8192);
    settle(&bench.ctx);
    assert_eq!(*told.borrow(), [8192]);
    // Another process has changed the file.
    fs::write(bench.image(), vec![1; 4096]).unwrap();
    bench.ctx.run(|co| file.co_refresh_length(co)).unwrap();
    assert_eq!(lengths.recv_timeout(PATIENCE).unwrap(), 4096);
    bench.ctx.run(|co| file.co_refresh_length(co)).unwrap();
    settle(&bench.ctx);
    assert_eq!(*told.borrow(), [8192, 4096], "no news");
    drop(elsewhere);
    drop(thread);
    assert_eq!(lengths.try_iter().count(), 0);
}

#[test]
fn another_node_or_medium_may_have_another_length() {
    let bench = Bench::new();
    let [small, large] = [4096, 8192].map(|length| BlockNode::new("null", Null::new(length)));
    let backend = BlockBackend::new(&bench.ctx, "drive", small.clone());
    let told = listen(&backend);
    small.replace(&bench.ctx, &large).unwrap();
    settle(&bench.ctx);
    assert_eq!(*told.borrow(), [8192]);
    backend.remove_medium(&bench.ctx).unwrap();
    backend.insert_medium(large).unwrap();
    settle(&bench.ctx);
    assert_eq!(*told.borrow(), [8192], "the same again");
    backend.remove_medium(&bench.ctx).unwrap();
    backend.insert_medium(small).unwrap();
    settle(&bench.ctx);
    assert_eq!(*told.borrow(), [8192, 4096]);
}
