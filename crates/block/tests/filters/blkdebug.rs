//! Rules of `blkdebug`: which requests they strike, and what becomes of those.

use std::io;
use std::time::Duration;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, RuleCounts, Rules};
use coblk_block::options::NodeOptions;
use coblk_block::{BlockBackend, BlockNode, Blockdevs, RequestKind, WriteFlags, ZeroFlags};

use crate::memory::{Memory, errno, simulated};

struct Scene {
    ctx: AioContext,
    rules: Rules,
    disk: Memory,
    backend: BlockBackend,
}

fn scene_on(disk: Memory, seed: u64) -> Scene {
    let ctx = simulated(seed);
    let rules = Rules::new(seed);
    let node = BlockNode::new("debug", BlkDebug::new(disk.node("disk"), rules.clone()));
    let backend = BlockBackend::new(&ctx, "drive", node);
    Scene { ctx, rules, disk, backend }
}

fn scene() -> Scene {
    scene_on(Memory::new(65536), 1)
}

impl Scene {
    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0xee; 1024];
        let mut target = IoVectorMut::from(&mut buffer[..]);
        self.backend.preadv(&self.ctx, offset, &mut target)?;
        Ok(buffer)
    }

    fn write(&self, offset: u64) -> io::Result<()> {
        let data = [7u8; 1024];
        self.backend.pwritev(&self.ctx, offset, &IoVector::from(&data[..]), WriteFlags::empty())
    }
}

#[test]
fn without_rules_everything_passes() {
    let scene = scene();
    scene.write(512).expect("a write");
    assert_eq!(scene.read(512).expect("a read"), [7; 1024]);
    scene.backend.flush(&scene.ctx).expect("a flush");
    scene.backend.pdiscard(&scene.ctx, 0, 512).expect("a discard");
    scene.backend.pwrite_zeroes(&scene.ctx, 0, 512, ZeroFlags::empty()).expect("zeroes");
    let expected = [
        ("write", 512, 1024),
        ("read", 512, 1024),
        ("flush", 0, 0),
        ("discard", 0, 512),
        ("zeroes", 0, 512),
    ];
    assert_eq!(scene.disk.take_log(), expected);
}

#[test]
fn the_nth_request_of_a_kind_fails_once() {
    let scene = scene();
    let rule = scene.rules.add(Rule::fail(libc::ENOSPC).on(RequestKind::Write).nth(2).once());
    scene.write(0).expect("the first write");
    scene.read(0).expect("a read");
    assert_eq!(errno(scene.write(0)), libc::ENOSPC);
    scene.write(0).expect("the third write");
    assert_eq!(scene.rules.rule_counts(rule), Some(RuleCounts { matched: 3, struck: 1 }));
    let writes = scene.rules.kind_counts(RequestKind::Write);
    assert_eq!((writes.requests, writes.failed, writes.short), (3, 1, 0));
    let asked = scene.disk.take_log().iter().filter(|(kind, ..)| *kind == "write").count();
    assert_eq!(asked, 2, "what fails is not passed on");
}

#[test]
fn every_kind_can_fail_alone() {
    for kind in RequestKind::ALL {
        let scene = scene();
        scene.rules.add(Rule::fail(libc::EREMOTEIO).on(kind));
        let zero = scene.backend.pwrite_zeroes(&scene.ctx, 0, 512, ZeroFlags::empty());
        let results = [
            (RequestKind::Read, scene.read(0).map(drop)),
            (RequestKind::Write, scene.write(0)),
            (RequestKind::Flush, {
                scene.write(0).ok();
                scene.backend.flush(&scene.ctx)
            }),
            (RequestKind::Discard, scene.backend.pdiscard(&scene.ctx, 0, 512)),
            (RequestKind::WriteZeroes, zero),
        ];
        for (asked, result) in results {
            let failed = result.err().and_then(|error| error.raw_os_error());
            let skipped = kind == RequestKind::Write && asked == RequestKind::Flush;
            let expected = (asked == kind && !skipped).then_some(libc::EREMOTEIO);
            assert_eq!(failed, expected, "a rule on {}, a {}", kind.name(), asked.name());
        }
    }
}

