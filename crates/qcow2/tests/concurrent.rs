//! Requests of two contexts to one image at the same time.
//!
//! Each context has parts of the disk of its own, between which borders lie within clusters: what the
//! requests write differs, and what they change is shared.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{BackendOptions, BlockBackend, BlockNode, WriteFlags, ZeroFlags};
use fastrand::Rng;
use serde_json::{Value, json};

use crate::util::{Stand, assert_same};

/// Requests in flight of a context.
const DEPTH: u64 = 12;
/// Parts of the disk, which are given to coroutines in turn. An odd number of sectors: clusters are shared.
const PART: usize = 37 * 512;

/// What one coroutine does with a part of the disk that it has for itself.
fn co_work(co: &Co<'_>, backend: &BlockBackend, offset: usize, part: &mut [u8], random: &mut Rng) {
    let from = random.usize(..part.len() / 512) * 512;
    let bytes = random.usize(1..=(part.len() - from) / 512) * 512;
    let (range, at) = (from..from + bytes, (offset + from) as u64);
    match random.u32(..10) {
        0 => {
            let flags = [ZeroFlags::empty(), ZeroFlags::MAY_UNMAP][random.usize(..2)];
            backend.co_pwrite_zeroes(co, at, bytes as u64, flags).unwrap();
            part[range].fill(0);
        }
        1 => backend.co_flush(co).unwrap(),
        2 | 3 => {
            let mut data = vec![0xdb; bytes];
            backend.co_preadv(co, at, &mut IoVectorMut::from(&mut data[..])).unwrap();
            assert_same(&data, &part[range], "a part");
        }
        _ => {
            let data: Vec<u8> = std::iter::repeat_with(|| random.u8(1..)).take(bytes).collect();
            let source = IoVector::from(&data[..]);
            backend.co_pwritev(co, at, &source, WriteFlags::empty()).unwrap();
            part[range].copy_from_slice(&data);
        }
    }
}

/// A context's share of the work: every second part of the disk. Returns these parts.
fn work(
    node: Arc<BlockNode>,
    share: usize,
    rounds: usize,
    content: &[u8],
) -> Vec<(usize, Vec<u8>)> {
    let ctx = AioContext::for_test().unwrap();
    let name = format!("writer {share}");
    let backend = BackendOptions::new(name).share_rw(true).open(&ctx, node).unwrap();
    let backend = Rc::new(backend);
    let parts: Vec<_> = content.chunks(PART).enumerate().collect();
    let mine = parts.into_iter().filter(|(index, _)| index % 2 == share);
    let mine: Vec<_> = mine.map(|(index, part)| (index * PART, part.to_vec())).collect();
    let mine = Rc::new(RefCell::new(mine));
    let running = Rc::new(RefCell::new(DEPTH));
    for seed in 0..DEPTH {
        let (mine, backend) = (Rc::clone(&mine), Rc::clone(&backend));
        let running = Rc::clone(&running);
        ctx.spawn("work", move |co| {
            let mut random = Rng::with_seed(seed * 2 + share as u64);
            for _ in 0..rounds {
                let (offset, mut part) = {
                    let mut mine = mine.borrow_mut();
                    let index = random.usize(..mine.len());
                    mine.swap_remove(index)
                };
                co_work(co, &backend, offset, &mut part, &mut random);
                mine.borrow_mut().push((offset, part));
            }
            *running.borrow_mut() -= 1;
        });
    }
    while *running.borrow() > 0 {
        ctx.poll();
    }
    mine.take()
}

fn run(create: &str, size: &str, options: Value, rounds: usize) {
    let stand = Stand::new();
    if create.contains("backing_file") {
        stand.random_file("base.raw", 3 << 20);
    }
    let image = stand.create("image.qcow2", create, size);
    let mut content = stand.content(&image);
    let mut more = json!({"read-only": false, "discard": "unmap"});
    more.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let node = stand.try_open(&image, more).unwrap();
    for _ in 0..2 {
        let before = Arc::new(content.clone());
        let threads: Vec<_> = (0..2)
            .map(|share| {
                let (node, before) = (Arc::clone(&node), Arc::clone(&before));
                thread::spawn(move || work(node, share, rounds, &before))
            })
            .collect();
        for thread in threads {
            for (offset, part) in thread.join().unwrap() {
                content[offset..offset + part.len()].copy_from_slice(&part);
            }
        }
    }
    let name = node.name().to_owned();
    drop(node);
    stand.blockdevs.close(&stand.ctx, &name).unwrap();
    stand.check(&image);
    assert_same(&stand.content(&image), &content, "the closed image");
    stand.end();
}

#[test]
fn q177_two_contexts_write_to_one_image() {
    run("", "8M", json!({}), 60);
    run("cluster_size=512", "2M", json!({}), 40);
    run("cluster_size=4k", "4M", json!({}), 60);
}

#[test]
fn q177_two_contexts_write_to_one_image_with_subclusters() {
    run("extended_l2=on", "8M", json!({}), 60);
    run("extended_l2=on,cluster_size=16k", "4M", json!({}), 60);
}

#[test]
fn q177_two_contexts_write_over_a_backing_file() {
    run("backing_file=base.raw,backing_fmt=raw", "4M", json!({}), 60);
    run("backing_file=base.raw,backing_fmt=raw,extended_l2=on", "4M", json!({}), 60);
}

#[test]
fn q177_q195_two_contexts_write_through_a_cache_of_few_slices() {
    let small = json!({"l2-cache-size": 1024, "l2-cache-entry-size": 512});
    run("cluster_size=4k", "4M", small.clone(), 40);
    run("cluster_size=512", "2M", small, 40);
}

#[test]
fn q177_two_contexts_write_to_one_data_file() {
    run("data_file=data.raw", "8M", json!({}), 60);
}
