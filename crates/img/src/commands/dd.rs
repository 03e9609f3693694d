//! `dd`: copies a part of an image to a new one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use coblk::WriteFlags;

use super::Tool;
use super::create::NewImage;
use super::option_list::CreateOptions;
use super::options::Named;
use crate::engine::{Copy, Order, Part, Queue, Target, max_bytes_of_data, max_writes};
use crate::failure::{Failure, words};
use crate::image::{Image, ImageSpec};
use crate::progress::Progress;
use crate::size;

/// Pieces that are copied at a time.
const PIECES: usize = 8;
/// Bytes of a block without `bs`.
const BLOCK_BYTES: u64 = 512;
/// Most bytes of a block.
const MAX_BLOCK_BYTES: u64 = i32::MAX as u64;

/// Copy a part of an image to a new one
#[derive(clap::Args, Debug)]
pub(crate) struct Dd {
    #[command(flatten)]
    pub(crate) named: Named,
    /// The format of the new image; raw without this
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
    target_format: String,
    /// if=FILENAME and of=FILENAME; bs=SIZE: bytes of a block, 512 without this; skip=COUNT: blocks that are left
    /// out; count=COUNT: blocks up to the end of what is copied, with those that are left out
    #[arg(value_name = "OPERAND")]
    operands: Vec<OsString>,
}

/// What the operands say.
#[derive(Default)]
struct Plan<'a> {
    input: Option<&'a OsStr>,
    output: Option<&'a OsStr>,
    block_bytes: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl Dd {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let plan = Plan::parse(&self.operands)?;
        let (Some(input), Some(output)) = (plan.input, plan.output) else {
            return Err(Failure::new("Must specify both input and output files"));
        };
        let source = tool.images.co_open(tool.co, &self.named.spec(&input.to_owned()))?;
        let (from, end) = plan.range(source.node.length());
        if from > end {
            let name = input.display();
            eprintln!("coblk-img: {name}: cannot skip to specified offset");
        }
        let from = from.min(end);
        let target = self.co_make_target(tool, output, end - from)?;
        co_copy(tool, &source, from..end, &target)?;
        let flushed = target.backend.co_flush(tool.co);
        flushed.map_err(|error| Failure::new(format!("error while writing: {}", words(&error))))?;
        tool.images.co_close(tool.co, target)
    }

    fn co_make_target(
        &self,
        tool: &Tool<'_, '_>,
        name: &OsStr,
        bytes: u64,
    ) -> Result<Image, Failure> {
        let format = &*self.target_format;
        let new = NewImage {
            format,
            name,
            bytes: Some(bytes),
            backing: None,
            backing_format: None,
            options: CreateOptions::new(),
        };
        new.co_create(tool)?;
        let spec = ImageSpec {
            format: Some(format.to_owned()),
            is_writable: true,
            ..ImageSpec::new(name)
        };
        tool.images.co_open(tool.co, &spec)
    }
}

/// Copies all bytes of a range, zeroes among them, to the beginning of another image.
fn co_copy(
    tool: &Tool<'_, '_>,
    source: &Image,
    range: std::ops::Range<u64>,
    target: &Image,
) -> Result<(), Failure> {
    let copy = Copy {
        parts: vec![Part {
            node: Arc::clone(&source.node),
            options: source.options.clone(),
            base: None,
            place: 0..range.end - range.start,
            from: range.start,
        }],
        target: Target {
            node: Arc::clone(&target.node),
            options: target.options.clone(),
            is_zero: true,
            flags: WriteFlags::empty(),
            sparse_bytes: 0,
            unit: 1,
            zero_unit: BLOCK_BYTES,
        },
        queue: Queue::new(PIECES, max_bytes_of_data, tool.interrupt.clone()),
        order: Some(Order::new(max_writes(target.spec.cache))),
        is_of_page_cache: !source.spec.cache.direct && !target.spec.cache.direct,
        rate: None,
        salvage: None,
        progress: Arc::new(Progress::new(false)),
        buffers: Mutex::default(),
    };
    copy.co_run(tool.co, PIECES)
}

impl<'a> Plan<'a> {
    /// Reads operands; the last one of a name counts.
    fn parse(operands: &'a [OsString]) -> Result<Plan<'a>, Failure> {
        let mut plan = Plan::default();
        for operand in operands {
            let unknown = || Failure::new(format!("unrecognized operand {}", operand.display()));
            let bytes = operand.as_bytes();
            let at = bytes.iter().position(|it| *it == b'=').ok_or_else(unknown)?;
            let value = OsStr::from_bytes(&bytes[at + 1..]);
            let number = |what: &str| size::parse(what, &value.to_string_lossy());
            match &bytes[..at] {
                b"if" => plan.input = Some(value),
                b"of" => plan.output = Some(value),
                b"bs" => {
                    let block = number("bs")?;
                    if !(1..=MAX_BLOCK_BYTES).contains(&block) {
                        let why = format!("Must be between 1 and {MAX_BLOCK_BYTES}.");
                        return Err(Failure::new(format!("Invalid bs specified. {why}")));
                    }
                    plan.block_bytes = Some(block);
                }
                b"count" => plan.count = Some(number("count")?),
                b"skip" => plan.skip = number("skip")?,
                _ => return Err(unknown()),
            }
        }
        Ok(plan)
    }

    /// The bytes that are copied of an image of this length; the first may lie behind the last.
    fn range(&self, length: u64) -> (u64, u64) {
        let block = self.block_bytes.unwrap_or(BLOCK_BYTES);
        let end = self.count.map_or(length, |count| count.saturating_mul(block).min(length));
        (self.skip.saturating_mul(block), end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_from_the_beginning() {
        let range = |text: &str, length| {
            let operands: Vec<_> = text.split(' ').map(OsString::from).collect();
            Plan::parse(&operands).unwrap().range(length)
        };
        assert_eq!(range("if=a of=b", 1000), (0, 1000));
        assert_eq!(range("bs=100 skip=2 count=5", 1000), (200, 500));
        assert_eq!(range("count=1 skip=4", 1000), (2048, 512));
        assert_eq!(range("bs=1k count=8E skip=8E", 1000), (u64::MAX, 1000));
    }
}
