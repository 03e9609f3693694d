//! The commands of block jobs, which have names and errors of their own.

use coblk::Co;
use coblk::block::IoStatus;
use coblk::jobs::{JobChange, JobError, JobInfo, Jobs};
use coblk::qmp::{ErrorClass, QmpError};
use serde::{Deserialize, Serialize};

use super::super::{Commands, Id};

/// A job, as most of these commands name it.
#[derive(Deserialize)]
struct Device {
    device: String,
}

#[derive(Deserialize)]
struct Cancel {
    device: String,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
struct SetSpeed {
    device: String,
    speed: i64,
}

/// QAPI's `BlockJobChangeOptions`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Change {
    id: String,
    #[serde(rename = "type")]
    kind: Kind,
    copy_mode: CopyMode,
}

/// The kinds of jobs that can change.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Mirror,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CopyMode {
    Background,
    WriteBlocking,
}

/// QAPI's `BlockJobInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    #[serde(rename = "type")]
    kind: &'static str,
    device: String,
    len: u64,
    offset: u64,
    busy: bool,
    paused: bool,
    speed: u64,
    io_status: &'static str,
    ready: bool,
    status: &'static str,
    auto_finalize: bool,
    auto_dismiss: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actively_synced: Option<bool>,
}

/// What is asked of one job.
type Ask = fn(&Jobs, &Co<'_>, &str) -> Result<(), JobError>;

pub(super) fn add(commands: &mut Commands) {
    let asks: [(&str, Ask); 3] = [
        ("block-job-pause", |jobs, _, id| jobs.pause(id)),
        ("block-job-resume", |jobs, _, id| jobs.resume(id)),
        ("block-job-complete", |jobs, _, id| jobs.complete(id)),
    ];
    for (name, ask) in asks {
        commands.add_qmp(name, move |daemon, co, Device { device }| {
            asked(daemon.jobs(), &device, |jobs| ask(jobs, co, &device))
        });
    }
    let ends: [(&str, Ask); 2] = [
        ("block-job-finalize", |jobs, co, id| jobs.co_finalize(co, id)),
        ("block-job-dismiss", |jobs, co, id| jobs.dismiss(co.context(), id)),
    ];
    for (name, ask) in ends {
        commands.add_qmp(name, move |daemon, co, Id { id }| {
            asked(daemon.jobs(), &id, |jobs| ask(jobs, co, &id))
        });
    }
    commands.add_qmp("block-job-cancel", |daemon, co, Cancel { device, force }| {
        asked(daemon.jobs(), &device, |jobs| jobs.co_cancel(co, &device, force))
    });
    commands.add_qmp("block-job-set-speed", |daemon, _, SetSpeed { device, speed }| {
        asked(daemon.jobs(), &device, |jobs| jobs.set_speed(&device, speed))
    });
    commands.add_qmp("block-job-change", |daemon, _, Change { id, kind, copy_mode }| {
        let Kind::Mirror = kind;
        let copy_mode = match copy_mode {
            CopyMode::Background => "background",
            CopyMode::WriteBlocking => "write-blocking",
        };
        let change = JobChange::new("mirror", copy_mode);
        asked(daemon.jobs(), &id, |jobs| jobs.change(&id, &change))
    });
    commands.add("query-block-jobs", |daemon, _, ()| {
        let jobs = daemon.jobs().all().into_iter().filter(|job| job.is_block_job);
        Ok(jobs.map(info).collect::<Vec<_>>())
    });
}

/// Asks something of a block job.
fn asked(
    jobs: &Jobs,
    id: &str,
    ask: impl FnOnce(&Jobs) -> Result<(), JobError>,
) -> Result<(), QmpError> {
    let asked = jobs.check_block_job(id).and_then(|()| ask(jobs));
    asked.map_err(|error| match error {
        JobError::NotActive(_) => QmpError::new(ErrorClass::DeviceNotActive, error),
        _ => QmpError::generic(error),
    })
}

fn info(job: JobInfo) -> Info {
    use coblk::jobs::JobStatus;
    Info {
        kind: job.kind,
        device: job.id,
        len: job.total_progress,
        offset: job.current_progress,
        busy: job.is_busy,
        paused: job.is_paused,
        speed: job.speed,
        io_status: match job.io_status {
            IoStatus::Ok => "ok",
            IoStatus::Failed => "failed",
            IoStatus::NoSpace => "nospace",
        },
        ready: matches!(job.status, JobStatus::Ready | JobStatus::Standby),
        status: job.status.name(),
        auto_finalize: job.auto_finalize,
        auto_dismiss: job.auto_dismiss,
        error: job.error,
        actively_synced: job.actively_synced,
    }
}
