//! FUSE over io_uring: commands by which a FUSE server fetches requests and answers them, many in one
//! system call.
//!
//! Each [`FuseEntry`] is memory for one request at a time. It is handed to the kernel to be registered, comes
//! back with a request in it, and is handed over again with the answer; so either side alone has it. The
//! kernel reads and writes it inside [`FuseRing::enter`], on the thread that made the ring, and at no other
//! time: completions of such a ring are deferred to that call, and when the ring is gone they are cancelled.
//! Linux 6.14, with the parameter `enable_uring` of its module `fuse`.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::io_vector::AlignedBuffer;

/// Bytes of the headers of an entry: the kernel's `fuse_uring_req_header`.
const HEADERS: usize = 288;
/// Where the header of a request is followed by what its kind has, and that by the sizes.
const KIND: usize = 128;
const COMMIT_ID: usize = 264;
const PAYLOAD_BYTES: usize = 272;
/// Bytes of the header of an answer.
const ANSWER: usize = 16;

/// Offset of `len` in the kernel's entry of a submission queue, in 32-bit words.
const LEN_WORD: usize = 24 / size_of::<u32>();
/// The headers and the payload.
const VECTORS: usize = 2;

/// The kernel's commands.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Memory for one request and its answer.
pub struct FuseEntry {
    /// In words, for their alignment.
    headers: Box<[u64; HEADERS / 8]>,
    payload: AlignedBuffer,
    vectors: Box<[libc::iovec; VECTORS]>,
    /// The session that it belongs to.
    device: Rc<OwnedFd>,
    queue: u16,
    /// What the kernel knows the request by, once there is one.
    commit_id: Option<u64>,
}

impl fmt::Debug for FuseEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseEntry").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl FuseEntry {
    /// An entry for the kernel's queue of that number, with room for data of that length, which the kernel
    /// wants to be as large as the largest request is.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(device: &Rc<OwnedFd>, queue: u16, payload_bytes: usize) -> io::Result<FuseEntry> {
        let mut headers = Box::new([0; HEADERS / 8]);
        let mut payload = AlignedBuffer::new(payload_bytes, 4096)?;
        let vectors = Box::new([
            libc::iovec { iov_base: headers.as_mut_ptr().cast(), iov_len: HEADERS },
            libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload_bytes },
        ]);
        Ok(FuseEntry {
            headers,
            payload,
            vectors,
            device: Rc::clone(device),
            queue,
            commit_id: None,
        })
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let at = at + index;
            *byte = self.headers[at / 8].to_ne_bytes()[at % 8];
        }
        bytes
    }

    fn set_word(&mut self, at: usize, word: u64) {
        self.headers[at / 8] = word;
    }

    /// The first `N` bytes of the header of the request.
    pub fn header<const N: usize>(&self) -> [u8; N] {
        self.bytes(0)
    }

    /// The first `N` bytes of what follows the header, without data.
    pub fn kind<const N: usize>(&self) -> [u8; N] {
        self.bytes(KIND)
    }

    /// How many bytes of data came with the request.
    pub fn received_bytes(&self) -> usize {
        u32::from_ne_bytes(self.bytes(PAYLOAD_BYTES)) as usize
    }

    /// The room for data: of a write, or of an answer.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// As [`payload`](Self::payload), to be filled.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// Says what the answer is: its header, and so many bytes of data behind it, which are in the payload.
    pub fn answer(&mut self, header: &[u8; ANSWER], payload_bytes: u32) {
        for (at, word) in header.as_chunks::<8>().0.iter().enumerate() {
            self.headers[at] = u64::from_ne_bytes(*word);
        }
        // The rest of the word is padding.
        let mut word = [0; 8];
        word[..4].copy_from_slice(&payload_bytes.to_ne_bytes());
        self.set_word(PAYLOAD_BYTES, u64::from_ne_bytes(word));
    }
}

/// The ring of one thread for such commands. That thread alone may use it.
pub struct FuseRing {
    // In this order: the kernel is done with the entries when the ring is gone.
    uring: RefCell<IoUring<squeue::Entry128>>,
    signal: Rc<OwnedFd>,
    /// Entries that the kernel has, or will have with the next call.
    handed: RefCell<Slab<FuseEntry>>,
}

impl fmt::Debug for FuseRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseRing").finish_non_exhaustive()
    }
}

