//! `query-named-block-nodes`: what nodes there are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use coblk::BlockNode;
use coblk::block::DetectZeroes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Commands;
use super::bitmaps;
use super::image::{self, Image, Sizes};

#[derive(Deserialize)]
struct Query {
    /// Whether to leave out the backing files of images: they are in the list themselves.
    flat: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SetThreshold {
    node_name: String,
    write_threshold: u64,
}

/// QAPI's `BlockDeviceInfo`. What nodes here cannot have is there all the same, if QAPI wants it: limits of
/// their own.
#[derive(Serialize)]
struct Info {
    #[serde(rename = "node-name")]
    node_name: String,
    drv: &'static str,
    ro: bool,
    file: String,
    image: Image,
    /// Newest first.
    #[serde(rename = "dirty-bitmaps", skip_serializing_if = "Vec::is_empty")]
    dirty_bitmaps: Vec<bitmaps::Info>,
    cache: Cache,
    detect_zeroes: &'static str,
    active: bool,
    encrypted: bool,
    /// The file of the node that is the backing file now, whatever the image names.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_file: Option<String>,
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
    commands.add("query-named-block-nodes", |daemon, co, query: Query| {
        let nodes = daemon.blockdevs().nodes();
        let sizes = daemon.co_allocated_bytes(co, &nodes);
        let sizes: BTreeMap<_, _> = nodes.iter().map(Arc::as_ptr).zip(sizes).collect();
        let size = |node: &BlockNode| sizes.get(&std::ptr::from_ref(node)).copied().flatten();
        let infos = nodes.iter().map(|node| info(node, query.flat == Some(true), &size));
        Ok(infos.collect::<Vec<_>>())
    });
    commands.add("block-set-write-threshold", |daemon, _, set: SetThreshold| {
        daemon.set_write_threshold(&set.node_name, set.write_threshold)
    });
    // Devices of a virtual machine: there are none.
    commands.add("query-block", |_, _, ()| Ok(json!([])));
}

fn info(node: &BlockNode, flat: bool, sizes: Sizes<'_>) -> Info {
    let (image, backing) = (Image::of(node, flat, sizes), image::backing(node));
    let is_encrypted = || Some(node.driver().image()?.info().ok()?.encrypted);
    let encrypted = is_encrypted().unwrap_or(false);
    let backing_file = backing.as_ref().map(|backing| image::filename(&backing.describe()));
    // As in QEMU, a flat list does not look at what lies below.
    let chain = backing.filter(|_| !flat);
    let backing_file_depth = std::iter::successors(chain, |node| image::backing(node)).count();
    let dirty_bitmaps = bitmaps::of(node);
    let node = node.describe();
    let children = node.children.iter();
    let children = children.map(|it| Child { child: it.child.clone(), node_name: it.node.clone() });
    Info {
        file: image::filename(&node),
        image,
        dirty_bitmaps,
        backing_file,
        children: children.collect(),
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
        encrypted,
        backing_file_depth: backing_file_depth as u64,
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        write_threshold: node.write_threshold.unwrap_or(0),
    }
}
