//! [`Session`]: one client, from its greeting to its end.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::Rc;

use coblk_aio::Co;
use coblk_aio::sync::CoQueue;
use coblk_qapi::Splitter;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::arguments::from_arguments;
use crate::channel::Channel;
use crate::command::CommandTable;
use crate::error::{ErrorClass, QmpError};
use crate::event::{EVENTS_DROPPED, Event};
use crate::json;
use crate::monitor::QmpOptions;
use crate::request::{Capability, Negotiation, Request, take_apart};

/// Events wait for a client that does not read as long as no more than this waits, in bytes. Further
/// ones are dropped.
const MAX_WAITING_EVENTS: usize = 256 << 10;

/// Commands of one monitor, whose clients have gone before they ended, and the next one.
const MAX_RUNNING: usize = 64;

/// A client. Its coroutine reads, runs commands and answers; events may come at any time.
pub struct Session {
    channel: Channel,
    options: QmpOptions,
    /// Capabilities were negotiated: commands run, and events are told.
    is_open: Cell<bool>,
    /// No further command is read.
    is_ending: Cell<bool>,
    /// The client is gone.
    has_failed: Cell<bool>,
    outbox: RefCell<Outbox>,
    /// There may be something to read, or room to write, or the session shall end.
    changed: CoQueue,
    /// Commands of this monitor's sessions that have not ended, of sessions that have included.
    running: Rc<Cell<usize>>,
}

/// A command that runs as long as this lives.
struct RunningCommand(Rc<Session>);

impl RunningCommand {
    fn new(session: &Rc<Session>) -> RunningCommand {
        session.running.set(session.running.get() + 1);
        RunningCommand(Rc::clone(session))
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.changed.wake_all();
    }
}

#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Events that were dropped since one was told.
    dropped: u64,
}

#[derive(Serialize)]
struct Answer {
    #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<QmpError>,
    /// On one line, even if the answer is pretty: spread out it could be long beyond measure.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Box<RawValue>>,
}

impl Session {
    /// One that counts its commands in `running`.
    pub fn new(channel: Channel, options: QmpOptions, running: Rc<Cell<usize>>) -> Rc<Session> {
        Rc::new(Session {
            channel,
            options,
            is_open: Cell::new(false),
            is_ending: Cell::new(false),
            has_failed: Cell::new(false),
            outbox: RefCell::default(),
            changed: CoQueue::new(),
            running,
        })
    }

    /// Serves the client to its end.
    pub fn run(self: &Rc<Self>, co: &Co<'_>, table: &Rc<CommandTable>) -> io::Result<()> {
        let own = Rc::downgrade(self);
        let _watched = self.channel.watch(co.context(), move || {
            if let Some(own) = own.upgrade() {
                own.flush();
                own.changed.wake_all();
            }
        })?;
        let greeting = json!({"QMP": {"version": self.options.version, "capabilities": []}});
        self.post(&greeting);
        let result = self.converse(co, table);
        // What was answered before the end.
        result.and_then(|()| self.wait_sent(co))
    }

    fn converse(self: &Rc<Self>, co: &Co<'_>, table: &Rc<CommandTable>) -> io::Result<()> {
        let mut splitter = Splitter::default();
        let mut buffer = [0; 4096];
        loop {
            let Some(bytes) = self.read(co, &mut buffer)? else { return Ok(()) };
            let mut input = &buffer[..bytes];
            while let Some(text) = splitter.next(&mut input) {
                let answer = self.answer(co, table, text);
                self.tell_of_dropped();
                self.post(&answer.ok_or(ErrorKind::BrokenPipe)?);
                // One command is answered before the next one is looked at: a client that never reads
                // has one answer waiting, and no more.
                self.wait_sent(co)?;
                if self.is_ending.get() {
                    return Ok(());
                }
                // Who never stops asking does not keep others from the loop.
                co.yield_now();
            }
        }
    }

    /// `None` if the client has gone.
    fn answer(
        self: &Rc<Self>,
        co: &Co<'_>,
        table: &Rc<CommandTable>,
        text: Result<Vec<u8>, &'static str>,
    ) -> Option<Answer> {
        let value = text
            .map_err(QmpError::generic)
            .and_then(|text| coblk_qapi::json::parse_one(&text).map_err(QmpError::generic));
        let (id, request) = match value {
            Ok(value) => take_apart(value),
            Err(error) => (None, Err(error)),
        };
        let id = id.and_then(|id| to_raw_value(&id).ok());
        let result = match request {
            Ok(request) if self.is_for_table(&request) => self.run_command(co, table, request)?,
            request => request.and_then(|request| self.execute(request)),
        };
        Some(match result {
            Ok(result) => Answer { result: Some(result), error: None, id },
            Err(error) => Answer { result: None, error: Some(error), id },
        })
    }

    fn is_for_table(&self, request: &Request) -> bool {
        self.is_open.get()
            && !matches!(request.execute.as_str(), "qmp_capabilities" | "query-version")
    }

