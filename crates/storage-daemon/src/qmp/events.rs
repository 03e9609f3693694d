//! The daemon's events as QMP has them.

use std::io::{self, ErrorKind};

use coblk::block::{DriverEvent, Drivers, ErrorAction, RequestKind};
use coblk::qapi::Schema;
use coblk::qmp::{CommandTable, Event as QmpEvent};

use super::jobs;
use crate::daemon::{Event, IoError};

/// An event for clients, if it is one of QMP's.
pub(crate) fn to_qmp(event: &Event) -> Option<QmpEvent> {
    match event {
        Event::BlockExportDeleted { id } => {
            Some(QmpEvent::new("BLOCK_EXPORT_DELETED").with("id", id.clone()))
        }
        Event::BlockIoError(error) => Some(io_error(error)),
        Event::BlockWriteThreshold { node_name, passed } => Some(
            QmpEvent::new("BLOCK_WRITE_THRESHOLD")
                .with("node-name", node_name.clone())
                .with("amount-exceeded", passed.exceeded)
                .with("write-threshold", passed.threshold),
        ),
        Event::Job(event) => jobs::to_qmp(event),
        Event::Driver(event) => Some(of_a_driver(event)),
        // QEMU's daemon has none, and ends the connection.
        Event::Shutdown(_) => None,
    }
}

/// The events that there are, and what they tell.
pub(super) fn schemas() -> Vec<(&'static str, Schema)> {
    let io_error = [
        ("qom-path", "str"),
        ("device", "str"),
        ("node-name", "str"),
        ("operation", "str"),
        ("action", "str"),
        ("reason", "str"),
        ("nospace", "bool"),
    ];
    let threshold =
        [("node-name", "str"), ("amount-exceeded", "uint64"), ("write-threshold", "uint64")];
    let mut schemas = vec![
        ("BLOCK_EXPORT_DELETED", Schema::object(&[("id", "str")])),
        ("BLOCK_IO_ERROR", Schema::object(&io_error)),
        ("BLOCK_WRITE_THRESHOLD", Schema::object(&threshold)),
    ];
    schemas.extend(jobs::event_schemas());
    schemas
}

/// What drivers tell.
///
/// # Panics
/// If two drivers, or a driver and the daemon, tell events of one name with other data.
pub(super) fn add_those_of_drivers(table: &mut CommandTable, drivers: &Drivers) {
    let events = drivers.events().unwrap_or_else(|error| panic!("{error}"));
    for (name, data) in events {
        let is_own = schemas().iter().any(|(own, _)| *own == name);
        assert!(!is_own, "a driver tells '{name}', which is an event of the daemon");
        table.event(name, data);
    }
}

/// They come in storms, as errors do.
fn of_a_driver(event: &DriverEvent) -> QmpEvent {
    let DriverEvent { node_name, name, kind, data, .. } = event;
    let mut told = QmpEvent::new(name);
    for (member, value) in data {
        told = told.with(member, value.clone());
    }
    told.with("node-name", node_name.clone()).limited(&format!("{node_name} {kind}"))
}

/// A kind of requests, as errors of QMP have it.
pub(super) fn operation(kind: RequestKind) -> &'static str {
    if kind == RequestKind::Read { "read" } else { "write" }
}

/// What was done about an error, by QMP's name.
pub(super) fn action(action: ErrorAction) -> &'static str {
    match action {
        ErrorAction::Report => "report",
        ErrorAction::Ignore => "ignore",
        ErrorAction::Stop => "stop",
    }
}

/// The device is the export. It has no place in a tree of objects, as those of QEMU have.
fn io_error(error: &IoError) -> QmpEvent {
    let (operation, action) = (operation(error.kind), action(error.action));
    let cause = io::Error::from_raw_os_error(error.errno);
    let event = QmpEvent::new("BLOCK_IO_ERROR")
        .with("qom-path", "")
        .with("device", error.id.clone())
        .with("node-name", error.node_name.clone())
        .with("operation", operation)
        .with("action", action)
        .with("reason", cause.to_string())
        .with("nospace", cause.kind() == ErrorKind::StorageFull);
    // Errors come in storms. One that stops the export is told for itself.
    match error.action {
        ErrorAction::Stop => event,
        _ => event.limited(&format!("{} {operation} {action}", error.id)),
    }
}
