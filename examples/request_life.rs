//! The life of one request, told by the events that the library emits.
//!
//! ```text
//! cargo run --example request_life [IMAGE]
//! ```
//!
//! Reads 4 KiB of an image (a temporary one, if none is given) with `aio_preadv`, and prints every
//! event on the way: the step of `docs/life-of-a-request.md` it belongs to, when it happened, on
//! which thread, and its name and fields. Events have QEMU's names where QEMU has the event.

use std::fmt::{Debug, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coblk::drivers::File;
use coblk::{AioContext, BackendOptions, BlockNode, ThreadPool};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const OFFSET: u64 = 4096;
const BYTES: usize = 4096;

/// Which event opens which step, and what the step is. Other events belong to the step that their
/// thread is in.
const STEPS: [(&str, &str); 6] = [
    ("blk_aio_preadv", "the main loop has a request; it takes a coroutine and resumes it"),
    ("thread_pool_submit_co", "the file driver hands a job to a worker thread"),
    ("coroutine_yield", "the coroutine suspends: control is back in the main loop"),
    ("thread_pool_complete", "the worker is done and schedules the completion bottom half"),
    ("thread_pool_completion_bh", "the bottom half, on the home thread, resumes the coroutine"),
    ("blk_aio_complete", "the request completes and its coroutine ends"),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("request_life: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let recorder = Recorder { start: Instant::now(), events: Arc::default() };
    let events = Arc::clone(&recorder.events);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(recorder))?;

    let scratch = tempfile::NamedTempFile::new()?;
    let image = std::env::args_os().nth(1).map(PathBuf::from);
    if image.is_none() {
        scratch.as_file().set_len(1 << 20)?;
    }
    let image = image.unwrap_or_else(|| scratch.path().to_owned());

    // A pool of its own with one worker that is there already, so that nothing else is told here.
    let ctx = AioContext::builder().thread_pool(ThreadPool::new(1, 1)?).build()?;
    // Without this, a block in the page cache would be read at once, on the loop's own thread.
    let file = File::options().read_only(true).in_place_reads(false).open(&image)?;
    let node = BlockNode::new("disk0", file);
    let backend = BackendOptions::new("drive0").open(&ctx, node)?;

    backend.aio_preadv(&ctx, OFFSET, vec![0; BYTES], |_, result, _| {
        tracing::trace!(name: "callback", ok = result.is_ok(), "callback");
    });
    ctx.run_until(|| backend.in_flight() == 0);

    print_by_step(&events.lock().map_err(|error| error.to_string())?);
    Ok(())
}

/// Keeps every event for the end: printing takes longer than the request.
struct Recorder {
    start: Instant,
    events: Arc<Mutex<Vec<Recorded>>>,
}

#[derive(Clone)]
struct Recorded {
    at: Duration,
    thread: String,
    name: &'static str,
    fields: String,
}

impl<S: tracing::Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let recorded = Recorded {
            at: self.start.elapsed(),
            thread: std::thread::current().name().unwrap_or("?").to_owned(),
            name: event.metadata().name(),
            fields: fields.0,
        };
        if let Ok(mut events) = self.events.lock() {
            events.push(recorded);
        }
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != "message" {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}

/// Steps 3 and 4 go on at the same time, on two threads; so events are sorted by step, then time.
fn print_by_step(events: &[Recorded]) {
    let begin = events.iter().position(|event| event.name == STEPS[0].0).unwrap_or(0);
    let mut told: Vec<(usize, &Recorded)> = Vec::new();
    for event in &events[begin..] {
        let opens = STEPS.iter().position(|(name, _)| *name == event.name);
        let same_thread = told.iter().rev().find(|(_, other)| other.thread == event.thread);
        let step = opens.or(same_thread.map(|(step, _)| *step)).unwrap_or(3);
        told.push((step, event));
    }
    told.sort_by_key(|(step, event)| (*step, event.at));
    for (step, (_, title)) in STEPS.iter().enumerate() {
        println!("{}  {title}", step + 1);
        for (_, event) in told.iter().filter(|(of, _)| *of == step) {
            let us = (event.at - events[begin].at).as_secs_f64() * 1e6;
            println!("   {us:8.1} us  {:14} {}{}", event.thread, event.name, event.fields);
        }
    }
}
