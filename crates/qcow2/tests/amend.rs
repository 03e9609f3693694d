//! Changes of an image's options, beside `qemu-img amend`.

use std::fs;
use std::path::Path;
use std::process::Command;

use coblk_aio::IoVector;
use coblk_block::{Amend, WriteFlags, ZeroFlags};
use coblk_qapi::Deferred;
use coblk_qcow2::layout::Header;
use serde_json::{Value, json};

use crate::util::{Opened, Stand};

/// Changes options of an open image.
fn amend(opened: &Opened<'_>, options: Value) -> Result<(), String> {
    let change = Amend::new(Deferred::new(options.as_object().unwrap().clone()));
    let changed = opened.ctx().run(|co| opened.node.co_image(co)?.co_amend(co, change));
    changed.map_err(|error| error.to_string())
}

fn header(path: &Path) -> Header {
    Header::parse(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn q150_q151_headers_are_changed_as_by_qemu_img_amend() {
    let stand = Stand::new();
    for (create, ours, theirs) in [
        ("compat=0.10", json!({"version": "v3"}), "compat=1.1"),
        ("compat=0.10,cluster_size=4k", json!({"version": "v3"}), "compat=1.1"),
        (
            "compat=0.10",
            json!({"version": "v3", "lazy-refcounts": true}),
            "compat=1.1,lazy_refcounts=on",
        ),
        ("compat=1.1", json!({"lazy-refcounts": true}), "lazy_refcounts=on"),
        ("lazy_refcounts=on", json!({"lazy-refcounts": false}), "lazy_refcounts=off"),
        ("compat=0.10", json!({"version": "v2"}), "compat=0.10"),
        ("compat=1.1", json!({"version": "v2"}), "compat=0.10"),
        ("cluster_size=4k,lazy_refcounts=on", json!({"version": "v2"}), "compat=0.10"),
        ("backing_file=BASE,backing_fmt=raw", json!({"version": "v2"}), "compat=0.10"),
        ("compression_type=zstd", json!({"version": "v2"}), "compat=0.10"),
        (
            "refcount_bits=8",
            json!({"version": "v2", "refcount-bits": 16}),
            "compat=0.10,refcount_bits=16",
        ),
        ("compat=1.1", json!({"refcount-bits": 1}), "refcount_bits=1"),
        ("cluster_size=512", json!({"refcount-bits": 64}), "refcount_bits=64"),
        ("compat=0.10", json!({"version": "v3", "refcount-bits": 8}), "compat=1.1,refcount_bits=8"),
        ("data_file=DATA,data_file_raw=on", json!({"data-file-raw": false}), "data_file_raw=off"),
    ] {
        let named = create.replace("DATA", stand.path("data").to_str().unwrap());
        let named = named.replace("BASE", stand.random_file("base", 3 << 20).to_str().unwrap());
        let path = stand.create("image.qcow2", &named, "3M");
        stand.qemu_io(&path, &["write -P 9 1M 100k".to_owned()]);
        if !create.contains("0.10") && !create.contains("data") {
            // Zeroes with a place, and without.
            stand.qemu_io(&path, &["write -z 1M 64k".to_owned(), "write -zu 2M 200k".to_owned()]);
        }
        let mut bytes = stand.content(&path);
        let other = stand.path("theirs.qcow2");
        fs::copy(&path, &other).unwrap();
        let opened = stand.open_writable(&path, json!({}));
        amend(&opened, ours).unwrap();
        // The node goes on.
        opened.write(0, &[8; 3000]).unwrap();
        bytes[..3000].fill(8);
        let zero = |co: &coblk_aio::Co<'_>| {
            opened.backend().co_pwrite_zeroes(co, 1 << 20, 65536, ZeroFlags::empty())
        };
        opened.ctx().run(zero).unwrap();
        bytes[1 << 20..(1 << 20) + 65536].fill(0);
        opened.flush().unwrap();
        assert!(opened.read(0, 3 << 20).unwrap() == bytes, "{create}");
        drop(opened);
        let command = ["amend", "-f", "qcow2", "-o", theirs];
        assert!(Command::new("qemu-img").args(command).arg(&other).status().unwrap().success());
        let mut ours = header(&path);
        let theirs = header(&other);
        // Writes have changed no more than where tables are.
        (ours.l1_offset, ours.refcount_table_offset) =
            (theirs.l1_offset, theirs.refcount_table_offset);
        assert_eq!(ours, theirs, "{create}");
        stand.check(&path);
        assert!(stand.content(&path) == bytes, "{create}");
    }
    stand.end();
}

#[test]
fn q150_a_data_file_gets_another_name() {
    let stand = Stand::new();
    let (data, moved) = (stand.path("data"), stand.path("moved"));
    let path = stand.create("image.qcow2", &format!("data_file={}", data.display()), "3M");
    stand.qemu_io(&path, &["write -P 9 1M 100k".to_owned()]);
    let before = stand.content(&path);
    let opened = stand.open_writable(&path, json!({}));
    amend(&opened, json!({"data-file": moved})).unwrap();
    drop(opened);
    fs::rename(&data, &moved).unwrap();
    assert!(stand.content(&path) == before);
    stand.end();
}

#[test]
fn q150_what_makes_no_sense_changes_nothing() {
    let stand = Stand::new();
    for (create, options, why) in [
        ("compat=0.10", json!({"lazy-refcounts": true}), "needs version 3"),
        ("compat=1.1", json!({"lazy-refcounts": true, "data-file": "x"}), "has no data file"),
        ("extended_l2=on", json!({"version": "v2"}), "incompatible features, such as 0x10"),
        ("refcount_bits=8", json!({"version": "v2"}), "refcount_bits=16"),
        ("data_file=DATA", json!({"version": "v2"}), "data file cannot become version 2"),
        ("compat=1.1", json!({"version": "v2", "lazy-refcounts": true}), "needs version 3"),
        ("compat=0.10", json!({"refcount-bits": 8}), "need version 3"),
        ("compat=1.1", json!({"refcount-bits": 3}), "power of two"),
        ("compat=1.1", json!({"refcount-bits": 128}), "power of two"),
        ("compat=1.1", json!({"refcount-bits": 0}), "power of two"),
        ("compat=1.1", json!({"data-file-raw": true}), "cannot be set"),
        (
            "compat=1.1",
            json!({"lazy-refcounts": true, "encrypt": {"state": "inactive"}}),
            "not encrypted",
        ),
        ("compat=1.1", json!({"cluster-size": 512}), "cluster-size"),
    ] {
        let named = create.replace("DATA", stand.path("data").to_str().unwrap());
        let path = stand.create("image.qcow2", &named, "3M");
        let before = fs::read(&path).unwrap();
        let opened = stand.open_writable(&path, json!({}));
        let error = amend(&opened, options).unwrap_err();
        assert!(error.contains(why), "{error}");
        drop(opened);
        assert!(fs::read(&path).unwrap() == before, "{create}");
    }
    stand.end();
}

#[test]
fn q151_snapshots_that_version_2_cannot_have_keep_version_3() {
    let stand = Stand::new();
    {
        let path = stand.create("image.qcow2", "", "3M");
        stand.qemu_io(&path, &["write -P 9 0 1M".to_owned()]);
        let text = path.to_str().unwrap();
        let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).status().unwrap();
        assert!(qemu_img(&["snapshot", "-c", "one", text]).success());
        assert!(qemu_img(&["resize", "-q", text, "4M"]).success());
        let content = stand.content(&path);
        let opened = stand.open_writable(&path, json!({}));
        let error = amend(&opened, json!({"version": "v2"})).unwrap_err();
        assert!(error.contains("another size"), "{error}");
        drop(opened);
        assert!(header(&path).version == 3 && stand.content(&path) == content);
        stand.check(&path);
    }
    // One that version 2 can have stays.
    let path = stand.create("image.qcow2", "", "3M");
    stand.qemu_io(&path, &["write -P 9 0 1M".to_owned()]);
    let text = path.to_str().unwrap();
    let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).status().unwrap();
    assert!(qemu_img(&["snapshot", "-c", "one", text]).success());
    stand.qemu_io(&path, &["write -P 8 512k 1M".to_owned(), "write -z 0 64k".to_owned()]);
    let content = stand.content(&path);
    let opened = stand.open_writable(&path, json!({}));
    amend(&opened, json!({"version": "v2"})).unwrap();
    drop(opened);
    stand.check(&path);
    assert!(header(&path).version == 2 && stand.content(&path) == content);
    assert!(qemu_img(&["snapshot", "-a", "one", text]).success());
    assert!(stand.content(&path)[..1 << 20].iter().all(|byte| *byte == 9));
    stand.end();
}

