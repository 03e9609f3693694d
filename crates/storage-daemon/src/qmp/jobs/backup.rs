//! `blockdev-backup`.

use std::rc::Rc;

use coblk::jobs::{Backup, BackupSync, BitmapMode, JobOptions, OnCbwError};
use coblk::qapi::shorten;
use coblk::{BlockNode, Co};
use serde::Deserialize;

use super::super::Commands;
use super::iothreads;
use super::mirror::{JobOnError, guest_latency};
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

/// The arguments of `blockdev-backup`: QAPI's `BlockdevBackup`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Arguments {
    #[serde(default)]
    job_id: String,
    device: String,
    target: String,
    sync: Words,
    speed: Option<i64>,
    bitmap: Option<String>,
    bitmap_mode: Option<Mode>,
    compress: Option<bool>,
    discard_source: Option<bool>,
    on_source_error: Option<JobOnError>,
    on_target_error: Option<JobOnError>,
    on_cbw_error: Option<OnCbwError>,
    filter_node_name: Option<String>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
    x_perf: Option<Perf>,
    /// Iothreads that copy, too.
    #[serde(default)]
    x_coblk_iothreads: Vec<String>,
    /// Bytes of memory whose guests do not wait for the target.
    x_coblk_hold: Option<u64>,
    /// The node to which old bytes go at first.
    x_coblk_spill: Option<String>,
    x_coblk_verify: Option<Verify>,
    /// The file for checksums of what was copied.
    x_coblk_manifest: Option<String>,
    /// Requests of guests that take longer have the job do less at once.
    x_coblk_guest_latency_us: Option<u64>,
}

/// How a copy is verified.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verify {
    /// Not at all.
    None,
    /// The target is read when all is copied.
    ReadBack,
}

/// QAPI's `BackupPerf`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Perf {
    /// Nothing here copies without reading.
    #[serde(rename = "use-copy-range")]
    _use_copy_range: Option<bool>,
    max_workers: Option<i64>,
    max_chunk: Option<i64>,
    min_cluster_size: Option<u64>,
}

/// QAPI's `MirrorSyncMode`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Words {
    Top,
    Full,
    None,
    Incremental,
    Bitmap,
}

/// QAPI's `BitmapSyncMode`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    OnSuccess,
    Never,
    Always,
}

impl From<Mode> for BitmapMode {
    fn from(mode: Mode) -> BitmapMode {
        match mode {
            Mode::OnSuccess => BitmapMode::OnSuccess,
            Mode::Never => BitmapMode::Never,
            Mode::Always => BitmapMode::Always,
        }
    }
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("blockdev-backup", |daemon: &Rc<Daemon>, co: &Co<'_>, arguments: Arguments| {
        let (backup, options) = arguments.backup(daemon)?;
        daemon.blockdev_backup(co, backup, options)
    });
}

fn refused(why: impl Into<String>) -> DaemonError {
    OptionError::other(why.into()).into()
}

impl Arguments {
    /// The names of its nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        let spill = self.x_coblk_spill.as_deref();
        [&*self.device, &self.target].into_iter().chain(spill)
    }

    /// What they mean.
    ///
    /// # Errors
    /// If they contradict each other, or a node is not there.
    pub(crate) fn backup(self, daemon: &Daemon) -> Result<(Backup, JobOptions), DaemonError> {
        let source = daemon.device_node(&self.device)?;
        let target = daemon.device_node(&self.target)?;
        let bitmap = self.bitmap(&source)?;
        let mut backup = Backup::new(source, target);
        if let Some((bitmap, mode)) = bitmap {
            backup = backup.bitmap(bitmap, mode);
        }
        backup = backup
            .sync(match self.sync {
                Words::Full => BackupSync::Full,
                Words::Top => BackupSync::Top,
                Words::None => BackupSync::None,
                Words::Incremental | Words::Bitmap => BackupSync::Bitmap,
            })
            .compress(self.compress.unwrap_or(false))
            .discard_source(self.discard_source.unwrap_or(false))
            .hold(self.x_coblk_hold.unwrap_or(0))
            .on_cbw_error(self.on_cbw_error.unwrap_or_default());
        if let Some(on_error) = self.on_source_error {
            backup = backup.on_source_error(on_error.into());
        }
        if let Some(on_error) = self.on_target_error {
            backup = backup.on_target_error(on_error.into());
        }
        if let Some(name) = self.filter_node_name {
            backup = backup.filter_name(name);
        }
        if let Some(node) = &self.x_coblk_spill {
            backup = backup.spill(daemon.device_node(node)?);
        }
        if let Some(path) = &self.x_coblk_manifest {
            backup = backup.manifest(path);
        }
        if let Some(limit) = guest_latency(self.x_coblk_guest_latency_us) {
            backup = backup.guest_latency(limit);
        }
        backup = backup.verify(self.x_coblk_verify == Some(Verify::ReadBack));
        backup = backup.contexts(iothreads(daemon, &self.x_coblk_iothreads)?);
        let backup = self.x_perf.unwrap_or_default().apply(backup)?;
        let options = JobOptions::new(self.job_id, "backup")
            .speed(self.speed.unwrap_or(0))
            .auto_finalize(self.auto_finalize.unwrap_or(true))
            .auto_dismiss(self.auto_dismiss.unwrap_or(true));
        Ok((backup, options))
    }

    /// The bitmap, and what becomes of it.
    fn bitmap(&self, source: &BlockNode) -> Result<Option<(String, BitmapMode)>, DaemonError> {
        let Some(name) = &self.bitmap else {
            let mode = match self.sync {
                Words::Incremental => "incremental",
                Words::Bitmap => "bitmap",
                _ if self.bitmap_mode.is_some() => {
                    return Err(refused("Cannot specify bitmap sync mode without a bitmap"));
                }
                _ => return Ok(None),
            };
            let text = format!("must provide a valid bitmap name for '{mode}' sync mode");
            return Err(refused(text));
        };
        let mode = match (self.sync, self.bitmap_mode) {
            (Words::Incremental, None | Some(Mode::OnSuccess)) => Mode::OnSuccess,
            (Words::Incremental, Some(_)) => {
                return Err(refused(
                    "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
                ));
            }
            (_, Some(mode)) => mode,
            (_, None) if source.bitmaps().find(name).is_err() => {
                return Err(refused(format!("Bitmap '{}' could not be found", shorten(name))));
            }
            (_, None) => {
                return Err(refused("Bitmap sync mode must be given when providing a bitmap"));
            }
        };
        Ok(Some((name.clone(), mode.into())))
    }
}

impl Perf {
    fn apply(&self, backup: Backup) -> Result<Backup, DaemonError> {
        let backup = match self.max_workers {
            Some(workers) => backup.max_workers(at_least_one(workers)?),
            None => backup,
        };
        let chunk = u64::try_from(self.max_chunk.unwrap_or(0));
        let chunk = chunk
            .map_err(|_| refused("max-chunk must be zero (which means no limit) or positive"))?;
        let cluster = self.min_cluster_size.unwrap_or(0);
        Ok(backup.max_chunk(chunk).min_cluster_size(cluster))
    }
}

fn at_least_one(workers: i64) -> Result<u64, DaemonError> {
    let workers = i32::try_from(workers).ok().and_then(|it| u64::try_from(it).ok());
    workers
        .filter(|it| *it > 0)
        .ok_or_else(|| refused(format!("max-workers must be between 1 and {}", i32::MAX)))
}
