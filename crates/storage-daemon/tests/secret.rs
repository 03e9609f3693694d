//! Objects `secret`, and encrypted images that they open.
#![cfg(feature = "encryption")]

mod util;

use std::fs;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, stderr};

const PASSWORD: &str = "correct horse";

fn start(place: &Place, arguments: &str) -> (Daemon, Client) {
    let monitor = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";
    let daemon = place.start(&format!("{monitor} {arguments}"));
    let client = Client::new(&place.path("qmp.sock"));
    (daemon, client)
}

/// An image of LUKS with 7 in its first 64 KiB.
fn image(place: &Place) {
    let path = place.path("disk.qcow2");
    let secret = format!("secret,id=s,data={PASSWORD}");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    let path = tools::text(&path);
    let create = ["create", "-q", "--object", &secret, "-f", "qcow2", "-o", options, path, "1M"];
    tools::run("qemu-img", create);
    let image = format!("driver=qcow2,file.filename={path},encrypt.key-secret=s");
    tools::run("qemu-io", ["--object", &secret, "--image-opts", &image, "-c", "write -P 7 0 64k"]);
}

/// The password, encrypted with the bytes 0 to 31, in base64.
fn sealed() -> String {
    let key: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    let script = format!(
        "printf '%s' '{PASSWORD}' | openssl enc -aes-256-cbc -a -A -K {key} -iv {:032x}",
        1
    );
    tools::run("sh", ["-c", &script])
}

#[test]
fn a_secret_of_every_kind_opens_an_encrypted_image() {
    let place = Place::new();
    image(&place);
    fs::write(place.path("password"), PASSWORD).unwrap();
    fs::write(place.path("lines"), "Y29ycmVjdCBo\nb3JzZQ\n").unwrap();
    fs::write(place.path("key"), (0..32).collect::<Vec<u8>>()).unwrap();
    let (daemon, mut qmp) = start(
        &place,
        "--object secret,id=file,file=@/password \
         --object secret,id=lines,file=@/lines,format=base64 \
         --object secret,id=key,file=@/key \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock",
    );
    qmp.run("object-add", json!({"qom-type": "secret", "id": "data", "data": PASSWORD}));
    let sealed = json!({"qom-type": "secret", "id": "sealed", "data": sealed(), "keyid": "key",
                        "format": "base64", "iv": "AAAAAAAAAAAAAAAAAAAAAQ=="});
    qmp.run("object-add", sealed);
    for secret in ["file", "lines", "data", "sealed"] {
        let file = json!({"driver": "file", "filename": tools::text(&place.path("disk.qcow2"))});
        let options = json!({"driver": "qcow2", "node-name": "disk", "read-only": true, "file": file,
                             "encrypt": {"format": "luks", "key-secret": secret}});
        qmp.run("blockdev-add", options);
        // It was read, and may go.
        qmp.run("object-del", json!({"id": secret}));
        let export = json!({"type": "nbd", "id": "e0", "node-name": "disk"});
        qmp.run("block-export-add", export);
        let read = "read -P 7 0 64k";
        let said = tools::run("qemu-io", ["-r", "-f", "raw", "-c", read, &place.uri("disk")]);
        assert!(!said.contains("failed"), "{said}");
        qmp.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
        qmp.event("BLOCK_EXPORT_DELETED");
        qmp.run("blockdev-del", json!({"node-name": "disk"}));
    }
    daemon.stop(Signal::TERM);
}

#[test]
fn a_secret_that_makes_no_sense_is_refused_as_by_qemu() {
    let place = Place::new();
    fs::write(place.path("key"), [0; 31]).unwrap();
    let ours = [
        ("secret,id=a", "Either 'file' or 'data' must be provided"),
        ("secret,id=a,data=x,file=y", "'file' and 'data' are mutually exclusive"),
        ("secret,id=a,data=!!,format=base64", "Base64 data contains invalid characters"),
        ("secret,id=a,data=x,keyid=b", "No secret with id 'b'"),
        ("secret,id=a,file=no-such", "Unable to read no-such"),
        ("secret,id=a,data=x,format=hex", "Parameter 'format' does not accept value 'hex'"),
    ];
    for (options, why) in ours {
        let output = place.command(&format!("--object {options}")).output().unwrap();
        assert!(!output.status.success());
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
        let theirs = tools::output("qemu-img", ["info", "--object", options, "/dev/null"]);
        assert!(stderr(&theirs).contains(why), "{}", stderr(&theirs));
    }
    let key =
        "--object secret,id=b,file=@/key --object secret,id=a,keyid=b,format=base64,data=YQ==";
    for (more, why) in [("", "IV is required"), (",iv=AAAAAAAAAAAAAAAAAAAAAQ==", "31 bytes")] {
        let output = place.command(&format!("{key}{more}")).output().unwrap();
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

#[test]
fn a_secret_has_properties_and_a_place_in_the_configuration() {
    let place = Place::new();
    fs::write(place.path("password"), PASSWORD).unwrap();
    let (daemon, mut qmp) = start(&place, "--object secret,id=s0,file=@/password");
    let names = |list: Value| -> Vec<String> {
        let list = list.as_array().unwrap().clone();
        let mut names: Vec<String> =
            list.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let listed = qmp.run("qom-list", json!({"path": "/objects/s0"}));
    assert_eq!(names(listed), ["data", "file", "format", "iv", "keyid", "type"]);
    let format = qmp.run("qom-get", json!({"path": "/objects/s0", "property": "format"}));
    assert_eq!(format, "raw");
    let config = qmp.run("x-coblk-config", json!({})).to_string();
    assert!(config.contains("secret,") && config.contains("file="), "{config}");
    assert!(!config.contains(PASSWORD), "{config}");
    let change = json!({"path": "/objects/s0", "property": "format", "value": "base64"});
    assert!(qmp.refused("qom-set", change).contains("format"));
    daemon.stop(Signal::TERM);
}
