//! Missing pages of a front end's memory: a [`Userfault`] has the kernel hold each thread that touches one, until
//! the front end has brought it. [`take_away`] and [`detach`] are for the end of a front end that brings no more.
//!
//! With [`sigbus.rs`](crate::sigbus) the unsafe code of the crate; `docs/unsafe.md` has the invariant of both. A
//! mapping that is changed here stays where it is, as long as it is, and is memory that others may change at any
//! time anyway: it is accessed through volatile slices and by the kernel only.
#![allow(unsafe_code)]

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, fstatfs, memfd_create};
use vm_memory::MmapRegion;

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`, and so on, as `linux/userfaultfd.h` has them.
const UFFDIO_API: c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: c_ulong = 0x8010_aa02;
/// Of `/dev/userfaultfd`: makes one, for those who may open that file.
const USERFAULTFD_IOC_NEW: c_ulong = 0xaa00;
/// The version of all this.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// Of what can be done with a range, by the numbers of the requests: waking, and copying.
const NEEDED_OF_RANGE: u64 = 1 << 0x02 | 1 << 0x03;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// One of this process: it is told of threads of ours that touch missing pages, whichever process reads it.
pub(crate) struct Userfault(OwnedFd);

/// Whether this process may have one, for its own accesses and those of the kernel in its name. Asked once.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| match Userfault::new() {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%error, "no userfaultfd: guests cannot come before their memory");
            false
        }
    })
}

impl Userfault {
    /// It has to handle faults of the kernel, which reads from files straight into guest memory. That takes
    /// the capability SYS_PTRACE, `vm.unprivileged_userfaultfd`, or the right to open `/dev/userfaultfd`.
    pub(crate) fn new() -> io::Result<Userfault> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: it takes a number, and returns a descriptor of our own or an error.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let userfault = match owned(made as libc::c_int) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let device = File::options().read(true).write(true).open("/dev/userfaultfd");
                let device = device.map_err(|_| error)?;
                // SAFETY: it takes a number, and returns a descriptor of our own or an error.
                owned(unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) })?
            }
            made => made?,
        };
        let userfault = Userfault(userfault);
        // In, the version and the features to switch on; out, the features that there are, and requests.
        let mut api = [UFFD_API, 0, 0];
        userfault.request(UFFDIO_API, &mut api)?;
        match api[1] & UFFD_FEATURE_MISSING_SHMEM {
            0 => Err(io::Error::other("the kernel knows no missing pages of shared memory")),
            _ => Ok(userfault),
        }
    }

    /// Another descriptor of it, for the front end.
    pub(crate) fn share(&self) -> io::Result<File> {
        Ok(self.0.try_clone()?.into())
    }

    /// From here on threads that touch missing pages of `mapping` are held.
    pub(crate) fn register(&self, mapping: &MmapRegion) -> io::Result<()> {
        let [start, len] = range_of(mapping)?;
        let mut register = [start, len, UFFDIO_REGISTER_MODE_MISSING, 0];
        // A huge page would be mapped as a whole where one small page of it has come. An error says that the
        // kernel has none.
        // SAFETY: the range is a mapping, and this is about how it is backed and not about what is in it.
        unsafe {
            let start = mapping.as_ptr().cast();
            libc::madvise(start, mapping.size(), libc::MADV_NOHUGEPAGE);
        }
        self.request(UFFDIO_REGISTER, &mut register)?;
        match register[3] & NEEDED_OF_RANGE {
            NEEDED_OF_RANGE => Ok(()),
            _ => Err(io::Error::other("the kernel cannot bring missing pages of such memory")),
        }
    }

    /// Pages of `mapping` that are missing are zeroes from here on, and threads that wait for one go on.
    pub(crate) fn unregister(&self, mapping: &MmapRegion) -> io::Result<()> {
        self.request(UFFDIO_UNREGISTER, &mut range_of(mapping)?)
    }

    /// Has the threads that are held look again.
    pub(crate) fn wake(&self, mapping: &MmapRegion) -> io::Result<()> {
        self.request(UFFDIO_WAKE, &mut range_of(mapping)?)
    }

    fn request<const N: usize>(&self, request: c_ulong, body: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: each of these requests has a body of so many words, which lives during the call. None makes
        // or ends a mapping; memory whose missing pages read as zeroes, or not yet, is valid as before.
        let outcome = unsafe { libc::ioctl(self.0.as_raw_fd(), request, body.as_mut_ptr()) };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn owned(made: libc::c_int) -> io::Result<OwnedFd> {
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call has just made it, and no other code knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Whole pages, as they are mapped: start and bytes.
fn range_of(mapping: &MmapRegion) -> io::Result<[u64; 2]> {
    let mut page = rustix::param::page_size() as u64;
    if let Some(file) = mapping.file_offset() {
        let system = fstatfs(file.file())?;
        if system.f_type as u64 == HUGETLBFS_MAGIC {
            page = page.max(system.f_bsize as u64);
        }
    }
    Ok([mapping.as_ptr() as u64, (mapping.size() as u64).next_multiple_of(page)])
}

/// Replaces `mapping` by nothing: from here on the kernel refuses to read or write there in our name, and an
/// access of our own raises SIGBUS. A [`Guard`](crate::sigbus::Guard) that knows of it is there first.
pub(crate) fn take_away(mapping: &MmapRegion) -> io::Result<()> {
    let nothing = memfd_create("gone", MemfdFlags::CLOEXEC)?;
    replace(mapping, nothing.as_raw_fd(), 0, libc::MAP_SHARED)
}

/// Leaves `mapping` as it is, but what is written from here on stays in this process.
pub(crate) fn detach(mapping: &MmapRegion) -> io::Result<()> {
    let file = mapping.file_offset().ok_or_else(|| io::Error::other("memory without a file"))?;
    replace(mapping, file.file().as_raw_fd(), file.start(), libc::MAP_PRIVATE)
}

fn replace(mapping: &MmapRegion, file: i32, offset: u64, flags: libc::c_int) -> io::Result<()> {
    let [_, len] = range_of(mapping)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is that of a mapping which its owner keeps during the call, and unmaps later whatever it
    // is then. Other contents are as good as what a front end may write there.
    let replaced = unsafe {
        libc::mmap(mapping.as_ptr().cast(), len as usize, protection, flags, file, offset as i64)
    };
    if replaced == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::Ordering;

    use vm_memory::{Bytes, FileOffset, VolatileMemory, WriteVolatile};

    use super::*;
    use crate::sigbus::Guard;

    const PAGE: usize = 4096;

    fn mapping(pages: usize) -> (File, MmapRegion) {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&vec![7; pages * PAGE], 0).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        (file, MmapRegion::from_file(offset, pages * PAGE).unwrap())
    }

    fn word(mapping: &MmapRegion, page: usize) -> u64 {
        mapping.get_slice(page * PAGE, 8).unwrap().load(0, Ordering::Relaxed).unwrap()
    }

    /// Neither the kernel nor this process reads zeroes, nor what was there; and the file keeps what it has.
    #[test]
    fn what_is_taken_away_stays_away() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (file, mapping) = mapping(4);
        let guard = Guard::new(&mapping, ours.as_raw_fd()).unwrap();
        guard.expect_nothing();
        take_away(&mapping).unwrap();
        let mut sink = File::from(memfd_create("sink", MemfdFlags::CLOEXEC).unwrap());
        let mut fails_at = |page: usize| {
            let outcome = sink.write_volatile(&mapping.get_slice(page * PAGE, 8).unwrap());
            format!("{outcome:?}").contains("EFAULT") || format!("{outcome:?}").contains("14")
        };
        assert!((0..4).all(&mut fails_at), "the kernel has something to read");
        assert_eq!(word(&mapping, 1), u64::MAX);
        assert!([0, 2, 3].into_iter().all(&mut fails_at), "what is around a page that was touched");
        mapping.get_slice(2 * PAGE, 8).unwrap().store(9u64, 0, Ordering::Relaxed).unwrap();
        assert_eq!(word(&mapping, 2), 9);
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the connection is shut down");
        let mut bytes = vec![0; 4 * PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == vec![7; 4 * PAGE]);
    }

    #[test]
    fn what_is_detached_is_read_and_not_written() {
        let (file, mapping) = mapping(2);
        detach(&mapping).unwrap();
        assert_eq!(word(&mapping, 0), u64::from_ne_bytes([7; 8]));
        mapping.get_slice(0, 8).unwrap().store(9u64, 0, Ordering::Relaxed).unwrap();
        assert_eq!(word(&mapping, 0), 9);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; 8]);
    }

    /// A thread that has no rights has no userfaultfd, unless all have one.
    #[test]
    fn it_takes_a_right() {
        let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
        let allowed = allowed.is_ok_and(|it| it.trim() == "1")
            || std::fs::metadata("/dev/userfaultfd")
                .is_ok_and(|it| std::os::unix::fs::MetadataExt::mode(&it) & 0o006 == 0o006);
        let made = std::thread::spawn(|| {
            const NOBODY: libc::c_long = 65534;
            // SAFETY: it takes numbers. Called so, and not by libc's function, it is about this thread alone,
            // which ends with the test.
            unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            Userfault::new().map(drop)
        });
        let made = made.join().unwrap();
        assert_eq!(made.is_ok(), allowed, "{made:?}");
    }
}
