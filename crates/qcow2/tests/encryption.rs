//! Encrypted images made by QEMU are opened by their passwords alone, and read as QEMU reads them.

use std::fs;
use std::path::Path;

use coblk_block::Secret;
use coblk_qcow2::Qcow2Options;
use coblk_tests::tools;
use serde_json::json;

use crate::util;
use crate::util::encrypted::{
    content, create, key, luks_image, make, program, qemu_io, qemus, quick, requests, stand,
};
use crate::util::{Stand, assert_same, patch};

/// Another cipher than that of QEMU's default.
const CBC: &str = "encrypt.format=luks,encrypt.cipher-alg=aes-256,encrypt.cipher-mode=cbc,\
                   encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha256";

/// Makes an image of these options, fills it, and compares all of it.
fn compare(seed: u64, options: &str) {
    let stand = stand();
    let image = create(&stand, "image.qcow2", options, "4M");
    compare_written(&stand, &image, seed, options);
    stand.end();
}

/// Fills an image, and compares all of it.
fn compare_written(stand: &Stand, image: &Path, seed: u64, what: &str) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = requests(&mut random, 4 << 20);
    if !what.contains("data_file") {
        // What is compressed is not encrypted.
        all.insert(0, "write -c -P 5 0 2M".to_owned());
    }
    qemu_io(stand, "image.qcow2", &all);
    let theirs = content(stand, "image.qcow2");
    let format = if what.contains("format=aes") { "aes" } else { "luks" };
    let more = json!({"encrypt": {"format": format, "key-secret": "right"}});
    let opened = stand.open(image, more);
    assert_same(&opened.read_all(&mut random), &theirs, what);
}

#[test]
fn q88_images_of_every_cipher_are_read() {
    let specs = [
        ("aes-128", "xts", "plain", "sha1"),
        ("aes-192", "xts", "plain64", "sha224"),
        ("aes-256", "xts", "essiv", "sha512"),
        ("aes-128", "cbc", "plain64", "sha384"),
    ];
    compare(0, "encrypt.format=luks");
    compare(1, CBC);
    for (seed, (cipher, mode, iv, hash)) in (2..).zip(specs) {
        let options = format!(
            "encrypt.format=luks,encrypt.cipher-alg={cipher},encrypt.cipher-mode={mode},\
             encrypt.ivgen-alg={iv},encrypt.hash-alg={hash}"
        );
        compare(seed, &options);
    }
}

#[test]
fn q88_clusters_of_every_kind_are_decrypted() {
    for (seed, options) in (100..).zip([
        json!({"cluster-size": 512}),
        json!({"cluster-size": 2 << 20}),
        json!({"cluster-size": 16 << 10, "extended-l2": true}),
        json!({"cluster-size": 4096, "version": "v2"}),
    ]) {
        let stand = stand();
        let what = options.to_string();
        let image = make(&stand, "image.qcow2", quick(), options).unwrap();
        compare_written(&stand, &image, seed, &what);
        stand.end();
    }
    compare(110, "encrypt.format=luks,data_file=data.raw");
}

#[test]
fn q89_images_of_the_legacy_aes_are_read() {
    for (seed, options) in (200..).zip(["cluster_size=64k", "cluster_size=512", "compat=0.10"]) {
        compare(seed, &format!("encrypt.format=aes,{options}"));
    }
    // No password is wrong, and another one reads other bytes.
    let stand = stand();
    let image = create(&stand, "image.qcow2", "encrypt.format=aes", "1M");
    qemu_io(&stand, "image.qcow2", &["write -P 7 0 64k".to_owned()]);
    let read = |secret: &str| {
        let opened = stand.open(&image, json!({"encrypt": {"key-secret": secret}}));
        opened.read(0, 512).unwrap()
    };
    assert_eq!(read("right"), [7; 512]);
    assert_ne!(read("wrong"), [7; 512]);
    stand.end();
}

