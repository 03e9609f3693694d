//! Jobs, and the commands that start one.

pub(super) mod backup;
mod block_jobs;
mod commit;
mod events;
mod mirror;
mod stream;

use coblk::block::Drivers;
use coblk::jobs::{JobError, JobInfo, Jobs};
use coblk::qapi::{Member, Schema, Shape};
use coblk::{AioHandle, Co};
use serde::{Deserialize, Serialize};

pub(super) use events::{event_schemas, to_qmp};

use super::{Arguments, Commands, Id};
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Create {
    job_id: String,
    options: Arguments,
}

/// QAPI's `JobInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    current_progress: u64,
    total_progress: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What is asked of one job.
type Ask = fn(&Jobs, &Co<'_>, &str) -> Result<(), JobError>;

pub(super) fn add(commands: &mut Commands, drivers: &Drivers) {
    commands.add("blockdev-create", |daemon, co, Create { job_id, options }| {
        daemon.blockdev_create(co, &job_id, options)
    });
    match drivers.create_schema() {
        Ok(options) => commands.table.describe("blockdev-create", create_schema(options)),
        Err(error) => tracing::error!(%error, "the schema lacks the options of new images"),
    }
    commands.add("query-jobs", |daemon, _, ()| {
        Ok(daemon.jobs().all().into_iter().map(info).collect::<Vec<_>>())
    });
    let asks: [(&str, Ask); 6] = [
        ("job-cancel", |jobs, co, id| jobs.co_cancel(co, id, true)),
        ("job-complete", |jobs, _, id| jobs.complete(id)),
        ("job-dismiss", |jobs, co, id| jobs.dismiss(co.context(), id)),
        ("job-finalize", |jobs, co, id| jobs.co_finalize(co, id)),
        ("job-pause", |jobs, _, id| jobs.pause(id)),
        ("job-resume", |jobs, _, id| jobs.resume(id)),
    ];
    for (name, ask) in asks {
        commands.add(name, move |daemon, co, Id { id }| Ok(ask(daemon.jobs(), co, &id)?));
    }
    backup::add(commands);
    block_jobs::add(commands);
    commit::add(commands);
    mirror::add(commands);
    stream::add(commands);
}

/// The contexts of iothreads, by their ids.
fn iothreads(daemon: &Daemon, ids: &[String]) -> Result<Vec<AioHandle>, DaemonError> {
    let handles = daemon.iothread_handles();
    let handle = |id: &String| {
        let found = handles.iter().find(|(name, _)| name == id);
        let found = found.map(|(_, handle)| handle.clone());
        found.ok_or_else(|| OptionError::other(format!("no iothread '{id}'")).into())
    };
    ids.iter().map(handle).collect()
}

fn create_schema(options: Schema) -> Schema {
    let member = |name: &str, schema| Member { name: name.to_owned(), schema, optional: false };
    let members = vec![member("job-id", Schema::Builtin("str")), member("options", options)];
    Schema::Object(Shape { members, ..Shape::default() })
}

fn info(job: JobInfo) -> Info {
    let JobInfo { id, kind, status, current_progress, total_progress, error, .. } = job;
    Info { id, kind, status: status.name(), current_progress, total_progress, error }
}
