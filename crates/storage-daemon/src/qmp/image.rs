//! QAPI's `ImageInfo`: an image as `query-named-block-nodes` shows it.

use std::path::Path;
use std::sync::Arc;

use coblk::BlockNode;
use coblk::block::{ImageInfo, ImageSnapshot, NodeInfo};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The bytes that a node takes, if that is known.
pub(super) type Sizes<'a> = &'a dyn Fn(&BlockNode) -> Option<u64>;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Image {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    /// Unknown to some file systems, and while a disk does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dirty_flag: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_image: Option<Box<Image>>,
}

impl Image {
    /// That of a node. Its backing files are within, unless it is to be `flat`.
    pub(super) fn of(node: &BlockNode, flat: bool, sizes: Sizes<'_>) -> Image {
        let described = node.describe();
        let filename = filename(&described);
        // From memory: the image is not asked, and nothing is waited for.
        let info = node.driver().image().and_then(|image| image.info().ok());
        let info = info.unwrap_or_else(|| ImageInfo::new(described.length));
        let name = info.backing.as_ref().map(|backing| backing.name.clone());
        let backing = backing(node).filter(|_| !flat);
        Image {
            format: described.driver,
            virtual_size: described.length,
            actual_size: sizes(node),
            cluster_size: info.cluster_size,
            encrypted: info.encrypted.then_some(true),
            dirty_flag: has_flags(node).then_some(info.dirty),
            full_backing_filename: name.as_ref().map(|name| full_name(&filename, name)),
            backing_filename: name,
            backing_filename_format: info.backing.and_then(|backing| backing.format),
            snapshots: info.snapshots.iter().map(snapshot).collect(),
            format_specific: info.specific.map(|it| json!({"type": it.kind, "data": it.data})),
            backing_image: backing.map(|node| Box::new(Image::of(&node, flat, sizes))),
            filename,
        }
    }
}

/// The node that has what a node does not have itself.
pub(super) fn backing(node: &BlockNode) -> Option<Arc<BlockNode>> {
    let child = node.children().into_iter().find(|(name, _)| *name == "backing");
    child.map(|(_, node)| node)
}

/// The file name of a node, or what stands for it if it has none: some of its options.
pub(super) fn filename(node: &NodeInfo) -> String {
    if let Some(filename) = &node.filename {
        return filename.clone();
    }
    let mut options = Map::new();
    options.insert("driver".to_owned(), node.driver.into());
    for child in &node.children {
        options.insert(child.child.to_string(), child.node.clone().into());
    }
    format!("json:{}", Value::Object(options))
}

/// Whether the node can be asked for such flags as QEMU has them: images can, and what is one byte for byte.
fn has_flags(node: &BlockNode) -> bool {
    match node.driver().format_name() {
        "file" | "host_device" => true,
        "raw" => node.children().first().is_some_and(|(_, child)| has_flags(child)),
        _ => node.driver().image().is_some(),
    }
}

/// The path of a backing file that an image names: relative to the image, unless it is a URL or absolute.
fn full_name(image: &str, backing: &str) -> String {
    let is_url = backing.split('/').next().is_some_and(|first| first.contains(':'));
    match Path::new(image).parent() {
        Some(directory) if !is_url => directory.join(backing).to_string_lossy().into_owned(),
        _ => backing.to_owned(),
    }
}

/// QAPI's `SnapshotInfo`.
fn snapshot(it: &ImageSnapshot) -> Value {
    const SECOND: u64 = 1_000_000_000;
    let mut snapshot = json!({
        "id": it.id,
        "name": it.name,
        "vm-state-size": it.vm_state_size,
        "date-sec": it.date.0,
        "date-nsec": it.date.1,
        "vm-clock-sec": it.vm_clock / SECOND,
        "vm-clock-nsec": it.vm_clock % SECOND,
    });
    if let Some(icount) = it.icount {
        snapshot["icount"] = json!(icount);
    }
    snapshot
}
