//! Where drivers work by themselves, and which contexts use a node.

mod util;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use coblk_aio::{AioContext, AioHandle, Co, IoThread, IoVector, IoVectorMut, JoinHandle};
use coblk_block::drivers::{Null, Raw};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, Background, BlockBackend, BlockDriver, BlockNode, ChildList, ChildRole,
    ChildSlot, EdgeId, ListId, ReadFlags, WriteFlags, is_home,
};
use util::bench::Bench;
use util::ticker::{TICK, Ticker, Ticks};

fn ticking(background: Background) -> (Arc<BlockNode>, Arc<Ticks>) {
    let home = background.home();
    let driver = Ticker::new(background);
    let ticks = Arc::clone(&driver.0);
    let node = BlockNode::new("ticker", driver);
    Ticker::start(&ticks, &home);
    (node, ticks)
}

/// A backend in a context of its own, with requests all the time.
struct Device {
    stop: Arc<AtomicBool>,
    reads: JoinHandle<usize>,
}

impl Device {
    fn open(ctx: &AioContext, thread: &IoThread, node: &Arc<BlockNode>) -> Device {
        let (stop, node) = (Arc::new(AtomicBool::new(false)), Arc::clone(node));
        let (opened, is_open) = (Arc::new(AtomicBool::new(false)), Arc::clone(&stop));
        let tell = Arc::clone(&opened);
        let reads = thread.handle().spawn("device", move |co| {
            let options = BackendOptions::new("device").share_rw(true);
            let backend = options.co_open(co, node).unwrap();
            tell.store(true, Ordering::SeqCst);
            let mut reads = 0;
            while !is_open.load(Ordering::SeqCst) {
                backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut [1; 512][..])).unwrap();
                co.yield_now();
                reads += 1;
            }
            backend.co_remove_medium(co).unwrap();
            reads
        });
        while !opened.load(Ordering::SeqCst) {
            ctx.try_poll();
        }
        Device { stop, reads }
    }

    fn close(self, ctx: &AioContext) {
        self.stop.store(true, Ordering::SeqCst);
        assert!(ctx.run(|co| co.block_on(self.reads)).unwrap() > 0);
    }
}

/// Its home is that context, and it ticks there.
#[track_caller]
fn settles(ctx: &AioContext, ticks: &Ticks, home: &AioHandle) {
    assert_eq!(ticks.background.home(), *home);
    assert!(is_home(home));
    let before = ticks.count(home.name());
    while ticks.count(home.name()) < before + 3 {
        ctx.try_poll();
    }
    ticks.check();
}

#[test]
fn background_work_moves_with_the_backends_while_requests_run() {
    let main = AioContext::for_test().unwrap();
    let [first, second] = ["first", "second"].map(|name| IoThread::new(name).unwrap());
    let (node, ticks) = ticking(Background::new(main.handle()));
    settles(&main, &ticks, &main.handle());
    let one = Device::open(&main, &first, &node);
    settles(&main, &ticks, first.handle());
    assert!(!is_home(&main.handle()));
    // It stays with the oldest.
    let other = Device::open(&main, &second, &node);
    settles(&main, &ticks, first.handle());
    assert_eq!(ticks.moves(), 1);
    one.close(&main);
    settles(&main, &ticks, second.handle());
    assert!(!is_home(first.handle()));
    other.close(&main);
    settles(&main, &ticks, &main.handle());
    assert_eq!(ticks.moves(), 3);
}

#[test]
fn background_work_below_others_moves_and_that_of_an_option_stays() {
    let main = AioContext::for_test().unwrap();
    let [first, named] = ["first", "named"].map(|name| IoThread::new(name).unwrap());
    let (below, ticks) = ticking(Background::new(main.handle()));
    let (fixed, stays) = ticking(Background::fixed(named.handle().clone()));
    for (node, ticks, home) in [(below, ticks, &first), (fixed, stays, &named)] {
        let above = Raw::new(node);
        let device = Device::open(&main, &first, &BlockNode::new("above", above));
        settles(&main, &ticks, home.handle());
        device.close(&main);
    }
}

#[test]
fn background_work_of_a_node_that_is_put_below_a_backend_moves() {
    let main = AioContext::for_test().unwrap();
    let thread = IoThread::new("first").unwrap();
    let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
    let device = Device::open(&main, &thread, &node);
    let (new, ticks) = ticking(Background::new(main.handle()));
    main.run(|co| node.co_replace(co, &new)).unwrap();
    settles(&main, &ticks, thread.handle());
    main.run(|co| new.co_replace(co, &node)).unwrap();
    settles(&main, &ticks, &main.handle());
    device.close(&main);
}

