//! [`Event`]: what the daemon tells of by itself, under QMP's names; and how other threads tell.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use coblk::block::{DriverEvent, ErrorAction, RequestKind, ThresholdPassed};
use coblk::export::ExportIoError;
use coblk::jobs::JobEvent;
use coblk::{AioContext, BottomHalf, RemoteBottomHalf};

/// Something that a subscriber may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// `BLOCK_EXPORT_DELETED`: an export is gone; its node can be closed.
    BlockExportDeleted {
        /// The export.
        id: String,
    },
    /// `BLOCK_IO_ERROR`: a request of an export's client failed.
    BlockIoError(IoError),
    /// `BLOCK_WRITE_THRESHOLD`: a write ended behind the threshold of a node.
    BlockWriteThreshold {
        /// The node.
        node_name: String,
        /// The threshold, and how far behind it the write ends.
        passed: ThresholdPassed,
    },
    /// `JOB_STATUS_CHANGE`, `BLOCK_JOB_COMPLETED` and others of jobs.
    Job(JobEvent),
    /// What the driver of a node tells of it, by a name of its own.
    Driver(DriverEvent),
    /// `SHUTDOWN`: the daemon ends. No event of QMP: QEMU's daemon has none.
    Shutdown(ShutdownCause),
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoError {
    /// The export.
    pub id: String,
    /// Its node.
    pub node_name: String,
    /// What the request was to do.
    pub kind: RequestKind,
    /// Why it failed: an errno.
    pub errno: i32,
    /// What was done about it.
    pub action: ErrorAction,
}

impl From<ExportIoError> for IoError {
    fn from(error: ExportIoError) -> IoError {
        let ExportIoError { id, node_name, event, .. } = error;
        IoError { id, node_name, kind: event.kind, errno: event.errno, action: event.action }
    }
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// `host-signal`.
    Signal,
    /// `host-qmp-quit`.
    Quit,
}

impl ShutdownCause {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            ShutdownCause::Signal => "host-signal",
            ShutdownCause::Quit => "host-qmp-quit",
        }
    }
}

/// Events of other threads that wait for the main one. Errors come in storms: one that tells the same as
/// one that waits already, but for its time, is left out. So there are no more than exports times
/// kinds of requests, errors and actions, and what is told last is always told. An event of a driver
/// takes the place of those like it, whatever they tell.
type Waiting = Mutex<VecDeque<Event>>;

/// Tells the daemon of events. Any thread.
#[derive(Clone)]
pub(crate) struct EventSender {
    waiting: Arc<Waiting>,
    deliver: Arc<RemoteBottomHalf>,
}

impl EventSender {
    /// The way to a daemon on `ctx`, which handles events one by one. The bottom half is to be kept.
    pub(crate) fn new(
        ctx: &AioContext,
        handle: impl Fn(&AioContext, &Event) + 'static,
    ) -> (EventSender, BottomHalf) {
        let waiting: Arc<Waiting> = Arc::default();
        let events = Arc::clone(&waiting);
        let delivering = ctx.bottom_half("daemon events", move |ctx| {
            let next = || events.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            while let Some(event) = next() {
                handle(ctx, &event);
            }
        });
        let deliver = Arc::new(delivering.remote());
        (EventSender { waiting, deliver }, delivering)
    }

    pub(crate) fn send(&self, event: Event) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Driver(new) = &event {
            waiting.retain(|it| !matches!(it, Event::Driver(old) if old.is_like(new)));
        }
        if !waiting.contains(&event) {
            waiting.push_back(event);
        }
        drop(waiting);
        self.deliver.schedule();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use coblk::block::EventData;

    use super::*;

    #[derive(serde::Deserialize, serde::Serialize)]
    struct Broken {
        offset: u64,
        is_fatal: bool,
    }

    impl EventData for Broken {
        const NAME: &'static str = "BROKEN";

        fn kind(&self) -> &'static str {
            if self.is_fatal { "fatal" } else { "" }
        }
    }

    fn error(id: &str, errno: i32, action: ErrorAction) -> Event {
        let (id, node_name) = (id.to_owned(), "disk".to_owned());
        Event::BlockIoError(IoError { id, node_name, kind: RequestKind::Read, errno, action })
    }

    #[test]
    fn a_storm_of_errors_hides_no_other_event() {
        let ctx = AioContext::new().unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let own = Rc::clone(&told);
        let (sender, _delivering) =
            EventSender::new(&ctx, move |_, event| own.borrow_mut().push(event.clone()));
        let storm = error("e0", 5, ErrorAction::Report);
        let stop = error("e1", 28, ErrorAction::Stop);
        (0..10_000).for_each(|_| sender.send(storm.clone()));
        sender.send(stop.clone());
        (0..10_000).for_each(|_| sender.send(storm.clone()));
        ctx.try_poll();
        assert_eq!(told.take(), [storm.clone(), stop]);
        sender.send(storm.clone());
        ctx.try_poll();
        assert_eq!(told.take(), [storm]);
    }

    #[test]
    fn of_a_storm_of_a_driver_the_last_event_of_each_kind_waits() {
        let ctx = AioContext::new().unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let own = Rc::clone(&told);
        let (sender, _delivering) =
            EventSender::new(&ctx, move |_, event| own.borrow_mut().push(event.clone()));
        let event = |kind, offset: u64| {
            Event::Driver(DriverEvent::of(&Broken { offset, is_fatal: kind == "fatal" }))
        };
        sender.send(event("fatal", 1));
        (0..10_000).for_each(|offset| sender.send(event("", offset)));
        ctx.try_poll();
        assert_eq!(told.take(), [event("fatal", 1), event("", 9_999)]);
    }
}
