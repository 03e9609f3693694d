//! `query-named-block-nodes`: what nodes there are.

use std::borrow::Cow;

use coblk::BlockNode;
use coblk::block::{DetectZeroes, NodeInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Commands;

#[derive(Deserialize)]
struct Query {
    /// Whether to leave out what lies below. It always is: those below are in the list themselves.
    #[serde(rename = "flat")]
    _flat: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SetThreshold {
    node_name: String,
    write_threshold: u64,
}

/// QAPI's `BlockDeviceInfo`. What nodes here cannot have is there all the same, if QAPI wants it:
/// encryption, backing files and limits of their own.
#[derive(Serialize)]
struct Info {
    #[serde(rename = "node-name")]
    node_name: String,
    drv: &'static str,
    ro: bool,
    file: String,
    image: Image,
    cache: Cache,
    detect_zeroes: &'static str,
    active: bool,
    encrypted: bool,
    backing_file_depth: u64,
    bps: u64,
    bps_rd: u64,
    bps_wr: u64,
    iops: u64,
    iops_rd: u64,
    iops_wr: u64,
    write_threshold: u64,
    /// Ours: the nodes below it.
    #[serde(rename = "x-coblk-children")]
    children: Vec<Child>,
}

/// QAPI's `ImageInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    /// Unknown to some file systems, and while a disk does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_size: Option<u64>,
}

/// QAPI's `BlockdevCacheInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cache {
    writeback: bool,
    direct: bool,
    no_flush: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Child {
    child: Cow<'static, str>,
    node_name: String,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("query-named-block-nodes", |daemon, co, _: Query| {
        let nodes = daemon.blockdevs().nodes();
        let sizes = daemon.co_allocated_bytes(co, &nodes);
        let infos = nodes.iter().zip(sizes).map(|(node, size)| info(node, size));
        Ok(infos.collect::<Vec<_>>())
    });
    commands.add("block-set-write-threshold", |daemon, _, set: SetThreshold| {
        daemon.set_write_threshold(&set.node_name, set.write_threshold)
    });
    // Devices of a virtual machine, and jobs on nodes: there are none.
    for name in ["query-block", "query-block-jobs"] {
        commands.add(name, |_, _, ()| Ok(json!([])));
    }
}

fn info(node: &BlockNode, actual_size: Option<u64>) -> Info {
    let node = node.describe();
    let filename = node.filename.clone().unwrap_or_else(|| described(&node));
    let children = node.children.into_iter();
    Info {
        file: filename.clone(),
        image: Image { filename, format: node.driver, virtual_size: node.length, actual_size },
        node_name: node.name,
        drv: node.driver,
        ro: node.read_only,
        cache: Cache { writeback: true, direct: node.cache.direct, no_flush: node.cache.no_flush },
        detect_zeroes: match node.detect_zeroes {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        },
        active: node.active,
        encrypted: false,
        backing_file_depth: 0,
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        write_threshold: node.write_threshold.unwrap_or(0),
        children: children.map(|it| Child { child: it.child, node_name: it.node }).collect(),
    }
}

/// What stands for the file name of a node that has none: some of its options.
fn described(node: &NodeInfo) -> String {
    let mut options = Map::new();
    options.insert("driver".to_owned(), node.driver.into());
    for child in &node.children {
        options.insert(child.child.to_string(), child.node.clone().into());
    }
    format!("json:{}", Value::Object(options))
}
