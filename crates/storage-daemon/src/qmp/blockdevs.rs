//! Nodes: opened, closed, and given other options or another length.

use coblk::block::Drivers;
use coblk::options::NodeOptions;
use coblk::qapi::Schema;
use serde::Deserialize;

use super::Commands;
use crate::daemon::DaemonError;
use crate::options::OptionError;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NodeName {
    node_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Resize {
    /// Of devices with a name of their own; there are none.
    device: Option<String>,
    node_name: Option<String>,
    size: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SetActive {
    /// All nodes without.
    node_name: Option<String>,
    active: bool,
}

#[derive(Deserialize)]
struct Reopen {
    options: Vec<NodeOptions>,
}

#[derive(Deserialize)]
struct Change {
    parent: String,
    child: Option<String>,
    node: Option<String>,
}

pub(super) fn add(commands: &mut Commands, drivers: &Drivers) {
    commands.add("blockdev-add", |daemon, co, options: NodeOptions| {
        daemon.blockdev_add(co, options).map(drop)
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
        daemon.blockdev_reopen(co, options)
    });
    commands.add("x-blockdev-change", |daemon, co, Change { parent, child, node }| {
        daemon.blockdev_change(co, &parent, (child.as_deref(), node.as_deref()))
    });
    let schema = drivers.schema();
    if let Err(error) = &schema {
        tracing::error!(%error, "the schema lacks the options of drivers");
    }
    if let Ok(node) = schema {
        commands.table.describe("blockdev-add", node.clone());
        let list = Schema::Array(Box::new(node.clone()));
        commands.table.describe("blockdev-reopen", Schema::with("options", list));
        // What a child can be: the name of another node, or the options of one.
        let choices = vec![Schema::Builtin("str"), node];
        commands.table.alternate("BlockdevRef", choices.clone());
        let null = std::iter::once(Schema::Builtin("null"));
        commands.table.alternate("BlockdevRefOrNull", choices.into_iter().chain(null).collect());
    }
    commands.add("blockdev-set-active", |daemon, co, SetActive { node_name, active }| {
        daemon.blockdev_set_active(co, node_name.as_deref(), active)
    });
    commands.add("block_resize", |daemon, co, resize: Resize| {
        let node_name = resize.node_name.unwrap_or_default();
        if resize.device.is_some() || daemon.blockdevs().node(&node_name).is_none() {
            let device = resize.device.unwrap_or_default();
            return Err(DaemonError::NoSuchDevice { device, node_name });
        }
        let size = u64::try_from(resize.size)
            .map_err(|_| OptionError::other("Parameter 'size' expects a >0 size"))?;
        daemon.block_resize(co, &node_name, size)
    });
}
