//! [`DaemonBuilder`]: what a daemon is made of, and what a program adds to it.

use std::fmt;
use std::rc::Rc;

use coblk::block::{Driver, Drivers};
use coblk::export::{ExportType, ExportTypes};
use coblk::fuse::FuseExportType;
use coblk::nbd::NbdExportType;
use coblk::qmp::QmpError;
use coblk::vhost_user_blk::VhostUserBlkExportType;
use coblk::{AioContext, Co};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon::{Daemon, Parts};
use crate::objects::{ObjectType, ObjectTypes};
use crate::qmp::{self, Commands};
use crate::sockets::DaemonSockets;

/// A daemon in the making: with the types of exports and objects and the commands of this crate, and with
/// those that are added.
///
/// ```
/// use coblk::AioContext;
/// use coblk_storage_daemon::daemon::Daemon;
///
/// #[derive(serde::Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// let ctx = AioContext::new()?;
/// let daemon = Daemon::builder()
///     .command("x-greet", |_daemon, _co, Greet { name }| Ok(format!("hello, {name}")))
///     .build(&ctx);
/// ctx.run(|co| daemon.co_shutdown(co));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A type of exports of a program's own is `examples/own_export.rs`, one of objects
/// `examples/own_object.rs`, drivers are `examples/own_driver.rs`.
pub struct DaemonBuilder {
    drivers: Drivers,
    types: ExportTypes,
    objects: ObjectTypes,
    nbd: Rc<NbdExportType>,
    commands: Vec<AddCommand>,
}

/// Adds a command to a table in the making.
type AddCommand = Box<dyn FnOnce(&mut Commands)>;

impl Daemon {
    /// One on `ctx` with all that this crate has, and nothing else. It does not serve before
    /// [`begin`](Self::begin).
    pub fn new(ctx: &AioContext) -> Rc<Daemon> {
        Daemon::builder().build(ctx)
    }

    /// One that is to have more than that.
    pub fn builder() -> DaemonBuilder {
        let (mut types, nbd) = (ExportTypes::new(), Rc::<NbdExportType>::default());
        types.add(Rc::clone(&nbd));
        types.add(FuseExportType::default());
        types.add(VhostUserBlkExportType::new(DaemonSockets));
        let (drivers, objects) = (coblk::drivers(), ObjectTypes::default());
        DaemonBuilder { drivers, types, objects, nbd, commands: Vec::new() }
    }
}

impl DaemonBuilder {
    /// Adds a driver of nodes: for `--blockdev`, `blockdev-add` and its schema, `blockdev-reopen`.
    ///
    /// # Panics
    /// If there is one of its names.
    #[must_use]
    pub fn driver<D: Driver>(mut self) -> DaemonBuilder {
        self.drivers.add::<D>();
        self
    }

    /// Adds a type of exports: for `--export`, `block-export-add` and its schema.
    ///
    /// # Panics
    /// If there is one of this name.
    #[must_use]
    pub fn export_type(mut self, new: impl ExportType) -> DaemonBuilder {
        self.types.add(new);
        self
    }

    /// Adds a type of objects: for `--object`, `object-add` and its schema, and the commands `qom-...`.
    ///
    /// # Panics
    /// If there is one of this name.
    #[must_use]
    pub fn object_type(mut self, new: impl ObjectType) -> DaemonBuilder {
        self.objects.add(new);
        self
    }

    /// The types of objects that it will have.
    pub(crate) fn object_types(&self) -> &ObjectTypes {
        &self.objects
    }

    /// Adds a command to all monitors. Its arguments become an `A`, and what it returns the answer, see
    /// [`CommandTable::command`](coblk::qmp::CommandTable::command). It runs in a coroutine on the daemon's
    /// thread, so it may suspend, and must not block.
    ///
    /// The daemon is made with all its commands: [`build`](Self::build) panics if two have one name.
    #[must_use]
    pub fn command<A: DeserializeOwned, R: Serialize>(
        mut self,
        name: &'static str,
        handler: impl Fn(&Rc<Daemon>, &Co<'_>, A) -> Result<R, QmpError> + 'static,
    ) -> DaemonBuilder {
        self.commands.push(Box::new(move |commands| commands.add_qmp(name, handler)));
        self
    }

    /// The daemon, on `ctx`. It does not serve before [`begin`](Daemon::begin).
    ///
    /// # Panics
    /// If two commands have one name, or two drivers tell different events by one name.
    pub fn build(self, ctx: &AioContext) -> Rc<Daemon> {
        let DaemonBuilder { drivers, types, objects, nbd, commands: added } = self;
        let daemon = Daemon::with(ctx, |daemon| {
            let mut commands = qmp::commands(daemon, &drivers, &types, &objects);
            added.into_iter().for_each(|add| add(&mut commands));
            let (commands, version) = (commands.table, qmp::version());
            Parts { drivers, types, objects, nbd, commands, version }
        });
        let weak = Rc::downgrade(&daemon);
        daemon.subscribe(move |_, event| {
            if let (Some(daemon), Some(event)) = (weak.upgrade(), qmp::to_qmp(event)) {
                daemon.emit_qmp(&event);
            }
        });
        daemon
    }
}

impl fmt::Debug for DaemonBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonBuilder")
            .field("exports", &self.types)
            .field("objects", &self.objects)
            .field("commands", &self.commands.len())
            .finish_non_exhaustive()
    }
}
