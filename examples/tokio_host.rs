//! A tokio program with a coblk context inside: block requests are futures there.
//!
//! ```text
//! cargo run --example tokio_host
//! ```
//!
//! The runtime has its thread, the context has another, an `IoThread`. What crosses between them is a
//! `RemoteBackend`: each call sends a request over and returns a future of the result. A request is
//! under way as soon as it is made, so several are, before the first is waited for. A buffer goes with
//! its request and comes back with the result.

use std::error::Error;
use std::sync::Arc;

use coblk::drivers::File;
use coblk::{BackendOptions, BlockNode, IoThread, RemoteBackend, WriteFlags};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep};

const BLOCK_BYTES: u64 = 4096;
const CLIENTS: u64 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;

    let thread = IoThread::new("iothread0")?;
    let node = BlockNode::new("disk0", File::options().open(image.path())?);
    let disk = Arc::new(BackendOptions::new("drive0").open_remote(thread.handle(), node).await??);

    // Tokio's tasks, timers and channels go on as ever, on tokio's own thread.
    let (say, mut said) = mpsc::channel(16);
    for client in 0..CLIENTS {
        let (disk, say) = (Arc::clone(&disk), say.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(10 * client)).await;
            say.send(serve(&disk, client).await).await
        });
    }
    drop(say);
    while let Some(line) = said.recv().await {
        println!("{}", line?);
    }

    // Sixteen blocks at once; the one that is waited for first need not be the first one done.
    let started = Instant::now();
    let reads: Vec<_> =
        (0..16).map(|block| disk.preadv(block * BLOCK_BYTES, vec![0xff; 4096])).collect();
    let mut written = 0;
    for read in reads {
        let (result, block) = read.await?;
        result?;
        written += usize::from(block[0] != 0);
    }
    println!("16 blocks read at once in {:.1?}: {written} have been written to", started.elapsed());
    Ok(())
}

/// Writes four blocks at once, makes them durable, and reads one of them back.
async fn serve(disk: &RemoteBackend, client: u64) -> Result<String, Box<dyn Error + Send + Sync>> {
    let first = client * 4;
    let writes: Vec<_> = (first..first + 4)
        .map(|block| {
            let text = format!("block {block} by client {client}").into_bytes();
            disk.pwritev(block * BLOCK_BYTES, text, WriteFlags::empty())
        })
        .collect();
    for write in writes {
        write.await?.0?;
    }
    disk.flush().await??;
    let (result, text) = disk.preadv((first + 3) * BLOCK_BYTES, vec![0; 64]).await?;
    result?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim_end_matches('\0');
    Ok(format!("client {client}: wrote 4 blocks; the last one reads '{text}'"))
}
