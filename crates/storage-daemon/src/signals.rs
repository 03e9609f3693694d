//! INT, HUP and TERM end the daemon in order (contract: C85).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use coblk::aio::FdHandler;
use coblk::{AioContext, FdInterest};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};

use crate::daemon::{Daemon, ShutdownCause};

/// Signals are noticed while it lives.
pub struct Signals {
    registered: Vec<SigId>,
    _told: FdHandler<UnixStream>,
}

/// Has the daemon quit at a signal. A signal writes to one end of a pair of sockets; the loop looks at
/// the other one.
pub fn watch(ctx: &AioContext, daemon: &Rc<Daemon>) -> io::Result<Signals> {
    let (told, tell) = UnixStream::pair()?;
    told.set_nonblocking(true)?;
    let reader = told.try_clone()?;
    let daemon = Rc::downgrade(daemon);
    let told = ctx.fd_handler(told, FdInterest::Read, move |_, _| {
        while (&reader).read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
        if let Some(daemon) = daemon.upgrade() {
            daemon.quit(ShutdownCause::Signal);
        }
    })?;
    let mut signals = Signals { registered: Vec::new(), _told: told };
    for signal in [SIGINT, SIGHUP, SIGTERM] {
        signals.registered.push(pipe::register(signal, tell.try_clone()?)?);
    }
    Ok(signals)
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}
