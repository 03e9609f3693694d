//! Requests in a process without memory for another stack. One test: the limit is the whole
//! program's.

use std::cell::RefCell;
use std::rc::Rc;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, WriteFlags, ZeroFlags, drivers::Null};

#[test]
fn a_request_without_a_stack_fails_in_its_callback() {
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(true));
    let backend = BlockBackend::new(&ctx, "drive", node);
    // No stack has been made, and there is no room for one.
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args(["--pid", &std::process::id().to_string(), "--as=0:unlimited"]);
    assert!(prlimit.status().unwrap().success());
    let errors = Rc::new(RefCell::new(Vec::new()));
    let seen = || {
        let errors = Rc::clone(&errors);
        move |result: std::io::Result<()>| {
            errors.borrow_mut().push(result.unwrap_err().raw_os_error().unwrap());
        }
    };
    let note = seen();
    backend.aio_preadv(&ctx, 0, vec![0; 512], move |_, result, _| note(result));
    let note = seen();
    let write = move |_: &AioContext, result, buffer: Vec<u8>| {
        assert_eq!(buffer, [1; 512], "it comes back");
        note(result);
    };
    backend.aio_pwritev(&ctx, 0, vec![1; 512], WriteFlags::empty(), write);
    let note = seen();
    backend.aio_flush(&ctx, move |_, result| note(result));
    let note = seen();
    backend.aio_pwrite_zeroes(&ctx, 0, 512, ZeroFlags::empty(), move |_, result| note(result));
    let note = seen();
    backend.aio_pdiscard(&ctx, 0, 512, move |_, result| note(result));
    assert!(errors.borrow().is_empty(), "not before the call has returned");
    ctx.try_poll();
    assert_eq!(*errors.borrow(), [libc::ENOMEM; 5]);
}
