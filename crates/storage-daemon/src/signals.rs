//! INT, HUP and TERM end the daemon in order (contract: C85), a second one at once.
//!
//! A thread of its own waits for them, so that the second one is heard whatever the loop does: it may
//! wait for a disk, or be held up in a system call that never ends.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use coblk::aio::FdHandler;
use coblk::block::nodes_in_flight;
use coblk::{AioContext, BottomHalf, FdInterest};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::{exit, pipe, unregister};

use crate::daemon::{Daemon, ShutdownCause};
use crate::leftovers;
use crate::logging::PROGRAM;

/// Signals that come so soon after the first are the same wish: a terminal and a service manager, or
/// TERM and HUP of one manager, often both say so.
const ONE_WISH: Duration = Duration::from_millis(100);
/// How long it may take to remove files, which may be on a file system that hangs.
const TIDYING: Duration = Duration::from_millis(300);
/// How long the last words may take: the reader of what the daemon says may have stopped.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Nodes that are named in them; of more there is the number.
const MAX_NAMED: usize = 16;
/// The exit status of a daemon that ended at once.
const ENDED_AT_ONCE: i32 = 1;

/// Signals are noticed while it lives.
pub struct Signals {
    registered: Vec<SigId>,
    _quit: BottomHalf,
    _told: Option<FdHandler<UnixStream>>,
}

/// Has the daemon quit at a signal, and the process end at the next. A signal writes to one end of a
/// pair of sockets; the thread reads the other one, until all that could write are gone.
pub fn watch(ctx: &AioContext, daemon: &Rc<Daemon>) -> io::Result<Signals> {
    let daemon = Rc::downgrade(daemon);
    let quit = ctx.bottom_half("signal", move |_| {
        if let Some(daemon) = daemon.upgrade() {
            daemon.quit(ShutdownCause::Signal);
        }
    });
    let (told, tell) = UnixStream::pair()?;
    let (first, for_thread) = (quit.remote(), told.try_clone()?);
    let listen = move || {
        let mut heard = Heard::default();
        while read_some(&for_thread).is_ok_and(|bytes| bytes > 0) {
            heard.one(|| first.schedule());
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned()).spawn(listen);
    let mut in_loop = None;
    if let Err(error) = thread {
        tracing::warn!(%error, "no thread for signals: the loop looks for them");
        in_loop = Some(listen_in_loop(ctx, told, &quit)?);
    }
    let mut signals = Signals { registered: Vec::new(), _quit: quit, _told: in_loop };
    for signal in [SIGINT, SIGHUP, SIGTERM] {
        signals.registered.push(pipe::register(signal, tell.try_clone()?)?);
    }
    Ok(signals)
}

/// The next best: a loop that is held up hears nothing.
fn listen_in_loop(
    ctx: &AioContext,
    told: UnixStream,
    quit: &BottomHalf,
) -> io::Result<FdHandler<UnixStream>> {
    told.set_nonblocking(true)?;
    let (first, heard) = (quit.remote(), RefCell::new(Heard::default()));
    let watched = told.try_clone()?;
    ctx.fd_handler(watched, FdInterest::Read, move |_, _| {
        while read_some(&told).is_ok_and(|bytes| bytes > 0) {
            heard.borrow_mut().one(|| first.schedule());
        }
    })
}

/// How many bytes there were, one a signal; 0 if there can be none any more.
fn read_some(mut told: &UnixStream) -> io::Result<usize> {
    loop {
        match told.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// When the first signal came.
#[derive(Default)]
struct Heard(Option<Instant>);

impl Heard {
    /// There was a signal.
    fn one(&mut self, quit: impl FnOnce()) {
        match self.0 {
            None => {
                self.0 = Some(Instant::now());
                quit();
            }
            Some(first) if first.elapsed() >= ONE_WISH => end_at_once(),
            Some(_) => {}
        }
    }
}

/// Ends the process, and waits for nothing that may hang. What others would find of it is removed.
fn end_at_once() -> ! {
    within(TIDYING, leftovers::remove_all);
    within(LAST_WORDS, || {
        let nodes = nodes_in_flight();
        let what = match nodes.is_empty() {
            true => "what was in flight".to_owned(),
            false => format!("what was in flight on {}", list(&nodes)),
        };
        let _ = writeln!(io::stderr(), "{PROGRAM}: a second signal: ended at once, with {what}");
    });
    exit(ENDED_AT_ONCE);
}

/// Has a thread of its own do something, and waits for that as long as `limit`.
fn within(limit: Duration, act: impl FnOnce() + Send + 'static) {
    let (tell, done) = mpsc::channel();
    let act = move || {
        act();
        let _ = tell.send(());
    };
    if thread::Builder::new().spawn(act).is_ok() {
        let _ = done.recv_timeout(limit);
    }
}

/// The first of these names, and how many more there are.
fn list(nodes: &[String]) -> String {
    let named: Vec<String> = nodes.iter().take(MAX_NAMED).map(|node| format!("'{node}'")).collect();
    let (nodes_are, named) = (if nodes.len() > 1 { "nodes" } else { "node" }, named.join(", "));
    match nodes.len().saturating_sub(MAX_NAMED) {
        0 => format!("{nodes_are} {named}"),
        more => format!("{nodes_are} {named} and {more} more"),
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}
