//! Monitors, and the character devices that they are on.

use std::rc::Rc;
use std::time::Duration;

use coblk::Co;
use coblk::qmp::{CommandTable, Monitor, QmpListener, QmpOptions, SocketAddress};

use super::{Daemon, DaemonError};
use crate::options::{ChardevOptions, MonitorMode, MonitorOptions};
use crate::qmp;
use crate::sockets::{self, Listening, SocketError};

/// How long clients may take to fetch their answers when the daemon ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// A character device; taken once a monitor is on it.
pub(super) struct Chardev {
    options: ChardevOptions,
    is_taken: bool,
}

impl Daemon {
    /// `chardev-add`: keeps a place for a monitor.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn chardev_add(&self, options: ChardevOptions) -> Result<(), DaemonError> {
        let mut chardevs = self.chardevs.borrow_mut();
        if chardevs.contains_key(&options.id) {
            return Err(DaemonError::DuplicateChardev(options.id));
        }
        chardevs.insert(options.id.clone(), Chardev { options, is_taken: false });
        Ok(())
    }

    /// Starts a monitor on a character device. Its clients wait until the daemon
    /// [begins](Self::begin).
    ///
    /// # Errors
    /// If there is no such character device, there is a monitor on it, or its socket cannot be used.
    pub fn monitor_add(
        self: &Rc<Self>,
        co: &Co<'_>,
        options: &MonitorOptions,
    ) -> Result<(), DaemonError> {
        self.check_running()?;
        if options.mode == MonitorMode::Readline {
            return Err(DaemonError::Unsupported(
                "Parameter 'mode' must be 'control': monitors speak QMP only",
            ));
        }
        let chardev = self.take_chardev(&options.chardev)?;
        let configured = options;
        let options = QmpOptions {
            pretty: options.pretty,
            version: qmp::version(),
            paused: !self.serving.get(),
        };
        let made = if chardev.socket.server {
            self.listen(co, &chardev, options)
        } else {
            self.connect(co, &chardev, options)
        };
        let monitor = made.inspect_err(|_| self.give_chardev_back(&chardev.id))?;
        // It may have begun meanwhile.
        if self.serving.get() {
            monitor.begin();
        }
        self.monitors.borrow_mut().push(monitor);
        self.configured.borrow_mut().monitors.push(configured.clone());
        Ok(())
    }

    /// What all character devices are.
    pub(super) fn chardevs(&self) -> Vec<ChardevOptions> {
        self.chardevs.borrow().values().map(|chardev| chardev.options.clone()).collect()
    }

    fn give_chardev_back(&self, id: &str) {
        if let Some(chardev) = self.chardevs.borrow_mut().get_mut(id) {
            chardev.is_taken = false;
        }
    }

    fn take_chardev(&self, id: &str) -> Result<ChardevOptions, DaemonError> {
        let mut chardevs = self.chardevs.borrow_mut();
        let chardev = chardevs.get_mut(id);
        let chardev = chardev.ok_or_else(|| DaemonError::NoSuchChardev(id.to_owned()))?;
        if std::mem::replace(&mut chardev.is_taken, true) {
            return Err(DaemonError::ChardevInUse(id.to_owned()));
        }
        Ok(chardev.options.clone())
    }

    fn listen(
        self: &Rc<Self>,
        co: &Co<'_>,
        chardev: &ChardevOptions,
        options: QmpOptions,
    ) -> Result<Monitor, DaemonError> {
        // To ask for the addresses of a host may take long.
        let pool = co.context().thread_pool();
        let listening = pool.submit_co(co, || sockets::open(&chardev.socket.address))?;
        let (ctx, table) = (co.context(), self.commands());
        let monitor = match listening {
            Listening::Path(path) => {
                let address = SocketAddress::Unix(path.clone());
                return Monitor::listen(ctx, &address, table, options).map_err(|source| {
                    let path = path.display().to_string();
                    SocketError::BindUnix { path, source }.into()
                });
            }
            Listening::Unix(socket) => {
                Monitor::from_listener(ctx, QmpListener::Unix(socket), table, options)
            }
            Listening::Tcp(socket) => {
                Monitor::from_listener(ctx, QmpListener::Tcp(socket), table, options)
            }
        };
        monitor.map_err(|source| DaemonError::Io {
            what: "cannot use the socket of a monitor",
            source,
        })
    }

    fn connect(
        self: &Rc<Self>,
        co: &Co<'_>,
        chardev: &ChardevOptions,
        options: QmpOptions,
    ) -> Result<Monitor, DaemonError> {
        let pool = co.context().thread_pool();
        let address = pool.submit_co(co, || sockets::peer(&chardev.socket.address))?;
        let reconnect = chardev.socket.reconnect;
        let monitor = Monitor::connect(co.context(), &address, reconnect, self.commands(), options);
        monitor.map_err(|source| DaemonError::Io { what: "cannot connect a monitor", source })
    }

    /// All monitors have the same commands, which therefore run one at a time.
    fn commands(self: &Rc<Self>) -> Rc<CommandTable> {
        let table = self.commands.get_or_init(|| {
            let daemon = Rc::downgrade(self);
            self.subscribe(move |_, event| {
                if let Some(daemon) = daemon.upgrade() {
                    let Some(event) = qmp::to_qmp(event) else { return };
                    let monitors = daemon.monitors.borrow();
                    monitors.iter().for_each(|monitor| monitor.emit(event.clone()));
                }
            });
            Rc::new(qmp::commands(self))
        });
        Rc::clone(table)
    }

    /// Lets clients have the answers that they wait for, and disconnects them.
    pub(super) fn co_close_monitors(&self, co: &Co<'_>) {
        let monitors = self.monitors.take();
        monitors.iter().for_each(|monitor| monitor.co_shutdown(co, PATIENCE));
    }
}
