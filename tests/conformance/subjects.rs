//! The drivers that must conform: one row each.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use coblk::drivers::{FileOptions, Null};
use coblk::nbd::NbdOptions;
use coblk::{AioContext, BlockNode};
use coblk_tests::ceph;
use coblk_tests::guest::every_way;
use coblk_tests::images::sparse_image;
use coblk_tests::loop_device::LoopDevice;
use coblk_tests::nbd::Served;
use coblk_tests::stacks::{Ground, STACKS, Stack};
use coblk_tests::tools;

/// Makes a node over new images in a directory.
pub type Open = Box<dyn Fn(&AioContext, &Path) -> Arc<BlockNode>>;

/// A driver, and what it does not promise.
pub struct Subject {
    /// For messages.
    pub name: String,
    /// Makes a node of it, of `LENGTH` zero bytes.
    pub open: Open,
    /// The same, for reading only, where there is a way.
    pub open_read_only: Option<Open>,
    /// What is written is there afterwards; otherwise reads give zeroes.
    pub stores: bool,
    /// Its length can be changed.
    pub resizes: bool,
}

/// Bytes of every device under test.
pub const LENGTH: u64 = 1 << 20;

fn row(name: String, open: Open) -> Subject {
    Subject { name, open, open_read_only: None, stores: true, resizes: true }
}

/// Every driver, in every way of doing its I/O.
pub fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for ((way, options), block_bytes) in every_way().into_iter().zip([512, 4096].iter().cycle()) {
        subjects.push(Subject {
            open_read_only: Some(file(options.read_only(true))),
            ..row(format!("file ({way})"), file(options))
        });
        let options = options.on_device();
        subjects.push(Subject {
            open_read_only: Some(device(options.read_only(true), *block_bytes)),
            resizes: false,
            ..row(
                format!("host_device ({way}, blocks of {block_bytes})"),
                device(options, *block_bytes),
            )
        });
    }
    subjects.extend(nulls());
    subjects.extend(stacks());
    subjects
}

fn file(options: FileOptions) -> Open {
    Box::new(move |_, dir| {
        let image = sparse_image(dir, "disk.img", LENGTH);
        BlockNode::new("file", options.open(image).expect("an image"))
    })
}

/// A loop device, which stays until the next one is made.
fn device(options: FileOptions, block_bytes: u32) -> Open {
    let device = RefCell::new(None);
    Box::new(move |_, dir| {
        *device.borrow_mut() = None;
        // The kernel ends a ring, and what it holds open, later than its context: the old device may
        // still write to the old image.
        let _ = std::fs::remove_file(dir.join("device.img"));
        let image = sparse_image(dir, "device.img", LENGTH);
        let new = LoopDevice::new(&image, block_bytes);
        let file = options.open(new.path()).expect("a block device");
        *device.borrow_mut() = Some(new);
        BlockNode::new("device", file)
    })
}

/// An export of a server of ours, which serves it by two contexts. The server stays until the next one is made.
pub fn nbd() -> Subject {
    let open = |read_only: bool| -> Open {
        let served = RefCell::new(None);
        Box::new(move |ctx, dir| {
            *served.borrow_mut() = None;
            let image = sparse_image(dir, "served.img", LENGTH);
            let node =
                BlockNode::new("served", FileOptions::default().open(image).expect("an image"));
            let new = Served::on_contexts(tools::text(dir), NbdOptions::default(), 2, |_| node);
            let node = new.open(ctx, read_only);
            *served.borrow_mut() = Some(new);
            node
        })
    };
    let open_read_only = Some(open(true));
    Subject { open_read_only, resizes: false, ..row("nbd".to_owned(), open(false)) }
}

fn nulls() -> Vec<Subject> {
    type Row = (&'static str, fn(Null) -> Null);
    let null = || Null::new(LENGTH).read_zeroes(true);
    let rows: [Row; 3] = [
        ("null", |null| null),
        ("null (deferred)", |null| null.deferred(true)),
        ("null (slow)", |null| null.latency_ns(1000)),
    ];
    let subject = |(name, how): Row| Subject {
        stores: false,
        resizes: false,
        ..row(name.to_owned(), Box::new(move |_, _| BlockNode::new("null", how(null()))))
    };
    rows.into_iter().map(subject).collect()
}

/// Drivers that stand on others pass on what they do not change, to blocks of a byte, and to larger
/// ones.
fn stacks() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (way, options) in every_way() {
        for Stack { name, resizes, build } in STACKS {
            let open: Open =
                Box::new(move |ctx, dir| build(&Ground { ctx, dir, options, bytes: LENGTH }));
            subjects.push(Subject { resizes, ..row(format!("{name} on file ({way})"), open) });
        }
    }
    subjects
}

/// An image of a Ceph cluster, in objects of which a request may be in several.
pub fn rbd() -> Subject {
    let open = |modes: &'static str| -> Open {
        Box::new(move |ctx, _| {
            let image = ceph::Image::new("rbd", LENGTH, &["--object-size", "128K"]);
            let node = image.open(ctx, modes);
            // It is open for longer than the name of this image, which goes with the cluster.
            std::mem::forget(image);
            node
        })
    };
    Subject { open_read_only: Some(open(",read-only=on")), ..row("rbd".to_owned(), open("")) }
}