/// What QEMU reads of each snapshot, and of the disk.
fn contents(stand: &Stand, image: &Path) -> Vec<Vec<u8>> {
    let of = |name: &str| {
        let raw = stand.path("snapshot.raw");
        let from = ["convert", "-f", "qcow2", "-O", "raw", "-l", name];
        assert!(
            Command::new("qemu-img").args(from).args([image, &raw]).status().unwrap().success()
        );
        fs::read(raw).unwrap()
    };
    ["one", "two", "three"].into_iter().map(of).chain([stand.content(image)]).collect()
}

#[test]
fn q151_zeroes_of_snapshots_become_data_or_nothing() {
    for create in ["", "backing_file=BASE,backing_fmt=raw", "cluster_size=512"] {
        let stand = Stand::new();
        let base = stand.random_file("base", 3 << 20);
        let options = create.replace("BASE", base.to_str().unwrap());
        let path = stand.create("image.qcow2", &options, "3M");
        let text = path.to_str().unwrap();
        let snapshot = |name: &str| {
            let made = Command::new("qemu-img").args(["snapshot", "-c", name, text]).status();
            assert!(made.unwrap().success());
        };
        // Zeroes with a place, also of data that the disk has, and without; tables that snapshots share, or not.
        stand.qemu_io(&path, &["write -P 9 0 1M".into(), "write -z 128k 128k".into()]);
        snapshot("one");
        stand.qemu_io(&path, &["write -zu 1M 300k".into(), "write -P 8 2M 64k".into()]);
        snapshot("two");
        snapshot("three");
        stand.qemu_io(&path, &["write -z 512k 64k".into(), "write -P 7 1M 64k".into()]);
        let before = contents(&stand, &path);
        let opened = stand.open_writable(&path, json!({}));
        amend(&opened, json!({"version": "v2"})).unwrap();
        // The node goes on.
        opened.write(700_000, &[6; 100_000]).unwrap();
        opened.flush().unwrap();
        drop(opened);
        stand.check(&path);
        assert_eq!(header(&path).version, 2);
        let mut wanted = before.clone();
        wanted[3][700_000..800_000].fill(6);
        assert!(contents(&stand, &path) == wanted, "{create}");
        // One that becomes the disk, and goes, leaves nothing.
        for args in [["snapshot", "-a", "one", text], ["snapshot", "-d", "two", text]] {
            assert!(Command::new("qemu-img").args(args).status().unwrap().success());
            stand.check(&path);
        }
        assert!(stand.content(&path) == before[0], "{create}");
        stand.end();
    }
}

