//! [`VhostUserBlk`]: the listening socket, one front end at a time, and the end.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use coblk_aio::{
    AioContext, BottomHalf, Co, CoWaker, FdHandler, FdInterest, RemoteBottomHalf, Timer, bind_unix,
};
use coblk_block::{BackendOptions, BlockNode, Device};
use coblk_virtio_blk::{SECTOR_BYTES, VirtioBlk};

use crate::channel::Channel;
use crate::control::serve;
use crate::device::DeviceHandle;
use crate::error::VhostUserBlkError;
use crate::options::VhostUserBlkOptions;
use crate::session::Offer;

/// How long to wait before the next try after a front end could not be accepted, as when the
/// process has no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What to do about a front end when an export is removed (contract: C86).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveMode {
    /// Remove the export only if it is not in use.
    Safe,
    /// Disconnect the front end.
    Hard,
}

/// A block node, exported to one front end at a time over a unix socket. When one goes, the next may
/// come; meanwhile it waits in the queue of the socket.
///
/// It belongs to the context that it listens on, and stays on its thread. Dropping it disconnects
/// the front end, without waiting for what is in flight; [`co_remove`](Self::co_remove) waits.
///
/// A front end that breaks a rule loses its connection. A process in which exports run handles
/// SIGBUS, which a front end could cause by truncating its memory.
pub struct VhostUserBlk {
    export: Rc<Export>,
}

struct Connection {
    socket: UnixStream,
    thread: JoinHandle<()>,
}

struct Export {
    offer: Arc<Offer>,
    listener: Rc<UnixListener>,
    /// Accepts when there is a front end, until the export closes.
    acceptor: RefCell<Option<FdHandler<Rc<UnixListener>>>>,
    /// Removed at the end.
    path: Option<PathBuf>,
    connection: RefCell<Option<Connection>>,
    closing: Cell<bool>,
    paused: Cell<bool>,
    /// A control thread has ended.
    ended: BottomHalf,
    again: Timer,
    waiters: RefCell<Vec<CoWaker>>,
}

impl VhostUserBlk {
    /// Exports `node` on a new socket at `path`, which is removed at the end. A socket that was left
    /// there by a process that is gone is replaced.
    ///
    /// # Errors
    /// If there is something else at `path`, if the configuration is wrong, or the process has no
    /// descriptors left.
    pub fn listen(
        ctx: &AioContext,
        path: impl AsRef<Path>,
        node: &Arc<BlockNode>,
        options: VhostUserBlkOptions,
    ) -> Result<VhostUserBlk, VhostUserBlkError> {
        let path = path.as_ref();
        let failed = |source| VhostUserBlkError::Listen { path: path.to_owned(), source };
        // First what may fail and leaves nothing behind.
        let (paused, offer) = (options.paused, offer(ctx, node, options)?);
        let listener = bind_unix(path).map_err(failed)?;
        Self::start(ctx, listener, Some(path.to_owned()), paused, offer)
    }

    /// Exports `node` on a socket that listens already, as one that systemd has passed.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    pub fn from_listener(
        ctx: &AioContext,
        listener: UnixListener,
        node: &Arc<BlockNode>,
        options: VhostUserBlkOptions,
    ) -> Result<VhostUserBlk, VhostUserBlkError> {
        let (paused, offer) = (options.paused, offer(ctx, node, options)?);
        Self::start(ctx, listener, None, paused, offer)
    }

    fn start(
        ctx: &AioContext,
        listener: UnixListener,
        path: Option<PathBuf>,
        paused: bool,
        offer: Offer,
    ) -> Result<VhostUserBlk, VhostUserBlkError> {
        let (paused, offer) = (Cell::new(paused), Arc::new(offer));
        let export = Rc::new_cyclic(|me: &Weak<Export>| {
            let (on_end, on_time) = (Weak::clone(me), Weak::clone(me));
            Export {
                offer,
                listener: Rc::new(listener),
                acceptor: RefCell::default(),
                path,
                connection: RefCell::new(None),
                closing: Cell::new(false),
                paused,
                ended: ctx.bottom_half("vhost-user-blk-end", move |_| {
                    if let Some(export) = on_end.upgrade() {
                        export.front_end_gone();
                    }
                }),
                again: ctx.timer(move |_| {
                    if let Some(export) = on_time.upgrade() {
                        export.accept();
                    }
                }),
                waiters: RefCell::default(),
            }
        });
        export.offer.watch_devices(None).map_err(VhostUserBlkError::Wait)?;
        let me = Rc::downgrade(&export);
        export.listener.set_nonblocking(true).map_err(VhostUserBlkError::Wait)?;
        let accept = move |_: &AioContext, _| {
            if let Some(export) = me.upgrade() {
                export.accept();
            }
        };
        let acceptor = ctx
            .fd_handler(Rc::clone(&export.listener), FdInterest::Read, accept)
            .map_err(VhostUserBlkError::Wait)?;
        export.acceptor.replace(Some(acceptor));
        export.again.arm_after(Duration::ZERO);
        Ok(VhostUserBlk { export })
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.export.offer.name
    }

    /// Its device in the block graph: the node it is on, and what it has counted.
    pub fn device(&self) -> Device {
        self.export.offer.device
    }

    /// Whether a front end is connected.
    pub fn is_in_use(&self) -> bool {
        self.export.connection.borrow().is_some()
    }

    /// Accepts front ends, if it was made [paused](VhostUserBlkOptions::paused).
    pub fn begin(&self) {
        self.export.paused.set(false);
        self.export.again.arm_after(Duration::ZERO);
    }

    /// The cause of an error that stopped requests is gone: they are tried again; see
    /// [`BlockBackend::resume`](coblk_block::BlockBackend::resume).
    pub fn resume(&self) {
        for device in &self.export.offer.devices {
            device.tell(|_, device| device.backend().resume());
        }
    }

    /// Has the node's length looked at again. Not needed after a change that the block layer made:
    /// devices hear of that by themselves, and a front end that has given us a way to is told.
    pub fn update_capacity(&self) {
        for device in &self.export.offer.devices {
            device.tell(|co, device| {
                if let Err(error) = device.update_capacity(co.context()) {
                    tracing::warn!(%error, "the length of an export cannot be asked for");
                }
            });
        }
    }

    /// Removes the export, and waits until its last request was answered (contract: C86).
    ///
    /// # Errors
    /// [`VhostUserBlkError::InUse`] in mode safe, with a front end connected; nothing happens then.
    pub fn co_remove(&self, co: &Co<'_>, mode: RemoveMode) -> Result<(), VhostUserBlkError> {
        if mode == RemoveMode::Safe && self.is_in_use() {
            return Err(VhostUserBlkError::InUse(self.name().to_owned()));
        }
        self.export.close();
        while self.is_in_use() {
            co.suspend_for("the end of an export", |waker| {
                self.export.waiters.borrow_mut().push(waker);
            });
        }
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.get_mut() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        self.remove_socket();
    }
}

