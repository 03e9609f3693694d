//! Random descriptor tables: the device never panics, and each chain offered is answered once, or
//! the queue is broken.

mod util;

use proptest::prelude::*;
use util::*;

/// Addresses near everything that is interesting, and nonsense.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => SCRATCH..SCRATCH + 0x8000,
        1 => (SEAM - 600)..(SEAM + 600),
        1 => (HOLE - 600)..(HOLE + 600),
        1 => ISLAND..ISLAND + 0x1000,
        1 => any::<u64>(),
        1 => (u64::MAX - 1024)..=u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => prop::sample::select(vec![0, 1, 8, 16, 32, 48, 512, 513, 1024, 4096]),
        1 => 0..5000u32,
        1 => any::<u32>(),
    ]
}

fn flags() -> impl Strategy<Value = u16> {
    prop_oneof![
        8 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE]),
        1 => prop::sample::select(vec![INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE]),
        1 => any::<u16>(),
    ]
}

type Descriptor = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (address(), length(), flags(), prop_oneof![9 => 0..RAW_SIZE, 1 => any::<u16>()])
}

/// A request that is nearly right: header, data, status, and one thing spoilt.
fn nearly_right() -> impl Strategy<Value = Vec<Descriptor>> {
    (prop::collection::vec((address(), length()), 0..4), any::<bool>(), 0..6usize, descriptor())
        .prop_map(|(data, write, spoilt, with)| {
            let flag = if write { WRITE } else { 0 };
            let mut chain = vec![(SCRATCH, 16, NEXT, 1)];
            for (addr, len) in data {
                let next = chain.len() as u16 + 1;
                chain.push((addr, len, NEXT | flag, next));
            }
            chain.push((SCRATCH + 0x100, 1, WRITE, 0));
            if let Some(descriptor) = chain.get_mut(spoilt) {
                *descriptor = with;
            }
            chain
        })
}

/// All that is random about a case.
#[derive(Clone, Debug)]
struct Case {
    table: Vec<Descriptor>,
    nested: Vec<Descriptor>,
    kind: u32,
    sector: u64,
    heads: Vec<u16>,
    deferred: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let kinds = prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]);
    let head = prop_oneof![20 => Just(0u16), 3 => 0..RAW_SIZE, 1 => RAW_SIZE..RAW_SIZE + 2];
    (
        prop_oneof![nearly_right(), prop::collection::vec(descriptor(), 1..20)],
        prop::collection::vec(descriptor(), 0..6),
        prop_oneof![6 => kinds, 1 => any::<u32>()],
        prop_oneof![4 => 0..1030u64, 1 => any::<u64>()],
        prop::collection::vec(head, 1..8),
        any::<bool>(),
    )
        .prop_map(|(table, nested, kind, sector, heads, deferred)| Case {
            table,
            nested,
            kind,
            sector,
            heads,
            deferred,
        })
}

fn guest_of(case: &Case) -> RawGuest {
    let disk = TestDisk { deferred: case.deferred, ..TestDisk::new(1024) };
    let mut guest = RawGuest::with(disk, Default::default());
    guest.put_header(SCRATCH, case.kind, case.sector);
    for (index, it) in (0..).zip(&case.table) {
        guest.descriptor(index, it.0, it.1, it.2, it.3);
    }
    for (index, it) in (0..).zip(&case.nested) {
        guest.put_descriptor(SCRATCH + 0x2000, index, *it);
    }
    for head in &case.heads {
        guest.offer(*head);
    }
    guest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_chain_is_answered_once_or_the_queue_is_broken(case in case()) {
        let mut guest = guest_of(&case);
        guest.kick();
        prop_assert_eq!(guest.device.in_flight(), 0);
        let answered: Vec<_> = guest.take_used().into_iter().map(|(head, _)| head as u16).collect();
        if guest.device.needs_reset() {
            prop_assert!(answered.len() < case.heads.len());
            prop_assert!(guest.device.queue_error(0).is_some());
        } else {
            let sorted = |mut heads: Vec<u16>| { heads.sort_unstable(); heads };
            prop_assert_eq!(sorted(answered), sorted(case.heads));
            guest.honest_request_works();
        }
    }

    /// A guest may have the device read data over its own rings.
    #[test]
    fn a_device_that_writes_over_its_rings_survives(case in case(), at in 0x1000..0x4000u64) {
        let guest = guest_of(&case);
        guest.descriptor(0, SCRATCH, 16, NEXT, 1);
        guest.descriptor(1, at, 1024, NEXT | WRITE, 2);
        guest.descriptor(2, SCRATCH + 0x100, 1, WRITE, 0);
        guest.put_header(SCRATCH, 0, 0);
        guest.disk.data.lock().unwrap()[..1024].fill(case.kind as u8);
        guest.kick();
        prop_assert_eq!(guest.device.in_flight(), 0);
        guest.device.reset(&guest.ctx);
    }
}
