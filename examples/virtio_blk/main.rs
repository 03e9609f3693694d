//! A disk image, driven through the whole loop and checked.
//!
//! ```text
//! cargo run --release --example virtio_blk
//! cargo run --release --example virtio_blk -- --rw randread --bs 4k --iodepth 64 --engine io_uring
//! cargo run --release --example virtio_blk -- disk.img --overwrite --rw randrw --direct
//! cargo run --release --example virtio_blk -- --help
//! ```
//!
//! A guest driver fills a virtqueue in (simulated) guest memory; the virtio-blk device takes
//! requests from it and serves them, each in a coroutine, through a block backend and the file
//! driver. Guest and device share one thread, which is the event loop; the system calls are made by
//! worker threads or by the kernel.
//!
//! What is written carries a stamp; what is read is checked against it. In the end everything that
//! was written is read back by other means. So besides a speed this prints whether the data is right.
//!
//! * `options.rs`: the command line
//! * `image.rs`: the image, made or found, and read back
//! * `workload.rs`: the guest, which makes the requests
//! * `verify.rs`: what is in a block
//! * `report.rs`: progress and figures

mod image;
mod options;
mod report;
mod verify;
mod workload;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::{Parser, ValueEnum};
use coblk::virtio_blk::VirtioBlkConfig;
use coblk::virtio_blk::guest::{Machine, QueueOptions};
use coblk::{AioContext, BackendOptions, BlockBackend};
use image::Image;
use options::Options;
use report::{Progress, Results};
use verify::Verifier;
use workload::{Guest, Mix, Until};

/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;

fn main() -> ExitCode {
    let options = Options::parse();
    show_warnings();
    let image = match Image::prepare(&options) {
        Ok(image) => image,
        Err(error) => {
            eprintln!("error: {error}\n\nFor more information, try '--help'.");
            return ExitCode::from(2);
        }
    };
    match run(&options, &image) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all requests succeeded and all blocks were right.
fn run(options: &Options, image: &Image) -> Result<bool, Box<dyn Error>> {
    let ctx = AioContext::new()?;
    let backend = BackendOptions::new("drive0").open(&ctx, image.node.clone())?;
    // More requests than blocks could not all be in flight.
    let depth = image.blocks.min(usize::from(options.iodepth)) as u16;
    let machine = build_machine(&ctx, backend, depth, options.bs)?;
    let mut guest = Guest::new(&ctx, machine, image.blocks, options.bs, depth, options.seed)?;
    if options.verify {
        guest.verifier = Some(Verifier::new(image.blocks, options.bs, image.is_new));
    }
    describe(options, image);

    let mut results = Results::new();
    if image.is_new && !options.sparse {
        let mix = Mix { read_percent: 0, random: false, until: Until::EachOnce };
        let mut filling = Results::new();
        guest.run(mix, &mut filling, &mut Progress::new("fill", None, image.blocks as u64));
        if !filling.is_good() {
            return Err("the image could not be filled".into());
        }
    }
    let mix = Mix {
        read_percent: options.read_percent(image.workload),
        random: image.workload.is_random(),
        until: Until::Elapsed(options.runtime),
    };
    guest.run(mix, &mut results, &mut Progress::new("run", Some(options.runtime), 0));
    let flushed = if image.workload.writes() { guest.flush() } else { Ok(()) };
    results.print();
    flushed?;

    println!("failed:   {} requests", results.failures);
    let Some(verifier) = &guest.verifier else {
        println!("verified: nothing");
        return Ok(results.is_good());
    };
    let read_back = image.verify_written(verifier, options.bs, |bad| results.mismatch(bad))?;
    if results.unknown > 0 {
        println!("unknown:  {} blocks read carry no stamp", results.unknown);
    }
    println!(
        "verified: {} blocks as they were read, {read_back} in a final pass: {} mismatches",
        results.verified, results.mismatches
    );
    Ok(results.is_good())
}

/// Warnings of the library, such as the system's reason why a request failed: the guest only hears
/// that it did. The first few; the others are alike.
fn show_warnings() {
    static SHOWN: AtomicU32 = AtomicU32::new(0);
    let writer = || -> Box<dyn Write> {
        let first = SHOWN.fetch_add(1, Ordering::Relaxed) < 10;
        if first { Box::new(io::stderr()) } else { Box::new(io::sink()) }
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(writer)
        .init();
}

/// A device with one queue that takes `depth` requests, and a guest with memory for their data.
fn build_machine(
    ctx: &AioContext,
    backend: BlockBackend,
    depth: u16,
    block_bytes: u64,
) -> Result<Machine, Box<dyn Error>> {
    let size = (DESCRIPTORS * depth).next_power_of_two();
    let data_bytes = u64::from(depth) * block_bytes.next_multiple_of(4096);
    let memory_mib = usize::try_from((data_bytes >> 20) + 16)?;
    let config = VirtioBlkConfig::default().queue_size_max(size);
    Ok(Machine::builder()
        .memory_mib(memory_mib)
        .config(config)
        .queue(QueueOptions { size, ..Default::default() })
        .build(ctx, backend)?)
}

fn describe(options: &Options, image: &Image) {
    let cache = if options.direct { "O_DIRECT" } else { "page cache" };
    println!("image:    {}", image.description);
    println!("path:     guest driver -> virtqueue -> virtio-blk device -> block backend -> file");
    println!("engine:   {}, {cache}", name(options.engine));
    println!(
        "workload: {}, {} % reads, {} blocks of {}, {} in flight, {:?}",
        name(image.workload),
        options.read_percent(image.workload),
        image.blocks,
        report::bytes(options.bs as f64),
        options.iodepth,
        options.runtime
    );
}

/// A choice, as it is called on the command line.
fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}
