//! Which users may share a node.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoThread, IoVector, IoVectorMut};
use coblk_block::drivers::{File, Null, Raw};
use coblk_block::filters::blkdebug::{BlkDebug, Rules};
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, PermissionError, Permissions, ReadFlags,
    WriteFlags,
};

use crate::tagged::{Tagged, read};

fn disk(name: &str) -> Arc<BlockNode> {
    Tagged::new(1).node(name)
}

fn filter(name: &str, below: &Arc<BlockNode>) -> Arc<BlockNode> {
    BlockNode::new(name, BlkDebug::new(Arc::clone(below), Rules::new(1)))
}

fn said<T, E: ToString>(result: Result<T, E>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn two_writers_must_both_agree() {
    let ctx = AioContext::for_test().unwrap();
    let open = |name: &str, node: &Arc<BlockNode>, share_rw| {
        BackendOptions::new(name).share_rw(share_rw).open(&ctx, Arc::clone(node))
    };
    let (alone, shared) = (disk("alone"), disk("shared"));
    let a = open("a", &alone, false).unwrap();
    let refusal =
        "backend 'b' needs write permission on node 'alone', which backend 'a' does not share";
    assert_eq!(said(open("b", &alone, false)), refusal);
    assert_eq!(said(open("b", &alone, true)), refusal);
    let _c = open("c", &shared, true).unwrap();
    let _d = open("d", &shared, true).unwrap();
    assert_eq!(
        said(open("e", &shared, false)),
        "backend 'c' needs write permission on node 'shared', which backend 'e' does not share"
    );
    // Who was refused has left nothing behind.
    drop(a);
    let b = open("b", &alone, false).unwrap();
    assert_eq!(read(&ctx, &b).unwrap(), 1);
}

#[test]
fn readers_share_and_do_not_mind_a_writer_that_they_shared_with() {
    let ctx = AioContext::for_test().unwrap();
    let node = disk("disk");
    let reader = |name: &str| BackendOptions::new(name).read_only(true);
    let _a = reader("a").open(&ctx, node.clone()).unwrap();
    let b = reader("b").open(&ctx, node.clone()).unwrap();
    let writer = BackendOptions::new("w");
    assert_eq!(
        said(writer.open(&ctx, node.clone())),
        "backend 'w' needs write permission on node 'disk', which backend 'a' does not share"
    );
    drop((_a, b));
    let _b = reader("b").share_rw(true).open(&ctx, node.clone()).unwrap();
    let _w = writer.open(&ctx, node.clone()).unwrap();
    // A backend that asks for no permissions is not asked for any either.
    let unasked = BlockBackend::new(&ctx, "tool", node);
    assert_eq!(read(&ctx, &unasked).unwrap(), 1);
}

#[test]
fn backends_of_one_device_do_not_exclude_each_other() {
    let ctx = AioContext::for_test().unwrap();
    let thread = IoThread::new("io").unwrap();
    let node = disk("disk");
    let device = BackendOptions::new("device");
    let here = device.open(&ctx, node.clone()).unwrap();
    let there = device.open_remote(thread.handle(), node.clone()).wait().unwrap().unwrap();
    there.preadv(0, vec![0; 1]).wait().unwrap().0.unwrap();
    let other = BackendOptions::new("other").open_remote(thread.handle(), node).wait().unwrap();
    assert!(said(other).contains("backend 'other' needs write permission"));
    assert_eq!(read(&ctx, &here).unwrap(), 1);
}

#[test]
fn filters_pass_on_what_their_users_hold() {
    let ctx = AioContext::for_test().unwrap();
    let node = disk("disk");
    let (left, right) = (filter("left", &filter("between", &node)), filter("right", &node));
    let a = BackendOptions::new("a").open(&ctx, left).unwrap();
    assert_eq!(
        said(BackendOptions::new("b").open(&ctx, right.clone())),
        "node 'right' needs write permission on node 'disk', which node 'between' does not share"
    );
    assert!(BackendOptions::new("c").open(&ctx, node).is_err());
    drop(a);
    BackendOptions::new("b").open(&ctx, right).unwrap();
}

#[test]
fn a_change_of_the_graph_that_users_do_not_agree_to_changes_nothing() {
    let ctx = AioContext::for_test().unwrap();
    let (old, new) = (disk("old"), Tagged::new(2).node("new"));
    let a = BackendOptions::new("a").open(&ctx, filter("above", &old)).unwrap();
    let b = BackendOptions::new("b").open(&ctx, new.clone()).unwrap();
    // Which of the two is named first is not promised.
    let refusal = said(old.replace(&ctx, &new));
    assert!(refusal.contains("write permission on node 'new'"), "{refusal}");
    assert_eq!((read(&ctx, &a).unwrap(), read(&ctx, &b).unwrap()), (1, 2));
    // Both still hold what they held.
    assert!(BackendOptions::new("c").open(&ctx, old.clone()).is_err());
    drop(b);
    old.replace(&ctx, &new).unwrap();
    assert_eq!(read(&ctx, &a).unwrap(), 2);
    assert!(BackendOptions::new("c").open(&ctx, new.clone()).is_err());
    let c = BackendOptions::new("c").open(&ctx, old.clone()).unwrap();
    drop(c);
    // A filter that comes between takes over, and gives back.
    let inserted = filter("inserted", &new);
    new.insert_above(&ctx, &inserted).unwrap();
    assert!(BackendOptions::new("c").open(&ctx, new.clone()).is_err());
    inserted.remove(&ctx).unwrap();
    assert!(BackendOptions::new("c").open(&ctx, new.clone()).is_err());
    BackendOptions::new("c").open(&ctx, inserted).err().expect("it leads to the same disk");
    drop(a);
    BackendOptions::new("c").open(&ctx, new).unwrap();
}

#[test]
fn who_came_to_what_is_read_only_writes_when_that_is_replaced() {
    let ctx = AioContext::for_test().unwrap();
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(4096).unwrap();
    let cd = BlockNode::new("cd", File::options().read_only(true).open(image.path()).unwrap());
    let new = disk("new");
    let drive = BackendOptions::new("drive").open(&ctx, cd.clone()).unwrap();
    let above = BackendOptions::new("above").share_rw(true).open(&ctx, filter("filter", &cd));
    let above = above.unwrap();
    let byte = coblk_aio::IoVector::from(&[0; 1][..]);
    let write = |backend: &BlockBackend| {
        let result = backend.pwritev(&ctx, 0, &byte, coblk_block::WriteFlags::empty());
        result.map_err(|error| error.raw_os_error())
    };
    let refusal = said(cd.replace(&ctx, &new));
    assert!(refusal.contains("needs write permission on node 'new', which"), "{refusal}");
    assert_eq!([write(&drive), write(&above)], [Err(Some(libc::EPERM)); 2]);
    drop(drive);
    cd.replace(&ctx, &new).unwrap();
    assert!(write(&above).is_ok() && !above.is_read_only());
    assert!(BackendOptions::new("c").open(&ctx, new.clone()).is_err(), "it holds that now");
    // And back.
    new.replace(&ctx, &cd).unwrap();
    assert_eq!((write(&above), above.is_read_only()), (Err(Some(libc::EPERM)), true));
    BackendOptions::new("c").open(&ctx, new).unwrap();
}

#[test]
fn a_medium_is_put_in_if_its_users_agree() {
    let ctx = AioContext::for_test().unwrap();
    let node = disk("disk");
    let holder = BackendOptions::new("holder").open(&ctx, node.clone()).unwrap();
    let drive = BackendOptions::new("drive").open_empty(&ctx);
    assert_eq!(
        said(drive.insert_medium(node.clone())),
        "backend 'drive' needs write permission on node 'disk', which backend 'holder' does not share"
    );
    assert!(drive.node().is_none());
    holder.remove_medium(&ctx).unwrap();
    drive.insert_medium(node.clone()).unwrap();
    assert!(holder.insert_medium(node).is_err());
}

#[test]
fn a_change_of_length_needs_a_permission_of_its_own() {
    let ctx = AioContext::for_test().unwrap();
    let node = disk("disk");
    let writer = BackendOptions::new("w").open(&ctx, node.clone()).unwrap();
    writer.truncate(&ctx, 512).unwrap();
    drop(writer);
    let reader = BackendOptions::new("r").read_only(true).open(&ctx, node.clone()).unwrap();
    let tool = BlockBackend::new(&ctx, "tool", node.clone());
    assert_eq!(tool.truncate(&ctx, 512).unwrap_err().raw_os_error(), Some(libc::EPERM));
    drop(reader);
    tool.truncate(&ctx, 512).unwrap();
    // It was held only meanwhile.
    BackendOptions::new("w").open(&ctx, node).unwrap();
}

#[test]
fn an_image_is_locked_while_somebody_uses_it() {
    let ctx = AioContext::for_test().unwrap();
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    // Two open files of one process exclude each other as those of two processes do.
    let [first, second] = ["first", "second"].map(|name| {
        let file = File::options().open(image.path()).unwrap();
        let below = BlockNode::new(format!("{name}-file"), file);
        BlockNode::new(name, Raw::new(below))
    });
    let a = BackendOptions::new("a").open(&ctx, first.clone()).unwrap();
    let refused = BackendOptions::new("b").open(&ctx, second.clone()).err().unwrap();
    assert!(matches!(refused, PermissionError::Locked { .. }), "{refused}");
    let reader = BackendOptions::new("b").read_only(true);
    assert!(reader.open(&ctx, second.clone()).is_err());
    reader.clone().share_rw(true).open(&ctx, second.clone()).unwrap();
    // Refused for an image below, the node that was to be used is left as it was, and so are those
    // that had agreed before.
    let other = BlockNode::new("other", Null::new(1 << 20));
    let drive = BackendOptions::new("d").open(&ctx, other.clone()).unwrap();
    assert!(other.replace(&ctx, &second).is_err());
    assert!(Arc::ptr_eq(&drive.node().unwrap(), &other));
    drop(a);
    other.replace(&ctx, &second).unwrap();
    assert!(BackendOptions::new("a").open(&ctx, first.clone()).is_err());
    drop(drive);
    BackendOptions::new("a").open(&ctx, first).unwrap();
}

#[test]
fn a_second_open_of_a_locked_image_takes_over() {
    let ctx = AioContext::for_test().unwrap();
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let open = |name| BlockNode::new(name, File::options().open(image.path()).unwrap());
    let [first, second, third] = ["first", "second", "third"].map(open);
    let drive = BackendOptions::new("drive").open(&ctx, first.clone()).unwrap();
    assert!(BackendOptions::new("c").open(&ctx, second.clone()).is_err());
    first.replace(&ctx, &second).unwrap();
    assert!(Arc::ptr_eq(&drive.node().unwrap(), &second));
    assert!(BackendOptions::new("c").open(&ctx, first.clone()).is_err(), "it is still locked");
    // Another node is in the way: the one that gave up its locks has them back.
    drop(drive);
    let drive = BackendOptions::new("drive").share_rw(true).open(&ctx, second.clone()).unwrap();
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&ctx, third.clone()).unwrap();
    let other = BlockNode::new("other", Null::new(1 << 20));
    let alone = BackendOptions::new("alone").open(&ctx, other.clone()).unwrap();
    assert!(other.replace(&ctx, &first).is_err());
    second.replace(&ctx, &first).unwrap();
    assert!(Arc::ptr_eq(&drive.node().unwrap(), &first));
    assert!(other.replace(&ctx, &first).is_err());
    drop((drive, reader));
    other.replace(&ctx, &first).unwrap();
    assert!(BackendOptions::new("c").open(&ctx, third).is_err());
    drop(alone);
    BackendOptions::new("c").open(&ctx, second).unwrap();
}

