//! Writes beside a model: bytes in memory. Images are made, checked and read by QEMU's programs.

use coblk_aio::{Co, IoVector};
use coblk_block::{WriteFlags, ZeroFlags};
use serde_json::{Value, json};

use crate::util::model::{Discards, Model};
use crate::util::{Stand, assert_same, first_l2, word};

fn run(create: &str, size: &str, max_bytes: usize) {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", create, size);
    let mut model = Model::new(&stand, &image, json!({}));
    for _ in 0..2 {
        model.writes(40, max_bytes);
        model.check();
    }
    drop(model);
    stand.end();
}

#[test]
fn q91_writes_with_all_sizes_of_clusters() {
    run("cluster_size=512", "1M", 20 << 10);
    run("cluster_size=4k", "4M", 100 << 10);
    run("", "16M", 300 << 10);
    run("cluster_size=2M", "32M", 3 << 20);
}

#[test]
fn q45_writes_with_all_widths_of_refcounts() {
    for bits in [1, 2, 4, 8, 32, 64] {
        run(&format!("cluster_size=4k,refcount_bits={bits}"), "4M", 50 << 10);
    }
}

#[test]
fn q5_writes_to_an_image_of_version_2() {
    run("compat=0.10", "16M", 300 << 10);
    run("compat=0.10,cluster_size=512", "300k", 10 << 10);
}

#[test]
fn q93_writes_with_subclusters() {
    run("extended_l2=on,cluster_size=16k", "4M", 50 << 10);
    run("extended_l2=on", "16M", 300 << 10);
}

#[test]
fn q122_writes_with_a_data_file() {
    run("data_file=data.raw", "8M", 300 << 10);
    run("data_file=data2.raw,extended_l2=on", "8M", 300 << 10);
    run("data_file=data3.raw,data_file_raw=on", "8M", 300 << 10);
}

#[test]
fn q106_writes_to_preallocated_clusters() {
    run("preallocation=metadata", "8M", 300 << 10);
    run("preallocation=falloc,cluster_size=4k", "1M", 30 << 10);
    run("preallocation=metadata,extended_l2=on", "8M", 300 << 10);
}

#[test]
fn q92_writes_over_a_backing_file() {
    for create in ["", "cluster_size=4k", "extended_l2=on", "data_file=data.raw"] {
        let stand = Stand::new();
        // It ends within a cluster.
        stand.random_file("base.raw", (5 << 20) + 1234 * 512);
        let backing = format!("backing_file=base.raw,backing_fmt=raw,{create}");
        let image = stand.create("image.qcow2", backing.trim_end_matches(','), "8M");
        let mut model = Model::new(&stand, &image, json!({}));
        for _ in 0..2 {
            model.writes(40, 200 << 10);
            model.check();
        }
        drop(model);
        stand.end();
    }
}

#[test]
fn q92_writes_over_zeroes_and_compressed_clusters() {
    for create in ["", "cluster_size=4k", "extended_l2=on"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "8M");
        let commands: Vec<String> = (0..60)
            .map(|index| match index % 3 {
                0 => format!("write -c -P {} {}k 64k", index + 1, index * 128),
                1 => format!("write -z {}k 100k", index * 128),
                _ => format!("write -P {} {}k 20k", index + 1, index * 128),
            })
            .collect();
        stand.qemu_io(&image, &commands);
        let mut model = Model::new(&stand, &image, json!({}));
        model.writes(80, 100 << 10);
        model.check();
        drop(model);
        stand.end();
    }
}

#[test]
fn q153_writes_beside_internal_snapshots() {
    for create in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10,cluster_size=512"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "2M");
        let mut model = Model::new(&stand, &image, json!({}));
        model.writes(30, 100 << 10);
        model.check();
        let mut snapshots = Vec::new();
        for name in ["one", "two"] {
            let text = coblk_tests::tools::text(&image).to_owned();
            coblk_tests::tools::run("qemu-img", ["snapshot", "-c", name, &text]);
            snapshots.push((name, model.content.clone()));
            model.writes(30, 100 << 10);
            model.check();
        }
        for (name, content) in snapshots {
            let text = coblk_tests::tools::text(&image).to_owned();
            coblk_tests::tools::run("qemu-img", ["snapshot", "-a", name, &text]);
            assert_same(&stand.content(&image), &content, name);
            stand.check(&image);
        }
        drop(model);
        stand.end();
    }
}

