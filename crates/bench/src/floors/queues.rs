//! The thread of a vhost-user device that answers its queues.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk::virtio_blk::VirtqueueLayout;
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;

use super::Wait;
use super::store::Store;
use super::virtqueue::Ring;

/// An eventfd of the front end's.
pub(super) type Eventfd = Arc<File>;

/// A queue that can be answered.
pub(super) struct Queue {
    pub(super) index: usize,
    pub(super) layout: VirtqueueLayout,
    pub(super) event_idx: bool,
    pub(super) kick: Eventfd,
    pub(super) call: Option<Eventfd>,
}

/// Answers queues until told to stop. Where each has come to is in its layout then.
pub(super) fn answer_all(
    stop: &AtomicBool,
    memory: &GuestMemoryMmap,
    queues: &mut [Queue],
    store: &Store,
    wait: Wait,
) -> io::Result<()> {
    let rings = queues.iter().map(|it| Ring::new(memory, &it.layout, it.event_idx, wait));
    let mut rings = rings.collect::<io::Result<Vec<_>>>()?;
    while !stop.load(Ordering::Acquire) {
        let mut is_idle = true;
        for (ring, queue) in rings.iter_mut().zip(&*queues) {
            let (count, tell) = ring.serve(store)?;
            is_idle &= count == 0;
            if tell && let Some(call) = &queue.call {
                ring_bell(call)?;
            }
        }
        match wait {
            Wait::Spinning => std::hint::spin_loop(),
            Wait::Blocking if is_idle => {
                let may_sleep =
                    rings.iter().map(Ring::may_sleep).collect::<io::Result<Vec<_>>>()?;
                if may_sleep.iter().all(|it| *it) {
                    wait_for_kick(queues)?;
                }
            }
            Wait::Blocking => {}
        }
    }
    for (ring, queue) in rings.iter().zip(queues) {
        queue.layout.next_index = ring.next_avail();
    }
    Ok(())
}

fn wait_for_kick(queues: &[Queue]) -> io::Result<()> {
    let mut count = [0; 8];
    if let [queue] = queues {
        return read(queue, &mut count);
    }
    let mut fds: Vec<_> = queues.iter().map(|it| PollFd::new(&*it.kick, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    let kicked = queues.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
    kicked.map(|(queue, _)| queue).try_for_each(|queue| read(queue, &mut count))
}

fn read(queue: &Queue, count: &mut [u8; 8]) -> io::Result<()> {
    match rustix::io::retry_on_intr(|| rustix::io::read(&*queue.kick, &mut *count)) {
        // The front end made it so that it does not wait, and this looks again.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Adds one to an eventfd.
pub(super) fn ring_bell(bell: &Eventfd) -> io::Result<()> {
    rustix::io::write(&**bell, &1u64.to_ne_bytes())?;
    Ok(())
}