#[test]
fn a_rule_on_a_range_strikes_what_touches_it() {
    let scene = scene();
    scene.rules.add(Rule::fail(libc::EIO).within(4096..8192));
    for (offset, fails) in [(0, false), (3072, false), (3073, true), (8191, true), (8192, false)] {
        assert_eq!(scene.write(offset).is_err(), fails, "at {offset}");
    }
    scene.backend.flush(&scene.ctx).expect("a flush has no range");
}

#[test]
fn a_short_write_is_torn_at_whole_blocks() {
    let scene = scene_on(Memory::aligned(65536, 512), 1);
    scene.rules.add(Rule::short(700).on(RequestKind::Write).once());
    assert_eq!(errno(scene.write(4096)), libc::EIO);
    assert_eq!(scene.disk.take_log(), [("write", 4096, 512)]);
    assert_eq!(scene.disk.bytes()[4096..4608], [7; 512]);
    assert_eq!(scene.disk.bytes()[4608..5120], [0; 512]);
    // Less than a block: nothing at all.
    scene.rules.add(Rule::short(100).errno(libc::ENOSPC).once());
    assert_eq!(errno(scene.write(0)), libc::ENOSPC);
    assert_eq!(scene.disk.take_log(), []);
    // More than there is to do: all of it, and yet an error.
    scene.rules.add(Rule::short(1 << 40).once());
    assert_eq!(errno(scene.write(0)), libc::EIO);
    assert_eq!(scene.disk.take_log(), [("write", 0, 1024)]);
}

#[test]
fn a_short_read_has_filled_its_beginning() {
    let scene = scene();
    scene.disk.bytes().fill(3);
    scene.rules.add(Rule::short(100));
    let mut buffer = [0u8; 200];
    let mut target = IoVectorMut::from(&mut buffer[..]);
    assert_eq!(errno(scene.backend.preadv(&scene.ctx, 0, &mut target)), libc::EIO);
    assert!(buffer[..100] == [3; 100] && buffer[100..] == [0; 100]);
}

#[test]
fn a_delay_is_kept_on_the_contexts_clock() {
    let scene = scene();
    scene.rules.add(Rule::delay(Duration::from_secs(3)).on(RequestKind::Read).once());
    let begin = scene.ctx.now_ns();
    scene.read(0).expect("a read");
    assert_eq!(scene.ctx.now_ns() - begin, 3_000_000_000);
    scene.read(0).expect("a read");
    assert_eq!(scene.ctx.now_ns() - begin, 3_000_000_000);
    scene.rules.add(Rule::fail(libc::EIO).after(Duration::from_secs(1)));
    assert_eq!(errno(scene.read(0)), libc::EIO);
    assert_eq!(scene.ctx.now_ns() - begin, 4_000_000_000);
    assert_eq!(scene.rules.kind_counts(RequestKind::Read).delayed, 2);
}

#[test]
fn a_drain_waits_for_a_delayed_request() {
    let scene = scene();
    scene.rules.add(Rule::delay(Duration::from_secs(3)));
    scene.backend.aio_flush(&scene.ctx, |_, result| result.expect("a flush"));
    drop(scene.backend.drain(&scene.ctx));
    assert_eq!(scene.backend.in_flight(), 0);
}

#[test]
fn chance_comes_from_the_seed() {
    let run = |seed| {
        let scene = scene_on(Memory::new(65536), seed);
        scene.rules.add(Rule::fail(libc::EIO).probability(0.25));
        (0..400).map(|_| scene.write(0).is_err()).collect::<Vec<bool>>()
    };
    let (first, again, other) = (run(7), run(7), run(8));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let failed = first.iter().filter(|failed| **failed).count();
    assert!((50..150).contains(&failed), "{failed} of 400 at one in four");
}

#[test]
fn the_first_rule_that_strikes_decides_and_rules_can_go() {
    let scene = scene();
    let first = scene.rules.add(Rule::fail(libc::ENOSPC).once());
    let second = scene.rules.add(Rule::fail(libc::EIO).nth(3));
    assert_eq!(errno(scene.write(0)), libc::ENOSPC);
    scene.write(0).expect("before the third");
    assert_eq!(errno(scene.write(0)), libc::EIO);
    assert!(scene.rules.remove(second) && !scene.rules.remove(second));
    scene.write(0).expect("no rule is left");
    assert_eq!(scene.rules.rule_counts(second), None);
    assert_eq!(scene.rules.rule_counts(first), Some(RuleCounts { matched: 4, struck: 1 }));
    scene.rules.clear();
    assert_eq!(scene.rules.rule_counts(first), None);
}

