//! What a guest must not do, and what happens when it does: an answer if there is a byte to put it
//! in, a broken queue if not; and a device that goes on with the next honest request, or after the
//! next reset. Also what looks odd and is allowed.

mod util;

use std::sync::atomic::Ordering;

use coblk_virtio_blk::VirtioBlkConfig;
use util::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const HEADER: u64 = SCRATCH;
const STATUS: u64 = SCRATCH + 0x100;
const DATA: u64 = SCRATCH + 0x1000;
const TABLE: u64 = SCRATCH + 0x4000;

/// A guest that has written a read of sector 0 into descriptors 0 to 2, for the test to spoil.
fn guest() -> RawGuest {
    let guest = RawGuest::new();
    guest.disk.data.lock().unwrap()[..512].fill(7);
    guest.put_header(HEADER, IN, 0);
    guest.chain(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    guest
}

/// Expects this answer to a chain, no I/O, and a device that goes on.
fn is_refused(mut guest: RawGuest, status: u8) {
    assert_eq!(guest.request(STATUS), status);
    assert_eq!(guest.disk.take_seen(), []);
    guest.honest_request_works();
}

#[test]
fn looping_chains_break_the_queue() {
    let mut guest = guest();
    guest.descriptor(2, STATUS, 1, WRITE | NEXT, 1);
    guest.breaks_queue(0, "loops");
    guest.descriptor(0, HEADER, 16, NEXT, 0);
    guest.breaks_queue(0, "loops");
}

#[test]
fn indices_outside_the_table_break_the_queue() {
    let mut guest = guest();
    guest.descriptor(1, DATA, 512, WRITE | NEXT, RAW_SIZE);
    guest.breaks_queue(0, "descriptor index 64 in a table of 64");
    guest.breaks_queue(u16::MAX, "descriptor index 65535");
}

#[test]
fn an_available_index_beyond_the_queue_breaks_it() {
    let mut guest = guest();
    guest.set_avail_idx(RAW_SIZE + 1);
    guest.is_broken_until_reset("65 entries ahead of 0");
    guest.set_avail_idx(0x8000);
    guest.is_broken_until_reset("available index jumped");
}

#[test]
fn requests_before_a_broken_one_are_answered() {
    let mut guest = guest();
    guest.put(STATUS, &[UNTOUCHED]);
    guest.offer(0);
    guest.offer(999);
    guest.kick();
    assert!(guest.device.needs_reset());
    assert_eq!((guest.take_used(), guest.byte(STATUS)), (vec![(0, 513)], OK));
}

#[test]
fn a_status_that_cannot_be_written_breaks_the_queue() {
    let cases: [&[(u64, u32, u16)]; 6] = [
        // None at all.
        &[(HEADER, 16, 0), (DATA, 512, 0)],
        // A read-only one.
        &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, 0)],
        // Nothing but empty descriptors.
        &[(HEADER, 0, 0), (STATUS, 0, WRITE)],
        // In the hole, behind the end, and wrapped around it.
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (HOLE, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (u64::MAX, 1, WRITE)],
        &[(HEADER, 16, 0), (DATA, 512, WRITE), (u64::MAX, 2, WRITE)],
    ];
    let mut guest = guest();
    for case in cases {
        guest.chain(case);
        guest.breaks_queue(0, "no status byte");
    }
    assert!(guest.disk.take_seen().iter().all(|seen| matches!(seen, Seen::Read { offset: 0, .. })));
}

#[test]
fn a_zero_length_status_makes_the_last_data_byte_the_status() {
    // Descriptors are a matter of framing: the last writable byte is the status, and 511 are left.
    let mut guest = guest();
    guest.chain(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 0, WRITE)]);
    assert_eq!(guest.request(DATA + 511), IOERR);
    guest.honest_request_works();
}

