//! The drivers that must conform: one row each.

use std::path::Path;
use std::sync::Arc;

use coblk::block::filters::blkdebug::{BlkDebug, Rules};
use coblk::block::filters::blklogwrites::BlkLogWrites;
use coblk::block::filters::throttle::{Throttle, ThrottleGroup, ThrottleLimits};
use coblk::drivers::{FileOptions, Null, Raw};
use coblk::{AioContext, BlockNode};
use coblk_tests::guest::every_way;
use coblk_tests::images::sparse_image;

/// Makes a node.
pub type Open = Box<dyn Fn(&AioContext, &Path) -> Arc<BlockNode>>;

/// A driver, and what it does not promise.
pub struct Subject {
    /// For messages.
    pub name: String,
    /// Makes a node of it over the image at a path; `LENGTH` bytes if it needs none.
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

fn file(options: FileOptions, image: &Path) -> Arc<BlockNode> {
    BlockNode::new("file", options.open(image).expect("an image"))
}

/// Every driver, in every way of doing its I/O.
pub fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (way, options) in every_way() {
        let read_only: Open = Box::new(move |_, image| file(options.read_only(true), image));
        subjects.push(Subject {
            open_read_only: Some(read_only),
            ..row(format!("file ({way})"), Box::new(move |_, image| file(options, image)))
        });
    }
    for deferred in [false, true] {
        let null = move || Null::new(LENGTH).read_zeroes(true).deferred(deferred);
        subjects.push(Subject {
            stores: false,
            resizes: false,
            ..row(
                format!("null (deferred: {deferred})"),
                Box::new(move |_, _| BlockNode::new("null", null())),
            )
        });
    }
    let slow = || Null::new(LENGTH).read_zeroes(true).latency_ns(1000);
    subjects.push(Subject {
        stores: false,
        resizes: false,
        ..row("null (slow)".to_owned(), Box::new(move |_, _| BlockNode::new("null", slow())))
    });
    subjects.extend(stacked());
    subjects
}

/// Drivers that stand on another pass on what they do not change: to blocks of a byte, and to larger
/// ones.
fn stacked() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (way, options) in [every_way()[0], every_way()[4]] {
        subjects.push(row(
            format!("raw on file ({way})"),
            Box::new(move |_, image| BlockNode::new("raw", Raw::new(file(options, image)))),
        ));
        subjects.push(Subject {
            resizes: false,
            ..row(
                format!("raw, a part of file ({way})"),
                Box::new(move |_, image| {
                    let dir = image.parent().expect("a directory");
                    let image = sparse_image(dir, "whole.img", LENGTH + 3 * 4096);
                    let part = Raw::part(file(options, &image), 4096, Some(LENGTH));
                    BlockNode::new("raw", part.expect("a part"))
                }),
            )
        });
        subjects.push(row(
            format!("blkdebug on file ({way})"),
            Box::new(move |_, image| {
                BlockNode::new("debug", BlkDebug::new(file(options, image), Rules::new(1)))
            }),
        ));
        subjects.push(row(
            format!("throttle on file ({way})"),
            Box::new(move |_, image| {
                let group = ThrottleGroup::new("group", ThrottleLimits::default());
                let group = group.expect("a group without limits");
                BlockNode::new("throttle", Throttle::new(file(options, image), &group))
            }),
        ));
        subjects.push(Subject {
            resizes: false,
            ..row(
                format!("blklogwrites on file ({way})"),
                Box::new(move |ctx, image| {
                    let dir = image.parent().expect("a directory");
                    let log = file(options, &sparse_image(dir, "writes.log", 64 << 20));
                    let child = file(options, image);
                    let filter = ctx.run(|co| BlkLogWrites::create(co, child, log));
                    BlockNode::new("logged", filter.expect("a log"))
                }),
            )
        });
    }
    subjects
}