/// By any step that puts a node below another, or takes it from there.
#[test]
fn background_work_of_a_child_that_comes_and_goes_moves() {
    let main = AioContext::for_test().unwrap();
    let thread = IoThread::new("first").unwrap();
    let overlay = BlockNode::new("overlay", Zeroes::new());
    let device = Device::open(&main, &thread, &overlay);
    let (child, ticks) = ticking(Background::new(main.handle()));
    main.run(|co| overlay.co_attach(co, "backing", &child)).unwrap();
    settles(&main, &ticks, thread.handle());
    main.run(|co| overlay.co_detach(co, "backing")).unwrap();
    settles(&main, &ticks, &main.handle());
    let added = main.run(|co| overlay.co_add_child(co, &child)).unwrap();
    settles(&main, &ticks, thread.handle());
    main.run(|co| overlay.co_remove_child(co, &added)).unwrap();
    settles(&main, &ticks, &main.handle());
    device.close(&main);
}

#[test]
fn background_work_of_a_child_moves_with_a_reopen() {
    let bench = Bench::new();
    let main = &bench.ctx;
    let thread = IoThread::new("first").unwrap();
    let (child, ticks) = ticking(Background::new(main.handle()));
    bench.blockdevs.adopt(child).unwrap();
    let null = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
    bench.blockdevs.adopt(null).unwrap();
    let top = bench.open("raw,node-name=top,file=null").unwrap();
    let device = Device::open(main, &thread, &top);
    for (file, home) in [("ticker", thread.handle()), ("null", &main.handle())] {
        let options = format!("raw,node-name=top,file={file}");
        bench.blockdevs.reopen(main, vec![NodeOptions::from_keyval(options).unwrap()]).unwrap();
        settles(main, &ticks, home);
    }
    device.close(main);
}

/// A driver with all kinds of children that come and go. Its bytes are zeroes.
struct Zeroes {
    backing: ChildSlot,
    list: ChildList,
}

impl Zeroes {
    fn new() -> Zeroes {
        Zeroes {
            backing: ChildSlot::new("backing", ChildRole::COW, None),
            list: ChildList::new("children", ChildRole::DATA, Vec::new()),
        }
    }
}

impl BlockDriver for Zeroes {
    fn format_name(&self) -> &'static str {
        "zeroes"
    }

    fn length(&self) -> u64 {
        1 << 20
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.backing.id()]
    }

    fn child_list(&self) -> Option<ListId> {
        Some(self.list.id())
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A home that has ended is left, and no context waits for it.
#[test]
fn background_work_comes_back_from_a_context_that_has_ended() {
    let main = AioContext::for_test().unwrap();
    let [first, second] = ["first", "second"].map(|name| IoThread::new(name).unwrap());
    let (node, ticks) = ticking(Background::new(first.handle().clone()));
    drop(first);
    let device = Device::open(&main, &second, &node);
    settles(&main, &ticks, second.handle());
    device.close(&main);
    // Its first home is gone.
    settles(&main, &ticks, second.handle());
}

/// No tick begins in a drained section, none is under way, and none is forgotten at its end.
#[test]
fn what_begins_by_itself_waits_for_drains_and_drains_for_it() {
    let main = AioContext::for_test().unwrap();
    let thread = IoThread::new("home").unwrap();
    let (node, ticks) = ticking(Background::fixed(thread.handle().clone()));
    let other = IoThread::new("other").unwrap();
    let (drains, drained) = (Arc::clone(&node), Arc::clone(&ticks));
    let both = other.handle().spawn("drain", move |co| {
        for _ in 0..100 {
            let _section = drains.co_drain(co);
            assert!(!drained.is_inside());
            co.yield_now();
            assert!(!drained.is_inside());
        }
    });
    for round in 0..100 {
        let section = node.drain(&main);
        assert!(!ticks.is_inside());
        let before = ticks.count("home");
        // Its timer fires meanwhile.
        thread.handle().spawn("wait", |co| co.sleep(4 * TICK)).wait().unwrap();
        assert_eq!(ticks.count("home"), before);
        drop(section);
        if round % 10 == 0 {
            settles(&main, &ticks, thread.handle());
        }
    }
    main.run(|co| co.block_on(both)).unwrap();
    settles(&main, &ticks, thread.handle());
}

/// A driver's work that a drain waits for may count more of its own in.
#[test]
fn own_io_of_a_request_never_waits() {
    let main = AioContext::for_test().unwrap();
    let driver = Ticker::new(Background::new(main.handle()));
    let ticks = Arc::clone(&driver.0);
    assert!(ticks.background.enter_own().is_none(), "there is no node yet");
    let node = BlockNode::new("ticker", driver);
    let first = ticks.background.enter_own();
    let drained = Rc::new(Cell::new(false));
    let (done, own) = (Rc::clone(&drained), Arc::clone(&node));
    main.spawn("drain", move |co| {
        let _section = own.co_drain(co);
        done.set(true);
    });
    while main.try_poll() {}
    let second = ticks.background.enter_own();
    drop(first);
    while main.try_poll() {}
    assert!(!drained.get());
    drop(second);
    main.run_until(|| drained.get());
}

/// A context that is in the middle of a callback.
struct Busy {
    go_on: Sender<()>,
}

impl Busy {
    fn begin(thread: &IoThread) -> Busy {
        let (go_on, wait) = channel();
        let (tell, is_busy): (Sender<()>, Receiver<()>) = channel();
        thread.handle().schedule(move |_| {
            tell.send(()).unwrap();
            let _ = wait.recv();
        });
        is_busy.recv().unwrap();
        Busy { go_on }
    }

    fn end(self) {
        self.go_on.send(()).unwrap();
    }
}

fn begin_pass(ctx: &AioContext, node: &Arc<BlockNode>) -> Rc<Cell<Option<Option<i32>>>> {
    let (passed, node) = (Rc::new(Cell::new(None)), Arc::clone(node));
    let done = Rc::clone(&passed);
    ctx.spawn("pass", move |co: &Co<'_>| {
        let error = node.co_pass_contexts(co).err();
        done.set(Some(error.map(|error| error.raw_os_error().unwrap_or(0))));
    });
    while ctx.try_poll() {}
    passed
}

