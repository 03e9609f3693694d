//! What a transfer means, whichever engine makes it: short ones, retries, the end of file
//! (contract: C82).

use std::io;
use std::sync::atomic::Ordering;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::File;

/// The pause before the next attempt when the system says EAGAIN.
pub(super) trait Pause {
    fn pause(&self);
}

/// In a coroutine: the loop takes its completions, and others get their turn.
impl Pause for &Co<'_> {
    fn pause(&self) {
        self.yield_now();
    }
}

/// On a worker thread.
pub(super) struct OnWorker;

impl Pause for OnWorker {
    fn pause(&self) {
        std::thread::yield_now();
    }
}

/// EINTR and EAGAIN are no answers (contract: C82).
#[inline]
pub(super) fn retry<T>(
    pause: &impl Pause,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause.pause(),
            result => return result,
        }
    }
}

impl File {
    /// Reads all of `target` with calls of `preadv`, which read some of it.
    pub(super) fn read_fully(
        &self,
        target: &mut IoVectorMut<'_>,
        offset: u64,
        pause: &impl Pause,
        preadv: impl Fn(&mut IoVectorMut<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let bytes = match done {
                0 => retry(pause, || preadv(target, at))?,
                _ => {
                    let mut rest = target.slice(done, target.len() - done);
                    retry(pause, || preadv(&mut rest, at))?
                }
            };
            let blocks = self.whole_blocks(bytes, target.len() - done);
            if blocks == 0 {
                return self.read_past_end(target, done + bytes, at + bytes as u64);
            }
            done += blocks;
        }
        Ok(())
    }

    /// The file ends at or before `at`. Beyond the length it had, that reads as zeroes (contract:
    /// C82). Before it, data is gone, and no read may hide that.
    #[cold]
    fn read_past_end(&self, target: &mut IoVectorMut<'_>, done: usize, at: u64) -> io::Result<()> {
        let expected = self.end_of_file.load(Ordering::Acquire);
        if at < expected {
            tracing::error!(
                image = %self.path.display(),
                offset = at,
                expected_bytes = expected,
                "the image has become shorter: read failed"
            );
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        target.fill_from(done, 0);
        Ok(())
    }

    /// Writes all of `source` with calls of `pwritev`, which write some of it.
    pub(super) fn write_fully(
        &self,
        source: &IoVector<'_>,
        offset: u64,
        pause: &impl Pause,
        pwritev: impl Fn(&IoVector<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < source.len() {
            let at = offset + done as u64;
            let bytes = match done {
                0 => retry(pause, || pwritev(source, at))?,
                _ => {
                    let rest = source.slice(done, source.len() - done);
                    retry(pause, || pwritev(&rest, at))?
                }
            };
            let blocks = self.whole_blocks(bytes, source.len() - done);
            if blocks == 0 {
                // contract: C82
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            done += blocks;
        }
        if offset + done as u64 > self.end_of_file.load(Ordering::Relaxed) {
            self.end_of_file.fetch_max(offset + done as u64, Ordering::AcqRel);
        }
        Ok(())
    }

    /// How much of a transfer counts, of `bytes` out of `asked`. The next one has to begin with a
    /// block, so one that ended inside a block is repeated from that block on.
    #[inline]
    fn whole_blocks(&self, bytes: usize, asked: usize) -> usize {
        if bytes == asked {
            return bytes;
        }
        bytes - bytes % self.mode.limits().request_alignment() as usize
    }
}
