//! Entries that lead behind the end of the file do not come to life when it becomes longer: clusters there
//! belong to what the node has written.

use std::fs;
use std::io;
use std::path::Path;

use coblk_block::Repair;
use coblk_tests::errno;
use serde_json::{Value, json};

use crate::util::repair::{assert_second_is_nothing, code, repair};
use crate::util::{Opened, Stand, first_l2, patch, word};

const CLUSTER: u64 = 64 << 10;
const COPIED: u64 = 1 << 63;
/// Of what one slice of an L2 table maps, and of what another one does.
const HERE: u64 = 0;
const THERE: u64 = 64 << 20;
/// How many clusters are written: more than the file becomes longer at once.
const CLUSTERS: u64 = 48;

/// An image with a cluster of data at 0.
fn image(stand: &Stand) -> std::path::PathBuf {
    let image = stand.create("image.qcow2", "", "1G");
    stand.qemu_io(&image, &["write -P 7 0 64k".to_owned()]);
    image
}

fn end(image: &Path) -> u64 {
    fs::metadata(image).unwrap().len().next_multiple_of(CLUSTER)
}

/// A slice maps 32 MiB.
fn options() -> Value {
    json!({"discard": "unmap", "l2-cache-entry-size": 4096})
}

/// Writes clusters, for which the file becomes longer.
fn fill(opened: &Opened<'_>) {
    for index in 0..CLUSTERS {
        opened.write(THERE + index * CLUSTER, &[index as u8; CLUSTER as usize]).unwrap();
    }
}

#[track_caller]
fn assert_filled(stand: &Stand, image: &Path) {
    // It is marked as corrupt, and is read all the same.
    let opened = stand.open(image, json!({}));
    for index in 0..CLUSTERS {
        let data = opened.read(THERE + index * CLUSTER, CLUSTER as usize).unwrap();
        assert!(data == [index as u8; CLUSTER as usize], "cluster {index}");
    }
}

type Request = fn(&Opened<'_>, &Stand) -> io::Result<()>;

/// What a guest asks for where an entry leads behind the end.
const REQUESTS: [(&str, Request); 5] = [
    ("a read", |opened, _| opened.read(HERE, 512).map(drop)),
    ("a write", |opened, _| opened.write(HERE, &[0xbb; 512])),
    ("a write of a cluster", |opened, _| opened.write(HERE, &[0xbb; CLUSTER as usize])),
    ("a discard", |opened, stand| opened.backend().pdiscard(&stand.ctx, HERE, CLUSTER)),
    ("a snapshot", |opened, stand| {
        stand.ctx.run(|co| opened.node.co_image(co)?.co_create_snapshot(co, "now")).map(drop)
    }),
];

#[test]
fn q141_q206_an_entry_behind_the_end_does_not_come_to_life_when_the_file_grows() {
    for ahead in [0, 3] {
        for (what, request) in REQUESTS {
            let stand = Stand::in_memory();
            let image = image(&stand);
            let place = end(&image) + ahead * CLUSTER;
            patch(&image, first_l2(&image), &(place | COPIED).to_be_bytes());
            let opened = stand.open_writable(&image, options());
            fill(&opened);
            opened.flush().unwrap();
            assert!(end(&image) > place + CLUSTER, "it was to be in the file by now");
            let error = request(&opened, &stand);
            let error = error.err().unwrap_or_else(|| panic!("{what} has met other data"));
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}");
            assert_eq!(errno(opened.write(THERE, &[1; 512])), libc::ENOMEDIUM, "{what}");
            opened.close();
            assert_filled(&stand, &image);
            stand.end();
        }
    }
}

