//! Images made by QEMU are read byte for byte as QEMU reads them.

use serde_json::json;

use crate::util::{Stand, assert_same};

/// Random requests for `qemu-io`: writes of all kinds within `size` bytes of clusters of `cluster`. Those
/// that are compressed come first: QEMU does not write them over others.
fn requests(random: &mut fastrand::Rng, size: u64, cluster: u64, packs: bool) -> Vec<String> {
    let mut requests = Vec::new();
    for offset in (0..size / cluster).map(|index| index * cluster) {
        if packs && requests.len() < 12 && random.u32(..3) == 0 {
            let pattern = random.u8(1..);
            requests.push(format!("write -c -P {pattern} {offset} {cluster}"));
        }
    }
    let count = random.usize(8..32);
    requests.extend((0..count).map(|_| request(random, size, cluster)));
    requests
}

fn request(random: &mut fastrand::Rng, size: u64, cluster: u64) -> String {
    let unit = *random.choice(&[512, 4096, cluster]).unwrap();
    let (unit, most) = (unit.min(size / 2), (3 * cluster).min(size / 4).max(512));
    let offset = random.u64(..size / unit) * unit;
    let bytes = random.u64(1..=most.div_ceil(512)) * 512;
    let bytes = bytes.min(size - offset);
    let pattern = random.u8(1..);
    match random.u32(..6) {
        0 => format!("write -z {offset} {bytes}"),
        1 => format!("write -z -u {offset} {bytes}"),
        2 => format!("discard {offset} {bytes}"),
        _ => format!("write -P {pattern} {offset} {bytes}"),
    }
}

/// Makes an image of these options, fills it, and compares all of it.
fn compare(seed: u64, options: &str, cluster: u64, backing: bool) {
    let stand = Stand::new();
    let mut random = fastrand::Rng::with_seed(seed);
    let size = (12 * cluster).clamp(256 << 10, 16 << 20);
    let packs = !options.contains("data_file");
    let mut all = format!("cluster_size={cluster}");
    if !options.is_empty() {
        all = format!("{all},{options}");
    }
    if backing {
        stand.random_file("base.raw", (size / 2) as usize + 512);
        let base = "backing_file=base.raw,backing_fmt=raw";
        let middle = stand.create("middle.qcow2", base, &size.to_string());
        stand.qemu_io(&middle, &requests(&mut random, size, 65536, true));
        all = format!("{all},backing_file=middle.qcow2,backing_fmt=qcow2");
    }
    let image = stand.create("image.qcow2", &all, &size.to_string());
    stand.qemu_io(&image, &requests(&mut random, size, cluster, packs));
    let theirs = stand.content(&image);
    for more in [json!({}), json!({"l2-cache-size": 1, "l2-cache-entry-size": 512})] {
        let opened = stand.open(&image, more);
        let what = format!("seed {seed}, {all}");
        assert_same(&opened.read_all(&mut random), &theirs, &what);
        assert_same(&opened.read(0, theirs.len()).unwrap(), &theirs, &what);
    }
    stand.end();
}

#[test]
fn q33_clusters_of_every_size_are_read() {
    for bits in 9..=21 {
        compare(bits, "compat=1.1", 1 << bits, bits % 2 == 0);
    }
}

#[test]
fn q5_images_of_version_2_are_read() {
    for (seed, bits) in [(30, 9), (31, 12), (32, 16), (33, 21)] {
        compare(seed, "compat=0.10", 1 << bits, seed % 2 == 0);
    }
}

#[test]
fn q38_q39_extended_entries_are_read() {
    for (seed, bits) in [(40, 14), (41, 15), (42, 16), (43, 18), (44, 21)] {
        compare(seed, "extended_l2=on", 1 << bits, seed % 2 == 0);
        compare(seed + 10, "extended_l2=on,compression_type=zstd", 1 << bits, true);
    }
}

#[test]
fn q40_q41_compressed_clusters_are_read() {
    for (seed, bits) in [(60, 9), (61, 12), (62, 16), (63, 21)] {
        compare(seed, "compression_type=zlib", 1 << bits, false);
        compare(seed + 10, "compression_type=zstd", 1 << bits, seed % 2 == 0);
    }
}

#[test]
fn q45_images_with_refcounts_of_every_width_are_read() {
    for order in 0..=6 {
        compare(80 + order, &format!("refcount_bits={}", 1 << order), 65536, false);
    }
}

#[test]
fn q46_q63_external_data_files_are_read() {
    for (seed, options) in [
        (90, "data_file=data.raw"),
        (91, "data_file=data.raw,data_file_raw=on"),
        (92, "data_file=data.raw,extended_l2=on"),
    ] {
        compare(seed, options, 65536, seed == 90);
        compare(seed + 10, options, 16384, false);
    }
}

#[test]
fn q41_converted_images_that_are_compressed_are_read() {
    for (kind, cluster) in [("zlib", "64k"), ("zstd", "64k"), ("zlib", "4k"), ("zstd", "2M")] {
        let stand = Stand::new();
        // Packed clusters go over the borders of clusters of the file.
        let raw = stand.random_file("text.raw", 3 << 20);
        let text: Vec<u8> = std::fs::read(&raw).unwrap().iter().map(|byte| byte % 11).collect();
        std::fs::write(&raw, &text).unwrap();
        let image = stand.path("packed.qcow2");
        let options = format!("compression_type={kind},cluster_size={cluster}");
        let [from, to] = [&raw, &image].map(|path| coblk_tests::tools::text(path));
        let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, from, to];
        coblk_tests::tools::run("qemu-img", args);
        let opened = stand.open(&image, json!({}));
        assert!(opened.status(0, 1 << 20).compressed);
        assert_same(&opened.read_all(&mut fastrand::Rng::with_seed(1)), &text, kind);
        drop(opened);
        stand.end();
    }
}

#[test]
fn q20_an_image_may_end_within_its_tables() {
    let stand = Stand::new();
    let image = stand.create("empty.qcow2", "", "1G");
    assert!(std::fs::metadata(&image).unwrap().len() < 200_000);
    let opened = stand.open(&image, json!({}));
    assert_eq!(opened.node.length(), 1 << 30);
    assert_eq!(opened.read((1 << 30) - 4096, 4096).unwrap(), [0; 4096]);
    drop(opened);
    // An L1 table that is not in the file at all.
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(140_000).unwrap();
    assert_eq!(stand.open(&image, json!({})).read(0, 512).unwrap(), [0; 512]);
    stand.end();
}

#[test]
fn q87_pieces_of_one_request_are_put_together() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "1M");
    // Each cluster from another place: data, zeroes, nothing, compressed, backwards in the file.
    let mut commands = Vec::new();
    for cluster in (0..256).rev().filter(|it| it % 5 != 4) {
        let (offset, pattern) = (cluster * 4096, cluster % 250 + 1);
        commands.push(match cluster % 5 {
            0 | 1 => format!("write -P {pattern} {offset} 4096"),
            2 => format!("write -z {offset} 4096"),
            _ => format!("write -c -P {pattern} {offset} 4096"),
        });
    }
    stand.qemu_io(&image, &commands);
    let theirs = stand.content(&image);
    let opened = stand.open(&image, json!({}));
    assert_same(&opened.read(0, 1 << 20).unwrap(), &theirs, "all");
    assert_same(&opened.read(100, 300_000).unwrap(), &theirs[100..300_100], "a part");
    drop(opened);
    stand.end();
}
