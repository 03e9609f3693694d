//! `bench`: how long requests to an image take.

use std::cell::Cell;
use std::ffi::OsString;
use std::rc::Rc;
use std::time::Instant;

use coblk::aio::sync::TaskPool;
use coblk::{AlignedBuffer, BlockBackend, Co, IoVector, IoVectorMut, WriteFlags};

use super::Tool;
use super::options::{Named, cache};
use crate::failure::{Failure, words};
use crate::image::{Cache, ImageSpec};
use crate::output::print;
use crate::size;

/// Most of each of the numbers.
const MAX: u64 = i32::MAX as u64;
/// The largest alignment that O_DIRECT may ask of memory.
const MEMORY_ALIGNMENT: usize = 4096;

/// Measure how long requests to an image take
#[derive(clap::Args, Debug)]
pub(crate) struct Bench {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Taken, and without effect
    #[arg(short, long)]
    quiet: bool,
    /// How the image is cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// Make so many requests
    #[arg(short, long, default_value = "75000")]
    count: String,
    /// Make so many at a time
    #[arg(short, long, default_value = "64")]
    depth: String,
    /// Each of so many bytes
    #[arg(short = 's', long, value_name = "SIZE", default_value = "4k")]
    buffer_size: String,
    /// The first at this offset
    #[arg(short, long, default_value = "0")]
    offset: String,
    /// The next ones so many bytes further each; as many as a request has without this
    #[arg(short = 'S', long, value_name = "SIZE", default_value = "0")]
    step_size: String,
    /// What makes them: threads, native or io_uring
    #[arg(short = 'i', long, value_name = "ENGINE")]
    aio: Option<String>,
    /// The same as -i native
    #[arg(short, long)]
    native: bool,
    /// Write
    #[arg(short, long)]
    write: bool,
    /// Write this byte
    #[arg(long, default_value = "0")]
    pattern: String,
    /// Flush after so many requests
    #[arg(long, value_name = "COUNT")]
    flush_interval: Option<String>,
    /// Other requests go on while a flush runs
    #[arg(long)]
    no_drain: bool,
    /// The image
    filename: OsString,
}

/// The numbers of a run.
#[derive(Clone, Copy)]
struct Plan {
    count: u64,
    depth: u64,
    bytes: u64,
    offset: u64,
    step: u64,
    pattern: u8,
    flush_interval: u64,
    drains: bool,
    writes: bool,
    flags: WriteFlags,
}

/// A run that goes on.
struct Run {
    plan: Plan,
    backend: BlockBackend,
    length: u64,
    started: Cell<u64>,
    offset: Cell<u64>,
}

impl Bench {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let mut plan = self.plan()?;
        let spec = ImageSpec {
            cache: cache("source", self.cache.as_deref(), Cache::WRITEBACK)?,
            is_writable: self.write,
            engine: self.engine()?,
            ..self.named.spec(&self.filename)
        };
        plan.flags.set(WriteFlags::FUA, spec.cache.writethrough);
        let image = tool.images.co_open(tool.co, &spec)?;
        print(&plan.text())?;
        let run = Rc::new(Run {
            plan,
            backend: image.backend.clone(),
            length: image.node.length(),
            started: Cell::new(0),
            offset: Cell::new(plan.offset),
        });
        let begin = Instant::now();
        run.co_run(tool.co)?;
        let seconds = begin.elapsed().as_secs_f64();
        print(&format!("Run completed in {seconds:.3} seconds.\n"))?;
        tool.images.co_close(tool.co, image)
    }

    fn engine(&self) -> Result<&'static str, Failure> {
        match self.aio.as_deref() {
            None if self.native => Ok("native"),
            None | Some("threads") => Ok("threads"),
            Some("native") => Ok("native"),
            Some("io_uring") => Ok("io_uring"),
            Some(other) => Err(Failure::new(format!("Invalid aio option: {other}"))),
        }
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let number = |what, text: &str, min| size::parse_number(what, text, min, MAX);
        let bytes = size::parse("buffer size", &self.buffer_size)?;
        let step = size::parse("step size", &self.step_size)?;
        let flush_interval = self.flush_interval.as_deref();
        let plan = Plan {
            count: number("request count", &self.count, 1)?,
            depth: number("queue depth", &self.depth, 1)?,
            bytes,
            offset: size::parse("offset", &self.offset)?,
            step: if step == 0 { bytes } else { step },
            pattern: size::parse_number("pattern byte", &self.pattern, 0, 0xff)? as u8,
            flush_interval: flush_interval
                .map_or(Ok(0), |text| number("flush interval", text, 0))?,
            drains: !self.no_drain,
            writes: self.write,
            flags: WriteFlags::empty(),
        };
        if !(1..=MAX).contains(&bytes) || plan.step > MAX {
            return Err(Failure::new(format!("Invalid buffer size or step size: from 1 to {MAX}")));
        }
        if plan.flush_interval > 0 && !plan.writes {
            return Err(Failure::new("--flush-interval is only available in write tests"));
        }
        if plan.flush_interval > 0 && plan.flush_interval < plan.depth {
            return Err(Failure::new("Flush interval can't be smaller than depth"));
        }
        Ok(plan)
    }
}

