//! An NBD server in a program of one's own: a disk image, or none, on a unix socket.
//!
//! ```sh
//! cargo run --release --example nbd_export -- /tmp/nbd.sock disk.img   # without image: 1 GiB of null
//! qemu-io -f raw -c 'read 0 4k' 'nbd+unix:///?socket=/tmp/nbd.sock'
//! ```
//!
//! It runs until Ctrl-C or SIGTERM: then it answers what is in flight, flushes, and exits.

use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use coblk::drivers::{File, Null};
use coblk::nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};
use coblk::{AioContext, BackendOptions, BlockNode, FdInterest};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: nbd_export SOCKET [IMAGE]")?;
    // To look for requests a while before it sleeps pays as long as a client is busy.
    let ctx = AioContext::new()?;
    let node = match args.next() {
        Some(image) => BlockNode::new("disk0", File::options().open(&image)?),
        None => BlockNode::new("disk0", Null::new(1 << 30).read_zeroes(true)),
    };
    let backend = BackendOptions::new("drive").open(&ctx, node)?;
    let server = NbdServer::listen(&ctx, &SocketAddress::unix(socket), NbdOptions::default())?;
    server.add_export(NbdExport::new("", backend.clone()))?;

    // A signal writes to one end; the loop looks at the other.
    let (told, tell) = UnixStream::pair()?;
    pipe::register(SIGTERM, tell.try_clone()?)?;
    pipe::register(SIGINT, tell)?;
    let done = Rc::new(Cell::new(false));
    let end = Rc::clone(&done);
    let _told = ctx.fd_handler(told, FdInterest::Read, move |_, _| end.set(true))?;
    ctx.run_until(|| done.get());

    ctx.run(|co| {
        server.co_shutdown(co, Duration::from_secs(2));
        backend.co_flush(co)
    })?;
    Ok(())
}
