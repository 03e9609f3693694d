//! Reads.
//!
//! A request of one piece is read at once. Of several pieces, those that wait for something are read by
//! coroutines of their own, to buffers of their own, as many as there may be; the rest by the request itself.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::sync::TaskPool;
use coblk_aio::{AlignedBuffer, Co, IoVectorMut};
use coblk_block::{DebugEvent, ReadFlags};

use crate::encryption::Encryption;
use crate::epoch::Pin;
use crate::image::Image;
use crate::layout::{CompressedCluster, SubclusterKind, inflate};
use crate::map::{Look, Run};
use crate::source::Source;

/// Most pieces of a request that are read at once.
const MAX_READS: usize = 8;
/// Longest piece that is read by a coroutine of its own: it goes through a buffer. In bytes.
const MAX_COPY_BYTES: u64 = 128 << 10;

/// As O_DIRECT may need it.
pub(crate) const BUFFER_ALIGNMENT: usize = 4096;

/// A piece that was read to a buffer, and where in the request it is.
type Copied = (usize, Vec<u8>);

impl Image {
    /// Fills `target` from `offset` bytes of the disk on.
    ///
    /// # Errors
    /// EIO for what is corrupt or cannot be decompressed; those of the children.
    pub(crate) fn co_read(
        self: &Arc<Self>,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        if target.is_empty() {
            return Ok(());
        }
        let bytes = target.len() as u64;
        let pin = self.epochs.pin(co);
        if let Some(host) = self.find_data((offset, bytes), Look::Read) {
            return self.co_read_data(co, (offset, host), target);
        }
        let run = self.co_find(co, offset..offset + bytes, Look::Read)?;
        if run.bytes == bytes {
            return self.co_read_run(co, run, offset, target, pin);
        }
        drop(pin);
        self.co_read_runs(co, offset, target)
    }

    /// Fills `target` from `offset` bytes of the disk on, one run after the other.
    pub(crate) fn co_read_pieces(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        let (bytes, mut done) = (target.len(), 0);
        while done < bytes {
            let at = offset + done as u64;
            let pin = self.epochs.pin(co);
            let run = self.co_find(co, at..offset + bytes as u64, Look::Read)?;
            self.co_read_run(co, run, at, &mut target.slice(done, run.bytes as usize), pin)?;
            done += run.bytes as usize;
        }
        Ok(())
    }

    /// Fills `target` with the bytes of a run, or with the first of them. The pin was taken before the run
    /// was found.
    fn co_read_run(
        &self,
        co: &Co<'_>,
        run: Run,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        pin: Pin<'_>,
    ) -> io::Result<()> {
        match run.kind {
            SubclusterKind::Zero | SubclusterKind::ZeroStored => {
                target.fill_from(0, 0);
                Ok(())
            }
            SubclusterKind::Unallocated | SubclusterKind::UnallocatedStored => {
                // A backing file may take its time, and nothing of this file is read.
                drop(pin);
                match self.backing.get() {
                    Some(backing) => {
                        self.file.debug_event(DebugEvent::ReadBackingAio);
                        backing.co_preadv_blocks(co, offset, target, ReadFlags::empty())
                    }
                    None => {
                        target.fill_from(0, 0);
                        Ok(())
                    }
                }
            }
            SubclusterKind::Data => self.co_read_data(co, (offset, run.host), target),
            SubclusterKind::Compressed => self.co_read_compressed(co, run, offset, target),
        }
    }

    /// Reads sectors from `offset` bytes of the disk on, which are at `host` in the file, and decrypts them in
    /// a buffer: the target never has what is encrypted.
    #[inline(never)]
    fn co_read_encrypted(
        &self,
        co: &Co<'_>,
        encryption: &Encryption,
        (offset, host): (u64, u64),
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        let most = encryption.chunk_bytes(self.geometry).min(target.len());
        let mut buffer = AlignedBuffer::new(most, BUFFER_ALIGNMENT)?;
        let mut done = 0;
        while done < target.len() {
            let chunk = &mut buffer[..most.min(target.len() - done)];
            let place = (offset + done as u64, host + done as u64);
            let mut read = IoVectorMut::from(&mut *chunk);
            self.data().0.co_preadv_blocks(co, place.1, &mut read, ReadFlags::empty())?;
            drop(read);
            encryption.co_decrypt(co, place, chunk)?;
            target.copy_from(done, chunk);
            done += chunk.len();
        }
        Ok(())
    }