#[test]
fn q88_backing_files_have_keys_of_their_own() {
    let stand = stand();
    let base = create(&stand, "base.qcow2", "encrypt.format=luks", "4M");
    qemu_io(&stand, "base.qcow2", &["write -P 7 0 4M".to_owned()]);
    let names = "backing_file=base.qcow2,backing_fmt=qcow2";
    let top = stand.path("top.qcow2");
    let options = format!("encrypt.format=aes,encrypt.key-secret=right,{names}");
    program(
        &stand,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-u", "-o", &options, "top.qcow2", "4M"],
    );
    let alone = "driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=right,backing.driver=qcow2,\
                 backing.file.filename=base.qcow2,backing.encrypt.key-secret=right";
    program(&stand, "qemu-io", &["--image-opts", alone, "-c", "write -P 9 1M 70000"]);
    let encrypt = json!({"format": "aes", "key-secret": "right"});
    // The image names the backing file, and not its secret.
    let why = stand.refusal(&top, json!({"encrypt": encrypt}));
    assert!(why.contains("encrypt.key-secret"), "{why}");
    let file = json!({"driver": "file", "filename": tools::text(&base)});
    let backing = json!({"driver": "qcow2", "read-only": true, "file": file,
                         "encrypt": {"format": "luks", "key-secret": "right"}});
    let opened = stand.open(&top, json!({"encrypt": encrypt, "backing": backing}));
    let mut expected = vec![7; 4 << 20];
    expected[1 << 20..(1 << 20) + 70000].fill(9);
    assert_same(&opened.read_all(&mut fastrand::Rng::with_seed(1)), &expected, "the chain");
    drop(opened);
    stand.end();
}

#[test]
fn q55_an_image_is_opened_by_its_password_alone() {
    let stand = stand();
    let luks = luks_image(&stand);
    let aes = create(&stand, "aes.qcow2", "encrypt.format=aes", "1M");
    let plain = stand.create("plain.qcow2", "", "1M");
    let encrypt = |format: &str, secret: Option<&str>| match secret {
        Some(secret) => json!({"encrypt": {"format": format, "key-secret": secret}}),
        None => json!({"encrypt": {"format": format}}),
    };
    for (image, options, why) in [
        (&luks, json!({}), "'encrypt.key-secret'"),
        (&luks, encrypt("luks", None), "'encrypt.key-secret'"),
        (&luks, encrypt("luks", Some("wrong")), "Invalid password, cannot unlock any keyslot"),
        (&luks, encrypt("luks", Some("none")), "no secret 'none'"),
        (&luks, encrypt("luks", Some("binary")), "no text in UTF-8"),
        (&luks, encrypt("aes", Some("right")), "encrypted by 'luks', and the options say 'aes'"),
        (&aes, encrypt("luks", Some("right")), "encrypted by 'aes', and the options say 'luks'"),
        (&aes, json!({}), "'encrypt.key-secret'"),
        (&plain, encrypt("luks", Some("right")), "the image is not encrypted"),
    ] {
        let said = stand.refusal(image, options);
        assert!(said.contains(why), "{said}");
    }
    // A secret is read once, and may go.
    let opened = stand.open(&luks, key("right"));
    stand.blockdevs.remove_object::<Secret>("right").unwrap();
    assert_eq!(opened.read(0, 512).unwrap(), [0; 512]);
    drop(opened);
    stand.end();
}

#[test]
fn q55_q144_without_a_key_an_image_tells_of_itself_and_has_no_data() {
    let stand = stand();
    let image = luks_image(&stand);
    qemu_io(&stand, "image.qcow2", &["write -P 7 0 64k".to_owned()]);
    let mut options = stand.options(&image, json!({}));
    let file = stand.path("image.qcow2");
    let mut own = Qcow2Options::new(coblk_block::options::NodeOptions::new(
        coblk_block::options::DriverConfig::new(
            "file",
            coblk_block::drivers::FileNodeOptions::new(&file),
        ),
    ));
    own.metadata_only = true;
    options.driver = own.into();
    let node = stand.blockdevs.open(&stand.ctx, options).unwrap();
    let opened = util::Opened::new(&stand, node);
    assert_eq!(opened.read(0, 512).unwrap_err().raw_os_error(), Some(libc::EACCES));
    let info = stand.ctx.run(|co| opened.node.co_image(co)?.info()).unwrap();
    assert_eq!(info.specific.unwrap().data["encrypt"]["slots"][0]["active"], true);
    drop(opened);
    stand.end();
}

