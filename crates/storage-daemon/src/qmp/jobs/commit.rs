//! `block-commit`.

use std::rc::Rc;
use std::sync::Arc;

use coblk::block::Parent;
use coblk::jobs::{Commit, JobOptions};
use coblk::qmp::{ErrorClass, QmpError};
use coblk::{BlockNode, Co};
use serde::Deserialize;

use super::super::Commands;
use super::mirror::JobOnError;
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

/// The arguments of `block-commit`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    #[serde(default)]
    job_id: String,
    device: String,
    base_node: Option<String>,
    base: Option<String>,
    top_node: Option<String>,
    top: Option<String>,
    backing_file: Option<String>,
    backing_mask_protocol: Option<bool>,
    speed: Option<i64>,
    on_error: Option<JobOnError>,
    filter_node_name: Option<String>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add_qmp("block-commit", |daemon, co, arguments: Arguments| {
        // Clients find out by the class whether the command is there.
        let Some(device) = daemon.blockdevs().node(&arguments.device) else {
            let name = coblk::qapi::shorten(&arguments.device);
            let error = OptionError::other(format!("Device '{name}' not found"));
            return Err(QmpError::new(ErrorClass::DeviceNotFound, error));
        };
        block_commit(daemon, co, &device, arguments).map_err(QmpError::generic)
    });
}

fn refused(why: impl Into<String>) -> DaemonError {
    OptionError::other(why.into()).into()
}

/// The node that is one of a chain from `above` on, by a name of the node.
fn in_chain(
    daemon: &Daemon,
    above: &Arc<BlockNode>,
    name: &str,
) -> Result<Arc<BlockNode>, DaemonError> {
    let node = daemon.node_of_chain(name)?;
    match above.chain().iter().any(|it| Arc::ptr_eq(it, &node)) {
        true => Ok(node),
        false => Err(refused(format!("'{name}' is not in this backing file chain"))),
    }
}

fn find_top(
    daemon: &Daemon,
    device: &Arc<BlockNode>,
    arguments: &Arguments,
) -> Result<Arc<BlockNode>, DaemonError> {
    match (&arguments.top_node, &arguments.top) {
        (Some(_), Some(_)) => Err(refused("'top-node' and 'top' are mutually exclusive")),
        (Some(name), None) => in_chain(daemon, device, name),
        (None, Some(file)) if device.driver().filename().as_ref() == Some(file) => {
            Ok(Arc::clone(device))
        }
        (None, Some(file)) => daemon
            .backing_by_file(device, file)
            .map_err(|_| refused(format!("Top image file {file} not found"))),
        (None, None) => Ok(Arc::clone(device)),
    }
}

fn find_base(
    daemon: &Daemon,
    top: &Arc<BlockNode>,
    arguments: &Arguments,
) -> Result<Arc<BlockNode>, DaemonError> {
    match (&arguments.base_node, &arguments.base) {
        (Some(_), Some(_)) => Err(refused("'base-node' and 'base' are mutually exclusive")),
        (Some(name), None) => in_chain(daemon, top, name),
        (None, Some(file)) => daemon.backing_by_file(top, file),
        (None, None) => Ok(top.chain().pop().unwrap_or_else(|| Arc::clone(top))),
    }
}

fn block_commit(
    daemon: &Rc<Daemon>,
    co: &Co<'_>,
    device: &Arc<BlockNode>,
    arguments: Arguments,
) -> Result<(), DaemonError> {
    if device.parents().iter().any(|it| matches!(it, Parent::Node { .. })) {
        return Err(refused("Need a root block node"));
    }
    let top = find_top(daemon, device, &arguments)?;
    let base = find_base(daemon, &top, &arguments)?;
    let is_device = Arc::ptr_eq(&top.skip_filters(), &device.skip_filters());
    let mut commit = Commit::new(top, base)?;
    if let Some(name) = arguments.backing_file {
        if commit.is_active() && !is_device {
            return Err(refused("'backing-file' specified, but 'top' has a writer on it"));
        }
        commit = commit.backing_file(name);
    }
    if let Some(on_error) = arguments.on_error {
        commit = commit.on_error(on_error.into());
    }
    if let Some(name) = arguments.filter_node_name {
        commit = commit.filter_name(name);
    }
    let commit = commit.mask_protocol(arguments.backing_mask_protocol.unwrap_or(false));
    let options = JobOptions::new(arguments.job_id, "commit")
        .speed(arguments.speed.unwrap_or(0))
        .auto_finalize(arguments.auto_finalize.unwrap_or(true))
        .auto_dismiss(arguments.auto_dismiss.unwrap_or(true));
    daemon.block_commit(co, commit, options)
}
