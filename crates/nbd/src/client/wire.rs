//! [`Wire`]: a connection while it is negotiated, one message after the other.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice};
use std::rc::{Rc, Weak};

use coblk_aio::net::Stream;
use coblk_aio::{AioContext, Co, CoWaker, FdHandler, FdInterest};

use crate::transport::Transport;

/// A socket, and the one coroutine that speaks there.
pub struct Wire {
    transport: Rc<Transport>,
    watched: RefCell<Option<FdHandler<Rc<Transport>>>>,
    waker: Cell<Option<CoWaker>>,
    /// The loop has told of the socket since it was looked at.
    told: Cell<bool>,
    /// Why nothing more is said.
    ended: Cell<Option<&'static str>>,
}

impl Wire {
    /// # Errors
    /// If the loop cannot wait for the socket.
    pub fn new(ctx: &AioContext, socket: Stream) -> io::Result<Rc<Wire>> {
        let wire = Rc::new(Wire {
            transport: Rc::new(Transport::new(socket)),
            watched: RefCell::new(None),
            waker: Cell::new(None),
            told: Cell::new(false),
            ended: Cell::new(None),
        });
        let own = Rc::downgrade(&wire);
        let transport = Rc::clone(&wire.transport);
        let told = move |_: &AioContext, _| {
            if let Some(own) = own.upgrade() {
                own.told.set(true);
                own.poke();
            }
        };
        let watched = ctx.fd_handler(transport, FdInterest::ReadWrite, told)?;
        *wire.watched.borrow_mut() = Some(watched);
        Ok(wire)
    }

    /// The transport, which nothing watches any more.
    pub fn into_transport(self: Rc<Wire>) -> Rc<Transport> {
        drop(self.watched.take());
        Rc::clone(&self.transport)
    }

    #[cfg(feature = "tls")]
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Ends what is said there, with this reason.
    pub fn end(&self, why: &'static str) {
        self.ended.set(Some(why));
        self.poke();
    }

    pub fn weak(self: &Rc<Wire>) -> Weak<Wire> {
        Rc::downgrade(self)
    }

    /// Sends all of `bytes`.
    pub fn write(&self, co: &Co<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.retry(co, || self.transport.write(&[IoSlice::new(bytes)]))?;
            bytes = &bytes[written..];
        }
        self.push(co)
    }

    /// Sends what TLS has not sent yet.
    pub fn push(&self, co: &Co<'_>) -> io::Result<()> {
        while self.transport.has_unsent() {
            self.retry(co, || self.transport.push())?;
        }
        Ok(())
    }

    /// Fills `target`, and reads nothing beyond.
    pub fn read(&self, co: &Co<'_>, target: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < target.len() {
            match self.retry(co, || self.transport.read(&mut target[done..]))? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    /// Calls `step` until it need not wait any more.
    pub fn retry<R>(&self, co: &Co<'_>, mut step: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            if let Some(why) = self.ended.get() {
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            self.told.set(false);
            match step() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(co),
                result => return result,
            }
        }
    }

    fn wait(&self, co: &Co<'_>) {
        struct ForgetOnUnwind<'a>(&'a Cell<Option<CoWaker>>);
        impl Drop for ForgetOnUnwind<'_> {
            fn drop(&mut self) {
                drop(self.0.take());
            }
        }
        let _forget = ForgetOnUnwind(&self.waker);
        while !self.told.get() && self.ended.get().is_none() {
            co.suspend_for("an NBD server's answer", |waker| self.waker.set(Some(waker)));
        }
    }

    fn poke(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
