//! `blockdev-mirror`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk::Co;
use coblk::jobs::{JobOptions, Mirror, OnError, SyncMode};
use serde::Deserialize;

use super::super::Commands;
use super::block_jobs::CopyMode;
use super::iothreads;
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

/// The arguments of `blockdev-mirror`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    #[serde(default)]
    job_id: String,
    device: String,
    target: String,
    replaces: Option<String>,
    sync: Words,
    speed: Option<i64>,
    granularity: Option<u32>,
    buf_size: Option<i64>,
    on_source_error: Option<JobOnError>,
    on_target_error: Option<JobOnError>,
    filter_node_name: Option<String>,
    copy_mode: Option<CopyMode>,
    /// Iothreads that copy, too.
    #[serde(default)]
    x_coblk_iothreads: Vec<String>,
    /// Requests of guests that take longer have the job do less at once.
    x_coblk_guest_latency_us: Option<u64>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
}

/// QAPI's `MirrorSyncMode`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Words {
    Top,
    Full,
    None,
    Incremental,
    Bitmap,
}

/// QAPI's `BlockdevOnError`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum JobOnError {
    Report,
    Ignore,
    Enospc,
    Stop,
    Auto,
}

impl From<JobOnError> for OnError {
    fn from(on_error: JobOnError) -> OnError {
        match on_error {
            JobOnError::Report => OnError::Report,
            JobOnError::Ignore => OnError::Ignore,
            JobOnError::Enospc | JobOnError::Auto => OnError::Enospc,
            JobOnError::Stop => OnError::Stop,
        }
    }
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("blockdev-mirror", blockdev_mirror);
}

/// The limit of `x-coblk-guest-latency-us`; 0 is none.
pub(super) fn guest_latency(us: Option<u64>) -> Option<Duration> {
    us.filter(|us| *us > 0).map(Duration::from_micros)
}

fn refused(why: impl Into<String>) -> DaemonError {
    OptionError::other(why.into()).into()
}

fn blockdev_mirror(
    daemon: &Rc<Daemon>,
    co: &Co<'_>,
    arguments: Arguments,
) -> Result<(), DaemonError> {
    let source = daemon.device_node(&arguments.device)?;
    let target = daemon.device_node(&arguments.target)?;
    let sync = match arguments.sync {
        Words::Full => SyncMode::Full,
        Words::Top => SyncMode::Top,
        Words::None => SyncMode::None,
        Words::Incremental => return Err(refused("Sync mode 'incremental' not supported")),
        Words::Bitmap => return Err(refused("Sync mode 'bitmap' not supported")),
    };
    let buffer = u64::try_from(arguments.buf_size.unwrap_or(0));
    let buffer = buffer.map_err(|_| refused("Invalid parameter 'buf-size'"))?;
    if let Some(name) = &arguments.replaces {
        let replaced = daemon.blockdevs().node(name);
        let replaced = replaced.ok_or_else(|| DaemonError::NoSuchNode(name.clone()))?;
        if !Arc::ptr_eq(&replaced, &source) {
            return Err(refused(format!(
                "Cannot replace '{name}' by a node mirrored from '{}', because it cannot be guaranteed that doing so \
                 would not lead to an abrupt change of visible data",
                source.name()
            )));
        }
    }
    let mut mirror = Mirror::new(source, target).sync(sync).buffer(buffer);
    if let Some(CopyMode::WriteBlocking) = arguments.copy_mode {
        mirror = mirror.copy_mode(coblk::jobs::CopyMode::WriteBlocking);
    }
    mirror = mirror.contexts(iothreads(daemon, &arguments.x_coblk_iothreads)?);
    if let Some(granularity) = arguments.granularity {
        mirror = mirror.granularity(granularity.into());
    }
    if let Some(on_error) = arguments.on_source_error {
        mirror = mirror.on_source_error(on_error.into());
    }
    if let Some(on_error) = arguments.on_target_error {
        mirror = mirror.on_target_error(on_error.into());
    }
    if let Some(limit) = guest_latency(arguments.x_coblk_guest_latency_us) {
        mirror = mirror.guest_latency(limit);
    }
    if let Some(name) = arguments.filter_node_name {
        mirror = mirror.filter_name(name);
    }
    let options = JobOptions::new(arguments.job_id, "mirror")
        .speed(arguments.speed.unwrap_or(0))
        .auto_finalize(arguments.auto_finalize.unwrap_or(true))
        .auto_dismiss(arguments.auto_dismiss.unwrap_or(true));
    daemon.blockdev_mirror(co, mirror, options)
}
