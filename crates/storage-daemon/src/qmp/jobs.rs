//! Jobs, and the command that starts one.

use coblk::block::Drivers;
use coblk::jobs::{JobError, JobInfo, Jobs};
use coblk::qapi::{Member, Schema, Shape};
use serde::{Deserialize, Serialize};

use super::{Arguments, Commands, Id};

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
type Ask = fn(&Jobs, &str) -> Result<(), JobError>;

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
    commands.add("job-dismiss", |daemon, co, Id { id }| {
        Ok(daemon.jobs().dismiss(co.context(), &id)?)
    });
    let others: [(&str, Ask); 5] = [
        ("job-cancel", Jobs::cancel),
        ("job-complete", Jobs::complete),
        ("job-finalize", Jobs::finalize),
        ("job-pause", Jobs::pause),
        ("job-resume", Jobs::resume),
    ];
    for (name, ask) in others {
        commands.add(name, move |daemon, _, Id { id }| Ok(ask(daemon.jobs(), &id)?));
    }
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