impl Plan {
    fn text(&self) -> String {
        let Plan { count, depth, bytes, offset, step, .. } = self;
        let kind = if self.writes { "write" } else { "read" };
        let mut text = format!(
            "Sending {count} {kind} requests, {bytes} bytes each, {depth} in parallel \
             (starting at offset {offset}, step size {step})\n"
        );
        if self.flush_interval > 0 {
            text.push_str(&format!("Sending flush every {} requests\n", self.flush_interval));
        }
        text
    }
}

impl Run {
    fn co_run(self: &Rc<Self>, co: &Co<'_>) -> Result<(), Failure> {
        let Plan { flush_interval, drains, count, .. } = self.plan;
        let mut left = count;
        while left > 0 {
            // Requests up to the next flush that waits for them.
            let some = if flush_interval > 0 && drains { left.min(flush_interval) } else { left };
            self.co_make(co, some)?;
            left -= some;
            if drains && flush_interval > 0 && some == flush_interval {
                self.co_flush(co)?;
            }
        }
        Ok(())
    }

    /// Makes so many requests, and waits for them.
    fn co_make(self: &Rc<Self>, co: &Co<'_>, count: u64) -> Result<(), Failure> {
        let tasks = self.plan.depth.min(count);
        let end = self.started.get() + count;
        let pool = TaskPool::new(tasks as usize);
        for _ in 0..tasks {
            let run = Rc::clone(self);
            pool.start(co, "bench", move |co| run.co_make_some(co, end));
        }
        pool.wait_all(co)
    }

    fn co_make_some(&self, co: &Co<'_>, end: u64) -> Result<(), Failure> {
        let mut buffer = AlignedBuffer::new(self.plan.bytes as usize, MEMORY_ALIGNMENT);
        let buffer = buffer.as_mut().map_err(|error| Failure::new(words(error)))?;
        buffer.fill(self.plan.pattern);
        while self.started.get() < end {
            self.started.set(self.started.get() + 1);
            let (number, offset) = (self.started.get(), self.offset.get());
            let next = offset + self.plan.step;
            self.offset.set(if next >= self.length { next % self.length.max(1) } else { next });
            let result = match self.plan.writes {
                true => {
                    let source = IoVector::from(&buffer[..]);
                    self.backend.co_pwritev(co, offset, &source, self.plan.flags)
                }
                false => {
                    let mut target = IoVectorMut::from(&mut buffer[..]);
                    self.backend.co_preadv(co, offset, &mut target)
                }
            };
            result.map_err(|error| Failure::new(format!("Failed request: {}", words(&error))))?;
            let interval = self.plan.flush_interval;
            if interval > 0 && !self.plan.drains && number.is_multiple_of(interval) {
                self.co_flush(co)?;
            }
        }
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> Result<(), Failure> {
        let flushed = self.backend.co_flush(co);
        flushed.map_err(|error| Failure::new(format!("Failed flush: {}", words(&error))))
    }
}
