//! `map`: where the data of an image is.

use std::ffi::OsString;
use std::fmt::Write;
use std::sync::Arc;

use coblk::block::Extent;
use coblk::{BlockBackend, BlockNode};

use super::options::Named;
use super::{Tool, backing_of};
use crate::failure::{Failure, words};
use crate::output::{OutputFormat, print};
use crate::size;

/// Most bytes that are asked about at once.
const MAX_ASKED: u64 = 1 << 30;

/// Show where the data of an image is
#[derive(clap::Args, Debug)]
pub(crate) struct Map {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Lines for human readers, or JSON
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Begin at this offset
    #[arg(short = 's', long, value_name = "OFFSET")]
    start_offset: Option<String>,
    /// Describe so many bytes
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// The image
    filename: OsString,
}

/// Bytes of one kind, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    length: u64,
    depth: usize,
    extent: Extent,
    offset: Option<u64>,
    file: Option<String>,
}

/// A layer of the chain.
struct Layer {
    node: Arc<BlockNode>,
    backend: BlockBackend,
}

impl Map {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let image = tool.images.co_open(tool.co, &self.named.spec(&self.filename))?;
        let of = |what, text: &Option<String>| {
            text.as_deref().map(|it| size::parse(what, it)).transpose()
        };
        let start = of("start offset", &self.start_offset)?.unwrap_or(0);
        let length = of("max length", &self.max_length)?.unwrap_or(u64::MAX);
        let end = image.node.length().min(start.saturating_add(length));
        let layers = layers(tool, &image.node);
        let mut printer = Printer { output: self.output, text: String::new(), printed: 0 };
        printer.begin();
        let mut last: Option<Entry> = None;
        let mut at = start;
        while at < end {
            let entry = co_entry(tool, &layers, at, MAX_ASKED.min(end - at))?;
            at += entry.length;
            match &mut last {
                Some(last) if last.goes_on_with(&entry) => last.length += entry.length,
                _ => {
                    if let Some(entry) = last.replace(entry) {
                        printer.entry(&entry)?;
                    }
                }
            }
        }
        if let Some(entry) = &last {
            printer.entry(entry)?;
        }
        printer.end()
    }
}

/// The node and its backing files, filters among them left out.
fn layers(tool: &Tool<'_, '_>, top: &Arc<BlockNode>) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut next = Some(Arc::clone(top));
    while let Some(node) = next {
        let backend = BlockBackend::read_only(tool.co.context(), "map", Arc::clone(&node));
        next = backing_of(&node);
        layers.push(Layer { node, backend });
    }
    layers
}

/// Describes the first bytes of a range.
fn co_entry(
    tool: &Tool<'_, '_>,
    layers: &[Layer],
    start: u64,
    mut bytes: u64,
) -> Result<Entry, Failure> {
    let failed = |error| {
        let why = words(&error);
        Failure::new(format!("Failed to read image metadata: {why}"))
    };
    let mut entry = Entry {
        start,
        length: bytes,
        depth: 0,
        extent: Extent { allocated: false, ..Extent::hole(bytes) },
        offset: None,
        file: None,
    };
    for (depth, layer) in layers.iter().enumerate() {
        let base = layers.get(depth + 1).map(|layer| &*layer.node);
        entry.depth = depth;
        let found = layer.backend.co_status_above(tool.co, base, start, bytes).map_err(failed)?;
        bytes = found.extent.bytes;
        (entry.length, entry.extent.bytes) = (bytes, bytes);
        // Behind the end of a backing file there are zeroes.
        let there = base.map_or(0, |base| base.length().saturating_sub(start));
        if found.extent.allocated || there == 0 {
            if found.extent.allocated {
                entry.extent = found.extent;
            }
            if let Some(stored) = found.extent.stored {
                entry.offset = Some(stored.offset);
                entry.file = file_of(&layer.node, stored.child);
            }
            break;
        }
        bytes = bytes.min(there);
    }
    Ok(entry)
}

/// The file of a node, or of one of its children.
fn file_of(node: &BlockNode, child: Option<&str>) -> Option<String> {
    let Some(child) = child else { return node.driver().filename() };
    let children = node.children();
    let (_, child) = children.iter().find(|(name, _)| name == child)?;
    child.driver().filename()
}

impl Entry {
    fn goes_on_with(&self, next: &Entry) -> bool {
        let kind = |it: &Entry| {
            let Extent { data, zero, allocated, compressed, .. } = it.extent;
            (data, zero, allocated, compressed, it.depth, it.offset.is_some())
        };
        kind(self) == kind(next)
            && self.file == next.file
            && self.offset.is_none_or(|offset| next.offset == Some(offset + self.length))
    }
}

struct Printer {
    output: OutputFormat,
    text: String,
    printed: u64,
}

impl Printer {
    fn begin(&mut self) {
        match self.output {
            OutputFormat::Human => {
                self.line(["Offset", "Length", "Mapped to"], "File");
            }
            OutputFormat::Json => self.text.push('['),
        }
    }

    fn line(&mut self, columns: [&str; 3], file: &str) {
        let [start, length, offset] = columns;
        let _ = writeln!(self.text, "{start:<16}{length:<16}{offset:<16}{file}");
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        match self.output {
            OutputFormat::Human => self.human_entry(entry)?,
            OutputFormat::Json => self.json_entry(entry),
        }
        self.printed += 1;
        // A long map is seen as it is found.
        if self.text.len() >= 64 << 10 {
            print(&std::mem::take(&mut self.text))?;
        }
        Ok(())
    }

    fn human_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        let Extent { data, zero, .. } = entry.extent;
        if !data || zero {
            return Ok(());
        }
        let (Some(offset), Some(file)) = (entry.offset, &entry.file) else {
            print(&std::mem::take(&mut self.text))?;
            let text = "File contains external, encrypted or compressed clusters.";
            return Err(Failure::new(text));
        };
        let hex = |number: u64| if number == 0 { "0".to_owned() } else { format!("{number:#x}") };
        self.line([&hex(entry.start), &hex(entry.length), &hex(offset)], file);
        Ok(())
    }

    fn json_entry(&mut self, entry: &Entry) {
        let Entry { start, length, depth, extent, offset, .. } = entry;
        let Extent { data, zero, allocated, compressed, .. } = extent;
        if self.printed > 0 {
            self.text.push_str(",\n");
        }
        let _ = write!(
            self.text,
            "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {allocated}, \
             \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some(offset) = offset {
            let _ = write!(self.text, ", \"offset\": {offset}");
        }
        self.text.push('}');
    }

    fn end(mut self) -> Result<(), Failure> {
        if self.output == OutputFormat::Json {
            self.text.push_str("]\n");
        }
        Ok(print(&self.text)?)
    }
}