#[test]
fn q195_writes_with_a_cache_of_two_slices() {
    for create in ["cluster_size=4k", "extended_l2=on,cluster_size=16k"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "8M");
        let options = json!({"l2-cache-size": 1024, "l2-cache-entry-size": 512});
        let mut model = Model::new(&stand, &image, options);
        model.writes(100, 50 << 10);
        model.check();
        drop(model);
        stand.end();
    }
}

fn run_clears(create: &str, size: &str, discards: Discards, options: Value) {
    let stand = Stand::new();
    if create.contains("backing_file") {
        stand.random_file("base.raw", (1 << 20) + 512);
    }
    let image = stand.create("image.qcow2", create, size);
    let mut more = json!({"discard": "unmap"});
    more.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let mut model = Model::new(&stand, &image, more);
    for _ in 0..2 {
        model.clears(40, 300 << 10, discards);
        model.check();
    }
    drop(model);
    stand.end();
}

#[test]
fn q106_q110_zeroes_and_discards() {
    let clusters = |bytes| Discards::Clusters(bytes);
    run_clears("", "8M", clusters(65536), json!({}));
    run_clears("cluster_size=4k", "2M", clusters(4096), json!({}));
    run_clears("extended_l2=on", "8M", clusters(65536), json!({}));
    run_clears("data_file=data.raw", "4M", clusters(65536), json!({}));
    run_clears("data_file=raw.raw,data_file_raw=on", "4M", clusters(65536), json!({}));
}

#[test]
fn q108_q109_zeroes_and_discards_in_version_2() {
    run_clears("compat=0.10", "8M", Discards::Clusters(65536), json!({}));
    let backing = "compat=0.10,backing_file=base.raw,backing_fmt=raw";
    run_clears(backing, "4M", Discards::Nothing, json!({}));
}

#[test]
fn q110_q172_zeroes_and_discards_hide_a_backing_file() {
    let backing = "backing_file=base.raw,backing_fmt=raw";
    for create in ["cluster_size=4k", "", "extended_l2=on"] {
        let create = format!("{backing},{create}");
        let cluster = if create.contains("4k") { 4096 } else { 65536 };
        let create = create.trim_end_matches(',');
        run_clears(create, "4M", Discards::Clusters(cluster), json!({}));
    }
}

#[test]
fn q112_discarded_clusters_may_keep_their_place() {
    let options = json!({"discard-no-unref": true});
    run_clears("", "4M", Discards::Clusters(65536), options.clone());
    run_clears("extended_l2=on", "4M", Discards::Clusters(65536), options);
}

/// Discarded clusters have the flag of zeroes then, and the place that they had; without the option they have none.
#[test]
fn q112_a_discarded_cluster_has_the_place_that_it_had() {
    for (options, has_place) in [(json!({"discard-no-unref": true}), true), (json!({}), false)] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", "", "1M");
        let mut options = options;
        options["discard"] = json!("unmap");
        let opened = stand.open_writable(&image, options);
        opened.write(0, &[7; 128 << 10]).unwrap();
        opened.flush().unwrap();
        let entry = || word(&image, first_l2(&image) + 8);
        let before = entry();
        opened.backend().pdiscard(opened.ctx(), 64 << 10, 64 << 10).unwrap();
        assert_eq!(opened.read(64 << 10, 64 << 10).unwrap(), [0; 64 << 10]);
        drop(opened);
        // The flag, and what was there.
        assert_eq!(entry(), if has_place { before | 1 } else { 1 });
        stand.check(&image);
        stand.end();
    }
}

#[test]
fn q111_q114_what_a_discard_frees_is_punched_and_used_again() {
    use std::os::unix::fs::MetadataExt;
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "64M");
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    let data = vec![7; 16 << 20];
    let blocks = || std::fs::metadata(&image).unwrap().blocks() * 512;
    for _ in 0..4 {
        opened.write(0, &data).unwrap();
        opened.flush().unwrap();
        assert!(blocks() > 16 << 20);
        opened.backend().pdiscard(&stand.ctx, 0, 16 << 20).unwrap();
        opened.flush().unwrap();
        assert!(blocks() < 2 << 20, "{}", blocks());
    }
    // The file has room for two of them at most.
    assert!(std::fs::metadata(&image).unwrap().len() < 40 << 20);
    drop(opened);
    stand.check(&image);
    stand.end();
}

