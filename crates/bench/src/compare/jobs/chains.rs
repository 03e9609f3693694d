//! Rows of chains of three qcow2 images, each with a third of the disk.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::json;

use super::Stage;
use super::side::{Contents, Medium, PIECE, Side};
use crate::measure::Bench;
use crate::peers::qemu_img::run as qemu_img;
use crate::report::Row;
use crate::works::Unit;

/// The images, from the bottom to the top.
const CHAIN: [&str; 3] = ["base", "middle", "top"];

/// A row. An operation is a MiB of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// All that is below the top is copied into it.
    Stream,
    /// All that is above the base is copied into it, and the base takes the place of the top.
    Commit,
}

impl Work {
    pub const ALL: [Work; 2] = [Work::Stream, Work::Commit];

    pub fn name(self) -> &'static str {
        match self {
            Work::Stream => "stream of a chain of 3, in memory",
            Work::Commit => "commit of a chain of 3, in memory",
        }
    }

    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let mibs = stage.length / PIECE as u64;
        let laps = |side| self.laps(side, mibs);
        stage.run(stage.contest(self.name().to_owned(), Unit::NsPerOp, mibs, laps)?)
    }

    fn laps<'a>(self, mut side: Side, mibs: u64) -> Bench<'a> {
        let mut is_made = false;
        Box::new(move |_| {
            if !is_made {
                make(&side)?;
                is_made = true;
            }
            add(&mut side)?;
            let lap = side.lap(mibs, |side| self.job(side))?;
            side.remove(&["top", "middle", "base"])?;
            Ok(lap)
        })
    }

    fn job(self, side: &mut Side) -> io::Result<()> {
        let arguments = json!({"job-id": "j", "device": "top"});
        match self {
            Work::Stream => side.daemon.execute("block-stream", arguments)?,
            Work::Commit => {
                side.daemon.execute("block-commit", arguments)?;
                side.until_ready()?;
                side.daemon.execute("block-job-complete", json!({"device": "j"}))?
            }
        };
        side.until_gone()
    }
}

fn path(side: &Side, name: &str) -> PathBuf {
    side.path(&format!("{name}.qcow2"), Medium::Memory)
}

/// Makes the images that each lap copies.
fn make(side: &Side) -> io::Result<()> {
    for (number, name) in CHAIN.into_iter().enumerate() {
        let raw = side.make("raw", Medium::Memory, Contents::Third(number as u64))?;
        let image = path(side, &format!("{name}-as-made"));
        let (raw, image) = (raw.to_string_lossy(), image.to_string_lossy());
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &image])?;
        if let Some(below) = number.checked_sub(1) {
            let below = path(side, CHAIN[below]);
            let below = below.to_string_lossy();
            qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below, &image])?;
        }
    }
    fs::remove_file(side.path("raw", Medium::Memory))
}

/// Adds nodes of images as they were made.
fn add(side: &mut Side) -> io::Result<()> {
    for (number, name) in CHAIN.into_iter().enumerate() {
        let image = path(side, name);
        fs::copy(path(side, &format!("{name}-as-made")), &image)?;
        let below = number.checked_sub(1).map(|below| CHAIN[below]);
        side.daemon.execute(
            "blockdev-add",
            json!({
                "driver": "qcow2", "node-name": name, "backing": below,
                "file": {"driver": "file", "filename": image},
            }),
        )?;
    }
    Ok(())
}
