//! Memory that comes late, and a front end's thread that brings it page by page: [`Late`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pages::PAGE;

const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;

/// What the handler's thread and the test both know.
struct State {
    userfault: File,
    /// What the memory is to be, once all of it has come.
    image: Vec<u8>,
    memory: File,
    /// Where the daemon has it.
    base: u64,
    /// Pages that are not brought even if they are asked for.
    held: BTreeSet<usize>,
    asked: BTreeSet<usize>,
    ended: bool,
}

/// A handler of missing pages, which takes its time.
pub struct Late {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Late {
    /// `memory` is empty as yet, and lies at `base` in the daemon's process.
    pub fn start(userfault: File, image: Vec<u8>, memory: File, base: u64) -> Late {
        let (held, asked, ended) = (BTreeSet::new(), BTreeSet::new(), false);
        let state = State { userfault, image, memory, base, held, asked, ended };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = Some(std::thread::spawn(move || serve(&shared)));
        Late { state, thread }
    }

    /// The pages that have been asked for.
    pub fn asked(&self) -> BTreeSet<usize> {
        self.state.lock().unwrap().asked.clone()
    }

    /// For the handler of other memory. Each reads what is there, so that only one may be waited with at a time.
    pub fn userfault(&self) -> File {
        self.state.lock().unwrap().userfault.try_clone().unwrap()
    }

    pub fn hold(&self, pages: impl IntoIterator<Item = usize>) {
        self.state.lock().unwrap().held.extend(pages);
    }

    /// Brings what was held.
    pub fn release(&self) {
        let mut state = self.state.lock().unwrap();
        for page in std::mem::take(&mut state.held) {
            state.bring(page);
        }
    }

    /// Brings all that has not come, asked for or not.
    pub fn bring_all(&self) {
        let state = self.state.lock().unwrap();
        for page in 0..state.image.len() / PAGE as usize {
            state.bring(page);
        }
    }

    pub fn has(&self, page: usize) -> bool {
        is_there(&self.state.lock().unwrap().memory, page)
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.state.lock().unwrap().ended = true;
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("pages are brought");
        }
    }
}

/// Whether a page of shared memory exists; looking does not make it.
pub fn is_there(memory: &File, page: usize) -> bool {
    let at = page as u64 * PAGE;
    rustix::fs::seek(memory, rustix::fs::SeekFrom::Data(at)) == Ok(at)
}

fn serve(state: &Mutex<State>) {
    let userfault = state.lock().unwrap().userfault.try_clone().unwrap();
    let patience = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    while !state.lock().unwrap().ended {
        let mut ready = [PollFd::from_borrowed_fd(userfault.as_fd(), PollFlags::IN)];
        if poll(&mut ready, Some(&patience)) != Ok(1) {
            continue;
        }
        let mut message = [0; 32];
        // The thread may have been woken meanwhile; at the end of the daemon's mapping there is none.
        let Ok(32) = (&userfault).read(&mut message) else { continue };
        assert_eq!(message[0], UFFD_EVENT_PAGEFAULT);
        let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
        let page = {
            let mut state = state.lock().unwrap();
            let offset = address.checked_sub(state.base).expect("a page of what was shown");
            let page = (offset / PAGE) as usize;
            assert!(page < state.image.len() / PAGE as usize, "past what was shown");
            state.asked.insert(page);
            page
        };
        std::thread::sleep(Duration::from_millis(1));
        let state = state.lock().unwrap();
        if !state.held.contains(&page) {
            state.bring(page);
        }
    }
}

impl State {
    fn bring(&self, page: usize) {
        let at = page * PAGE as usize;
        if !is_there(&self.memory, page) {
            // A page at a time is either missing or whole.
            let bytes = &self.image[at..at + PAGE as usize];
            self.memory.write_all_at(bytes, at as u64).unwrap();
        }
        let mut range = [self.base + at as u64, PAGE];
        // SAFETY: the request has a body of two words, which lives during the call. That the mapping, or all of
        // it, has gone is an error of the call.
        unsafe { libc::ioctl(self.userfault.as_raw_fd(), UFFDIO_WAKE, range.as_mut_ptr()) };
    }
}
