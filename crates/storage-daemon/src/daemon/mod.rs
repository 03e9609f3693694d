//! [`Daemon`]: all that the daemon has, and one method for each thing it can be told to do. The
//! command line calls these methods and nothing else, and so does a monitor.

mod bitmaps;
mod chain_snapshots;
mod check;
mod command;
mod configuration;
mod event;
mod exports;
mod in_the_way;
mod jobs;
mod metrics;
mod monitors;
mod nbd_server;
mod objects;
mod shutdown;
mod sizes;
mod snapshots;
mod tls;
pub(crate) mod transaction;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coblk::aio::Wanted;
use coblk::aio::sync::CoMutex;
use coblk::block::{BlockdevError, Drivers};
use coblk::export::{ExportTypes, Exports};
use coblk::jobs::Jobs;
use coblk::nbd::NbdExportType;
use coblk::options::NodeOptions;
use coblk::qapi::shorten;
use coblk::qmp::{self, CommandTable, Monitor, QmpVersion};
use coblk::{AioContext, BlockNode, Blockdevs, BottomHalf, Co, CoWaker, Timer};

pub use chain_snapshots::{NewOverlay, PreparedOverlay};
use configuration::Configured;
use event::EventSender;
pub use event::{Event, IoError, ShutdownCause};
use monitors::Chardev;

pub use crate::error::DaemonError;
use crate::metrics::MetricsServer;
use crate::objects::{ObjectTypes, Objects};
use crate::options::OptionError;

