//! New images that are encrypted, beside those of `qemu-img create`.

use std::fs;

use coblk_tests::tools;
use serde_json::{Value, json};

use crate::util::assert_same;
use crate::util::encrypted::{
    PASSWORD, content, create, key, make, program, qemu_io, qemus, quick, requests, stand,
};

/// Where the header of LUKS is.
fn luks_offset(image: &[u8]) -> usize {
    image.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").unwrap()
}

#[test]
fn q81_new_images_are_written_by_qemu_and_read_here() {
    for (seed, (encrypt, options)) in (300..).zip([
        (json!({"format": "luks"}), json!({})),
        (
            json!({"format": "luks", "cipher-alg": "aes-128", "cipher-mode": "cbc",
                "ivgen-alg": "essiv", "hash-alg": "sha1"}),
            json!({"cluster-size": 512}),
        ),
        (
            json!({"format": "luks", "ivgen-alg": "plain", "hash-alg": "sha512"}),
            json!({"version": "v2", "cluster-size": 2 << 20}),
        ),
        (
            json!({"format": "luks", "cipher-mode": "cbc"}),
            json!({"extended-l2": true, "preallocation": "metadata"}),
        ),
        (json!({"format": "luks"}), json!({"preallocation": "full", "refcount-bits": 1})),
        (json!({"format": "qcow"}), json!({"preallocation": "falloc"})),
        (json!({"format": "aes"}), json!({"version": "v2"})),
    ]) {
        let stand = stand();
        let what = format!("{encrypt} {options}");
        let mut encrypt = encrypt;
        let is_luks = encrypt["format"] == "luks";
        if is_luks {
            encrypt["iter-time"] = json!(1);
        }
        let image = make(&stand, "image.qcow2", encrypt, options).unwrap();
        program(&stand, "qemu-img", &["check", "--image-opts", &qemus("image.qcow2")]);
        let more = json!({"encrypt": {"key-secret": "right"}});
        let read = |more: Value| {
            let opened = stand.open(&image, more);
            opened.read_all(&mut fastrand::Rng::with_seed(seed))
        };
        // Also where clusters are there from the start.
        assert!(read(more.clone()).iter().all(|byte| *byte == 0), "{what}");
        let mut random = fastrand::Rng::with_seed(seed);
        qemu_io(&stand, "image.qcow2", &requests(&mut random, 4 << 20));
        assert_same(&read(more), &content(&stand, "image.qcow2"), &what);
        if is_luks {
            assert!(stand.refusal(&image, key("wrong")).contains("Invalid password"));
        }
        program(&stand, "qemu-img", &["check", "--image-opts", &qemus("image.qcow2")]);
        stand.end();
    }
}

#[test]
fn q81_the_header_lies_where_qemu_puts_it_and_cryptsetup_knows_it() {
    for options in ["", ",cluster_size=512", ",preallocation=metadata"] {
        let stand = stand();
        let theirs = create(&stand, "theirs.qcow2", &format!("encrypt.format=luks{options}"), "4M");
        let members = match options {
            "" => json!({}),
            ",cluster_size=512" => json!({"cluster-size": 512}),
            _ => json!({"preallocation": "metadata"}),
        };
        let ours = make(&stand, "ours.qcow2", quick(), members).unwrap();
        let [mut ours, mut theirs] = [ours, theirs].map(|path| fs::read(path).unwrap());
        let at = luks_offset(&ours);
        assert_eq!(at, luks_offset(&theirs), "{options}");
        let header = stand.path("header");
        fs::write(&header, &ours[at..at + 2_068_480]).unwrap();
        let said = tools::run("cryptsetup", ["luksDump", tools::text(&header)]);
        let has = |line: &str| said.lines().any(|it| it.split_whitespace().eq(line.split(' ')));
        for line in [
            "Version: 1",
            "Cipher name: aes",
            "Cipher mode: xts-plain64",
            "Hash spec: sha256",
            "Payload offset: 4040",
            "MK bits: 512",
            "Key Slot 0: ENABLED",
            "Key Slot 7: DISABLED",
        ] {
            assert!(has(line), "{line}: {said}");
        }
        fs::write(stand.path("password"), PASSWORD).unwrap();
        let password = stand.path("password");
        let password = tools::text(&password);
        let open = ["open", "--test-passphrase", "--type", "luks1", "--key-file", password];
        tools::run("cryptsetup", open.into_iter().chain([tools::text(&header)]));
        if options != ",preallocation=metadata" {
            // All but random bytes, and what depends on the speed of the machine.
            for image in [&mut ours, &mut theirs] {
                image[at + 112..at + 208].fill(0);
                image[at + 212..at + 248].fill(0);
                image[at + 4096..at + 4096 + 256_000].fill(0);
            }
            assert_same(&ours, &theirs, options);
        }
        stand.end();
    }
}

#[test]
fn q81_an_encryption_that_cannot_be_is_refused_before_a_file_is_touched() {
    let stand = stand();
    let luks = |more: Value| {
        let mut encrypt = quick();
        encrypt.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        encrypt
    };
    let raw = json!({"driver": "file", "filename": tools::text(&stand.random_file("data", 512))});
    for (encrypt, options, why) in [
        (json!({"format": "luks", "key-secret": ""}), json!({}), "no secret ''"),
        (luks(json!({"key-secret": "none"})), json!({}), "no secret 'none'"),
        (luks(json!({"key-secret": "binary"})), json!({}), "no text in UTF-8"),
        (luks(json!({"cipher-alg": "serpent-256"})), json!({}), "cipher 'serpent-256'"),
        (luks(json!({"cipher-mode": "ctr"})), json!({}), "cipher mode 'ctr'"),
        (luks(json!({"ivgen-alg": "benbi"})), json!({}), "IV generator 'benbi'"),
        (luks(json!({"ivgen-alg": "essiv", "ivgen-hash-alg": "sha1"})), json!({}), "needs sha256"),
        (luks(json!({"hash-alg": "md5"})), json!({}), "hash 'md5'"),
        (luks(json!({"iter-time": 1_u64 << 40})), json!({}), "are too many"),
        (luks(json!({})), json!({"version": "v2", "preallocation": "full"}), "needs version 3"),
        (luks(json!({})), json!({"data-file": raw, "data-file-raw": true}), "excludes 'encrypt'"),
    ] {
        let refused = make(&stand, "image.qcow2", encrypt, options);
        let said = refused.expect_err(why);
        assert!(said.contains(why), "{said}");
        assert_eq!(fs::metadata(stand.path("image.qcow2")).unwrap().len(), 0);
    }
    stand.end();
}