#[test]
fn q151_zstd_is_given_up_where_no_cluster_has_it() {
    let stand = Stand::new();
    let path = stand.create("image.qcow2", "compression_type=zstd", "3M");
    stand.qemu_io(&path, &["write -P 9 0 1M".to_owned()]);
    let opened = stand.open_writable(&path, json!({}));
    amend(&opened, json!({"version": "v2"})).unwrap();
    // What is compressed from now on is so in the way of version 2.
    let compressed = |offset| {
        let source = IoVector::from(&[7; 65536][..]);
        opened.backend().pwritev(opened.ctx(), offset, &source, WriteFlags::COMPRESSED).unwrap();
        assert!(opened.status(offset, 65536).compressed);
    };
    compressed(2 << 20);
    assert!(opened.read(2 << 20, 65536).unwrap() == [7; 65536]);
    drop(opened);
    stand.check(&path);
    let content = stand.content(&path);
    assert!(content[..1 << 20].iter().all(|byte| *byte == 9));
    assert!(content[2 << 20..][..65536].iter().all(|byte| *byte == 7));

    // As of the disk, so of a snapshot.
    let snapshot = |path: &Path| {
        let made = Command::new("qemu-img").args(["snapshot", "-c", "one"]).arg(path).status();
        assert!(made.unwrap().success());
    };
    for has_snapshot in [false, true] {
        let path = stand.create("other.qcow2", "compression_type=zstd", "3M");
        stand.qemu_io(&path, &["write -c -P 9 0 64k".to_owned()]);
        if has_snapshot {
            snapshot(&path);
            stand.qemu_io(&path, &["write -P 8 0 64k".to_owned()]);
        }
        let before = fs::read(&path).unwrap();
        let opened = stand.open_writable(&path, json!({}));
        let error = amend(&opened, json!({"version": "v2"})).unwrap_err();
        assert!(error.contains("compressed by zstd cannot become version 2"), "{error}");
        drop(opened);
        assert!(fs::read(&path).unwrap() == before, "{has_snapshot}");
    }
    stand.end();
}

