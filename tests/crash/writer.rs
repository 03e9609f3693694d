//! Writes self-describing sectors until it is killed, and tells on its standard output what was
//! acknowledged, in lines of text:
//!
//! ```text
//! W FIRST SECTORS VERSION     a write that was acknowledged, to be made durable by the next F
//! F ENTRIES                   the writes above are durable; the log counted so many entries
//! D FIRST SECTORS VERSION ENTRIES     a write that is durable by itself
//! ```
//!
//! A line is written after what it tells, so a reader may believe all lines that are whole.
//!
//! Usage: `crash-writer IMAGE ENGINE CACHE SEED [LOG [lie]]`. With `LOG` the writes go through
//! `blklogwrites`; with `lie` flushes are acknowledged and not done.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk::block::filters::blklogwrites::BlkLogWrites;
use coblk::drivers::{Engine, File, FileOptions};
use coblk::{AioContext, BlockBackend, BlockNode, Co, IoVector, WriteFlags};
use coblk_tests::liar::Liar;
use coblk_tests::random::Random;
use coblk_tests::sectors::{self, SECTOR_BYTES};

/// Coroutines, each of which writes sectors of its own.
const WRITERS: u64 = 8;
/// Most sectors in one write.
const MAX_SECTORS: u64 = 24;
/// One in how many writes is durable by itself.
const DURABLE: u64 = 12;
/// Before the flusher looks again whether there is something to flush.
const IDLE: Duration = Duration::from_micros(20);

struct Options {
    image: String,
    file: FileOptions,
    seed: u64,
    log: Option<String>,
    lie: bool,
}

fn options() -> Option<Options> {
    let mut args = std::env::args().skip(1);
    let image = args.next()?;
    let engine = match args.next()?.as_str() {
        "threads" => Engine::Threads,
        "io_uring" => Engine::IoUring,
        _ => return None,
    };
    let direct = match args.next()?.as_str() {
        "buffered" => false,
        "direct" => true,
        _ => return None,
    };
    let file = File::options().engine(engine).direct(direct);
    let seed = args.next()?.parse().ok()?;
    let (log, lie) = (args.next(), args.next());
    if lie.as_ref().is_some_and(|lie| lie != "lie") {
        return None;
    }
    Some(Options { image, file, seed, log, lie: lie.is_some() })
}

fn main() -> io::Result<()> {
    let options = options().ok_or_else(|| {
        io::Error::other("crash-writer IMAGE threads|io_uring buffered|direct SEED [LOG [lie]]")
    })?;
    let ctx = AioContext::for_test()?;
    let node = open(&ctx, &options)?;
    let sectors = node.length() / SECTOR_BYTES as u64;
    let log = options.log.map(fs::File::open).transpose()?;
    let backend = BlockBackend::new(&ctx, "drive", node);
    let state = Rc::new(State { backend, seed: options.seed, log, done: RefCell::default() });
    for writer in 0..WRITERS {
        let state = Rc::clone(&state);
        ctx.spawn("writer", move |co| state.write(co, writer, sectors / WRITERS));
    }
    ctx.run(|co| state.flush(co));
    Ok(())
}

fn open(ctx: &AioContext, options: &Options) -> io::Result<Arc<BlockNode>> {
    let file = |path: &str| options.file.open(path).map_err(io::Error::other);
    let mut node = BlockNode::new("disk", file(&options.image)?);
    if let Some(log) = &options.log {
        let log = BlockNode::new("log", file(log)?);
        let filter = ctx.run(|co| BlkLogWrites::create(co, node, log))?;
        node = BlockNode::new("logged", filter);
    }
    if options.lie {
        node = BlockNode::new("liar", Liar::new(node, Arc::new(true.into())));
    }
    Ok(node)
}

struct State {
    backend: BlockBackend,
    seed: u64,
    log: Option<fs::File>,
    /// First sector, sectors and version of writes that no flush covers yet.
    done: RefCell<Vec<(u64, u64, u64)>>,
}

impl State {
    /// Writes its own sectors, version after version, for ever.
    fn write(&self, co: &Co<'_>, writer: u64, own: u64) {
        let mut random = Random::new(self.seed ^ writer << 32);
        for version in 1.. {
            let first = random.below(own);
            let count = 1 + random.below(MAX_SECTORS.min(own - first));
            let first = writer * own + first;
            let mut data = vec![0; count as usize * SECTOR_BYTES];
            sectors::fill(&mut data, self.seed, first, version);
            let durable = random.below(DURABLE) == 0;
            let flags = if durable { WriteFlags::FUA } else { WriteFlags::empty() };
            let offset = first * SECTOR_BYTES as u64;
            let result = self.backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags);
            result.expect("a write");
            if durable {
                say(&format!("D {first} {count} {version} {}\n", self.log_entries()));
            } else {
                self.done.borrow_mut().push((first, count, version));
            }
        }
    }

    /// Flushes for ever.
    fn flush(&self, co: &Co<'_>) {
        loop {
            // What completes during the flush is not covered by it.
            let covered = std::mem::take(&mut *self.done.borrow_mut());
            if covered.is_empty() {
                co.sleep(IDLE);
                continue;
            }
            self.backend.co_flush(co).expect("a flush");
            let mut lines = String::new();
            for (first, count, version) in covered {
                writeln!(lines, "W {first} {count} {version}").expect("text");
            }
            writeln!(lines, "F {}", self.log_entries()).expect("text");
            say(&lines);
        }
    }

    /// What the superblock of the log counts: what would be replayed if all ended now.
    fn log_entries(&self) -> u64 {
        let mut entries = [0; 8];
        if let Some(log) = &self.log {
            log.read_exact_at(&mut entries, 16).expect("the superblock of the log");
        }
        u64::from_le_bytes(entries)
    }
}

fn say(lines: &str) {
    let mut out = io::stdout().lock();
    out.write_all(lines.as_bytes()).and_then(|()| out.flush()).expect("somebody who listens");
}