/// A storage daemon on the thread of one context.
///
/// Methods that take a [`Co`] may suspend, and are called from coroutines of that context. What they
/// refuse has changed nothing.
///
/// ```
/// use coblk::AioContext;
/// use coblk_storage_daemon::daemon::Daemon;
/// use coblk_storage_daemon::options::from_argument;
/// use coblk::options::NodeOptions;
///
/// # let dir = tempfile::tempdir()?;
/// # let socket = format!("addr.type=unix,addr.path={}/nbd.sock", dir.path().display());
/// let ctx = AioContext::new()?;
/// let daemon = Daemon::new(&ctx);
/// ctx.run(|co| {
///     daemon.blockdev_add(co, NodeOptions::from_keyval("null-co,node-name=disk,size=1048576")?)?;
///     daemon.nbd_server_start(co, from_argument(&socket, "addr")?)?;
///     daemon.export_add(co, from_argument("nbd,id=e0,node-name=disk", "type")?)?;
///     daemon.begin();
///     assert_eq!(daemon.exports()[0].node_name, "disk");
///     daemon.co_shutdown(co);
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Daemon {
    blockdevs: Blockdevs,
    objects: Objects,
    configured: RefCell<Configured>,
    exports: Rc<Exports>,
    jobs: Rc<Jobs>,
    /// With the server, at most one.
    nbd: Rc<NbdExportType>,
    chardevs: RefCell<BTreeMap<String, Chardev>>,
    monitors: RefCell<Vec<Monitor>>,
    /// What they can be told. All have the same commands.
    commands: Rc<CommandTable>,
    /// What they call the program.
    version: QmpVersion,
    metrics: RefCell<Option<MetricsServer>>,
    subscribers: RefCell<Vec<Subscriber>>,
    /// Clients are let in.
    serving: Cell<bool>,
    waits_for_clients: Cell<bool>,
    quit: Cell<Option<ShutdownCause>>,
    start: SystemTime,
    /// They wait for an export, a node or a command to end.
    waiters: RefCell<Vec<CoWaker>>,
    /// Commands that are being carried out, by number, and the last number.
    commands_running: RefCell<Vec<(u64, &'static str)>>,
    last_command: Cell<u64>,
    asked: RefCell<sizes::Asked>,
    /// Commands on bitmaps and transactions come one after the other: what a transaction takes back, no other has
    /// changed meanwhile.
    bitmap_commands: CoMutex<()>,
    /// Whether checks of images are wanted: until the end.
    checks: Wanted,
    /// Nodes and servers that are being closed at the end.
    ending: Cell<usize>,
    /// Events of other threads, and what delivers them.
    events: EventSender,
    _delivering: BottomHalf,
}

type Subscriber = Rc<dyn Fn(&AioContext, &Event)>;

/// What a daemon is made of that its [builder](crate::builder::DaemonBuilder) knows.
pub(crate) struct Parts {
    pub(crate) drivers: Drivers,
    pub(crate) types: ExportTypes,
    pub(crate) objects: ObjectTypes,
    /// One of these types.
    pub(crate) nbd: Rc<NbdExportType>,
    pub(crate) commands: CommandTable,
    pub(crate) version: QmpVersion,
}

impl Daemon {
    /// One on `ctx`, of the parts that `parts` makes; it may keep the reference.
    pub(crate) fn with(ctx: &AioContext, parts: impl FnOnce(&Weak<Daemon>) -> Parts) -> Rc<Daemon> {
        Rc::new_cyclic(|me: &Weak<Daemon>| {
            let Parts { drivers, types, objects, nbd, commands, version } = parts(me);
            let own = Weak::clone(me);
            let (events, delivering) = EventSender::new(ctx, move |ctx, event| {
                if let Some(daemon) = own.upgrade() {
                    daemon.emit(ctx, event);
                }
            });
            let (sender, own) = (events.clone(), Weak::clone(me));
            let exports = Exports::new(
                types,
                move |error| sender.send(Event::BlockIoError(error.into())),
                move |ctx, id| {
                    if let Some(daemon) = own.upgrade() {
                        daemon.emit(ctx, &Event::BlockExportDeleted { id: id.to_owned() });
                        daemon.wake_waiters();
                    }
                },
            );
            let own = Weak::clone(me);
            let jobs = Jobs::new(move |ctx, event| {
                if let Some(daemon) = own.upgrade() {
                    daemon.emit(ctx, &Event::Job(event.clone()));
                }
            });
            let (blockdevs, sender) = (Blockdevs::new(drivers), events.clone());
            blockdevs.set_event_listener(move |event| sender.send(Event::Driver(event)));
            Daemon {
                blockdevs,
                objects: Objects::new(objects),
                configured: RefCell::default(),
                exports,
                jobs,
                nbd,
                metrics: RefCell::default(),
                chardevs: RefCell::default(),
                monitors: RefCell::default(),
                commands: Rc::new(commands),
                version,
                subscribers: RefCell::default(),
                serving: Cell::new(false),
                waits_for_clients: Cell::new(true),
                quit: Cell::new(None),
                start: SystemTime::now(),
                waiters: RefCell::default(),
                commands_running: RefCell::default(),
                last_command: Cell::new(0),
                asked: RefCell::default(),
                bitmap_commands: CoMutex::new(()),
                checks: Wanted::new(),
                ending: Cell::new(0),
                events,
                _delivering: delivering,
            }
        })
    }

    /// Everything has been set up: lets clients in. Clients that have connected before were waiting.
    pub fn begin(&self) {
        self.serving.set(true);
        self.exports.begin();
        self.nbd.server().iter().for_each(|server| server.begin());
        self.monitors.borrow().iter().for_each(Monitor::begin);
    }

    /// Character devices with `wait` do not wait from now on: clients shall not be served.
    pub fn wait_for_no_client(&self) {
        self.waits_for_clients.set(false);
    }

    /// Asks it to end, as soon as its owner gets to it. Only the first cause counts.
    pub fn quit(&self, cause: ShutdownCause) {
        if self.quit.get().is_none() {
            self.quit.set(Some(cause));
            self.exports.end();
        }
    }

    /// Why it shall end, if it shall.
    pub fn quit_cause(&self) -> Option<ShutdownCause> {
        self.quit.get()
    }

    /// Has every event told to a subscriber, on the daemon's thread, outside of coroutines or inside.
    pub fn subscribe(&self, subscriber: impl Fn(&AioContext, &Event) + 'static) {
        self.subscribers.borrow_mut().push(Rc::new(subscriber));
    }

    pub(crate) fn emit(&self, ctx: &AioContext, event: &Event) {
        tracing::info!(?event);
        // They may subscribe others.
        let subscribers = self.subscribers.borrow().clone();
        subscribers.iter().for_each(|subscriber| subscriber(ctx, event));
    }

    /// Tells the clients of all monitors.
    pub(crate) fn emit_qmp(&self, event: &qmp::Event) {
        self.monitors.borrow().iter().for_each(|monitor| monitor.emit(event.clone()));
    }

    /// Its nodes, to be asked about.
    pub fn blockdevs(&self) -> &Blockdevs {
        &self.blockdevs
    }

    /// `blockdev-add`: opens a node.
    ///
    /// # Errors
    /// If it has no name, if the name is taken, and what cannot be opened.
    pub fn blockdev_add(
        &self,
        co: &Co<'_>,
        options: NodeOptions,
    ) -> Result<Arc<BlockNode>, DaemonError> {
        let command = self.begin_command("blockdev-add")?;
        let options = self.blockdevs.drivers().resolve(options).map_err(BlockdevError::from)?;
        if options.node_name.is_none() {
            return Err(DaemonError::NoNodeName);
        }
        let node = self.blockdevs.co_open(co, options)?;
        command.check().inspect_err(|_| {
            // The end has not seen it.
            let _ = self.blockdevs.co_close(co, node.name());
        })?;
        Ok(node)
    }

    /// `blockdev-del`: flushes a node and closes it.
    ///
    /// # Errors
    /// If there is none, or it has users.
    pub fn blockdev_del(&self, co: &Co<'_>, node_name: &str) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-del")?;
        Ok(self.blockdevs.co_close(co, node_name)?)
    }

    /// `blockdev-reopen`: gives nodes other options, all or none of them; those that are not
    /// mentioned go back to their defaults.
    ///
    /// # Errors
    /// If one has no name, and what cannot be changed.
    pub fn blockdev_reopen(
        &self,
        co: &Co<'_>,
        options: Vec<NodeOptions>,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-reopen")?;
        let options = options.into_iter().enumerate().map(|(place, options)| {
            let resolved = self.blockdevs.drivers().resolve(options);
            resolved.map_err(|error| error.within(&format!("options[{place}]")))
        });
        let options = options.collect::<Result<Vec<_>, _>>().map_err(BlockdevError::from)?;
        if options.iter().any(|options| options.node_name.is_none()) {
            return Err(OptionError::other("node-name not specified").into());
        }
        Ok(self.blockdevs.co_reopen(co, options)?)
    }

    /// `x-blockdev-change`: adds the node called `node` to the list of children of another one, or removes
    /// the child that goes by the name `child`, such as `children.1`.
    ///
    /// # Errors
    /// If one of the nodes is not there, not exactly one of both is given, or as of
    /// [`BlockNode::co_add_child`] and [`Blockdevs::co_remove_child`].
    pub fn blockdev_change(
        &self,
        co: &Co<'_>,
        parent: &str,
        (child, node): (Option<&str>, Option<&str>),
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("x-blockdev-change")?;
        let named = |name: &str| {
            let missing = || DaemonError::NoSuchNode(name.to_owned());
            self.blockdevs.node(name).ok_or_else(missing)
        };
        let parent = named(parent)?;
        let changed = match (child, node) {
            (None, Some(node)) => {
                let added = parent.co_add_child(co, &named(node)?);
                added.map(drop).map_err(BlockdevError::from)
            }
            (Some(child), None) => self.blockdevs.co_remove_child(co, &parent, child),
            (Some(_), Some(_)) => {
                let text = "The parameters child and node are in conflict";
                return Err(OptionError::other(text).into());
            }
            (None, None) => {
                let text = "Either child or node must be specified";
                return Err(OptionError::other(text).into());
            }
        };
        Ok(changed?)
    }

    /// `blockdev-set-active`: makes a node active or inactive, or all nodes, as
    /// [`BlockNode::co_set_active`] does.
    ///
    /// # Errors
    /// If there is no such node, and as of that. Nothing has changed then.
    pub fn blockdev_set_active(
        &self,
        co: &Co<'_>,
        node_name: Option<&str>,
        active: bool,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-set-active")?;
        let names = node_name.as_ref().map(std::slice::from_ref);
        Ok(self.blockdevs.co_set_active(co, names, active)?)
    }

    /// `block_resize`: changes the length of a node to `length` bytes.
    ///
    /// # Errors
    /// If there is no such node, or it cannot have that length.
    pub fn block_resize(
        &self,
        co: &Co<'_>,
        node_name: &str,
        length: u64,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("block_resize")?;
        self.blockdevs.co_resize(co, node_name, length).map_err(|error| match error {
            BlockdevError::Io { source, .. } if source.kind() == ErrorKind::Unsupported => {
                OptionError::other("Image format driver does not support resize").into()
            }
            other => other.into(),
        })
    }

    /// `block-set-write-threshold`: tells once, by [`Event::BlockWriteThreshold`], when a write ends
    /// behind so many bytes of a node; 0 is never.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn set_write_threshold(&self, node_name: &str, threshold: u64) -> Result<(), DaemonError> {
        let node = self.blockdevs.node(node_name);
        let node = node.ok_or_else(|| {
            OptionError::other(format!("Device '{}' not found", shorten(node_name)))
        })?;
        if threshold == 0 {
            node.unset_write_threshold();
            return Ok(());
        }
        let (events, node_name) = (self.events.clone(), node_name.to_owned());
        node.set_write_threshold(threshold, move |passed| {
            events.send(Event::BlockWriteThreshold { node_name, passed });
        });
        Ok(())
    }

    fn wake_waiters(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(|waiter| waiter.wake());
    }

    /// A wait that is over after `limit`, and wakes the waiters then.
    fn wait_within(self: &Rc<Self>, ctx: &AioContext, limit: Duration) -> Limit {
        let daemon = Rc::downgrade(self);
        let timer = ctx.timer(move |_| {
            daemon.upgrade().into_iter().for_each(|daemon| daemon.wake_waiters());
        });
        let end_ns = ctx.now_ns() + limit.as_nanos() as i64;
        timer.arm_at_ns(end_ns);
        Limit { end_ns, _timer: timer }
    }

    /// Waits until something has ended that others may wait for.
    fn co_wait(&self, co: &Co<'_>, what: &'static str) {
        co.suspend_for(what, |waker| self.waiters.borrow_mut().push(waker));
    }
}

/// Until when something is waited for.
struct Limit {
    end_ns: i64,
    _timer: Timer,
}

impl Limit {
    fn is_over(&self, co: &Co<'_>) -> bool {
        co.context().now_ns() >= self.end_ns
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon")
            .field("exports", &self.exports)
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}
