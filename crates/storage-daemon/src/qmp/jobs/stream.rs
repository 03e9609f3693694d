//! `block-stream`.

use std::rc::Rc;

use coblk::Co;
use coblk::jobs::{JobOptions, Stream};
use serde::Deserialize;

use super::super::Commands;
use super::mirror::JobOnError;
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

/// The arguments of `block-stream`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    #[serde(default)]
    job_id: String,
    device: String,
    base: Option<String>,
    base_node: Option<String>,
    backing_file: Option<String>,
    backing_mask_protocol: Option<bool>,
    bottom: Option<String>,
    speed: Option<i64>,
    on_error: Option<JobOnError>,
    filter_node_name: Option<String>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("block-stream", block_stream);
}

fn exclusive(one: &str, other: &str) -> DaemonError {
    let why = format!("'{one}' and '{other}' cannot be specified at the same time");
    OptionError::other(why).into()
}

fn block_stream(daemon: &Rc<Daemon>, co: &Co<'_>, arguments: Arguments) -> Result<(), DaemonError> {
    let (base, base_node) = (&arguments.base, &arguments.base_node);
    let bottom = &arguments.bottom;
    if base.is_some() && base_node.is_some() {
        return Err(exclusive("base", "base-node"));
    }
    if base.is_some() && bottom.is_some() {
        return Err(exclusive("base", "bottom"));
    }
    if bottom.is_some() && base_node.is_some() {
        return Err(exclusive("bottom", "base-node"));
    }
    let top = daemon.device_node(&arguments.device)?;
    let mut stream = Stream::new(top.clone());
    if let Some(file) = base {
        stream = stream.above(&daemon.backing_by_file(&top, file)?)?;
    }
    if let Some(name) = base_node {
        stream = stream.above(&daemon.node_of_chain(name)?)?;
    }
    if let Some(name) = bottom {
        stream = stream.down_to(&daemon.node_of_chain(name)?)?;
    }
    if let Some(name) = arguments.backing_file {
        stream = stream.backing_file(name);
    }
    if let Some(on_error) = arguments.on_error {
        stream = stream.on_error(on_error.into());
    }
    if let Some(name) = arguments.filter_node_name {
        stream = stream.filter_name(name);
    }
    let stream = stream.mask_protocol(arguments.backing_mask_protocol.unwrap_or(false));
    let options = JobOptions::new(arguments.job_id, "stream")
        .speed(arguments.speed.unwrap_or(0))
        .auto_finalize(arguments.auto_finalize.unwrap_or(true))
        .auto_dismiss(arguments.auto_dismiss.unwrap_or(true));
    daemon.block_stream(co, stream, options)
}