impl FuseRing {
    /// A ring for so many entries.
    ///
    /// # Errors
    /// Whatever io_uring_setup says: no such system call, forbidden, no memory, a kernel before 6.1.
    pub fn new(entries: u32) -> io::Result<FuseRing> {
        let uring = IoUring::<squeue::Entry128>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries.max(1).next_power_of_two())?;
        let signal = super::eventfd()?;
        uring.submitter().register_eventfd(signal.as_raw_fd())?;
        let handed = RefCell::new(Slab::with_capacity(entries as usize));
        Ok(FuseRing { uring: RefCell::new(uring), signal: Rc::new(signal), handed })
    }

    /// Becomes readable when there is something to fetch; it need not be read.
    pub fn signal(&self) -> &Rc<OwnedFd> {
        &self.signal
    }

    /// Hands over an entry: to be registered, or with the answer to its request; then it waits for the next
    /// request. The kernel learns of it in [`enter`](Self::enter).
    ///
    /// # Errors
    /// If the ring is full, which takes more entries than it was made for. The entry is gone.
    pub fn hand_over(&self, mut entry: FuseEntry) -> io::Result<()> {
        let mut handed = self.handed.borrow_mut();
        let slot = handed.vacant_entry();
        let commit_id = entry.commit_id.take();
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&commit_id.unwrap_or(0).to_ne_bytes());
        command[16..18].copy_from_slice(&entry.queue.to_ne_bytes());
        let number = if commit_id.is_some() { COMMIT_AND_FETCH } else { REGISTER };
        let command = opcode::UringCmd80::new(types::Fd(entry.device.as_raw_fd()), number)
            .cmd(command)
            .addr(commit_id.is_none().then_some(entry.vectors.as_ptr().expose_provenance() as u64));
        let mut command = command.build().user_data(slot.key() as u64);
        // SAFETY: the type is the kernel's entry of 128 bytes, all of them plain data; this is a word of it.
        unsafe { (&raw mut command).cast::<u32>().add(LEN_WORD).write(VECTORS as u32) };
        slot.insert(entry);
        // SAFETY: what the command points to, and the memory that was registered, is the entry's, which nothing
        // touches while it is in the slab. There it stays until its completion is taken, or the ring is
        // gone, in which the kernel reaches it (see the head of the file).
        let pushed = unsafe { self.uring.borrow_mut().submission().push(&command) };
        pushed.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Whether the kernel has something for us, or we for it. No system call.
    pub fn has_work(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        if !uring.completion().is_empty() {
            return true;
        }
        let queue = uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Tells the kernel of the entries that were handed over, and lets it fill others. Does not wait.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn enter(&self) -> io::Result<()> {
        match self.uring.borrow().submit() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// An entry that the kernel has filled with a request; or the reason why it gives up one.
    pub fn next(&self) -> Option<io::Result<FuseEntry>> {
        let completion = self.uring.borrow_mut().completion().next()?;
        let entry = self.handed.borrow_mut().try_remove(completion.user_data() as usize);
        let mut entry = entry?;
        Some(match completion.result() {
            0.. => {
                entry.commit_id = Some(u64::from_ne_bytes(entry.bytes(COMMIT_ID)));
                Ok(entry)
            }
            errno => Err(io::Error::from_raw_os_error(-errno)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_fuse_device_gives_its_entries_back() {
        let file = Rc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let ring = FuseRing::new(3).unwrap();
        assert!(!ring.has_work());
        for _ in 0..3 {
            ring.hand_over(FuseEntry::new(&file, 0, 4096).unwrap()).unwrap();
        }
        assert!(ring.has_work());
        ring.enter().unwrap();
        for _ in 0..3 {
            let errno = ring.next().unwrap().unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::EOPNOTSUPP));
        }
        assert!(ring.next().is_none() && !ring.has_work());
        assert!(ring.handed.borrow().is_empty());
    }

    #[test]
    fn an_answer_lies_where_the_kernel_looks_for_it() {
        let file = Rc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let mut entry = FuseEntry::new(&file, 1, 8192).unwrap();
        let header: [u8; ANSWER] = std::array::from_fn(|at| at as u8 + 1);
        entry.answer(&header, 77);
        assert_eq!(entry.header::<ANSWER>(), header);
        assert_eq!((entry.received_bytes(), entry.payload().len()), (77, 8192));
        assert_eq!(entry.bytes::<8>(COMMIT_ID), [0; 8]);
        assert_eq!(HEADERS, 128 + 128 + 32);
    }
}
