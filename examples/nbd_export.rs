//! An NBD server in a program of one's own: a disk image, or none, on a unix socket.
//!
//! ```sh
//! cargo run --release --example nbd_export -- /tmp/nbd.sock disk.img   # without image: 1 GiB of null
//! qemu-io -f raw -c 'read 0 4k' 'nbd+unix:///?socket=/tmp/nbd.sock'
//! ```
//!
//! It runs until its standard input ends, or until Ctrl-D: then it answers what is in flight, and exits.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk::drivers::{File, Null};
use coblk::nbd::{NbdAddress, NbdExport, NbdOptions, NbdServer};
use coblk::{AioContext, BlockBackend, BlockNode};

static DONE: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: nbd_export SOCKET [IMAGE]")?;
    let ctx = AioContext::new()?;
    let node = match args.next() {
        Some(image) => BlockNode::new("disk0", File::options().open(&image)?),
        None => BlockNode::new("disk0", Null::new(1 << 30).read_zeroes(true)),
    };
    let backend = BlockBackend::new(&ctx, "drive", node);
    let server = NbdServer::listen(&ctx, &NbdAddress::Unix(socket.into()), NbdOptions::default())?;
    server.add_export(NbdExport::new("", backend.clone()))?;

    let handle = ctx.handle();
    std::thread::spawn(move || {
        // Ends with the input, whatever it was.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        DONE.store(true, Ordering::Release);
        handle.schedule(|_| ());
    });
    ctx.run_until(|| DONE.load(Ordering::Acquire));
    ctx.run(|co| {
        server.co_shutdown(co, Duration::from_secs(2));
        backend.co_flush(co)
    })?;
    Ok(())
}