#[test]
fn a_thread_that_ends_gives_up_what_its_backends_held() {
    let node = disk("disk");
    let thread = IoThread::new("io").unwrap();
    let device = BackendOptions::new("device");
    let remote = device.open_remote(thread.handle(), node.clone()).wait().unwrap().unwrap();
    drop(thread);
    assert!(remote.flush().wait().is_err());
    let ctx = AioContext::for_test().unwrap();
    BackendOptions::new("next").open(&ctx, node).unwrap();
}

/// A disk whose locks take until they are let through.
struct SlowLocks {
    asked: mpsc::Sender<()>,
    answer: Mutex<mpsc::Receiver<()>>,
}

impl BlockDriver for SlowLocks {
    fn format_name(&self) -> &'static str {
        "slow-locks"
    }
    fn length(&self) -> u64 {
        4096
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn set_permissions(&self, _: Permissions, _: Permissions) -> Result<(), PermissionError> {
        // Fails when the test has ended.
        let _ = self.asked.send(());
        let _ = self.answer.lock().unwrap().recv();
        Ok(())
    }
}

#[test]
fn a_file_system_that_takes_its_time_for_locks_holds_up_nothing_else() {
    let (asked, is_asked) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    let slow = BlockNode::new("slow", SlowLocks { asked, answer: Mutex::new(answers) });
    let ctx = AioContext::for_test().unwrap();
    let opened = Rc::new(RefCell::new(None));
    let (told, node) = (Rc::clone(&opened), Arc::clone(&slow));
    ctx.spawn("open", move |co| {
        *told.borrow_mut() = Some(BackendOptions::new("drive").co_open(co, node).unwrap());
    });
    is_asked.recv().unwrap();
    // Its locks are being asked for, in another thread. Meanwhile, in this one, whose loop goes on, and
    // in yet another, which would hang for ever if it were under the lock of the graph:
    let (done, is_done) = mpsc::channel();
    let asked_about = Arc::clone(&slow);
    std::thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        let node = Tagged::new(1).node("other");
        let filter = BlockNode::new("filter", BlkDebug::new(Arc::clone(&node), Rules::new(1)));
        let backend = BlockBackend::new(&ctx, "mine", filter);
        assert_eq!(read(&ctx, &backend).unwrap(), 1);
        drop(node.drain(&ctx));
        assert_eq!((node.parents().len(), node.backends().len()), (1, 0));
        assert_eq!((asked_about.parents().len(), asked_about.backends().len()), (1, 1));
        drop(backend);
        done.send(()).unwrap();
    });
    let is_free = is_done.recv_timeout(Duration::from_secs(60)).is_ok();
    if !is_free {
        // The driver answers, so that this thread can end.
        drop(answer);
        panic!("the graph is locked");
    }
    while ctx.try_poll() {}
    assert!(opened.borrow().is_none(), "its locks were not waited for");
    answer.send(()).unwrap();
    ctx.run_until(|| opened.borrow().is_some());
    // To be given up.
    answer.send(()).unwrap();
    drop(opened.take());
}

/// What a change holds of nodes while their drivers are told, it lets go itself. Where another thread did, a node
/// outlived its last user, and its children were in use still.
#[test]
fn what_a_change_holds_of_nodes_is_let_go_by_no_other() {
    let ctx = AioContext::for_test().unwrap();
    let (asked, is_asked) = mpsc::channel();
    // Goes before the context, which waits for its worker.
    let (answer, answers) = mpsc::channel();
    let slow = BlockNode::new("slow", SlowLocks { asked, answer: Mutex::new(answers) });
    let node = Arc::clone(&slow);
    ctx.spawn("open", move |co| drop(BackendOptions::new("drive").co_open(co, node)));
    is_asked.recv().unwrap();
    // A worker has the locks, and stands still.
    let held = Arc::strong_count(&slow);
    assert_eq!(slow.parents().len(), 1);
    assert_eq!(Arc::strong_count(&slow), held);
    drop(answer);
}
