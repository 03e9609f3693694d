//! [`RemoteBackend`]: a backend for other threads, and for programs with an async runtime.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{AioHandle, Co, IoBuffer, JoinHandle};

use crate::backend::BlockBackend;
use crate::driver::flags::{WriteFlags, ZeroFlags};

thread_local! {
    /// The backends of this thread that other threads may ask for.
    static OFFERED: RefCell<HashMap<u64, BlockBackend>> = RefCell::new(HashMap::new());
}

/// Sends requests to a [`BlockBackend`] from any thread. Each returns a [`JoinHandle`]: a future for
/// an async program, or something to `wait` for. A buffer goes with the request and comes back
/// with its result.
///
/// ```
/// # use coblk_aio::{IoThread};
/// # use coblk_block::{BlockBackend, BlockNode, RemoteBackend, WriteFlags, drivers::Null};
/// let thread = IoThread::new("io")?;
/// let node = BlockNode::new("disk0", Null::new(1 << 20).read_zeroes(true));
/// let disk = RemoteBackend::open(thread.handle(), "drive0", node).wait()?;
/// let (result, buffer) = disk.preadv(4096, vec![1u8; 512]).wait()?;
/// result?;
/// assert_eq!(buffer, [0u8; 512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RemoteBackend {
    offer: Arc<Offer>,
}

/// Withdrawn from its home thread when the last handle goes.
struct Offer {
    home: AioHandle,
    key: u64,
}

impl Drop for Offer {
    fn drop(&mut self) {
        let key = self.key;
        self.home.schedule(move |_| {
            // The backend is dropped after the borrow.
            let _backend = OFFERED.with(|offered| offered.borrow_mut().remove(&key));
        });
    }
}

impl BlockBackend {
    /// Makes a handle to this backend for other threads.
    pub fn remote(&self) -> RemoteBackend {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        OFFERED.with(|offered| offered.borrow_mut().insert(key, self.clone()));
        RemoteBackend { offer: Arc::new(Offer { home: self.home().clone(), key }) }
    }
}

impl RemoteBackend {
    /// Makes a backend called `name` on `node` in another context; as [`BlockBackend::new`], it takes
    /// no permissions and shares all. For a device there is
    /// [`BackendOptions::open_remote`](crate::BackendOptions::open_remote).
    pub fn open(
        home: &AioHandle,
        name: impl Into<String> + Send + 'static,
        node: Arc<crate::BlockNode>,
    ) -> JoinHandle<RemoteBackend> {
        home.spawn("open backend", move |co| BlockBackend::new(co.context(), name, node).remote())
    }

    /// Fills `buffer` from `offset` bytes on.
    pub fn preadv<B: IoBuffer + Send>(
        &self,
        offset: u64,
        mut buffer: B,
    ) -> JoinHandle<(io::Result<()>, B)> {
        self.request("remote read", move |backend, co| {
            let result = backend
                .and_then(|backend| backend.co_preadv(co, offset, &mut buffer.io_vector_mut()));
            (result, buffer)
        })
    }

    /// Writes `buffer` at `offset` bytes.
    pub fn pwritev<B: IoBuffer + Send>(
        &self,
        offset: u64,
        buffer: B,
        flags: WriteFlags,
    ) -> JoinHandle<(io::Result<()>, B)> {
        self.request("remote write", move |backend, co| {
            let result = backend
                .and_then(|backend| backend.co_pwritev(co, offset, &buffer.io_vector(), flags));
            (result, buffer)
        })
    }

    /// Makes all writes durable that completed before.
    pub fn flush(&self) -> JoinHandle<io::Result<()>> {
        self.request("remote flush", |backend, co| backend?.co_flush(co))
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn pwrite_zeroes(
        &self,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> JoinHandle<io::Result<()>> {
        self.request("remote write zeroes", move |backend, co| {
            backend?.co_pwrite_zeroes(co, offset, bytes, flags)
        })
    }

    /// Deallocates `bytes` bytes from `offset` on; a hint.
    pub fn pdiscard(&self, offset: u64, bytes: u64) -> JoinHandle<io::Result<()>> {
        self.request("remote discard", move |backend, co| backend?.co_pdiscard(co, offset, bytes))
    }

    /// Tries held requests again; see [`BlockBackend::resume`].
    pub fn resume(&self) -> JoinHandle<io::Result<()>> {
        self.request("remote resume", |backend, _| {
            backend?.resume();
            Ok(())
        })
    }

    fn request<R: Send + 'static>(
        &self,
        name: &'static str,
        request: impl FnOnce(io::Result<BlockBackend>, &Co<'_>) -> R + Send + 'static,
    ) -> JoinHandle<R> {
        // The offer goes along, so that it is not withdrawn before the request has found it.
        let offer = Arc::clone(&self.offer);
        self.offer.home.spawn(name, move |co| {
            let backend = OFFERED.with(|offered| offered.borrow().get(&offer.key).cloned());
            let gone = || io::Error::from_raw_os_error(libc::ENODEV);
            request(backend.ok_or_else(gone), co)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockNode;
    use crate::drivers::Null;
    use coblk_aio::IoThread;

    #[test]
    fn requests_from_another_thread_are_answered() {
        let thread = IoThread::new("io").unwrap();
        let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
        let disk = RemoteBackend::open(thread.handle(), "drive", Arc::clone(&node)).wait().unwrap();
        let reads: Vec<_> = (0..100).map(|n| disk.preadv(n * 512, vec![1u8; 512])).collect();
        for read in reads {
            let (result, buffer) = read.wait().unwrap();
            result.unwrap();
            assert_eq!(buffer, [0; 512]);
        }
        let (result, buffer) =
            disk.pwritev(1 << 20, vec![0u8; 1], WriteFlags::empty()).wait().unwrap();
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(buffer.len(), 1);
        disk.flush().wait().unwrap().unwrap();
        // The last handle, ours or that of a request which is just ending, takes the backend away,
        // and with it the last user of the node. If it did not, this would not end.
        drop(disk);
        while Arc::strong_count(&node) > 1 {
            thread.handle().spawn("turn", |_| ()).wait().unwrap();
        }
    }
}