#[test]
fn q152_a_refcount_that_does_not_fit_changes_nothing() {
    let stand = Stand::new();
    let path = stand.create("image.qcow2", "", "3M");
    stand.qemu_io(&path, &["write -P 9 0 1M".to_owned()]);
    let text = path.to_str().unwrap();
    for name in ["one", "two"] {
        let made = Command::new("qemu-img").args(["snapshot", "-c", name, text]).status();
        assert!(made.unwrap().success());
    }
    let opened = stand.open_writable(&path, json!({}));
    let before = fs::read(&path).unwrap();
    let error = amend(&opened, json!({"refcount-bits": 1})).unwrap_err();
    assert!(error.contains("0x40000 has a refcount of 3"), "{error}");
    assert!(fs::read(&path).unwrap() == before);
    amend(&opened, json!({"refcount-bits": 2})).unwrap();
    opened.write(2 << 20, &[1; 1000]).unwrap();
    drop(opened);
    stand.check(&path);
    stand.end();
}

#[test]
fn q151_requests_go_on_beside_a_change_to_version_2() {
    for create in ["", "backing_file=BASE,backing_fmt=raw"] {
        let stand = Stand::new();
        let base = stand.random_file("base", 8 << 20);
        let options = format!("cluster_size=4k,{}", create.replace("BASE", base.to_str().unwrap()));
        let path = stand.create("image.qcow2", options.trim_end_matches(','), "8M");
        stand.qemu_io(&path, &["write -zu 0 6M".to_owned()]);
        let mut bytes = stand.content(&path);
        let opened = stand.open_writable(&path, json!({"discard": "unmap"}));
        let node = opened.node.clone();
        std::thread::scope(|scope| {
            let amended = scope.spawn(|| {
                let ctx = coblk_aio::AioContext::for_test().unwrap();
                let options = json!({"version": "v2"}).as_object().unwrap().clone();
                let change = Amend::new(Deferred::new(options));
                ctx.run(|co| node.co_image(co)?.co_amend(co, change)).unwrap();
            });
            let mut random = fastrand::Rng::with_seed(151);
            while !amended.is_finished() || random.u32(..100) != 0 {
                let (at, value) = (random.usize(..(8 << 20) - 20_000), random.u8(1..));
                let length = random.usize(1..20_000);
                if random.bool() {
                    let zero = |co: &coblk_aio::Co<'_>| {
                        let flags = ZeroFlags::MAY_UNMAP;
                        opened.backend().co_pwrite_zeroes(co, at as u64, length as u64, flags)
                    };
                    opened.ctx().run(zero).unwrap();
                    bytes[at..at + length].fill(0);
                } else {
                    opened.write(at as u64, &vec![value; length]).unwrap();
                    bytes[at..at + length].fill(value);
                }
            }
        });
        assert!(opened.read(0, 8 << 20).unwrap() == bytes);
        drop(opened);
        stand.check(&path);
        assert!(header(&path).version == 2 && stand.content(&path) == bytes);
        stand.end();
    }
}
