//! A mirror in a program of one's own: copies an image to another of the same length, with a progress bar.
//!
//! ```sh
//! truncate -s 1G copy.img
//! cargo run --release --example mirror -- disk.img copy.img
//! ```

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use coblk::drivers::File;
use coblk::jobs::{JobEvent, JobOptions, Jobs, Mirror};
use coblk::{AioContext, BlockNode, Blockdevs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(source), Some(target)) = (args.next(), args.next()) else {
        return Err("usage: mirror SOURCE TARGET".into());
    };
    let source = BlockNode::new("source", File::options().open(source)?);
    let target = BlockNode::new("target", File::options().open(target)?);
    let (ctx, blockdevs) = (AioContext::new()?, Blockdevs::new(coblk::drivers()));
    let jobs = Jobs::new(|_, event| {
        if let JobEvent::Completed { error: Some(error), .. } = event {
            eprintln!("\nthe mirror has failed: {error}");
        }
    });
    ctx.run(|co| {
        let mirror = Mirror::new(source, Arc::clone(&target));
        mirror.co_start(co, &jobs, JobOptions::new("copy", "mirror"), &blockdevs)?;
        // Gone when it has ended. Guests of the source would go on with the target by then.
        while let Some(job) = jobs.all().pop() {
            let percent = job.current_progress * 100 / job.total_progress.max(1);
            print!("\r[{:<50}] {percent} %", "=".repeat(percent as usize / 2));
            std::io::stdout().flush()?;
            // Refused until it is ready.
            let _ = jobs.complete("copy");
            co.sleep(Duration::from_millis(50));
        }
        println!();
        Ok(())
    })
}
