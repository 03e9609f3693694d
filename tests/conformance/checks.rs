//! What every driver must do, whatever it is and wherever it runs.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coblk::{IoVector, WriteFlags, ZeroFlags};
use coblk_tests::errno;

use crate::stage::Stage;
use crate::subjects::LENGTH;

pub type Check = fn(&Stage<'_>);

/// All checks of a device that can be written.
pub const CHECKS: [(&str, Check); 9] = [
    ("reads and writes", reads_and_writes),
    ("zeroes", zeroes),
    ("discards", discards),
    ("flushes", flushes),
    ("status", status),
    ("lengths", lengths),
    ("errors", errors),
    ("overlapping requests", overlapping_requests),
    ("drains", drains),
];

/// Ranges of whole blocks and odd ones, of all sizes, at both ends.
const RANGES: [(u64, usize); 10] = [
    (0, 4096),
    (4096, 65536),
    (LENGTH - 4096, 4096),
    (LENGTH - 1, 1),
    (0, 1),
    (511, 2),
    (8191, 4098),
    (100_001, 50_000),
    (LENGTH / 2 + 512, 512),
    (12_288, 0),
];

fn reads_and_writes(stage: &Stage<'_>) {
    for flags in [WriteFlags::empty(), WriteFlags::FUA] {
        for (offset, len) in RANGES {
            stage.step(format!("write of {len} bytes at {offset}, {flags:?}"));
            stage.write(offset, len, flags);
            stage.check(offset, len);
        }
        stage.step("what is around the writes");
        stage.check_all();
    }
}

fn zeroes(stage: &Stage<'_>) {
    let all = [ZeroFlags::empty(), ZeroFlags::MAY_UNMAP, ZeroFlags::FUA, ZeroFlags::NO_FALLBACK];
    for flags in all {
        stage.step("writing what is to be zeroed");
        stage.write(0, LENGTH as usize, WriteFlags::empty());
        for (offset, len) in RANGES {
            stage.step(format!("zeroes of {len} bytes at {offset}, {flags:?}"));
            match stage.backend.pwrite_zeroes(stage.ctx, offset, len as u64, flags) {
                Ok(()) => stage.set(offset, &vec![0; len]),
                // Only who was told so may have no way, and then changes nothing.
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOTSUP));
                    assert_eq!(flags, ZeroFlags::NO_FALLBACK);
                }
            }
        }
        stage.step(format!("what is there after all zeroes with {flags:?}"));
        stage.check_all();
    }
}

fn discards(stage: &Stage<'_>) {
    stage.write(0, LENGTH as usize, WriteFlags::empty());
    for (offset, len) in RANGES {
        stage.step(format!("discard of {len} bytes at {offset}"));
        stage.backend.pdiscard(stage.ctx, offset, len as u64).expect("a discard");
        // Inside, it may read as anything, but it can be read; outside, nothing has changed.
        let now = stage.try_read(offset, len).expect("a read");
        stage.set(offset, &now);
        stage.check_all();
    }
    stage.step("a write to what was discarded");
    stage.write(4096, 8192, WriteFlags::empty());
    stage.check_all();
}

fn flushes(stage: &Stage<'_>) {
    stage.step("a flush of nothing");
    stage.backend.flush(stage.ctx).expect("a flush");
    for round in 0..2 {
        stage.step(format!("flush after write {round}"));
        stage.write(round * 8192, 8192, WriteFlags::empty());
        stage.backend.flush(stage.ctx).expect("a flush");
        stage.backend.flush(stage.ctx).expect("another flush");
    }
    stage.check_all();
}

fn status(stage: &Stage<'_>) {
    stage.write(LENGTH / 4, 65536, WriteFlags::empty());
    stage.write(LENGTH / 2 + 77, 3, WriteFlags::empty());
    stage.ctx.run(|co| {
        let mut at = 0;
        while at < LENGTH {
            stage.step(format!("status at {at}"));
            let status = stage.backend.co_block_status(co, at, LENGTH - at).expect("a status");
            assert!((1..=LENGTH - at).contains(&status.bytes), "{status:?}");
            if status.zero {
                let mut read = vec![0xee; status.bytes as usize];
                let mut target = coblk::IoVectorMut::from(&mut read[..]);
                stage.backend.co_preadv(co, at, &mut target).expect("a read");
                assert!(read.iter().all(|byte| *byte == 0), "{status:?}, but not zero");
            }
            at += status.bytes;
        }
        stage.step("status of nothing, and past the end");
        let nothing = stage.backend.co_block_status(co, 0, 0).expect("a status");
        assert_eq!(nothing.bytes, 0);
        assert_eq!(errno(stage.backend.co_block_status(co, LENGTH, 1)), libc::EIO);
    });
}

fn lengths(stage: &Stage<'_>) {
    assert_eq!(stage.backend.length().expect("a medium"), LENGTH);
    stage.write(0, LENGTH as usize, WriteFlags::empty());
    let truncate = |length| stage.ctx.run(|co| stage.backend.co_truncate(co, length));
    if !stage.resizes {
        stage.step("a truncate that is not supported");
        // A device has its own length.
        assert!([libc::ENOTSUP, libc::EINVAL].contains(&errno(truncate(LENGTH * 2))));
        assert_eq!(stage.backend.length().expect("a medium"), LENGTH);
        return stage.check_all();
    }
    stage.step("shorter");
    truncate(LENGTH / 2).expect("a truncate");
    assert_eq!(stage.backend.length().expect("a medium"), LENGTH / 2);
    stage.check(0, LENGTH as usize / 2);
    assert_eq!(errno(stage.try_read(LENGTH / 2, 1)), libc::EIO);
    assert_eq!(errno(stage.try_write(LENGTH / 2 - 1, &[1; 2], WriteFlags::empty())), libc::EIO);
    stage.step("as long as before");
    truncate(LENGTH).expect("a truncate");
    stage.set(LENGTH / 2, &vec![0; LENGTH as usize / 2]);
    stage.check_all();
    stage.step("longer than a file can be");
    assert_eq!(errno(truncate(u64::MAX)), libc::EFBIG);
    stage.check_all();
}

