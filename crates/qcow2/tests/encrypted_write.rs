//! Encrypted images are written: what a guest wrote is read by QEMU, and lies nowhere in clear.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use coblk_aio::IoVector;
use coblk_block::{Amend, Secret, WriteFlags, ZeroFlags};
use coblk_qapi::Deferred;
use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::util::encrypted::{content, key, make, program, qemu_io, qemus, quick, requests, stand};
use crate::util::{Opened, Stand, assert_same};

const BYTES: usize = 4 << 20;

/// Writes, zeroes and discards of random places and lengths, beside the bytes that a guest would read.
fn change(opened: &Opened<'_>, ctx: &coblk_aio::AioContext, random: &mut Rng, model: &mut [u8]) {
    for _ in 0..40 {
        let most = 1 << random.u32(4..20);
        let bytes = random.usize(1..=most).min(BYTES / 2);
        let at = random.usize(..BYTES - bytes);
        match random.u32(..8) {
            0 => {
                let flags = if random.bool() { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
                opened.backend().pwrite_zeroes(ctx, at as u64, bytes as u64, flags).unwrap();
                model[at..at + bytes].fill(0);
            }
            1 => opened.flush().unwrap(),
            _ => {
                let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
                opened.write(at as u64, &data).unwrap();
                model[at..at + bytes].copy_from_slice(&data);
            }
        }
    }
}

/// Changes an image by turns here and in QEMU, and compares all of it after each turn.
fn by_turns(stand: &Stand, image: &Path, seed: u64, options: &Value, what: &str) {
    let mut random = Rng::with_seed(seed);
    let mut model = content(stand, "image.qcow2");
    for _ in 0..2 {
        let opened = stand.open_writable(image, options.clone());
        change(&opened, &stand.ctx, &mut random, &mut model);
        assert_same(&opened.read_all(&mut random), &model, what);
        drop(opened);
        program(stand, "qemu-img", &["check", "--image-opts", &qemus("image.qcow2")]);
        assert_same(&content(stand, "image.qcow2"), &model, what);
        qemu_io(stand, "image.qcow2", &requests(&mut random, BYTES as u64));
        model = content(stand, "image.qcow2");
    }
}

#[test]
fn q88_what_is_written_is_read_by_qemu() {
    for (seed, (encrypt, options)) in (400..).zip([
        (quick(), json!({})),
        (quick(), json!({"cluster-size": 512})),
        (quick(), json!({"cluster-size": 2 << 20})),
        (quick(), json!({"extended-l2": true, "preallocation": "metadata"})),
        (
            json!({"format": "luks", "iter-time": 1, "cipher-mode": "cbc", "ivgen-alg": "essiv"}),
            json!({"version": "v2"}),
        ),
        (json!({"format": "qcow"}), json!({"cluster-size": 4096})),
        (json!({"format": "qcow"}), json!({"extended-l2": true, "cluster-size": 16384})),
    ]) {
        let stand = stand();
        let what = format!("{encrypt} {options}");
        let image = make(&stand, "image.qcow2", encrypt, options).unwrap();
        by_turns(&stand, &image, seed, &json!({"encrypt": {"key-secret": "right"}}), &what);
        stand.end();
    }
}

#[test]
fn q88_a_data_file_is_encrypted_and_the_backing_file_is_not() {
    let stand = stand();
    let data = stand.path("data.raw");
    fs::File::create(&data).unwrap();
    let file = json!({"driver": "file", "filename": data.to_str().unwrap()});
    let image = make(&stand, "image.qcow2", quick(), json!({"data-file": file})).unwrap();
    by_turns(&stand, &image, 500, &key("right"), "a data file");
    // The first write copies what is around it from the backing file.
    let base = stand.random_file("base.raw", BYTES);
    let backing = json!({"backing-file": "base.raw", "backing-fmt": "raw"});
    let image = make(&stand, "image.qcow2", quick(), backing).unwrap();
    let mut model = fs::read(&base).unwrap();
    let opened = stand.open_writable(&image, key("right"));
    let mut random = Rng::with_seed(501);
    change(&opened, &stand.ctx, &mut random, &mut model);
    assert_same(&opened.read_all(&mut random), &model, "an overlay");
    drop(opened);
    assert_same(&content(&stand, "image.qcow2"), &model, "an overlay");
    stand.end();
}

#[test]
fn q88_nothing_that_was_written_lies_in_the_file() {
    for encrypt in [quick(), json!({"format": "qcow"})] {
        let stand = stand();
        let image = make(&stand, "image.qcow2", encrypt, json!({})).unwrap();
        let opened = stand.open_writable(&image, json!({"encrypt": {"key-secret": "right"}}));
        let text: Vec<u8> = b"in clear ".iter().copied().cycle().take(200_000).collect();
        // New clusters, in place, and beside what is there.
        for offset in [0, 0, 1_000_000, 1_100_001] {
            opened.write(offset, &text).unwrap();
        }
        // QEMU writes this in clear.
        let backend = opened.backend();
        let compressed = stand.ctx.run(|co| {
            let cluster = IoVector::from(&text[..65536]);
            backend.co_pwritev(co, 2 << 20, &cluster, WriteFlags::COMPRESSED)
        });
        assert_eq!(compressed.unwrap_err().raw_os_error(), Some(libc::ENOTSUP));
        assert_same(&opened.read(1_000_000, 200_000).unwrap()[..100_001], &text[..100_001], "a");
        drop(opened);
        let file = fs::read(&image).unwrap();
        assert!(!file.windows(9).any(|bytes| bytes == b"in clear "), "text in the file");
        stand.end();
    }
}

/// Changes keys of an open image.
fn amend(opened: &Opened<'_>, stand: &Stand, encrypt: Value, force: bool) -> Result<(), String> {
    let mut change = Amend::new(Deferred::new(Map::from_iter([("encrypt".to_owned(), encrypt)])));
    change.force = force;
    let changed = stand.ctx.run(|co| opened.node.co_image(co)?.co_amend(co, change));
    changed.map_err(|error| error.to_string())
}

/// A key that is added.
fn add(more: Value) -> Value {
    let mut change = json!({"state": "active", "iter-time": 1});
    change.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    change
}

/// The slots of an open image that have a key.
fn slots_here(opened: &Opened<'_>, stand: &Stand) -> Vec<usize> {
    let info = stand.ctx.run(|co| opened.node.co_image(co)?.info()).unwrap();
    active(&info.specific.unwrap().data)
}

/// The slots of information that have a key.
fn active(info: &Value) -> Vec<usize> {
    let slots = &info["encrypt"]["slots"];
    (0..8).filter(|slot| slots[*slot]["active"] == true).collect()
}

/// The slots that have a key, as QEMU has it.
fn slots(stand: &Stand, image: &Path) -> Vec<usize> {
    let (info, _) = stand.qemu_img("info", image);
    active(&info["format-specific"]["data"])
}

/// The material of slot 0.
fn material(image: &Path) -> Vec<u8> {
    let file = fs::read(image).unwrap();
    let at = file.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").unwrap() + 4096;
    file[at..at + 256_000].to_vec()
}

#[test]
fn q150_keys_are_added_and_erased_as_by_qemu() {
    let stand = stand();
    let third = Arc::new(Secret::new(b"third".to_vec()));
    stand.blockdevs.add_object("third", third).unwrap();
    let image = make(&stand, "image.qcow2", quick(), json!({})).unwrap();
    let open = |secret: &str| stand.open_writable(&image, key(secret));
    let opened = open("right");
    opened.write(0, &[7; 4096]).unwrap();
    amend(&opened, &stand, add(json!({"new-secret": "wrong"})), false).unwrap();
    amend(&opened, &stand, add(json!({"new-secret": "third", "keyslot": 6})), false).unwrap();
    assert_eq!(slots_here(&opened, &stand), [0, 1, 6]);
    drop(opened);
    assert_eq!(slots(&stand, &image), [0, 1, 6]);
    let material = material(&image);
    // By another key, and by what its password is.
    let opened = open("wrong");
    assert_eq!(opened.read(0, 4096).unwrap(), [7; 4096]);
    amend(&opened, &stand, json!({"state": "inactive", "old-secret": "right"}), false).unwrap();
    amend(&opened, &stand, json!({"state": "inactive", "keyslot": 6}), false).unwrap();
    let last = json!({"state": "inactive", "keyslot": 1});
    let said = amend(&opened, &stand, last.clone(), false).unwrap_err();
    assert!(said.contains("all data would be lost"), "{said}");
    drop(opened);
    assert_eq!(slots(&stand, &image), [1]);
    assert!(stand.refusal(&image, key("right")).contains("Invalid password"));
    // What was erased is overwritten.
    let left = self::material(&image);
    assert!(left.iter().zip(&material).filter(|(new, old)| new == old).count() < 2000);
    // QEMU opens it by the key that is added.
    let opened = open("wrong");
    let old = json!({"new-secret": "right", "old-secret": "wrong"});
    amend(&opened, &stand, add(old), false).unwrap();
    drop(opened);
    assert_eq!(content(&stand, "image.qcow2")[..4096], [7; 4096]);
    // By force nothing is left.
    let opened = open("right");
    for slot in [0, 1] {
        let erase = json!({"state": "inactive", "keyslot": slot});
        amend(&opened, &stand, erase, slot == 1).unwrap();
    }
    assert_eq!(opened.read(0, 4096).unwrap(), [7; 4096]);
    drop(opened);
    assert!(stand.refusal(&image, key("right")).contains("Invalid password"));
    stand.end();
}

#[test]
fn q150_a_change_of_keys_that_makes_no_sense_changes_nothing() {
    let stand = stand();
    let image = make(&stand, "image.qcow2", quick(), json!({})).unwrap();
    let opened = stand.open_writable(&image, key("right"));
    amend(&opened, &stand, add(json!({"new-secret": "wrong"})), false).unwrap();
    for (change, why) in [
        (add(json!({})), "'new-secret' is required"),
        (add(json!({"new-secret": "none"})), "no secret 'none'"),
        (add(json!({"new-secret": "right", "keyslot": 1})), "is active, and is not overwritten"),
        (add(json!({"new-secret": "right", "keyslot": 8})), "between 0 and 7"),
        (add(json!({"new-secret": "right", "keyslot": -1})), "between 0 and 7"),
        (json!({"state": "inactive"}), "'keyslot' or 'old-secret' is required"),
        (json!({"state": "inactive", "keyslot": 3}), "is inactive already"),
        (json!({"state": "inactive", "keyslot": 1, "new-secret": "right"}), "must not be given"),
        (json!({"state": "inactive", "keyslot": 1, "iter-time": 5}), "must not be given"),
        (json!({"state": "inactive", "keyslot": 1, "old-secret": "right"}), "no such key slot"),
        (json!({"format": "aes", "state": "inactive", "keyslot": 1}), "encrypted by 'luks'"),
    ] {
        let said = amend(&opened, &stand, change, false).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(slots_here(&opened, &stand), [0, 1]);
    drop(opened);
    let image = make(&stand, "image.qcow2", json!({"format": "qcow"}), json!({})).unwrap();
    let opened = stand.open_writable(&image, json!({"encrypt": {"key-secret": "right"}}));
    let said = amend(&opened, &stand, add(json!({"new-secret": "wrong"})), false).unwrap_err();
    assert!(said.contains("legacy AES"), "{said}");
    drop(opened);
    let image = stand.create("plain.qcow2", "", "1M");
    let opened = stand.open_writable(&image, json!({}));
    let said = amend(&opened, &stand, add(json!({"new-secret": "wrong"})), false).unwrap_err();
    assert!(said.contains("the image is not encrypted"), "{said}");
    drop(opened);
    stand.end();
}
