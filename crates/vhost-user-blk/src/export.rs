//! [`VhostUserBlk`]: the listening socket, one front end at a time, and the end.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, SocketError, Stream};
use coblk_aio::{AioContext, BottomHalf, Co, CoWaker, RemoteBottomHalf};
use coblk_block::{BackendOptions, BlockNode, Device};
use coblk_export::RemoveMode;
use coblk_virtio_blk::{SECTOR_BYTES, VirtioBlk};

use crate::channel::Channel;
use crate::control::serve;
use crate::device;
use crate::error::VhostUserBlkError;
use crate::options::VhostUserBlkOptions;
use crate::session::Offer;
use crate::uffd;

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
    acceptor: Acceptor,
}

struct Connection {
    socket: UnixStream,
    thread: JoinHandle<()>,
    _slot: Slot,
}

struct Export {
    offer: Arc<Offer>,
    connection: RefCell<Option<Connection>>,
    closing: Cell<bool>,
    /// A control thread has ended.
    ended: BottomHalf,
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
        let listener = Listener::bind(&SocketAddress::unix(path));
        let failed = |error| VhostUserBlkError::Listen { path: path.to_owned(), source: error };
        Self::from_listener(ctx, listener.map_err(|it| failed(it.into()))?, node, options)
    }

    /// Exports `node` on a socket that listens already, as one that systemd has passed.
    ///
    /// # Errors
    /// As [`listen`](Self::listen); and if it is not a unix socket. The listener is closed then, and
    /// its path is removed if it has bound one.
    pub fn from_listener(
        ctx: &AioContext,
        listener: Listener,
        node: &Arc<BlockNode>,
        options: VhostUserBlkOptions,
    ) -> Result<VhostUserBlk, VhostUserBlkError> {
        if !listener.is_unix() {
            return Err(VhostUserBlkError::Wait(SocketError::UnixOnly.into()));
        }
        let mut accept = AcceptOptions::new("a vhost-user front end");
        accept.max_clients = 1;
        accept.paused = options.paused;
        let offer = Arc::new(offer(ctx, node, options)?);
        let export = Rc::new_cyclic(|me: &Weak<Export>| {
            let on_end = Weak::clone(me);
            Export {
                offer,
                connection: RefCell::new(None),
                closing: Cell::new(false),
                ended: ctx.bottom_half("vhost-user-blk-end", move |_| {
                    if let Some(export) = on_end.upgrade() {
                        export.front_end_gone();
                    }
                }),
                waiters: RefCell::default(),
            }
        });
        export.offer.watch_devices(None).map_err(VhostUserBlkError::Wait)?;
        let me = Rc::downgrade(&export);
        let acceptor = Acceptor::start(ctx, listener, accept, move |_, stream, slot| {
            if let Some(export) = me.upgrade() {
                export.start_session(stream, slot);
            }
        })
        .map_err(VhostUserBlkError::Wait)?;
        Ok(VhostUserBlk { export, acceptor })
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
        self.acceptor.begin();
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
        self.acceptor.stop();
        self.export.close();
        // The listener closes in a turn of the loop.
        while self.acceptor.is_running() {
            co.yield_now();
        }
        while self.is_in_use() {
            co.suspend_for("the end of an export", |waker| {
                self.export.waiters.borrow_mut().push(waker);
            });
        }
        Ok(())
    }
}

impl fmt::Debug for VhostUserBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserBlk")
            .field("name", &self.name())
            .field("is_in_use", &self.is_in_use())
            .finish_non_exhaustive()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.get_mut() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
    }
}

impl Export {
    fn start_session(&self, stream: Stream, slot: Slot) {
        if self.closing.get() {
            return;
        }
        let socket = UnixStream::from(OwnedFd::from(stream));
        let (offer, ended) = (Arc::clone(&self.offer), self.ended.remote());
        let started =
            socket.set_nonblocking(false).and_then(|()| socket.try_clone()).and_then(|own| {
                let thread = std::thread::Builder::new().name("vhost-user-blk".to_owned());
                let thread = thread.spawn(move || {
                    let _ended = Ended(ended);
                    serve(&offer, socket);
                })?;
                Ok(Connection { socket: own, thread, _slot: slot })
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
    }

    fn close(&self) {
        self.closing.set(true);
        if let Some(connection) = &*self.connection.borrow() {
            let _ = connection.socket.shutdown(Shutdown::Both);
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
    let backend = BackendOptions::new(&config.name)
        .read_only(read_only)
        .share_rw(true)
        .allow_inactive(options.allow_inactive);
    let start = |home| {
        let (node, config, backend) = (Arc::clone(node), config.clone(), backend.clone());
        let listener = error_listener.clone();
        device::start(ctx, home, move |ctx| {
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
        postcopy: uffd::is_available(),
        capacities,
        told,
        channel,
    })
}