    /// Fills `target` with data whose place was found.
    fn co_read_data(
        &self,
        co: &Co<'_>,
        (offset, host): (u64, u64),
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        self.file.debug_event(DebugEvent::ReadAio);
        if let Some(encryption) = &self.encryption {
            return self.co_read_encrypted(co, encryption, (offset, host), target);
        }
        self.data().0.co_preadv_blocks(co, host, target, ReadFlags::empty())
    }

    #[inline(never)]
    fn co_read_compressed(
        &self,
        co: &Co<'_>,
        run: Run,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        let place = self.co_compressed(co, run)?;
        let cluster = match self.inflated.get(run.word) {
            Some(cluster) => cluster,
            None => {
                self.inflated.co_get(co, run.word, place.offset, || self.co_inflate(co, place))?
            }
        };
        let begin = (offset - self.geometry.cluster_start(offset)) as usize;
        target.copy_from(0, &cluster[begin..begin + target.len()]);
        Ok(())
    }

    /// Reads and decompresses a cluster.
    fn co_inflate(&self, co: &Co<'_>, place: CompressedCluster) -> io::Result<Vec<u8>> {
        let mut packed = vec![0; place.bytes as usize];
        self.file.debug_event(DebugEvent::ReadCompressed);
        self.file.co_read_at(co, place.offset, &mut packed)?;
        let mut cluster = vec![0; self.geometry.cluster_bytes() as usize];
        let kind = self.compression();
        if !self.workers.submit_co(co, || inflate(kind, &packed, &mut cluster)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(cluster)
    }

    #[inline(never)]
    fn co_read_runs(
        self: &Arc<Self>,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        let pool = TaskPool::<io::Error>::new(MAX_READS - 1);
        let copies = Rc::new(RefCell::new(Vec::<Copied>::new()));
        let read_all = |target: &mut IoVectorMut<'_>| {
            let mut done = 0;
            while done < target.len() && !pool.has_failed() {
                let (at, left) = (offset + done as u64, (target.len() - done) as u64);
                let pin = self.epochs.pin(co);
                let run = self.co_find(co, at..at + left, Look::Read)?;
                let is_last = run.bytes == left;
                let is_short = run.bytes <= MAX_COPY_BYTES;
                let has_room = pool.busy() < MAX_READS - 1 && co.context().ensure_stack().is_ok();
                if self.waits(run) && is_short && !is_last && has_room {
                    drop(pin);
                    let (image, copies) = (Arc::clone(self), Rc::clone(&copies));
                    pool.start(co, "qcow2 read", move |co| {
                        // The request that waits for this may be unwound before.
                        let _own = image.file.enter_own();
                        let mut piece = vec![0; run.bytes as usize];
                        let mut target = IoVectorMut::from(&mut piece[..]);
                        image.co_read_pieces(co, at, &mut target)?;
                        drop(target);
                        copies.borrow_mut().push((done, piece));
                        Ok(())
                    });
                } else {
                    let mut target = target.slice(done, run.bytes as usize);
                    self.co_read_run(co, run, at, &mut target, pin)?;
                }
                done += run.bytes as usize;
            }
            Ok(())
        };
        // They are a part of the request, also if it fails.
        let result = read_all(target);
        pool.wait_all(co).and(result)?;
        for (at, piece) in copies.take() {
            target.copy_from(at, &piece);
        }
        Ok(())
    }

    /// Whether the bytes of a run are not had at once.
    fn waits(&self, run: Run) -> bool {
        match run.kind {
            SubclusterKind::Data | SubclusterKind::Compressed => true,
            SubclusterKind::Zero | SubclusterKind::ZeroStored => false,
            SubclusterKind::Unallocated | SubclusterKind::UnallocatedStored => {
                self.backing.node().is_some()
            }
        }
    }
}
