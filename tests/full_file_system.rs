//! A guest on an image whose file system is full: the device stops, the host makes room, the guest
//! never learns of it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use coblk::aio::AioContext;
use coblk::block::{ErrorPolicies, ErrorPolicy, IoStatus};
use coblk::drivers::{Engine, File};
use coblk::virtio_blk::guest::{GuestRequest, Machine};
use coblk::virtio_blk::{BlkStatus, VirtioBlkConfig};
use coblk::{BlockBackend, BlockNode};
use coblk_tests::images::sparse_image;
use coblk_tests::sandbox::on_small_file_system;

const MIB: u64 = 1 << 20;
const PIECE_BYTES: u32 = 64 << 10;

/// Leaves no byte free.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("a file");
    loop {
        match file.write(&[0xaa; 4096]) {
            Ok(written) => assert_ne!(written, 0),
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_guest_waits_for_space_and_then_succeeds() {
    let test = "a_guest_waits_for_space_and_then_succeeds";
    on_small_file_system(test, 8 * MIB, |dir| {
        for engine in [Engine::Threads, Engine::IoUring] {
            write_on_a_full_file_system(dir, engine);
        }
    });
}

fn write_on_a_full_file_system(dir: &Path, engine: Engine) {
    let image = sparse_image(dir, "disk.img", 4 * MIB);
    let ballast = dir.join("ballast");
    let ctx = AioContext::for_test().expect("a context");
    let file = File::options().engine(engine).open(&image).expect("an image");
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
    let policies = ErrorPolicies { read: ErrorPolicy::Report, write: ErrorPolicy::Enospc };
    let config = VirtioBlkConfig::default().error_policies(Some(policies));
    let builder = Machine::builder().config(config);
    let mut machine = builder.build(&ctx, backend.clone()).expect("a machine");
    fill(&ballast);

    // Neighbours, which are merged, and every second piece of the rest.
    let pieces: Vec<u64> = (0..8).chain((9..40).step_by(2)).collect();
    for piece in &pieces {
        let buffer = machine.ram.alloc(PIECE_BYTES, 4096).expect("guest memory");
        machine.ram.write(buffer, &[*piece as u8 + 1; PIECE_BYTES as usize]);
        let sector = piece * u64::from(PIECE_BYTES) / 512;
        let request = GuestRequest::Write { sector, buffers: &[buffer] };
        machine.queues[0].submit(request, *piece).expect("room in the queue");
    }
    machine.queues[0].kick();
    // One request for the neighbours, and one for each of the others.
    ctx.run_until(|| backend.held_requests() == 17);
    assert_eq!(backend.io_status(), IoStatus::NoSpace);
    assert!(machine.queues[0].reap().is_none(), "{engine:?}: the guest was told");

    fs::remove_file(&ballast).expect("make room");
    backend.resume();
    let mut answered = 0;
    ctx.run_until(|| {
        while let Some(completion) = machine.queues[0].reap() {
            assert_eq!(completion.status, BlkStatus::Ok, "{engine:?}");
            answered += 1;
        }
        answered == pieces.len()
    });
    assert_eq!(machine.flush(&ctx), BlkStatus::Ok);
    assert_eq!(backend.io_status(), IoStatus::Ok);
    let data = fs::read(&image).expect("the image");
    for (piece, bytes) in (0..).zip(data.chunks(PIECE_BYTES as usize)) {
        let expected = if pieces.contains(&piece) { piece as u8 + 1 } else { 0 };
        assert!(bytes.iter().all(|byte| *byte == expected), "{engine:?}: piece {piece}");
    }
    drop(machine);
    fs::remove_file(&image).expect("an image");
}
