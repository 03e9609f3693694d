//! `info`: what an image is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write;
use std::sync::Arc;

use coblk::BlockNode;
use coblk::block::{BackingName, ImageInfo, ImageSnapshot};
use serde_json::{Map, Value, json};

use super::options::Named;
use super::{Tool, full_name, snapshot_list};
use crate::failure::{Failure, words};
use crate::image::{Backing, Image, ImageSpec};
use crate::output::{OutputFormat, print, print_json};
use crate::size;

/// The child that has the data of an image, if it is another than `file`.
const DATA_FILE: &str = "data-file";

/// Show what an image is: format, sizes, backing file, snapshots
#[derive(clap::Args, Debug)]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Show the backing files, too
    #[arg(short = 'b', long)]
    backing_chain: bool,
    /// Lines for human readers, or JSON
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// The image
    filename: OsString,
}

/// What is known of an image.
struct Described {
    filename: String,
    format: &'static str,
    image: ImageInfo,
    full_backing: Option<String>,
    snapshots: Vec<ImageSnapshot>,
    disk_size: Option<u64>,
    children: Vec<(String, Described)>,
}

impl Info {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let mut spec = ImageSpec {
            backing: Backing::None,
            metadata_only: true,
            ..self.named.spec(&self.filename)
        };
        let (mut chain, mut seen) = (Vec::new(), BTreeSet::new());
        loop {
            if !seen.insert(spec.name.clone()) {
                let name = spec.label();
                return Err(Failure::new(format!(
                    "Backing file '{name}' creates an infinite loop."
                )));
            }
            let image = tool.images.co_open(tool.co, &spec)?;
            let described = co_describe(tool, &image)?;
            let backing = described.image.backing.clone().zip(described.full_backing.clone());
            chain.push(described);
            tool.images.co_close(tool.co, image)?;
            let Some((BackingName { format, .. }, name)) = backing.filter(|_| self.backing_chain)
            else {
                break;
            };
            spec = ImageSpec { name: name.into(), format, is_options: false, ..spec };
        }
        match self.output {
            OutputFormat::Human => {
                let texts = chain.iter().map(|it| human(it, ""));
                Ok(print(&texts.collect::<Vec<_>>().join("\n"))?)
            }
            OutputFormat::Json => {
                let mut values: Vec<Value> = chain.iter().map(to_json).collect();
                let value = match self.backing_chain {
                    true => Value::Array(values),
                    false => values.swap_remove(0),
                };
                Ok(print_json(&value)?)
            }
        }
    }
}

fn co_describe(tool: &Tool<'_, '_>, image: &Image) -> Result<Described, Failure> {
    let mut described = co_describe_node(tool, &image.node)?;
    // The sizes are those of the image's own file.
    if described.children.iter().any(|(name, _)| name == DATA_FILE) {
        described.children.retain(|(name, _)| name != DATA_FILE);
        described.disk_size = described.children.first().and_then(|(_, file)| file.disk_size);
    }
    if !image.spec.is_options {
        described.filename = image.spec.label();
    }
    let name = described.image.backing.as_ref().map(|backing| &backing.name);
    described.full_backing = name.map(|name| full_name(&described.filename, name));
    Ok(described)
}