#[test]
fn q141_q206_a_table_behind_the_end_does_not_come_to_life_when_the_file_grows() {
    let stand = Stand::in_memory();
    let image = image(&stand);
    // The second L1 entry leads behind the end: to space that the allocator will not hand out.
    let place = end(&image) + 8 * CLUSTER;
    patch(&image, word(&image, 40) + 8, &(place | COPIED).to_be_bytes());
    let opened = stand.open_writable(&image, options());
    for index in 0..4 {
        opened.write(THERE + index * CLUSTER, &[index as u8; CLUSTER as usize]).unwrap();
    }
    opened.flush().unwrap();
    assert!(fs::metadata(&image).unwrap().len() > place, "the file grows ahead");
    assert_eq!(errno(opened.read(512 << 20, 512)), libc::EIO);
    opened.close();
    stand.end();
}

#[test]
fn q141_q206_zeroes_with_a_place_behind_the_end_do_not_make_the_file_longer() {
    let stand = Stand::in_memory();
    let image = image(&stand);
    let before = end(&image);
    patch(&image, first_l2(&image), &(1_u64 << 40 | COPIED | 1).to_be_bytes());
    let opened = stand.open_writable(&image, json!({}));
    assert_eq!(errno(opened.write(HERE, &[8; 512])), libc::EIO);
    opened.close();
    assert_eq!(end(&image), before);
    stand.end();
}

#[test]
fn q141_q155_a_snapshot_that_leads_behind_the_end_frees_nothing() {
    for is_applied in [false, true] {
        let stand = Stand::in_memory();
        let image = image(&stand);
        coblk_tests::tools::run(
            "qemu-img",
            ["snapshot", "-c", "old", coblk_tests::tools::text(&image)],
        );
        let table = first_l2(&image);
        stand.qemu_io(&image, &["write -P 9 0 64k".to_owned()]);
        assert_ne!(first_l2(&image), table, "the disk has a table of its own by now");
        let place = end(&image) + 2 * CLUSTER;
        // In the table that the snapshot alone has.
        patch(&image, table, &place.to_be_bytes());
        let opened = stand.open_writable(&image, options());
        fill(&opened);
        // In the same slice, which this node has linked clusters in.
        opened.write(HERE + CLUSTER, &[5; CLUSTER as usize]).unwrap();
        opened.flush().unwrap();
        let result = stand.ctx.run(|co| {
            let image = opened.node.co_image(co)?;
            match is_applied {
                true => image.co_apply_snapshot(co, "1"),
                false => image.co_delete_snapshot(co, "1"),
            }
        });
        assert_eq!(errno(result), libc::EIO);
        opened.close();
        assert_filled(&stand, &image);
        stand.end();
    }
}

#[test]
fn q141_a_refcount_block_behind_the_end_does_not_come_to_life_when_the_file_grows() {
    let stand = Stand::in_memory();
    let image = stand.create("image.qcow2", "cluster_size=512,refcount_bits=64", "1M");
    // The block of clusters 128 to 191, where data will be before one of these is allocated.
    let place = 100 * 512_u64;
    assert!(fs::metadata(&image).unwrap().len() < 64 * 512);
    patch(&image, word(&image, 48) + 16, &place.to_be_bytes());
    let opened = stand.open_writable(&image, json!({}));
    let mut results = (0..400).map(|index| opened.write(index * 512, &[index as u8; 512]));
    // A guest does not write refcounts, whatever it writes.
    assert_eq!(results.find_map(Result::err).and_then(|it| it.raw_os_error()), Some(libc::EIO));
    drop(results);
    opened.close();
    let bytes = fs::read(&image).unwrap();
    let there = bytes.get(place as usize..place as usize + 512).unwrap_or_default();
    assert!(there.iter().all(|byte| *byte == 0), "data was written there");
    stand.end();
}

