//! Letting clients in: limits, pauses, errors, the end.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, Stream};
use coblk_aio::{AioContext, Co};

use super::{bind, is_alone, is_served, names, place};

/// Clients with their places.
type Clients = Rc<RefCell<Vec<(Stream, Slot)>>>;

fn start(ctx: &AioContext, listener: Listener, options: AcceptOptions) -> (Acceptor, Clients) {
    let clients = Clients::default();
    let own = Rc::clone(&clients);
    let acceptor = Acceptor::start(ctx, listener, options, move |_, stream, slot| {
        own.borrow_mut().push((stream, slot));
    });
    (acceptor.unwrap(), clients)
}

/// Lets the loop do all that it can do at once.
fn settle(ctx: &AioContext) {
    for _ in 0..20 {
        ctx.try_poll();
    }
}

#[test]
fn a_client_beyond_the_limit_waits_for_a_place() {
    let (_dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    let mut options = AcceptOptions::new("a client");
    options.max_clients = 2;
    let (acceptor, clients) = start(&ctx, bind(&path).unwrap(), options);
    let _connected = [(); 4].map(|()| UnixStream::connect(&path).unwrap());
    settle(&ctx);
    assert_eq!((acceptor.clients(), clients.borrow().len()), (2, 2));
    for expected in [3, 4] {
        let gone = clients.borrow_mut().swap_remove(0);
        drop(gone);
        let all = Rc::clone(&clients);
        let seen = Cell::new(0);
        ctx.run_until(|| {
            seen.set(all.borrow().len());
            seen.get() == 2
        });
        settle(&ctx);
        assert_eq!(acceptor.clients(), 2, "with client {expected}");
    }
}

#[test]
fn none_is_let_in_before_the_beginning() {
    let (_dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    let mut options = AcceptOptions::new("a client");
    options.paused = true;
    let (acceptor, clients) = start(&ctx, bind(&path).unwrap(), options);
    let _connected = UnixStream::connect(&path).unwrap();
    settle(&ctx);
    assert_eq!(clients.borrow().len(), 0);
    acceptor.begin();
    ctx.run_until(|| clients.borrow().len() == 1);
}

#[test]
fn a_listener_that_is_stopped_is_closed_and_its_path_removed() {
    let (dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    for by_dropping in [false, true] {
        let (acceptor, clients) = start(&ctx, bind(&path).unwrap(), AcceptOptions::new("a client"));
        let mut client = UnixStream::connect(&path).unwrap();
        ctx.run_until(|| clients.borrow().len() == 1);
        acceptor.stop();
        if by_dropping {
            drop(acceptor);
            settle(&ctx);
        } else {
            ctx.run_until(|| !acceptor.is_running());
        }
        assert!(!is_served(&path));
        assert_eq!(names(&dir), [""; 0]);
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_context_that_ends_closes_its_listeners() {
    let (dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    let (acceptor, _clients) = start(&ctx, bind(&path).unwrap(), AcceptOptions::new("a client"));
    settle(&ctx);
    drop(ctx);
    assert!(!acceptor.is_running());
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn clients_of_every_address_of_a_host_are_let_in() {
    let ctx = AioContext::for_test().unwrap();
    let mut address = coblk_aio::net::InetAddress::new("", "0");
    address.numeric = true;
    let listener = Listener::bind(&SocketAddress::Inet(address)).unwrap();
    let port = listener.addresses()[0].socket_addr().unwrap().port();
    let (_acceptor, clients) = start(&ctx, listener, AcceptOptions::new("a client"));
    let _connected = ["127.0.0.1", "::1"].map(|host| {
        let before = clients.borrow().len();
        let client = std::net::TcpStream::connect((host, port)).unwrap();
        ctx.run_until(|| clients.borrow().len() == before + 1);
        client
    });
}

/// In a process of its own, whose limit of descriptors it may lower.
#[test]
fn a_lack_of_descriptors_is_got_over() {
    if !is_alone("accept::a_lack_of_descriptors_is_got_over", "ulimit -n 64") {
        return;
    }
    let (_dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    let (_acceptor, clients) = start(&ctx, bind(&path).unwrap(), AcceptOptions::new("a client"));
    let _connected = UnixStream::connect(&path).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
        assert!(hoard.len() < 64, "there is no limit");
    }
    settle(&ctx);
    assert_eq!(clients.borrow().len(), 0);
    drop(hoard);
    ctx.run_until(|| clients.borrow().len() == 1);
}

/// In a process of its own, whose memory it may use up. A client is let in when there is a stack for
/// the coroutine that will serve it.
#[test]
fn a_lack_of_stacks_is_got_over() {
    if !is_alone("accept::a_lack_of_stacks_is_got_over", "ulimit -v 400000") {
        return;
    }
    let (_dir, path) = place();
    let ctx = AioContext::for_test().unwrap();
    let (_acceptor, clients) = start(&ctx, bind(&path).unwrap(), AcceptOptions::new("a client"));
    settle(&ctx);
    let is_over = Rc::new(Cell::new(false));
    let mut hoard = 0;
    let wait = |is_over: &Rc<Cell<bool>>| {
        let is_over = Rc::clone(is_over);
        move |co: &Co<'_>| {
            while !is_over.get() {
                co.yield_now();
            }
        }
    };
    while ctx.try_spawn("hoard", wait(&is_over)).is_ok() {
        hoard += 1;
        assert!(hoard < 100_000, "there is no limit");
    }
    let _connected = UnixStream::connect(&path).unwrap();
    settle(&ctx);
    assert_eq!(clients.borrow().len(), 0);
    is_over.set(true);
    ctx.run_until(|| clients.borrow().len() == 1);
}