fn errors(stage: &Stage<'_>) {
    stage.write(LENGTH - 8192, 8192, WriteFlags::empty());
    for (offset, len) in [(LENGTH, 1), (LENGTH - 1, 2), (u64::MAX, 1), (1 << 63, 512)] {
        stage.step(format!("{len} bytes at {offset}, past the end"));
        let bytes = len as u64;
        assert_eq!(errno(stage.try_read(offset, len)), libc::EIO);
        let data = vec![1; len];
        assert_eq!(errno(stage.try_write(offset, &data, WriteFlags::empty())), libc::EIO);
        let flags = ZeroFlags::empty();
        let zeroed = stage.backend.pwrite_zeroes(stage.ctx, offset, bytes, flags);
        assert_eq!(errno(zeroed), libc::EIO);
        assert_eq!(errno(stage.backend.pdiscard(stage.ctx, offset, bytes)), libc::EIO);
    }
    stage.step("a request after all that failed");
    stage.check_all();
    stage.write(LENGTH - 512, 512, WriteFlags::FUA);
    stage.check_all();
}

/// Coroutines that write the same range at once, and neighbours that share blocks with each other.
fn overlapping_requests(stage: &Stage<'_>) {
    const WRITERS: u64 = 8;
    const STRIPE: usize = 1001;
    let left = Rc::new(Cell::new(WRITERS));
    for writer in 0..WRITERS {
        let (backend, left) = (stage.backend.clone(), Rc::clone(&left));
        stage.ctx.spawn("writer", move |co| {
            for round in 0..4u8 {
                let data = [writer as u8 * 4 + round + 1; STRIPE];
                let source = IoVector::from(&data[..]);
                let own = 65_536 + writer * STRIPE as u64;
                backend.co_pwritev(co, own, &source, WriteFlags::empty()).expect("a write");
                backend.co_pwritev(co, 4096, &source, WriteFlags::empty()).expect("a write");
            }
            left.set(left.get() - 1);
        });
    }
    stage.step("writes at once");
    stage.ctx.run_until(|| left.get() == 0);
    for writer in 0..WRITERS {
        let last = [writer as u8 * 4 + 4; STRIPE];
        stage.set(65_536 + writer * STRIPE as u64, &last);
    }
    stage.step("what all wrote");
    let shared = stage.try_read(4096, STRIPE).expect("a read");
    let written = 1..=WRITERS as u8 * 4;
    assert!(shared.iter().all(|byte| !stage.stores || written.contains(byte)), "{shared:?}");
    stage.set(4096, &shared);
    stage.step("what each wrote for himself");
    stage.check_all();
}

fn drains(stage: &Stage<'_>) {
    let ended: Rc<RefCell<Vec<io::Result<()>>>> = Rc::default();
    let submit = |offset: u64| {
        let ended = Rc::clone(&ended);
        let flags = WriteFlags::empty();
        stage.backend.aio_pwritev(stage.ctx, offset, vec![9; 700], flags, move |_, result, _| {
            ended.borrow_mut().push(result);
        });
        stage.set(offset, &[9; 700]);
    };
    stage.step("requests, and a drain");
    (0..16).for_each(|number| submit(number * 700));
    assert!(ended.borrow().is_empty(), "ended before its submit returned");
    let outer = stage.backend.drain(stage.ctx);
    assert_eq!((ended.borrow().len(), stage.backend.in_flight()), (16, 0));
    let inner = stage.backend.drain(stage.ctx);
    stage.step("requests during a drain");
    (20..24).for_each(|number| submit(number * 700));
    for section in [inner, outer] {
        for _ in 0..10 {
            stage.ctx.try_poll();
        }
        assert_eq!(ended.borrow().len(), 16, "a request entered a drained device");
        drop(section);
    }
    stage.step("requests after a drain");
    stage.ctx.run_until(|| ended.borrow().len() == 20);
    assert!(ended.borrow().iter().all(Result::is_ok), "{:?}", ended.borrow());
    stage.check_all();
}

/// What a device does that is only read.
pub fn read_only(stage: &Stage<'_>) {
    stage.step("changes to what is read-only");
    let flags = WriteFlags::empty();
    assert_eq!(errno(stage.try_write(0, &[1; 512], flags)), libc::EPERM);
    let zeroed = stage.backend.pwrite_zeroes(stage.ctx, 0, 512, ZeroFlags::empty());
    assert_eq!(errno(zeroed), libc::EPERM);
    assert_eq!(errno(stage.backend.pdiscard(stage.ctx, 0, 512)), libc::EPERM);
    assert_eq!(errno(stage.ctx.run(|co| stage.backend.co_truncate(co, 0))), libc::EPERM);
    stage.backend.flush(stage.ctx).expect("a flush");
    stage.check_all();
}
