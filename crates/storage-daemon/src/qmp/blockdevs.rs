//! Nodes: opened, closed, and given other options or another length.

use coblk::options::NodeOptions;
use serde::Deserialize;
use serde_json::Value;

use super::{Arguments, Commands};
use crate::daemon::DaemonError;
use crate::options::OptionError;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct NodeName {
    node_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Resize {
    /// Of devices with a name of their own; there are none.
    device: Option<String>,
    node_name: Option<String>,
    size: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reopen {
    options: Vec<Arguments>,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("blockdev-add", |daemon, co, arguments: Arguments| {
        daemon.blockdev_add(co, node_options(arguments)?).map(drop)
    });
    commands.add("blockdev-del", |daemon, co, NodeName { node_name }| {
        daemon.blockdev_del(co, &node_name).map_err(|error| match error {
            // It belongs to the node above.
            DaemonError::NoSuchNode(name) if daemon.blockdevs().node(&name).is_some() => {
                DaemonError::NotOwned(name)
            }
            other => other,
        })
    });
    commands.add("blockdev-reopen", |daemon, co, Reopen { options }| {
        let options = options.into_iter().map(node_options).collect::<Result<Vec<_>, _>>()?;
        daemon.blockdev_reopen(co, options)
    });
    commands.add("block_resize", |daemon, co, resize: Resize| {
        let node_name = resize.node_name.unwrap_or_default();
        if resize.device.is_some() || daemon.blockdevs().node(&node_name).is_none() {
            let device = resize.device.unwrap_or_default();
            return Err(DaemonError::NoSuchDevice { device, node_name });
        }
        let size = u64::try_from(resize.size)
            .map_err(|_| OptionError::Other("Parameter 'size' expects a >0 size".to_owned()))?;
        daemon.block_resize(co, &node_name, size)
    });
}

fn node_options(arguments: Arguments) -> Result<NodeOptions, DaemonError> {
    let options = NodeOptions::from_value(Value::Object(arguments));
    options.map_err(|error| OptionError::Other(error.to_string()).into())
}
