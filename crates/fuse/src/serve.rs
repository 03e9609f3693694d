//! What each request leads to: an answer at once, or a coroutine.

use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::AioContext;

use crate::abi::{MAJOR, MIN_MINOR, init, open};
use crate::answer::Answer;
use crate::change::{fallocate, set_attributes};
use crate::data::{read, write};
use crate::look::{BLOCK_BYTES, attributes, seek};
use crate::reply::Reply;
use crate::request::{Header, Init, Request};

/// Carries out a request; one that makes no sense is refused.
pub fn start(ctx: &AioContext, answer: Answer, header: &Header, request: Option<Request>) {
    match request {
        Some(request) => serve(ctx, answer, request),
        None => {
            let (opcode, length) = (header.opcode, header.length);
            tracing::warn!(opcode, length, "a FUSE request makes no sense");
            answer.error(libc::EINVAL);
        }
    }
}

/// In a coroutine if it may take time.
fn serve(ctx: &AioContext, answer: Answer, request: Request) {
    // Without a stack for the coroutine the answer is dropped, which says EIO.
    let started = match request {
        Request::Read { offset, size } => {
            ctx.try_spawn("fuse read", move |co| read(co, answer, offset, size))
        }
        Request::Write(what) => ctx.try_spawn("fuse write", move |co| {
            let result = write(co, &answer, &what);
            answer.result(result);
        }),
        Request::GetAttr
        | Request::SetAttr(_)
        | Request::Flush
        | Request::Fsync
        | Request::Fallocate(_)
        | Request::Lseek { .. } => ctx.try_spawn("fuse request", move |co| {
            let queue = &answer.queue;
            let result = match request {
                Request::GetAttr => attributes(co, queue),
                Request::SetAttr(new) => set_attributes(co, queue, &new),
                Request::Fallocate(what) => fallocate(co, queue, &what),
                Request::Lseek { offset, whence } => seek(co, queue, offset, whence),
                _ => queue.backend.co_flush(co).map(|()| Reply::empty()),
            };
            answer.result(result);
        }),
        _ => {
            quick(answer, request);
            Ok(())
        }
    };
    if let Err(error) = started {
        tracing::error!(%error, "a FUSE request fails");
    }
}

/// What does not suspend.
fn quick(answer: Answer, request: Request) {
    let queue = &answer.queue;
    match request {
        Request::Init(offer) => initialise(answer, &offer),
        Request::Forget => answer.none(),
        Request::Destroy => drop(answer.reply(&Reply::empty())),
        Request::Open { flags } => {
            let mode = flags as i32 & libc::O_ACCMODE;
            if mode != libc::O_RDONLY && !queue.file.rules.writable {
                return answer.error(libc::EROFS);
            }
            let file = Arc::clone(&queue.file);
            file.open();
            let flags = open::DIRECT_IO | open::PARALLEL_DIRECT_WRITES;
            if !answer.reply(&Reply::open(flags)) {
                // The client is gone, and does not close what it has not got.
                file.release();
            }
        }
        Request::Release => {
            queue.file.release();
            answer.reply(&Reply::empty());
        }
        Request::StatFs => {
            let length = queue.backend.length();
            answer.result(length.map(|length| Reply::statfs(length, BLOCK_BYTES)));
        }
        Request::Lookup => answer.error(libc::ENOENT),
        Request::Ioctl => answer.error(libc::ENOTTY),
        // INTERRUPT, too: the kernel then sends no more of them. Requests end by themselves.
        _ => answer.error(libc::ENOSYS),
    }
}

fn initialise(answer: Answer, offer: &Init) {
    if offer.major > MAJOR {
        answer.reply(&Reply::version());
    } else if offer.major < MAJOR || offer.minor < MIN_MINOR {
        tracing::error!(offer.major, offer.minor, "the kernel's FUSE is too old");
        answer.error(libc::EPROTO);
    } else {
        let queue = Rc::clone(&answer.queue);
        let reply = Reply::init(offer, queue.max_background, queue.lane().is_some());
        answer.reply(&reply);
        if queue.lane().is_some() {
            if offer.flags & init::OVER_IO_URING == 0 {
                let export = queue.backend.name();
                tracing::warn!(
                    export,
                    "the kernel has no FUSE over io_uring, or it is not enabled"
                );
            } else {
                queue.file.use_rings();
            }
        }
    }
}
