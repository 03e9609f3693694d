//! Incremental backups of a live disk in a program of one's own: each run copies the disk as it is at one instant, into
//! one more image of a chain, while a guest writes to it. The first has all of it, the others what was written
//! since the one before, which a bitmap in the disk's image knows.
//!
//! ```sh
//! qemu-img create -f qcow2 disk.qcow2 1G
//! mkdir chain
//! cargo run --release --example backup -- disk.qcow2 chain
//! cargo run --release --example backup -- disk.qcow2 chain
//! qemu-img map chain/1.qcow2
//! ```

use std::cell::Cell;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use coblk::block::NewBitmap;
use coblk::jobs::{Backup, BackupSync, JobEvent, JobOptions, Jobs};
use coblk::options::NodeOptions;
use coblk::{AioContext, BackendOptions, Blockdevs, Co};
use serde_json::{Value, json};

/// The bitmap that knows what was written since the last backup.
const BITMAP: &str = "since-last-backup";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [disk, chain] = &arguments[..] else {
        return Err("usage: backup DISK.qcow2 DIRECTORY".into());
    };
    println!("{}", run(Path::new(disk), Path::new(chain))?.display());
    Ok(())
}

/// Makes one more backup, and returns the image that has it.
pub fn run(disk: &Path, chain: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (ctx, blockdevs) = (AioContext::new()?, Blockdevs::new(coblk::drivers()));
    let failed = Rc::<Cell<Option<String>>>::default();
    let told = Rc::clone(&failed);
    let jobs = Jobs::new(move |_, event| {
        if let JobEvent::Completed { error, .. } = event {
            told.set(error.clone());
        }
    });
    let source = blockdevs.open(&ctx, NodeOptions::from_value(image("disk", disk))?)?;
    let guest = BackendOptions::new("guest").open(&ctx, source.clone())?;
    let mut images = (0..).map(|number| chain.join(format!("{number}.qcow2")));
    let mut last = None;
    let path = loop {
        match images.next() {
            Some(image) if image.exists() => last = Some(image),
            Some(image) => break image,
            None => unreachable!("numbers do not end"),
        }
    };
    ctx.run(|co| {
        co_create(co, &blockdevs, &path, source.length(), last.as_deref())?;
        let target = blockdevs.co_open(co, NodeOptions::from_value(image("target", &path))?)?;
        let mut backup = Backup::new(source.clone(), target).incremental(BITMAP);
        if last.is_none() {
            let mut bitmap = NewBitmap::new(BITMAP.to_owned(), source.default_granularity());
            bitmap.is_persistent = true;
            source.co_add_bitmap(co, bitmap)?;
            backup = backup.sync(BackupSync::Full);
        }
        backup.co_start(co, &jobs, JobOptions::new("backup", "backup"), &blockdevs)?;
        // Gone when it has ended.
        while let Some(job) = jobs.all().pop() {
            let percent = job.current_progress * 100 / job.total_progress.max(1);
            print!("\r[{:<50}] {percent} %", "=".repeat(percent as usize / 2));
            std::io::stdout().flush()?;
            // What the guest writes meanwhile is for the next one.
            guest.co_write(
                co,
                job.current_progress % guest.length()?,
                b"written during a backup",
            )?;
            co.sleep(Duration::from_millis(20));
        }
        println!();
        failed.take().map_or(Ok(()), |error| Err(Box::<dyn Error>::from(error)))
    })?;
    drop((guest, source));
    // Stores the bitmap, as a drop could not.
    ["target", "disk"].iter().try_for_each(|name| blockdevs.close(&ctx, name))?;
    Ok(path)
}

/// Options of a node for the qcow2 image in a file, with QEMU's names.
fn image(node_name: &str, path: &Path) -> Value {
    let file = json!({"driver": "file", "filename": path});
    json!({"driver": "qcow2", "node-name": node_name, "file": file})
}

/// Creates an empty image, above the last one if there is one.
fn co_create(
    co: &Co<'_>,
    blockdevs: &Blockdevs,
    path: &Path,
    size: u64,
    last: Option<&Path>,
) -> Result<(), Box<dyn Error>> {
    let file = json!({"driver": "file", "filename": path});
    let mut options = json!({"driver": "qcow2", "file": file, "size": size});
    if let Some(name) = last.and_then(Path::file_name) {
        options["backing-file"] = json!(name.to_str());
        options["backing-fmt"] = json!("qcow2");
    }
    for options in [json!({"driver": "file", "filename": path, "size": 0}), options] {
        let options = options.as_object().cloned().unwrap_or_default();
        blockdevs.co_create(co, blockdevs.drivers().creation(options)?)?;
    }
    Ok(())
}
