//! The events of jobs as QMP has them.

use coblk::jobs::{BlockJob, JobEvent};
use coblk::qapi::Schema;
use coblk::qmp::Event as QmpEvent;

use crate::qmp::events::{action, operation};

/// An event for clients, if it is one of QMP's.
pub(in crate::qmp) fn to_qmp(event: &JobEvent) -> Option<QmpEvent> {
    Some(match event {
        JobEvent::Status(change) => QmpEvent::new("JOB_STATUS_CHANGE")
            .with("status", change.status.name())
            .with("id", change.id.clone()),
        JobEvent::Completed { job, error } => {
            let event = of_block_job("BLOCK_JOB_COMPLETED", job);
            match error {
                Some(error) => event.with("error", error.clone()),
                None => event,
            }
        }
        JobEvent::Cancelled(job) => of_block_job("BLOCK_JOB_CANCELLED", job),
        JobEvent::Ready(job) => of_block_job("BLOCK_JOB_READY", job),
        JobEvent::Pending { id, kind } => {
            QmpEvent::new("BLOCK_JOB_PENDING").with("type", *kind).with("id", id.clone())
        }
        JobEvent::Error { id, operation: kind, action: done } => QmpEvent::new("BLOCK_JOB_ERROR")
            .with("device", id.clone())
            .with("operation", operation(*kind))
            .with("action", action(*done)),
        _ => return None,
    })
}

fn of_block_job(name: &'static str, job: &BlockJob) -> QmpEvent {
    QmpEvent::new(name)
        .with("type", job.kind)
        .with("device", job.id.clone())
        .with("len", job.len)
        .with("offset", job.offset)
        .with("speed", job.speed)
}

/// The events that there are, and what they tell.
pub(in crate::qmp) fn event_schemas() -> [(&'static str, Schema); 6] {
    let end =
        [("type", "str"), ("device", "str"), ("len", "int"), ("offset", "int"), ("speed", "int")];
    let mut completed = Schema::object(&end);
    if let Schema::Object(shape) = &mut completed {
        let (name, schema) = ("error".to_owned(), Schema::Builtin("str"));
        shape.members.push(coblk::qapi::Member { name, schema, optional: true });
    }
    let error = [("device", "str"), ("operation", "str"), ("action", "str")];
    [
        ("JOB_STATUS_CHANGE", Schema::object(&[("id", "str"), ("status", "str")])),
        ("BLOCK_JOB_COMPLETED", completed),
        ("BLOCK_JOB_CANCELLED", Schema::object(&end)),
        ("BLOCK_JOB_READY", Schema::object(&end)),
        ("BLOCK_JOB_PENDING", Schema::object(&[("type", "str"), ("id", "str")])),
        ("BLOCK_JOB_ERROR", Schema::object(&error)),
    ]
}
