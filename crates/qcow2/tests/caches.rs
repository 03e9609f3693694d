//! Caches of tables: other sizes by a reopen, and memory that is given back.

mod util;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::{Stand, assert_same};

/// Bytes of memory of this process that nothing else has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// 32 MiB of tables, one for each 2 MiB of the disk, by QEMU.
fn many_tables(stand: &Stand) -> std::path::PathBuf {
    let image = stand.create("image.qcow2", "preallocation=metadata,cluster_size=4k", "16G");
    assert!(std::fs::metadata(&image).unwrap().len() > 16 << 30);
    image
}

#[test]
fn q65_caches_get_other_sizes_and_give_memory_back() {
    let stand = Stand::in_memory();
    let image = many_tables(&stand);
    let options = |more: Value| {
        let mut all = json!({"node-name": "disk", "read-only": false, "l2-cache-entry-size": 4096});
        let members = more.as_object().unwrap().clone();
        members.into_iter().for_each(|(name, value)| all[name] = value);
        stand.options(&image, all)
    };
    let node =
        stand.blockdevs.open(&stand.ctx, options(json!({"l2-cache-size": 1 << 20}))).unwrap();
    let opened = util::Opened::new(&stand, node);
    let reopen = |more: Value| stand.blockdevs.reopen(&stand.ctx, vec![options(more)]);
    let read_tables = || {
        // One byte below each table.
        for at in (0..16_u64 << 30).step_by(2 << 20) {
            assert_eq!(opened.read(at, 1).unwrap(), [0]);
        }
    };
    read_tables();
    let small = resident();
    reopen(json!({"l2-cache-size": 64 << 20})).unwrap();
    read_tables();
    let large = resident();
    assert!(large > small + (24 << 20), "{small} and {large}");
    reopen(json!({"l2-cache-size": 1 << 20, "refcount-cache-size": 1 << 20})).unwrap();
    let again = resident();
    assert!(again + (20 << 20) < large, "{large} and {again}");
    read_tables();
    assert!(resident() + (20 << 20) < large);
    // All three are too much, and nothing changes.
    let all =
        json!({"cache-size": 9 << 20, "l2-cache-size": 1 << 20, "refcount-cache-size": 1 << 20});
    let error = reopen(all).unwrap_err().to_string();
    assert!(error.contains("may not be set at the same time"), "{error}");
    let error = reopen(json!({"cache-clean-interval": 1_u64 << 32})).unwrap_err().to_string();
    assert!(error.contains("cache-clean-interval"), "{error}");
    let error = reopen(json!({"l2-cache-entry-size": 512})).unwrap_err().to_string();
    assert!(error.contains("l2-cache-entry-size"), "{error}");
    read_tables();
    drop(opened);
    stand.end();
}

#[test]
fn q65_data_stays_while_caches_change() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=512", "4M");
    let options = |more: Value| {
        let mut all = json!({"node-name": "disk", "read-only": false, "l2-cache-entry-size": 512});
        let members = more.as_object().unwrap().clone();
        members.into_iter().for_each(|(name, value)| all[name] = value);
        stand.options(&image, all)
    };
    let opened =
        stand.open_writable(&image, json!({"node-name": "disk", "l2-cache-entry-size": 512}));
    let mut random = fastrand::Rng::with_seed(65);
    let mut content = vec![0; 4 << 20];
    for round in 0..60 {
        for _ in 0..20 {
            let (at, value) = (random.usize(..(4 << 20) - 3000), random.u8(1..));
            let bytes = random.usize(1..3000);
            opened.write(at as u64, &vec![value; bytes]).unwrap();
            content[at..at + bytes].fill(value);
        }
        let more = match round % 4 {
            0 => json!({"l2-cache-size": 1024}),
            1 => json!({"cache-size": random.u64(..100_000)}),
            2 => {
                json!({"l2-cache-size": 20_000, "refcount-cache-size": 600, "cache-clean-interval": 1})
            }
            _ => json!({}),
        };
        stand.blockdevs.reopen(&stand.ctx, vec![options(more)]).unwrap();
        let (at, bytes) = (random.usize(..3 << 20), random.usize(1..1 << 20));
        let read = opened.read(at as u64, bytes).unwrap();
        assert_same(&read, &content[at..at + bytes], "a part");
    }
    drop(opened);
    stand.check(&image);
    assert_same(&stand.content(&image), &content, "all");
    stand.end();
}

#[test]
fn q61_tables_that_are_not_used_leave_memory() {
    let stand = Stand::in_memory();
    let image = many_tables(&stand);
    let file = json!({
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": tools::text(&image)},
        "set-state": [{"event": "l2_load", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "l2_load", "state": 2, "errno": 5}],
    });
    let more = json!({"file": file, "cache-clean-interval": 1, "l2-cache-size": 64 << 20});
    let opened = stand.open(&image, more);
    assert_eq!(opened.read(0, 1).unwrap(), [0]);
    // The next load of a table fails. As long as the table is there, reads need none.
    assert_eq!(opened.read(0, 1).unwrap(), [0]);
    let give_up = Instant::now() + Duration::from_secs(60);
    while opened.read(0, 1).is_ok() {
        assert!(Instant::now() < give_up, "the table stays");
        stand.ctx.run(|co| co.sleep(Duration::from_millis(2100)));
    }
    // Another interval, or none, comes with a reopen.
    drop(opened);
    stand.end();
}

#[test]
fn q65_no_coroutine_waits_for_the_cache_of_an_image_that_is_not_active_or_is_gone() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "16M");
    let waiting = || {
        // Those that were woken end in the next poll.
        stand.ctx.run(|co| co.sleep(Duration::from_millis(1)));
        stand.ctx.coroutines().iter().filter(|it| it.name.contains("clean the cache")).count()
    };
    for again_active in [false, true] {
        let mut opened = stand.open_writable(&image, json!({}));
        opened.write(0, &[7; 512]).unwrap();
        assert_eq!(waiting(), 1);
        opened.backend = None;
        let set_active = |active| {
            let node = Arc::clone(&opened.node);
            stand.ctx.run(move |co| node.co_set_active(co, active)).unwrap();
        };
        set_active(false);
        assert_eq!(waiting(), 0);
        if again_active {
            set_active(true);
        }
        opened.close();
        assert_eq!(waiting(), 0, "active again: {again_active}");
    }
    // One that is only read.
    let opened = stand.open(&image, json!({}));
    assert_eq!(opened.read(0, 1).unwrap(), [7]);
    assert_eq!(waiting(), 1);
    drop(opened);
    assert_eq!(waiting(), 0);
}
