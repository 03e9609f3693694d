//! Images that are made, encrypted, and named by file names.

use coblk_tests::ceph::{Image, conf, rbd};
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::util::qmp::Client;
use crate::util::{Daemon, Place};
use crate::{Bench, MIB};

const LINE: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0 \
    --object secret,id=right,data=horse --object secret,id=wrong,data=donkey \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";

struct Maker {
    client: Client,
    daemon: Daemon,
}

impl Maker {
    fn start(place: &Place) -> Maker {
        let daemon = place.start(LINE);
        Maker { client: Client::new(&place.path("qmp.sock")), daemon }
    }

    /// Makes an image; the error of the job, if it has one.
    fn make(&mut self, image: &Image, more: Value) -> Option<String> {
        let mut options = json!({"driver": "rbd", "size": 4 * MIB,
            "location": {"pool": image.place, "image": image.name, "conf": conf()}});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        self.client.run("blockdev-create", json!({"job-id": "job", "options": options}));
        while self.client.event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
        let jobs = self.client.run("query-jobs", json!({}));
        self.client.run("job-dismiss", json!({"id": "job"}));
        jobs[0]["error"].as_str().map(str::to_owned)
    }

    fn open(&mut self, image: &Image, encrypt: Value) -> Result<(), String> {
        let node = json!({"driver": "rbd", "node-name": "disk", "pool": image.place,
            "image": image.name, "conf": conf(), "encrypt": encrypt});
        let answer = self.client.ask("blockdev-add", node);
        match answer.get("error") {
            Some(error) => Err(error["desc"].as_str().unwrap().to_owned()),
            None => Ok(()),
        }
    }
}

#[test]
fn ceph_images_are_made_with_the_objects_that_were_asked_for() {
    let (place, image) = (Place::new(), Image::named("rbd"));
    let mut maker = Maker::start(&place);
    assert_eq!(maker.make(&image, json!({"cluster-size": 65536})), None);
    let said = rbd(&["info", &image.spec()]);
    assert!(said.contains("size 4 MiB") && said.contains("64 KiB objects"), "{said}");
    let again = maker.make(&image, json!({})).expect("an error");
    assert!(again.contains("already"), "{again}");
    for (options, words) in [
        (json!({"cluster-size": 65535}), "cluster-size"),
        (json!({"cluster-size": 1024}), "cluster-size"),
        (json!({"location": {"pool": "none", "image": "a", "conf": conf()}}), "no pool 'none'"),
        (json!({"encrypt": {"format": "luks-any", "key-secret": "right"}}), "'luks' or 'luks2'"),
        (json!({"encrypt": {"format": "luks", "key-secret": "none"}}), "no secret 'none'"),
    ] {
        let error = maker.make(&Image::named("rbd"), options.clone()).expect("an error");
        assert!(error.contains(words), "{options}: {error}");
    }
    // One of NBD cannot be made: there is nothing to make.
    let options = json!({"driver": "nbd", "size": MIB});
    let nbd = maker.client.refused("blockdev-create", json!({"job-id": "job", "options": options}));
    assert!(nbd.contains("nbd"), "{nbd}");
    maker.daemon.stop(Signal::TERM);
}

/// As long as it was to be, encrypted in the cluster, and opened by its secret alone.
fn check_encryption(format: &str, other: &str) {
    let (place, image) = (Place::new(), Image::named("rbd"));
    let mut maker = Maker::start(&place);
    let encrypt = json!({"format": format, "key-secret": "right", "cipher-alg": "aes-128"});
    assert_eq!(maker.make(&image, json!({"encrypt": encrypt})), None);
    let wrong = [
        (other, "right", "not encrypted in this format"),
        (format, "wrong", "does not open the image"),
    ];
    // To try a secret takes a second.
    for (format, secret, words) in wrong.into_iter().take(if is_long() { 2 } else { 1 }) {
        let refused = maker.open(&image, json!({"format": format, "key-secret": secret}));
        assert!(refused.as_ref().is_err_and(|it| it.contains(words)), "{refused:?}");
    }
    maker.open(&image, json!({"format": "luks-any", "key-secret": "right"})).unwrap();
    let export =
        json!({"type": "nbd", "id": "e", "name": "disk", "node-name": "disk", "writable": true});
    maker.client.run("block-export-add", export);
    let uri = place.uri("disk");
    let said = tools::run("nbdinfo", ["--size", &uri]);
    assert_eq!(said.trim(), (4 * MIB).to_string());
    tools::run("qemu-io", ["-f", "raw", "-c", "write -P 7 4000k 96k", "-c", "flush", &uri]);
    // The last bytes stay, when it becomes longer by less than its header, and shorter again.
    for size in [4 * MIB + 65536, 4 * MIB] {
        let said = tools::run("qemu-io", ["-f", "raw", "-c", "read -P 7 4000k 96k", &uri]);
        assert!(!said.contains("failed"), "{said}");
        maker.client.run("block_resize", json!({"node-name": "disk", "size": size}));
    }
    let said = tools::run("qemu-io", ["-f", "raw", "-c", "read -P 7 4000k 96k", &uri]);
    assert!(!said.contains("failed"), "{said}");
    maker.daemon.stop(Signal::TERM);
    let raw = place.path("raw");
    rbd(&["export", "--no-progress", &image.spec(), tools::text(&raw)]);
    let raw = std::fs::read(raw).unwrap();
    assert!(raw.starts_with(b"LUKS") && !raw.windows(64).any(|bytes| bytes == [7; 64]));
}

/// Whether a wrong secret is tried as well, and the other format, which takes a gigabyte of memory and a minute.
fn is_long() -> bool {
    std::env::var_os("COBLK_RBD_LUKS2").is_some()
}

#[test]
fn ceph_an_encrypted_image_is_opened_by_its_secret() {
    check_encryption("luks", "luks2");
    if is_long() {
        check_encryption("luks2", "luks");
    }
}

/// `rbd:` stands where a file name may.
#[test]
fn ceph_a_file_name_is_an_image() {
    let bench = Bench::new();
    let image = Image::new("rbd", MIB, &[]);
    let name = image.filename();
    let options = coblk::drivers::RbdOptions::from_filename(&name).unwrap().unwrap();
    let config = coblk::options::NodeOptions::new(options);
    let node = bench.blockdevs.open(&bench.ctx, config).unwrap();
    assert_eq!(node.driver().filename(), Some(name));
    let name = node.name().to_owned();
    drop(node);
    bench.blockdevs.close(&bench.ctx, &name).unwrap();
}