#[test]
fn data_outside_memory_is_an_error() {
    for addr in [HOLE, HOLE - 256, ISLAND - 256, u64::MAX - 100, u64::MAX, 1 << 63] {
        let mut guest = guest();
        guest.chain(&[(HEADER, 16, 0), (addr, 512, WRITE), (STATUS, 1, WRITE)]);
        assert_eq!(guest.request(STATUS), IOERR, "{addr:#x}");
        guest.honest_request_works();
        guest.put_header(HEADER, OUT, 0);
        guest.chain(&[(HEADER, 16, 0), (addr, 512, 0), (STATUS, 1, WRITE)]);
        guest.disk.take_seen();
        is_refused(guest, IOERR);
    }
}

#[test]
fn a_header_outside_memory_or_too_short_is_an_error() {
    for (addr, len) in [(HOLE, 16), (HOLE - 8, 16), (u64::MAX - 7, 16), (HEADER, 15), (HEADER, 0)] {
        let guest = guest();
        guest.chain(&[(addr, len, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        is_refused(guest, IOERR);
    }
    // The writable bytes behind it do not count.
    let guest = guest();
    guest.chain(&[(DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    is_refused(guest, IOERR);
}

#[test]
fn readable_after_writable_is_an_error() {
    let guest = guest();
    guest.chain(&[(DATA, 512, WRITE), (HEADER, 16, 0), (STATUS, 1, WRITE)]);
    is_refused(guest, IOERR);
}

#[test]
fn lengths_that_are_no_sectors_are_an_error() {
    for len in [1, 511, 513, u32::MAX] {
        let guest = guest();
        guest.chain(&[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)]);
        is_refused(guest, IOERR);
    }
}

#[test]
fn ranges_beyond_the_end_are_an_error() {
    for sector in [1024, 1023, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        for kind in [IN, OUT] {
            let guest = guest();
            guest.put_header(HEADER, kind, sector);
            let flags = if kind == IN { WRITE } else { 0 };
            guest.chain(&[(HEADER, 16, 0), (DATA, 1024, flags), (STATUS, 1, WRITE)]);
            is_refused(guest, IOERR);
        }
    }
}

#[test]
fn huge_lengths_are_an_error() {
    let guest = guest();
    let part = (DATA, !511, WRITE);
    let mut parts = vec![(HEADER, 16, 0)];
    parts.extend([part; 60]);
    parts.push((STATUS, 1, WRITE));
    guest.chain(&parts);
    is_refused(guest, IOERR);
}

#[test]
fn no_data_is_done_at_once() {
    let mut guest = guest();
    guest.chain(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    assert_eq!(guest.request(STATUS), OK);
    guest.put_header(HEADER, IN, 1025);
    assert_eq!(guest.request(STATUS), IOERR);
    assert_eq!(guest.disk.take_seen(), []);
}

#[test]
fn unknown_requests_are_unsupported() {
    for kind in [2, 3, 5, 14, 0x8000_0000, u32::MAX] {
        let guest = guest();
        guest.put_header(HEADER, kind, 0);
        is_refused(guest, UNSUPP);
    }
}

#[test]
fn a_header_may_be_cut_up_at_will() {
    let mut guest = guest();
    let cuts: [&[u32]; 4] = [&[3, 13], &[8, 8], &[15, 1], &[1; 16]];
    for cut in cuts {
        let mut at = HEADER;
        let mut parts = Vec::new();
        for len in cut {
            parts.push((at, *len, 0));
            at += u64::from(*len);
        }
        parts.extend([(DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        guest.chain(&parts);
        assert_eq!(guest.request(STATUS), OK);
        assert_eq!(guest.bytes(DATA, 512), [7; 512]);
        guest.put(DATA, &[0; 512]);
    }
}

#[test]
fn data_may_share_descriptors_with_header_and_status() {
    let mut guest = guest();
    guest.chain(&[(HEADER, 16, 0), (DATA, 513, WRITE)]);
    assert_eq!(guest.request(DATA + 512), OK);
    assert_eq!(guest.bytes(DATA, 512), [7; 512]);

    guest.put_header(DATA, OUT, 3);
    guest.put(DATA + 16, &[9; 512]);
    guest.chain(&[(DATA, 528, 0), (STATUS, 1, WRITE)]);
    assert_eq!(guest.request(STATUS), OK);
    assert_eq!(guest.disk.data.lock().unwrap()[3 * 512..4 * 512], [9; 512]);
}

#[test]
fn data_may_be_at_odd_addresses_and_span_regions() {
    let mut guest = guest();
    let pattern: Vec<u8> = (0..1024u32).map(|i| i as u8).collect();
    guest.disk.data.lock().unwrap()[..1024].copy_from_slice(&pattern);
    guest.chain(&[(HEADER, 16, 0), (SEAM - 333, 1024, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(guest.request(STATUS), OK);
    assert_eq!(guest.bytes(SEAM - 333, 1024), pattern);

    guest.put_header(HEADER, OUT, 100);
    guest.chain(&[(HEADER, 16, 0), (SEAM - 333, 1, 0), (SEAM - 332, 1023, 0), (STATUS, 1, WRITE)]);
    assert_eq!(guest.request(STATUS), OK);
    assert_eq!(guest.disk.data.lock().unwrap()[51200..52224], pattern);
    // A header that spans regions, and a status in another one.
    guest.put_header(SEAM - 5, IN, 0);
    guest.chain(&[(SEAM - 5, 16, 0), (ISLAND + 1, 512, WRITE), (ISLAND + 7777, 1, WRITE)]);
    assert_eq!(guest.request(ISLAND + 7777), OK);
    assert_eq!(guest.bytes(ISLAND + 1, 512), pattern[..512]);
}

#[test]
fn one_head_offered_twice_is_answered_twice() {
    let mut guest = guest();
    guest.offer(0);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.take_used(), [(0, 513), (0, 513)]);
    guest.honest_request_works();
}

#[test]
fn a_head_offered_without_end_breaks_the_queue() {
    let mut guest = guest();
    guest.disk.held.store(true, Ordering::Relaxed);
    for round in 0..3 * RAW_SIZE {
        guest.offer(0);
        if round % 16 == 15 {
            guest.device.kick(0);
            guest.ctx.try_poll();
        }
    }
    assert_eq!(guest.device.in_flight(), usize::from(RAW_SIZE));
    assert!(guest.device.queue_error(0).unwrap().contains("more than 64 requests in flight"));
    // What was taken is answered all the same.
    guest.disk.held.store(false, Ordering::Relaxed);
    settle(&guest.ctx);
    assert_eq!(guest.take_used(), [(0, 513); RAW_SIZE as usize]);
    guest.is_broken_until_reset("in flight");
}

mod indirect {
    use super::*;

    /// A guest whose read is in an indirect table, at `table`.
    fn guest_with_table(table: u64) -> RawGuest {
        let guest = guest();
        let parts = [(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)];
        for (index, part) in (0..).zip(parts) {
            guest.put_descriptor(table, index, part);
        }
        guest.descriptor(0, table, 48, INDIRECT, 0);
        guest
    }

    #[test]
    fn tables_work_wherever_they_are() {
        // Aligned, not aligned, and across a seam between regions.
        for table in [TABLE, TABLE + 4, SEAM - 16, SEAM - 24] {
            let mut guest = guest_with_table(table);
            assert_eq!(guest.request(STATUS), OK);
            assert_eq!(guest.bytes(DATA, 512), [7; 512]);
            guest.honest_request_works();
        }
    }

    #[test]
    fn a_table_may_follow_direct_descriptors() {
        let mut guest = guest_with_table(TABLE);
        guest.descriptor(0, HEADER, 16, NEXT, 1);
        guest.descriptor(1, TABLE + 16, 32, INDIRECT, 0);
        guest.put_descriptor(TABLE + 16, 0, (DATA, 512, NEXT | WRITE, 1));
        assert_eq!(guest.request(STATUS), OK);
    }

    #[test]
    fn lengths_that_are_no_tables_break_the_queue() {
        let mut guest = guest_with_table(TABLE);
        for len in [0, 1, 15, 17, 47, u32::MAX] {
            guest.descriptor(0, TABLE, len, INDIRECT, 0);
            guest.breaks_queue(0, "an indirect table of");
        }
    }

    #[test]
    fn a_table_longer_than_memory_is_read_as_far_as_it_is_used() {
        let mut guest = guest_with_table(TABLE);
        guest.descriptor(0, TABLE, 0xffff_fff0, INDIRECT, 0);
        assert_eq!(guest.request(STATUS), OK);
    }

    #[test]
    fn tables_outside_memory_break_the_queue() {
        let mut guest = guest_with_table(TABLE);
        for addr in [HOLE, HOLE - 8, u64::MAX - 8, 1 << 62] {
            guest.descriptor(0, addr, 48, INDIRECT, 0);
            guest.breaks_queue(0, "outside guest memory");
        }
    }

    #[test]
    fn nested_and_chained_tables_break_the_queue() {
        let mut guest = guest_with_table(TABLE);
        guest.descriptor(0, TABLE, 48, INDIRECT | NEXT, 1);
        guest.breaks_queue(0, "indirect descriptor where none may be");
        guest.descriptor(0, TABLE, 48, INDIRECT, 0);
        guest.put_descriptor(TABLE, 1, (TABLE, 48, INDIRECT, 0));
        guest.breaks_queue(0, "indirect descriptor where none may be");
    }

    #[test]
    fn loops_and_bad_links_in_a_table_break_the_queue() {
        let mut guest = guest_with_table(TABLE);
        guest.put_descriptor(TABLE, 2, (STATUS, 1, WRITE | NEXT, 1));
        guest.breaks_queue(0, "loops");
        guest.put_descriptor(TABLE, 1, (DATA, 512, WRITE | NEXT, 3));
        guest.breaks_queue(0, "descriptor index 3 in a table of 3");
        guest.put_descriptor(TABLE, 1, (DATA, 512, WRITE | NEXT, 2));
        // A loop in the largest table there can be ends after a bounded number of steps.
        guest.descriptor(0, TABLE, 0xffff_fff0, INDIRECT, 0);
        guest.put_descriptor(TABLE, 2, (STATUS, 1, WRITE | NEXT, 2));
        guest.breaks_queue(0, "loops");
    }

    #[test]
    fn a_table_that_was_not_negotiated_breaks_the_queue() {
        let mut guest = guest_with_table(TABLE);
        guest.device.reset(&guest.ctx);
        let features = guest.device.features()
            & !(coblk_virtio_blk::feature::INDIRECT_DESC | coblk_virtio_blk::feature::RING_PACKED);
        guest.device.negotiate(features).unwrap();
        guest.start();
        guest.breaks_queue(0, "not negotiated");
    }
}

mod id_and_ranges {
    use super::*;

    const GET_ID: u32 = 8;
    const DISCARD: u32 = 11;
    const WRITE_ZEROES: u32 = 13;

    #[test]
    fn an_id_is_cut_to_the_room_there_is() {
        let config = VirtioBlkConfig::default().serial("0123456789abcdef");
        let mut guest = RawGuest::with(TestDisk::new(8), config);
        guest.put_header(HEADER, GET_ID, 0);
        for len in [1, 5, 20, 300] {
            guest.put(DATA, &[0xff; 300]);
            guest.chain(&[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)]);
            assert_eq!(guest.request(STATUS), OK);
            let mut expected = b"0123456789abcdef\0\0\0\0".to_vec();
            expected.truncate(len as usize);
            expected.resize(300, 0xff);
            assert_eq!(guest.bytes(DATA, 300), expected);
        }
        // In two pieces; with no room at all; outside memory.
        guest.chain(&[
            (HEADER, 16, 0),
            (DATA, 3, WRITE),
            (DATA + 50, 9, WRITE),
            (STATUS, 1, WRITE),
        ]);
        assert_eq!(guest.request(STATUS), OK);
        assert_eq!(guest.bytes(DATA + 50, 9), b"3456789ab");
        guest.chain(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        assert_eq!(guest.request(STATUS), OK);
        guest.chain(&[(HEADER, 16, 0), (HOLE, 20, WRITE), (STATUS, 1, WRITE)]);
        assert_eq!(guest.request(STATUS), IOERR);
        guest.honest_request_works();
    }

    fn put_range(guest: &RawGuest, place: u64, sector: u64, sectors: u32, flags: u32) {
        guest.put(place, &sector.to_le_bytes());
        guest.put(place + 8, &sectors.to_le_bytes());
        guest.put(place + 12, &flags.to_le_bytes());
    }

    #[test]
    fn bad_ranges_are_refused_before_anything_is_done() {
        let cases: [(u32, u64, u32, u32, u8); 8] = [
            (DISCARD, 0, 8, 1, UNSUPP),
            (DISCARD, 0, 8, 2, UNSUPP),
            (WRITE_ZEROES, 0, 8, 2, UNSUPP),
            (WRITE_ZEROES, 0, 8, u32::MAX, UNSUPP),
            (DISCARD, 1020, 5, 0, IOERR),
            (WRITE_ZEROES, 1024, 1, 0, IOERR),
            (WRITE_ZEROES, 0, u32::MAX, 0, IOERR),
            (DISCARD, u64::MAX, 1, 0, IOERR),
        ];
        for (kind, sector, sectors, flags, status) in cases {
            let guest = guest();
            guest.put_header(HEADER, kind, 0);
            put_range(&guest, DATA, 0, 8, 0);
            put_range(&guest, DATA + 16, sector, sectors, flags);
            guest.chain(&[(HEADER, 16, 0), (DATA, 32, 0), (STATUS, 1, WRITE)]);
            is_refused(guest, status);
        }
    }

    #[test]
    fn ranges_that_are_no_ranges_are_refused() {
        for len in [0, 15, 17, 16 * 17, 0x1000_0000] {
            let guest = guest();
            guest.put_header(HEADER, WRITE_ZEROES, 0);
            guest.chain(&[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)]);
            is_refused(guest, IOERR);
        }
        let guest = guest();
        guest.put_header(HEADER, DISCARD, 0);
        guest.chain(&[(HEADER, 16, 0), (HOLE, 16, 0), (STATUS, 1, WRITE)]);
        is_refused(guest, IOERR);
    }

    #[test]
    fn several_ranges_cut_up_at_will() {
        let mut guest = guest();
        guest.put_header(HEADER, WRITE_ZEROES, 0);
        put_range(&guest, DATA, 2, 1, 1);
        put_range(&guest, DATA + 16, 8, 2, 0);
        guest.chain(&[(HEADER, 16, 0), (DATA, 21, 0), (DATA + 21, 11, 0), (STATUS, 1, WRITE)]);
        assert_eq!(guest.request(STATUS), OK);
        let zeroes = |offset, bytes, unmap| Seen::Zeroes { offset, bytes, unmap, fua: false };
        assert_eq!(guest.disk.take_seen(), [zeroes(1024, 512, true), zeroes(4096, 1024, false)]);
    }

    #[test]
    fn writes_to_a_read_only_device_are_refused() {
        for kind in [OUT, DISCARD, WRITE_ZEROES] {
            let mut disk = TestDisk::new(64);
            disk.read_only = true;
            let guest = RawGuest::with(disk, VirtioBlkConfig::default());
            guest.put_header(HEADER, kind, 0);
            put_range(&guest, DATA, 0, 8, 0);
            let len = if kind == OUT { 512 } else { 16 };
            guest.chain(&[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)]);
            is_refused(guest, IOERR);
        }
    }

    #[test]
    fn what_is_not_offered_is_unsupported() {
        for kind in [DISCARD, WRITE_ZEROES] {
            let config = VirtioBlkConfig::default().discard(false).write_zeroes(false);
            let guest = RawGuest::with(TestDisk::new(64), config);
            guest.put_header(HEADER, kind, 0);
            put_range(&guest, DATA, 0, 8, 0);
            guest.chain(&[(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)]);
            is_refused(guest, UNSUPP);
        }
    }
}
