//! An image as a disk of a virtual machine, over vhost-user:
//!
//! ```text
//! truncate -s 1G disk.img
//! cargo run --release --example vhost_user_blk -- disk.img vhost.sock 2
//! ```
//!
//! The number, 1 without one, is that of queues; each is served by a thread of its own if there are
//! several. The image `null` is none, but 1 GiB of nothing to measure with. A front end that
//! negotiates INFLIGHT_SHMFD survives that this program is killed and started again. It ends when its
//! standard input does.

use std::error::Error;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk::drivers::{File, Null};
use coblk::vhost_user_blk::{RemoveMode, VhostUserBlk, VhostUserBlkOptions};
use coblk::virtio_blk::VirtioBlkConfig;
use coblk::{AioContext, BlockNode, IoThread};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (image, socket, queues) = match &arguments[..] {
        [image, socket] => (image, socket, Ok(1)),
        [image, socket, queues] => (image, socket, queues.parse()),
        _ => {
            eprintln!("usage: vhost_user_blk IMAGE SOCKET [QUEUES]");
            return ExitCode::from(2);
        }
    };
    let served = queues.map_err(Into::into).and_then(|queues| serve(image, socket, queues));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost_user_blk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(image: &str, socket: &str, queues: u16) -> Result<(), Box<dyn Error>> {
    let ctx = AioContext::new()?;
    let node = match image {
        "null" => BlockNode::new("disk0", Null::new(1 << 30)),
        image => BlockNode::new("disk0", File::options().open(image)?),
    };
    let count = if queues > 1 { queues } else { 0 };
    let threads: Vec<IoThread> = (0..count)
        .map(|index| IoThread::new(&format!("iothread{index}")))
        .collect::<Result<_, _>>()?;
    let disk = VirtioBlkConfig::default().num_queues(queues);
    let mut options = VhostUserBlkOptions::new(disk);
    options.contexts = threads.iter().map(|thread| thread.handle().clone()).collect();
    let export = VhostUserBlk::listen(&ctx, socket, &node, options)?;
    println!("listening on {socket}");

    let done = Arc::new(AtomicBool::new(false));
    let (at_end, main_loop) = (Arc::clone(&done), ctx.handle());
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        at_end.store(true, Ordering::Release);
        main_loop.notify();
    });
    ctx.run_until(|| done.load(Ordering::Acquire));
    ctx.run(|co| export.co_remove(co, RemoveMode::Hard))?;
    Ok(())
}