#[test]
fn q144_information_is_that_of_qemu_img() {
    for options in [
        "encrypt.format=luks",
        CBC,
        "encrypt.format=luks,encrypt.ivgen-alg=plain,compat=0.10",
        "encrypt.format=aes",
    ] {
        let stand = stand();
        let image = create(&stand, "image.qcow2", options, "4M");
        let (theirs, _) = stand.qemu_img("info", &image);
        let opened = stand.open(&image, json!({"encrypt": {"key-secret": "right"}}));
        let info = stand.ctx.run(|co| opened.node.co_image(co)?.info()).unwrap();
        assert!(info.encrypted);
        assert_eq!(info.specific.unwrap().data, theirs["format-specific"]["data"]);
        drop(opened);
        stand.end();
    }
}

#[test]
fn q124_q127_an_encrypted_image_has_sectors_and_shows_no_places() {
    let stand = stand();
    let image = luks_image(&stand);
    qemu_io(&stand, "image.qcow2", &["write -P 7 0 64k".to_owned()]);
    let opened = stand.open(&image, key("right"));
    let status = opened.status(0, 1 << 20);
    assert_eq!((status.data, status.bytes, status.stored), (true, 64 << 10, None));
    assert_eq!(opened.node.limits().request_alignment, 512);
    // Any bytes can be asked for.
    assert_eq!(opened.read(65533, 7).unwrap(), [7, 7, 7, 0, 0, 0, 0]);
    drop(opened);
    stand.end();
}

#[test]
fn q28_q209_an_encryption_header_that_cannot_be_is_refused() {
    let stand = stand();
    let image = luks_image(&stand);
    let good = fs::read(&image).unwrap();
    let at = good.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").unwrap() as u64;
    let extension = good.windows(4).position(|bytes| bytes == [0x05, 0x37, 0xbe, 0x77]).unwrap();
    for (offset, bytes, why) in [
        (at, &[0; 6][..], "not in LUKS format"),
        (at + 7, &[2], "LUKS version 2"),
        (at + 208 + 4, &[0xff; 4], "rounds of a hash"),
        (at + 164, &[0xff; 4], "rounds of a hash"),
        // Its length, which ends within the slots.
        (extension as u64 + 16, &0x1000_u64.to_be_bytes(), "lie behind its end"),
        // Its offset, behind the end of the file.
        (extension as u64 + 8, &(1_u64 << 40).to_be_bytes(), "not in LUKS format"),
    ] {
        fs::write(&image, &good).unwrap();
        patch(&image, offset, bytes);
        let said = stand.refusal(&image, key("right"));
        assert!(said.contains(why), "{said}");
    }
    // The material is random bytes to all but its password.
    fs::write(&image, &good).unwrap();
    patch(&image, at + 5000, &[0; 64]);
    assert!(stand.refusal(&image, key("right")).contains("Invalid password"));
    stand.end();
}

#[test]
fn q28_any_slot_opens_an_image() {
    let stand = stand();
    let image = luks_image(&stand);
    qemu_io(&stand, "image.qcow2", &["write -P 7 0 64k".to_owned()]);
    amend(&stand, "state=active,new-secret=more,iter-time=1");
    amend(&stand, "state=active,new-secret=more,keyslot=7,iter-time=1");
    amend(&stand, "state=inactive,keyslot=0");
    assert!(stand.refusal(&image, key("right")).contains("Invalid password"));
    let opened = stand.open(&image, key("wrong"));
    assert_eq!(opened.read(0, 512).unwrap(), [7; 512]);
    drop(opened);
    stand.end();
}

/// `qemu-img amend` with a second password, which is the secret `wrong`.
fn amend(stand: &Stand, options: &str) {
    let options: Vec<String> =
        options.split(',').map(|option| format!("encrypt.{option}")).collect();
    let arguments = [
        "amend",
        "--object",
        "secret,id=more,data=battery",
        "-o",
        &options.join(","),
        "--image-opts",
        &qemus("image.qcow2"),
    ];
    program(stand, "qemu-img", &arguments);
}
