//! Says which coroutine ran out of stack.
//!
//! A write into the guard page is a SIGSEGV, which on its own does not say more than that. The
//! handler here runs on an alternate stack, for there is no room on the one that overflowed. It
//! looks whether the address is in the guard page of the coroutine that runs, and if so writes its
//! name to standard error. Then it lets the fault happen again with the default action, so that the
//! process ends, and a core dump shows the frame that overflowed. Faults elsewhere go to the
//! handler that was installed before.
//!
//! contract: C16

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Once, OnceLock};

use super::page_bytes;

/// The coroutine on whose stack a thread runs, as the handler reports it.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    /// The address of the guard page.
    pub(crate) guard: usize,
    /// The stack without its guard page.
    pub(crate) size_bytes: usize,
}

/// Tells which coroutine's stack the calling thread is on. Called in a signal handler.
pub(crate) type FindRunning = fn() -> Option<Running>;

/// Prepares this thread for reporting an overflow, and the process with the first one. `find` is the
/// same in each call.
///
/// A failure to do so is not an error: an overflow is then still caught by the guard page.
pub(crate) fn watch(find: FindRunning) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // Known before the handler is.
        let _ = FIND.set(find);
        install_handler();
    });
    // Fails while the thread is ending.
    let _ = ALTERNATE_STACK.try_with(|_| ());
}

thread_local! {
    static ALTERNATE_STACK: Option<AlternateStack> = AlternateStack::install();
}

/// What [`watch`] was given.
static FIND: OnceLock<FindRunning> = OnceLock::new();

/// What SIGSEGV did before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install_handler() {
    // Known before the handler is, so that the handler never has to wait for it.
    page_bytes();
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed `sigaction` is valid. The handler keeps to what a signal handler may do.
    unsafe {
        if libc::sigaction(libc::SIGSEGV, ptr::null(), previous.as_mut_ptr()) != 0 {
            return;
        }
        let _ = PREVIOUS.set(previous.assume_init());
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
    }
}

/// Uses what may be used in a signal handler: plain memory, `write`, `sigaction`.
unsafe extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `info`, and for this signal it holds an address.
    let address = unsafe { (*info).si_addr() }.addr();
    match FIND.get().and_then(|find| find()) {
        Some(running) if (running.guard..running.guard + page_bytes()).contains(&address) => {
            report(&running);
            restore_default(signal);
        }
        // SAFETY: what the kernel passed is passed on.
        _ => unsafe { chain(signal, info, context) },
    }
}

fn report(running: &Running) {
    let mut line = Line::new();
    line.push(b"coroutine '");
    line.push(running.name.as_bytes());
    line.push(b"' overflowed its stack of ");
    line.push_number(running.size_bytes / 1024);
    line.push(b" KiB\n");
    line.write_to_stderr();
}

/// Lets what was installed before handle it.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Handler = unsafe extern "C" fn(libc::c_int);
    type InfoHandler = unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let Some(previous) = PREVIOUS.get() else { return restore_default(signal) };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => restore_default(signal),
        // SAFETY: its installer said by this flag which of the two kinds it is.
        handler => unsafe {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                std::mem::transmute::<usize, InfoHandler>(handler)(signal, info, context);
            } else {
                std::mem::transmute::<usize, Handler>(handler)(signal);
            }
        },
    }
}

/// The instruction that faulted runs again when the handler returns, and now ends the process.
fn restore_default(signal: libc::c_int) {
    // SAFETY: a zeroed `sigaction` asks for the default action.
    unsafe { libc::sigaction(signal, &MaybeUninit::zeroed().assume_init(), ptr::null_mut()) };
}

/// A line of text that is put together without allocating. What does not fit is left out.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; 256], len: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text[..len]);
        self.len += len;
    }

    fn push_number(&mut self, number: usize) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }

    fn write_to_stderr(&self) {
        // SAFETY: the bytes are those of this line. There is nothing to do if it fails. A pipe that
        // is read by nothing any more must not end the process in another way than the fault does.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len);
        }
    }
}

/// A stack for signal handlers, on a thread that has none. Threads made by std have one already.
struct AlternateStack {
    memory: *mut libc::c_void,
}

impl AlternateStack {
    /// Room for what the kernel saves, which is some 11 KiB on the largest CPUs, and for the
    /// handlers.
    const BYTES: usize = 64 << 10;

    fn install() -> Option<AlternateStack> {
        let mut present = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: a zeroed `stack_t` is valid; the memory is new, and stays until `drop`.
        unsafe {
            libc::sigaltstack(ptr::null(), present.as_mut_ptr());
            if present.assume_init().ss_flags & libc::SS_DISABLE == 0 {
                return None;
            }
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let memory = libc::mmap(ptr::null_mut(), Self::BYTES, access, kind, -1, 0);
            if memory == libc::MAP_FAILED {
                return None;
            }
            let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: Self::BYTES };
            libc::sigaltstack(&stack, ptr::null_mut());
            Some(AlternateStack { memory })
        }
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: asks, and turns it off if it is this one. No signal is handled on it now, for
        // this is not a handler, and none will be.
        unsafe {
            let mut present = MaybeUninit::<libc::stack_t>::zeroed().assume_init();
            libc::sigaltstack(ptr::null(), &mut present);
            if present.ss_sp == self.memory {
                present.ss_flags = libc::SS_DISABLE;
                libc::sigaltstack(&present, ptr::null_mut());
            }
            libc::munmap(self.memory, Self::BYTES);
        }
    }
}