#[test]
fn q206_slices_that_were_linked_are_read_again() {
    let stand = Stand::in_memory();
    let image = stand.create("image.qcow2", "cluster_size=512", "2M");
    // Two slices: each one that was changed is read again, with places behind the end at the opening.
    let options = json!({"l2-cache-size": 1024, "l2-cache-entry-size": 512});
    let opened = stand.open_writable(&image, options);
    for round in 0..2_u8 {
        for index in 0..256 {
            opened.write(index * 8192 + 512, &[index as u8 ^ round; 1024]).unwrap();
        }
        for index in 0..256 {
            assert_eq!(opened.read(index * 8192 + 512, 1024).unwrap(), [index as u8 ^ round; 1024]);
        }
        let made = stand.ctx.run(|co| opened.node.co_image(co)?.co_create_snapshot(co, "some"));
        made.unwrap();
    }
    for index in 0..256 {
        opened.write(index * 8192, &[3; 2048]).unwrap();
    }
    for id in ["1", "2"] {
        stand.ctx.run(|co| opened.node.co_image(co)?.co_apply_snapshot(co, id)).unwrap();
        let round = id.parse::<u8>().unwrap() - 1;
        assert_eq!(opened.read(200 * 8192 + 512, 1024).unwrap(), [200 ^ round; 1024]);
        opened.write(200 * 8192 + 512, &[4; 1024]).unwrap();
        stand.ctx.run(|co| opened.node.co_image(co)?.co_delete_snapshot(co, id)).unwrap();
    }
    opened.close();
    stand.check(&image);
    stand.end();
}

/// Says of clusters behind the end of a file that they are in use: in the block that counts the end, and in one more,
/// which lies in the file. Returns the bytes of both.
fn count_behind(image: &Path) -> [std::ops::Range<u64>; 2] {
    let clusters = end(image) / CLUSTER;
    let table = word(image, 48);
    let blocks = [word(image, table), clusters * CLUSTER];
    fs::File::options().write(true).open(image).unwrap().set_len(blocks[1] + CLUSTER).unwrap();
    patch(image, table + 8, &blocks[1].to_be_bytes());
    // The new block itself, and others behind it.
    patch(image, blocks[0] + 2 * clusters, &[0, 1, 0, 0, 0, 1, 0, 3]);
    patch(image, blocks[0] + CLUSTER - 2, &[0, 1]);
    patch(image, blocks[1] + 8, &[0, 1]);
    [blocks[0] + 2 * clusters + 2..blocks[0] + CLUSTER, blocks[1]..blocks[1] + CLUSTER]
}

fn is_zero(image: &Path, range: &std::ops::Range<u64>) -> bool {
    fs::read(image).unwrap()[range.start as usize..range.end as usize].iter().all(|it| *it == 0)
}

#[test]
fn q137_q140_q218_what_is_counted_behind_the_end_does_not_come_to_leak_after_a_repair() {
    for way in [Repair::Leaks, Repair::All] {
        for is_open in [false, true] {
            let what = format!("{way:?}, open: {is_open}");
            let stand = Stand::in_memory();
            let image = image(&stand);
            let counts = count_behind(&image);
            // No space is lost as yet.
            assert_eq!(code(&repair(&stand, &image, Repair::None)), 0, "{what}");
            stand.check(&image);
            if !is_open {
                assert_eq!(code(&repair(&stand, &image, way)), 0, "{what}");
                assert!(counts.iter().all(|it| is_zero(&image, it)), "{what}");
                assert_second_is_nothing(&stand, &image, way, &what);
            }
            let opened = stand.open_writable(&image, options());
            if is_open {
                let mended = stand.ctx.run(|co| opened.node.co_image(co)?.co_check(co, way));
                assert_eq!(mended.unwrap().leaks, 0, "{what}");
                assert!(counts.iter().all(|it| is_zero(&image, it)), "{what}");
            }
            fill(&opened);
            opened.close();
            assert_filled(&stand, &image);
            stand.check(&image);
            stand.end();
        }
    }
}

#[test]
fn q140_q210_refcounts_of_what_entries_lead_to_behind_the_end_stay() {
    let stand = Stand::in_memory();
    let image = image(&stand);
    let counts = count_behind(&image);
    patch(&image, first_l2(&image) + 8, &((end(&image) + CLUSTER) | COPIED).to_be_bytes());
    let before = fs::read(&image).unwrap();
    assert_eq!(code(&repair(&stand, &image, Repair::Leaks)), 2);
    assert!(fs::read(&image).unwrap() == before);
    assert!(!counts.iter().any(|it| is_zero(&image, it)));
    stand.end();
}
