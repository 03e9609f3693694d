//! A qcow2 overlay in a program of one's own: made over a base image if it is not there, opened with all that is
//! below it, kept as it is in an internal snapshot, and written.
//!
//! ```sh
//! qemu-img create -f qcow2 base.qcow2 1G
//! cargo run --example overlay -- base.qcow2 top.qcow2 hello
//! cargo run --example overlay -- base.qcow2 top.qcow2 again
//! qemu-img snapshot -l top.qcow2
//! qemu-io -r -c 'read -v 0 512' top.qcow2
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use coblk::options::NodeOptions;
use coblk::{AioContext, BackendOptions, Blockdevs, Co, IoVector, WriteFlags};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, overlay, text] = &arguments[..] else {
        return Err("usage: overlay BASE OVERLAY TEXT".into());
    };
    for snapshot in run(Path::new(base), Path::new(overlay), text)? {
        println!("snapshot {snapshot}");
    }
    Ok(())
}

/// Writes a text to the first bytes of the overlay. Returns the names of its snapshots: one has what was there
/// before.
pub fn run(base: &Path, overlay: &Path, text: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let ctx = AioContext::new()?;
    let blockdevs = Blockdevs::new(coblk::drivers());
    if !overlay.exists() {
        ctx.run(|co| co_create(co, &blockdevs, base, overlay))?;
    }
    // The header of the overlay names the base, which is opened as well, for reads.
    let node = blockdevs.open(&ctx, NodeOptions::from_value(image("disk", overlay, false))?)?;
    let backend = BackendOptions::new("example").open(&ctx, node.clone())?;
    let snapshots = ctx.run(|co| {
        // Before the write: data goes to new clusters then, and the old ones are the snapshot's.
        node.co_image(co)?.co_create_snapshot(co, &format!("before {text:?}"))?;
        backend.co_pwritev(co, 0, &IoVector::from(text.as_bytes()), WriteFlags::empty())?;
        backend.co_flush(co)?;
        node.co_image(co)?.co_snapshots(co)
    })?;
    drop((backend, node));
    // Writes what is still in memory, as a drop could not.
    blockdevs.close(&ctx, "disk")?;
    Ok(snapshots.into_iter().map(|snapshot| snapshot.name).collect())
}

/// Options of a node for the qcow2 image in a file, with QEMU's names.
fn image(node_name: &str, path: &Path, is_read_only: bool) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node_name,
        "read-only": is_read_only,
        "file": {"driver": "file", "filename": path},
    })
}

/// Creates an empty overlay, as long as its base.
fn co_create(
    co: &Co<'_>,
    blockdevs: &Blockdevs,
    base: &Path,
    overlay: &Path,
) -> Result<(), Box<dyn Error>> {
    let node = blockdevs.co_open(co, NodeOptions::from_value(image("base", base, true))?)?;
    let size = node.length();
    drop(node);
    blockdevs.co_close(co, "base")?;
    // First the file, then the image in it. A relative name would be one from the overlay's directory.
    let steps = [
        json!({"driver": "file", "filename": overlay, "size": 0}),
        json!({
            "driver": "qcow2",
            "file": {"driver": "file", "filename": overlay},
            "size": size,
            "backing-file": fs::canonicalize(base)?,
            "backing-fmt": "qcow2",
        }),
    ];
    for options in steps {
        let options = options.as_object().cloned().unwrap_or_default();
        blockdevs.co_create(co, blockdevs.drivers().creation(options)?)?;
    }
    Ok(())
}
