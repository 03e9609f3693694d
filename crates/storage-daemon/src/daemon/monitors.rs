//! Monitors, and the character devices that they are on.

use std::rc::Rc;
use std::time::Duration;

use coblk::Co;
use coblk::aio::net::Listener;
use coblk::qmp::{Monitor, QmpOptions};

use super::command::RunningCommand;
use super::{Daemon, DaemonError};
use crate::options::{ChardevBackend, ChardevOptions, MonitorMode, MonitorOptions, SocketChardev};
use crate::terminal::{self, Terminal};
use crate::{daemonize, sockets};

/// How long clients may take to fetch their answers when the daemon ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a daemon that waits for a client looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// A character device; taken once a monitor is on it.
pub(super) struct Chardev {
    options: ChardevOptions,
    is_taken: bool,
    /// It listens from the start. The monitor takes this.
    listener: Option<Listener>,
    /// Set back at the end.
    _terminal: Option<Terminal>,
}

impl Daemon {
    /// `chardev-add`: makes a place for a monitor. A server listens, and with `wait` this returns when
    /// a client has connected, or the daemon shall end.
    ///
    /// # Errors
    /// If the name is taken, or the place cannot be had.
    pub fn chardev_add(&self, co: &Co<'_>, options: ChardevOptions) -> Result<(), DaemonError> {
        let command = self.begin_command("chardev-add")?;
        self.check_chardev(&options)?;
        let (mut listener, mut terminal) = (None, None);
        match &options.backend {
            ChardevBackend::Socket(socket) if socket.server => {
                let bound = sockets::co_listen(co, &socket.address)?;
                if socket.wait && self.waits_for_clients.get() {
                    self.co_wait_for_client(co, &bound)?;
                }
                listener = Some(bound);
            }
            ChardevBackend::Socket(_) => {}
            ChardevBackend::Stdio { signal } => {
                let set = Terminal::set(*signal);
                let what = "cannot set the terminal";
                terminal = Some(set.map_err(|source| DaemonError::Io { what, source })?);
            }
        }
        command.check()?;
        self.check_chardev(&options)?;
        let id = options.id.clone();
        let chardev = Chardev { options, is_taken: false, listener, _terminal: terminal };
        self.chardevs.borrow_mut().insert(id, chardev);
        Ok(())
    }

    fn check_chardev(&self, options: &ChardevOptions) -> Result<(), DaemonError> {
        let chardevs = self.chardevs.borrow();
        if chardevs.contains_key(&options.id) {
            return Err(DaemonError::DuplicateChardev(options.id.clone()));
        }
        let is_stdio = |it: &ChardevOptions| matches!(it.backend, ChardevBackend::Stdio { .. });
        if is_stdio(options) && daemonize::is_starting() {
            return Err(DaemonError::Unsupported("cannot use stdio with --daemonize"));
        }
        if is_stdio(options) && chardevs.values().any(|chardev| is_stdio(&chardev.options)) {
            return Err(DaemonError::StdioInUse);
        }
        Ok(())
    }

    /// Returns when a client waits to be accepted, or the daemon shall end.
    fn co_wait_for_client(&self, co: &Co<'_>, listener: &Listener) -> Result<(), DaemonError> {
        let address = &listener.addresses()[0];
        tracing::warn!(%address, "waiting for a client to connect");
        let what = "cannot wait for a client";
        while self.quit_cause().is_none() {
            let waited = listener.co_wait_for_client(co, LOOK);
            if waited.map_err(|source| DaemonError::Io { what, source })? {
                break;
            }
        }
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
        let command = self.begin_command("monitor")?;
        if options.mode == MonitorMode::Readline {
            return Err(DaemonError::Unsupported(
                "Parameter 'mode' must be 'control': monitors speak QMP only",
            ));
        }
        let chardev = self.take_chardev(&options.chardev)?;
        let configured = options;
        let mut options = QmpOptions::default();
        options.pretty = configured.pretty;
        options.version = self.version.clone();
        options.paused = !self.serving.get();
        let made = match &chardev.backend {
            ChardevBackend::Socket(socket) if socket.server => {
                self.listen(co, &command, &chardev.id, socket, options)
            }
            ChardevBackend::Socket(socket) => self.connect(co, socket, options),
            ChardevBackend::Stdio { .. } => terminal::ends()
                .and_then(|(input, output)| {
                    Monitor::over(co.context(), input, output, Rc::clone(&self.commands), options)
                })
                .map_err(|source| DaemonError::Io { what: "cannot use stdio", source }),
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
        command: &RunningCommand<'_>,
        id: &str,
        socket: &SocketChardev,
        options: QmpOptions,
    ) -> Result<Monitor, DaemonError> {
        let listener = self.chardevs.borrow_mut().get_mut(id).and_then(|it| it.listener.take());
        let listener = match listener {
            Some(listener) => listener,
            // A monitor that failed has closed it.
            None => sockets::co_listen(co, &socket.address)?,
        };
        command.check()?;
        let monitor =
            Monitor::from_listener(co.context(), listener, Rc::clone(&self.commands), options);
        let monitor = monitor.map_err(|source| DaemonError::Io {
            what: "cannot use the socket of a monitor",
            source,
        })?;
        sockets::taken_over(&socket.address);
        Ok(monitor)
    }

    fn connect(
        self: &Rc<Self>,
        co: &Co<'_>,
        socket: &SocketChardev,
        options: QmpOptions,
    ) -> Result<Monitor, DaemonError> {
        let address = sockets::from_anywhere(&socket.address);
        let reconnect = socket.reconnect;
        let monitor =
            Monitor::connect(co.context(), &address, reconnect, Rc::clone(&self.commands), options);
        monitor.map_err(|source| DaemonError::Io { what: "cannot connect a monitor", source })
    }

    /// Lets clients have the answers that they wait for, and disconnects them.
    pub(super) fn co_close_monitors(self: &Rc<Self>, co: &Co<'_>) {
        for monitor in self.monitors.take() {
            let daemon = Rc::clone(self);
            self.ending.set(self.ending.get() + 1);
            co.context().spawn("close monitor", move |co| {
                monitor.co_shutdown(co, PATIENCE);
                drop(monitor);
                daemon.ending.set(daemon.ending.get() - 1);
                daemon.wake_waiters();
            });
        }
        // A command that does not come back has been told of, and is left behind.
        let waiting = self.wait_within(co.context(), 2 * PATIENCE);
        while self.ending.get() > 0 && !waiting.is_over(co) {
            self.co_wait(co, "the end of monitors");
        }
        let chardevs = self.chardevs.take();
        drop(chardevs);
    }
}
