//! [`Session`]: one client, from its greeting to its end.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use coblk_aio::sync::CoQueue;
use coblk_aio::{AioContext, Co, FdInterest};
use coblk_qapi::{Schema, Splitter};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::arguments::from_arguments;
use crate::command::CommandTable;
use crate::error::{ErrorClass, QmpError};
use crate::event::Event;
use crate::json;
use crate::monitor::QmpOptions;
use crate::request::{Request, take_apart};
use crate::socket::Stream;

/// Events wait for a client that does not read as long as no more than this waits, in bytes. Further
/// ones are dropped.
const MAX_WAITING_EVENTS: usize = 256 << 10;

/// A client. Its coroutine reads, runs commands and answers; events may come at any time.
pub struct Session {
    stream: Stream,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Negotiation {
    #[serde(default)]
    enable: Vec<Capability>,
}

/// What a client may ask for, and no session has.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Capability {
    Oob,
}

/// What the arguments of `qmp_capabilities` are.
pub fn negotiation() -> Result<Schema, coblk_qapi::Error> {
    Schema::of::<Negotiation>()
}

impl Session {
    pub fn new(stream: Stream, options: QmpOptions) -> Rc<Session> {
        Rc::new(Session {
            stream,
            options,
            is_open: Cell::new(false),
            is_ending: Cell::new(false),
            has_failed: Cell::new(false),
            outbox: RefCell::default(),
            changed: CoQueue::new(),
        })
    }

    /// Serves the client to its end.
    pub fn run(self: &Rc<Self>, co: &Co<'_>, table: &CommandTable) -> io::Result<()> {
        let own = Rc::downgrade(self);
        co.context().set_fd_handler(&self.stream, FdInterest::ReadWrite, move |_, _| {
            if let Some(own) = own.upgrade() {
                own.flush();
                own.changed.wake_all();
            }
        })?;
        let _watched = UnsetOnDrop { ctx: co.context(), stream: &self.stream };
        let greeting = json!({"QMP": {"version": self.options.version, "capabilities": []}});
        self.post(&greeting);
        let result = self.converse(co, table);
        // What was answered before the end.
        result.and_then(|()| self.wait_sent(co))
    }

    fn converse(&self, co: &Co<'_>, table: &CommandTable) -> io::Result<()> {
        let mut splitter = Splitter::default();
        let mut buffer = [0; 4096];
        loop {
            let Some(bytes) = self.read(co, &mut buffer)? else { return Ok(()) };
            let mut input = &buffer[..bytes];
            while let Some(text) = splitter.next(&mut input) {
                let answer = self.answer(co, table, text);
                self.post(&answer);
                // One command is answered before the next one is looked at: who never reads has
                // one answer waiting, and no more.
                self.wait_sent(co)?;
                if self.is_ending.get() {
                    return Ok(());
                }
                // Who never stops asking does not keep others from the loop.
                co.reschedule();
            }
        }
    }

    fn answer(
        &self,
        co: &Co<'_>,
        table: &CommandTable,
        text: Result<Vec<u8>, &'static str>,
    ) -> Answer {
        let value = text
            .map_err(QmpError::generic)
            .and_then(|text| coblk_qapi::json::parse_one(&text).map_err(QmpError::generic));
        let (id, request) = match value {
            Ok(value) => take_apart(value),
            Err(error) => (None, Err(error)),
        };
        let id = id.and_then(|id| to_raw_value(&id).ok());
        match request.and_then(|request| self.execute(co, table, request)) {
            Ok(result) => Answer { result: Some(result), error: None, id },
            Err(error) => Answer { result: None, error: Some(error), id },
        }
    }

    fn execute(
        &self,
        co: &Co<'_>,
        table: &CommandTable,
        request: Request,
    ) -> Result<Value, QmpError> {
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
            ("query-version", true) => {
                from_arguments::<()>(request.arguments)?;
                serde_json::to_value(&self.options.version).map_err(QmpError::generic)
            }
            _ => table.run(co, request),
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
            match (&self.stream).read(target) {
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
        let dropped = std::mem::take(&mut outbox.dropped);
        drop(outbox);
        if dropped > 0 {
            tracing::warn!(dropped, "a QMP client did not read, and missed events");
        }
        self.post(event);
        self.flush();
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
        let mut outbox = self.outbox.borrow_mut();
        while outbox.waiting() > 0 && !self.has_failed.get() {
            match (&self.stream).write(&outbox.bytes[outbox.sent..]) {
                Ok(bytes) => outbox.take(bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody is woken: the end is reported for reading as well, and whoever tells an
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

/// Takes the handler off the descriptor before that is closed, also when the context ends.
struct UnsetOnDrop<'a> {
    ctx: &'a AioContext,
    stream: &'a Stream,
}

impl Drop for UnsetOnDrop<'_> {
    fn drop(&mut self) {
        self.ctx.unset_fd_handler(self.stream);
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