fn co_describe_node(tool: &Tool<'_, '_>, node: &Arc<BlockNode>) -> Result<Described, Failure> {
    let co = tool.co;
    let failed = |error| Failure::new(format!("cannot describe the image: {}", words(&error)));
    let (info, snapshots) = match node.co_image(co) {
        Ok(image) => {
            let snapshots = image.co_snapshots(co).or_else(none_if_unsupported).map_err(failed)?;
            (image.info().map_err(failed)?, snapshots)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {
            (ImageInfo::new(node.length()), Vec::new())
        }
        Err(error) => return Err(failed(error)),
    };
    let children = node
        .children()
        .into_iter()
        .map(|(name, child)| Ok((name.into_owned(), co_describe_node(tool, &child)?)));
    Ok(Described {
        filename: node.driver().filename().unwrap_or_default(),
        format: node.driver().format_name(),
        image: info,
        full_backing: None,
        snapshots,
        disk_size: node.co_allocated_bytes(co).map_err(failed)?,
        children: children.collect::<Result<_, Failure>>()?,
    })
}

fn none_if_unsupported<T>(error: std::io::Error) -> std::io::Result<Vec<T>> {
    match error.raw_os_error() {
        Some(libc::ENOTSUP) => Ok(Vec::new()),
        _ => Err(error),
    }
}

fn to_json(it: &Described) -> Value {
    let mut members = Map::new();
    let mut add = |name: &str, value: Value| {
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
    };
    let children =
        it.children.iter().map(|(name, child)| json!({"name": name, "info": to_json(child)}));
    add("children", Value::Array(children.collect()));
    add("filename", json!(it.filename));
    add("format", json!(it.format));
    add("virtual-size", json!(it.image.virtual_size));
    add("actual-size", json!(it.disk_size));
    add("cluster-size", json!(it.image.cluster_size));
    add("encrypted", json!(it.image.encrypted.then_some(true)));
    add("dirty-flag", json!(it.image.dirty));
    if let Some(backing) = &it.image.backing {
        add("backing-filename", json!(backing.name));
        add("backing-filename-format", json!(backing.format));
    }
    add("full-backing-filename", json!(it.full_backing));
    if !it.snapshots.is_empty() {
        add("snapshots", Value::Array(it.snapshots.iter().map(snapshot_json).collect()));
    }
    if let Some(specific) = &it.image.specific {
        add("format-specific", json!({"type": specific.kind, "data": specific.data}));
    } else if it.format == "file" {
        add("format-specific", json!({"type": "file", "data": {}}));
    }
    Value::Object(members)
}

fn snapshot_json(it: &ImageSnapshot) -> Value {
    let mut members = json!({
        "id": it.id,
        "name": it.name,
        "vm-state-size": it.vm_state_size,
        "date-sec": it.date.0,
        "date-nsec": it.date.1,
        "vm-clock-sec": it.vm_clock / 1_000_000_000,
        "vm-clock-nsec": it.vm_clock % 1_000_000_000,
    });
    if let Some(icount) = it.icount {
        members["icount"] = json!(icount);
    }
    members
}

/// The lines of an image, or of a child whose path this is.
fn human(it: &Described, path: &str) -> String {
    let mut text = String::new();
    let (is_child, info) = (!path.is_empty(), &it.image);
    let indent = if is_child { "    " } else { "" };
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{indent}{name}: {value}");
    };
    let bytes = info.virtual_size;
    let length = format!("{} ({bytes} bytes)", size::human(bytes));
    let names = match is_child {
        true => ["filename", "protocol type", "file length"],
        false => ["image", "file format", "virtual size"],
    };
    line(names[0], &it.filename);
    line(names[1], it.format);
    line(names[2], &length);
    line("disk size", &it.disk_size.map_or_else(|| "unavailable".to_owned(), size::human));
    if info.encrypted {
        line("encrypted", "yes");
    }
    if let Some(bytes) = info.cluster_size {
        line("cluster_size", &bytes.to_string());
    }
    if info.dirty {
        line("cleanly shut down", "no");
    }
    if let Some(backing) = &info.backing {
        let actual = it.full_backing.as_ref().filter(|full| **full != backing.name);
        let actual = actual.map(|full| format!(" (actual path: {full})")).unwrap_or_default();
        line("backing file", &format!("{}{actual}", backing.name));
        if let Some(format) = &backing.format {
            line("backing file format", format);
        }
    }
    if !it.snapshots.is_empty() {
        text.push_str(&snapshot_list::table(&it.snapshots));
    }
    if let Some(specific) = &info.specific {
        let _ = writeln!(text, "{indent}Format specific information:");
        members(&mut text, &specific.data, 1 + usize::from(is_child));
    }
    for (name, child) in &it.children {
        let path = format!("{path}/{name}");
        let _ = writeln!(text, "Child node '{path}':");
        text.push_str(&human(child, &path));
    }
    text
}

/// The members of an object or a list, one a line.
fn members(text: &mut String, value: &Value, depth: usize) {
    let mut line = |name: &str, value: &Value| {
        let indent = " ".repeat(4 * depth);
        let _ = match value {
            Value::String(value) => writeln!(text, "{indent}{name}: {value}"),
            Value::Object(_) | Value::Array(_) => {
                let _ = writeln!(text, "{indent}{name}:");
                members(text, value, depth + 1);
                Ok(())
            }
            value => writeln!(text, "{indent}{name}: {value}"),
        };
    };
    match value {
        Value::Object(object) => {
            let mut sorted: Vec<_> = object.iter().collect();
            sorted.sort_by_key(|(name, _)| place(name));
            sorted.into_iter().for_each(|(name, value)| line(&name.replace('-', " "), value));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| line(&format!("[{index}]"), value));
        }
        _ => {}
    }
}

/// The order in which scripts know the members.
fn place(name: &str) -> usize {
    const ORDER: [&str; 27] = [
        "compat",
        "compression-type",
        "lazy-refcounts",
        "bitmaps",
        "refcount-bits",
        "data-file",
        "data-file-raw",
        "encrypt",
        "corrupt",
        "extended-l2",
        "flags",
        "name",
        "granularity",
        "ivgen-alg",
        "detached-header",
        "hash-alg",
        "cipher-alg",
        "uuid",
        "format",
        "cipher-mode",
        "slots",
        "payload-offset",
        "master-key-iters",
        "active",
        "iters",
        "key-offset",
        "stripes",
    ];
    ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len())
}