#[test]
fn q113_a_discard_of_nothing_makes_no_table() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1T");
    let before = std::fs::metadata(&image).unwrap().len();
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    opened.backend().pdiscard(&stand.ctx, 0, 1 << 40).unwrap();
    let zeroes = ZeroFlags::MAY_UNMAP;
    opened.backend().pwrite_zeroes(&stand.ctx, 0, 1 << 40, zeroes).unwrap();
    drop(opened);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), before);
    stand.check(&image);
    stand.end();
}

#[test]
fn q101_q102_q103_compressed_writes_are_packed_and_replaced() {
    for create in
        ["", "cluster_size=4k", "compression_type=zstd", "refcount_bits=1", "extended_l2=on"]
    {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "4M");
        let mut model = Model::new(&stand, &image, json!({"discard": "unmap"}));
        for round in 0..3_u8 {
            for cluster in 0..40_usize {
                let (offset, bytes) = (cluster * 65536, 65536);
                // Some of them cannot be made smaller.
                let data: Vec<u8> = match cluster % 5 {
                    0 => (0..bytes).map(|_| model.random.u8(..)).collect(),
                    _ => (0..bytes).map(|at| (at / 300) as u8 ^ round ^ cluster as u8).collect(),
                };
                let source = IoVector::from(&data[..]);
                let opened = model.opened();
                let write = |co: &Co<'_>| {
                    let flags = WriteFlags::COMPRESSED;
                    opened.backend().co_pwritev(co, offset as u64, &source, flags)
                };
                stand.ctx.run(write).unwrap();
                model.content[offset..offset + bytes].copy_from_slice(&data);
            }
            model.clears(
                10,
                100 << 10,
                Discards::Clusters(if create.contains("4k") { 4096 } else { 65536 }),
            );
            model.check();
            let (report, _) = stand.qemu_img("check", &image);
            assert!(report["compressed-clusters"].as_u64() > Some(10), "{report}");
        }
        drop(model);
        stand.end();
    }
}

/// Data that takes six tenths of a cluster each time: two lie over three clusters' borders.
#[test]
fn q103_compressed_data_goes_over_the_borders_of_clusters() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "4M");
    let opened = stand.open_writable(&image, json!({}));
    let mut random = fastrand::Rng::with_seed(103);
    let mut content = vec![0; 4 << 20];
    for cluster in content.chunks_mut(65536).take(40) {
        cluster[..39_000].iter_mut().for_each(|byte| *byte = random.u8(..));
    }
    for at in 0..40 {
        let source = IoVector::from(&content[at * 65536..(at + 1) * 65536]);
        let write = |co: &Co<'_>| {
            opened.backend().co_pwritev(co, at as u64 * 65536, &source, WriteFlags::COMPRESSED)
        };
        stand.ctx.run(write).unwrap();
    }
    // Some are replaced, and leave what they shared.
    for at in [3_u64, 4, 20] {
        opened.write(at * 65536, &[7; 65536]).unwrap();
        content[at as usize * 65536..][..65536].fill(7);
    }
    assert_eq!(opened.read(0, 4 << 20).unwrap(), content);
    drop(opened);
    let (report, code) = stand.qemu_img("check", &image);
    assert_eq!((code, &report["compressed-clusters"]), (0, &json!(37)), "{report}");
    assert!(stand.content(&image) == content);
    // 40 times 39,000 bytes and a little are 24 clusters; there are three others, and tables.
    let end = std::fs::metadata(&image).unwrap().len() / 65536;
    assert!(end <= 24 + 3 + 6, "{end} clusters");
    stand.end();
}

#[test]
fn q101_compressed_writes_of_parts_are_refused() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "100k");
    let opened = stand.open_writable(&image, json!({}));
    let write = |offset: u64, bytes: usize| {
        let data = vec![7; bytes];
        let source = IoVector::from(&data[..]);
        stand.ctx.run(|co| opened.backend().co_pwritev(co, offset, &source, WriteFlags::COMPRESSED))
    };
    assert!(write(512, 65536).is_err() && write(0, 512).is_err());
    // Up to the end of the disk.
    write(65536, (100 << 10) - 65536).unwrap();
    drop(opened);
    assert!(stand.content(&image)[65536..].iter().all(|byte| *byte == 7));
    stand.check(&image);
    stand.end();
}