    /// Runs a command in a coroutine of its own, so that the session can end before it: a command may
    /// wait for a disk that does not answer. `None` if the client goes; the command then goes on, and
    /// its result is dropped.
    fn run_command(
        self: &Rc<Self>,
        co: &Co<'_>,
        table: &Rc<CommandTable>,
        request: Request,
    ) -> Option<Result<Value, QmpError>> {
        if self.running.get() >= MAX_RUNNING {
            let text = "too many commands of clients that have gone have not ended";
            return Some(Err(QmpError::generic(text)));
        }
        let done = Rc::new(Cell::new(None));
        let (told, table) = (Rc::clone(&done), Rc::clone(table));
        let running = RunningCommand::new(self);
        co.context().spawn("qmp_command", move |co| {
            told.set(Some(table.run(co, request)));
            drop(running);
        });
        loop {
            if let Some(result) = done.take() {
                return Some(result);
            }
            if self.has_failed.get() || self.channel.has_hung_up() {
                return None;
            }
            self.changed.wait(co);
        }
    }

    /// What every session knows.
    fn execute(&self, request: Request) -> Result<Value, QmpError> {
        let refuse = |desc| Err(QmpError::new(ErrorClass::CommandNotFound, desc));
        match (request.execute.as_str(), self.is_open.get()) {
            ("qmp_capabilities", is_open) => {
                let negotiation: Negotiation = from_arguments(request.arguments)?;
                if is_open {
                    return refuse("Capabilities negotiation is already complete, command ignored");
                }
                self.negotiate(&negotiation)?;
                Ok(json!({}))
            }
            (_, false) => refuse("Expecting capabilities negotiation with 'qmp_capabilities'"),
            (_, true) => {
                from_arguments::<()>(request.arguments)?;
                serde_json::to_value(&self.options.version).map_err(QmpError::generic)
            }
        }
    }

    fn negotiate(&self, negotiation: &Negotiation) -> Result<(), QmpError> {
        if let Some(Capability::Oob) = negotiation.enable.first() {
            return Err(QmpError::generic("Capability 'oob' is not available"));
        }
        self.is_open.set(true);
        Ok(())
    }
}

/// Reading and writing.
impl Session {
    /// Reads at least one byte, unless the session shall end, or the client has ended it.
    fn read(&self, co: &Co<'_>, target: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if self.is_ending.get() {
                return Ok(None);
            }
            if self.has_failed.get() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            match self.channel.read(target) {
                // There are no more commands, and events all the same.
                Ok(0) if self.channel.outlives_its_input() => self.changed.wait(co),
                Ok(0) => return Ok(None),
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.changed.wait(co),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells an event, if the client has negotiated.
    pub fn tell(&self, event: &Event) {
        if !self.is_open.get() || self.has_failed.get() {
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        if outbox.waiting() > MAX_WAITING_EVENTS {
            outbox.dropped += 1;
            return;
        }
        drop(outbox);
        self.tell_of_dropped();
        self.post(event);
        self.flush();
    }

    /// Tells how many events were dropped, in the place where they are missing.
    fn tell_of_dropped(&self) {
        let dropped = std::mem::take(&mut self.outbox.borrow_mut().dropped);
        if dropped > 0 {
            tracing::warn!(dropped, "a QMP client did not read, and missed events");
            self.post(&Event::new(EVENTS_DROPPED).with("count", dropped));
        }
    }

    /// Puts a message behind those that wait to be sent.
    fn post(&self, message: &impl Serialize) {
        if !self.has_failed.get() {
            let text = json::write(message, self.options.pretty);
            self.outbox.borrow_mut().bytes.extend_from_slice(&text);
        }
    }

    /// Sends what the socket takes at once.
    fn flush(&self) {
        self.send_some();
        // Not only before the next event: there may be none for long.
        let is_owed = {
            let outbox = self.outbox.borrow();
            outbox.waiting() == 0 && outbox.dropped > 0
        };
        if is_owed && !self.has_failed.get() {
            self.tell_of_dropped();
            self.send_some();
        }
    }

    fn send_some(&self) {
        let mut outbox = self.outbox.borrow_mut();
        while outbox.waiting() > 0 && !self.has_failed.get() {
            match self.channel.write(&outbox.bytes[outbox.sent..]) {
                Ok(bytes) => outbox.take(bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing is woken: the end is reported for reading as well, and what tells an
                // event may be in the middle of something.
                Err(_) => self.has_failed.set(true),
            }
        }
        *outbox = Outbox { dropped: outbox.dropped, ..Outbox::default() };
    }

    /// Waits until all was sent.
    fn wait_sent(&self, co: &Co<'_>) -> io::Result<()> {
        loop {
            self.flush();
            if self.has_failed.get() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if self.outbox.borrow().waiting() == 0 {
                return Ok(());
            }
            self.changed.wait(co);
        }
    }

    /// Ends it after the command that runs, when its answer was sent.
    pub fn end(&self) {
        self.is_ending.set(true);
        self.changed.wake_all();
    }

    /// Ends it, and sends nothing more.
    pub fn fail(&self) {
        self.has_failed.set(true);
        self.end();
    }
}

impl Outbox {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// So much was sent. What has gone is dropped from time to time: for a client that is always a
    /// little behind there is never a moment when all has gone.
    fn take(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_kept_though_there_is_always_more() {
        let mut outbox = Outbox::default();
        outbox.bytes.extend_from_slice(&[0; 1000]);
        for _ in 0..1000 {
            outbox.bytes.extend_from_slice(&[1; 1000]);
            outbox.take(1000);
            assert_eq!(outbox.waiting(), 1000);
        }
        assert!(outbox.bytes.capacity() <= 8000, "{}", outbox.bytes.capacity());
        outbox.take(1000);
        assert_eq!((outbox.waiting(), outbox.bytes.len()), (0, 0));
    }
}