#[test]
fn all_contexts_that_use_a_node_are_passed() {
    let main = AioContext::for_test().unwrap();
    let [backend, home, unused] =
        ["backend", "home", "unused"].map(|name| IoThread::new(name).unwrap());
    let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
    let above = Raw::new(Arc::clone(&node));
    let above = BlockNode::new("above", above);
    let device = Device::open(&main, &backend, &above);
    let (ticker, _ticks) = ticking(Background::fixed(home.handle().clone()));
    let _not_used = Busy::begin(&unused);
    // The caller's own is passed as well.
    let own = Rc::new(Cell::new(false));
    let seen = Rc::clone(&own);
    main.spawn("pass", {
        let node = Arc::clone(&node);
        move |co| {
            node.co_pass_contexts(co).unwrap();
            assert!(seen.get());
        }
    });
    own.set(true);
    while main.try_poll() {}
    for (node, thread) in [(&node, &backend), (&above, &backend), (&ticker, &home)] {
        let busy = Busy::begin(thread);
        let passed = begin_pass(&main, node);
        assert_eq!(passed.get(), None, "a context is busy still");
        busy.end();
        main.run_until(|| passed.get().is_some());
        assert_eq!(passed.get(), Some(None));
    }
    device.close(&main);
}

#[test]
fn a_context_that_has_ended_counts_as_passed() {
    let main = AioContext::for_test().unwrap();
    let thread = IoThread::new("home").unwrap();
    let (node, _ticks) = ticking(Background::fixed(thread.handle().clone()));
    // Also one that ends while it is waited for.
    let busy = Busy::begin(&thread);
    let passed = begin_pass(&main, &node);
    assert_eq!(passed.get(), None);
    drop(busy);
    drop(thread);
    main.run_until(|| passed.get().is_some());
    assert_eq!(begin_pass(&main, &node).get(), Some(None));
}

#[test]
fn a_context_that_does_not_poll_is_an_error_after_the_limit() {
    let main = AioContext::for_test().unwrap();
    let thread = IoThread::new("backend").unwrap();
    let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
    let device = Device::open(&main, &thread, &node);
    let busy = Busy::begin(&thread);
    let passed = begin_pass(&main, &node);
    main.run_until(|| passed.get().is_some());
    assert_eq!(passed.get(), Some(Some(libc::ETIMEDOUT)));
    busy.end();
    device.close(&main);
    let own = BlockBackend::new(&main, "own", Arc::clone(&node));
    assert_eq!(begin_pass(&main, &node).get(), Some(None));
    drop(own);
}