/// A disk behind `blkdebug` with these options, and perhaps `raw` above; and what becomes of requests
/// to its beginning, a letter each: read, write, zeroes, flush. `.` for what succeeds, else `!`.
fn fares(above: bool, options: &str, requests: &str) -> String {
    let (ctx, blockdevs) =
        (AioContext::for_test().expect("a context"), Blockdevs::new(coblk_block::drivers()));
    let debug = format!(
        r#"{{"driver": "blkdebug", "node-name": "debug", "image": {{"driver": "null-co"}}, {options}}}"#
    );
    let line = match above {
        true => format!(r#"{{"driver": "raw", "node-name": "top", "file": {debug}}}"#),
        false => debug,
    };
    let node = blockdevs.open(&ctx, NodeOptions::from_json(&line).expect("options"));
    let backend = BlockBackend::new(&ctx, "drive", node.expect("a node"));
    let ask = |request| {
        let mut data = [7; 512];
        match request {
            'r' => backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..])),
            'w' => backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), WriteFlags::empty()),
            // Within a block.
            'm' => backend.pwritev(&ctx, 512, &IoVector::from(&data[..]), WriteFlags::empty()),
            'z' => backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::empty()),
            _ => backend.flush(&ctx),
        }
    };
    requests.chars().map(|request| if ask(request).is_ok() { '.' } else { '!' }).collect()
}

/// As `qemu-io` has it with the same options.
#[test]
fn rules_take_effect_with_their_event() {
    let when = |event: &str| format!(r#""inject-error": [{{"event": "{event}"}}]"#);
    for (above, event, requests, expected) in [
        (true, "read_aio", "wrwr", ".!!!"),
        (true, "write_aio", "rwr", ".!!"),
        (false, "read_aio", "wrw", "..."),
        (true, "pwritev", "rwr", ".!!"),
        (true, "pwritev_done", "wwr", ".!!"),
        (false, "pwritev_zero", "wzr", ".!!"),
        (true, "flush_to_os", "wfr", ".!!"),
        (true, "flush_to_disk", "wfr", ".!!"),
        (false, "flush_to_disk", "wfr", "..."),
        (true, "l2_load", "rwzf", "...."),
        (false, "none", "rwzf", "!!!!"),
    ] {
        assert_eq!(fares(above, &when(event), requests), expected, "{event}");
    }
    let two = r#""inject-error": [{"event": "none", "iotype": "read"},
        {"event": "pwritev", "once": true}]"#;
    assert_eq!(fares(false, two, "rwrw"), "!!..", "one ends the other");
    let padded = |event| format!(r#""align": 4096, {}"#, when(event));
    assert_eq!(fares(false, &padded("pwritev_rmw_head"), "wmr"), ".!!");
    assert_eq!(fares(false, &padded("pwritev_rmw_tail"), "rwr"), ".!!");
    assert_eq!(fares(false, &padded("pwritev_rmw_after_tail"), "zwr"), ".!!");
}

#[test]
fn events_change_the_state_that_rules_ask_for() {
    let one = r#""set-state": [{"event": "write_aio", "new_state": 2}],
        "inject-error": [{"event": "read_aio", "state": 2}]"#;
    assert_eq!(fares(true, one, "rwr"), "..!");
    // The state of before decides, for all that wait for one event.
    let more = r#""set-state": [{"event": "write_aio", "new_state": 2},
        {"event": "write_aio", "state": 2, "new_state": 3}],
        "inject-error": [{"event": "read_aio", "state": 3}]"#;
    assert_eq!(fares(true, more, "wrwr"), "...!");
    let first = r#""inject-error": [{"event": "none", "state": 1, "once": true}, {"state": 2}]"#;
    assert_eq!(fares(true, first, "rrw"), "!..");
}