impl Export {
    fn accept(&self) {
        let may_accept = !self.closing.get() && !self.paused.get();
        while may_accept && self.connection.borrow().is_none() {
            match self.listener.accept() {
                Ok((socket, _)) => self.start_session(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(export = self.offer.name, %error, "cannot accept a front end");
                    return self.again.arm_after(ACCEPT_AGAIN);
                }
            }
        }
    }

    fn start_session(&self, socket: UnixStream) {
        let (offer, ended) = (Arc::clone(&self.offer), self.ended.remote());
        let started =
            socket.set_nonblocking(false).and_then(|()| socket.try_clone()).and_then(|own| {
                let thread = std::thread::Builder::new().name("vhost-user-blk".to_owned());
                let thread = thread.spawn(move || {
                    let _ended = Ended(ended);
                    serve(&offer, socket);
                })?;
                Ok(Connection { socket: own, thread })
            });
        match started {
            Ok(connection) => drop(self.connection.borrow_mut().replace(connection)),
            Err(error) => {
                tracing::warn!(export = self.offer.name, %error, "cannot serve a front end");
            }
        }
    }

    fn front_end_gone(&self) {
        if let Some(connection) = self.connection.take() {
            // It has nothing left to do.
            let _ = connection.thread.join();
        }
        for waiter in self.waiters.take() {
            waiter.wake();
        }
        self.accept();
    }

    fn close(&self) {
        self.closing.set(true);
        self.again.cancel();
        drop(self.acceptor.take());
        if let Some(connection) = &*self.connection.borrow() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        self.remove_socket();
    }

    fn remove_socket(&self) {
        if let Some(path) = &self.path {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Says so when the control thread ends, however it does.
struct Ended(RemoteBottomHalf);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.schedule();
    }
}

fn offer(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    options: VhostUserBlkOptions,
) -> Result<Offer, VhostUserBlkError> {
    let VhostUserBlkOptions { device: config, read_only, contexts, error_listener, .. } = options;
    // One device, with a backend on each context. As QEMU's exports it lets others write.
    let backend = BackendOptions::new(&config.name).read_only(read_only).share_rw(true);
    let start = |home| {
        let (node, config, backend) = (Arc::clone(node), config.clone(), backend.clone());
        let listener = error_listener.clone();
        DeviceHandle::start(ctx, home, move |ctx| {
            let backend = backend.open(ctx, node)?;
            if let Some(listener) = listener {
                backend.set_error_listener(move |_, _, event| listener(event));
            }
            VirtioBlk::new(backend, config)
        })
    };
    let devices = if contexts.is_empty() {
        vec![start(None)?]
    } else {
        contexts.iter().map(|home| start(Some(home))).collect::<Result<Vec<_>, _>>()?
    };
    // As the devices do.
    let features = config.features(read_only || node.is_read_only());
    let (num_queues, queue_size_max) = (config.num_queues, config.queue_size_max);
    // Whole sectors: a device that does not hear of a change agrees from the start.
    let sectors = node.length() / SECTOR_BYTES;
    let capacities = devices.iter().map(|_| AtomicU64::new(sectors)).collect();
    let (name, channel) = (config.name, Channel::default());
    let told = AtomicU64::new(sectors);
    let device = backend.device();
    Ok(Offer {
        name,
        device,
        devices,
        features,
        num_queues,
        queue_size_max,
        capacities,
        told,
        channel,
    })
}
