//! What cannot be opened, and why, in words.

use std::fs;

use coblk_tests::ceph::{Image, conf, key};
use coblk_tests::tools;
use serde_json::json;

use crate::util::{Place, stderr};
use crate::{Bench, MIB};

#[test]
fn ceph_what_is_not_there_is_named() {
    let (bench, conf) = (Bench::new(), conf());
    let image = Image::new("rbd", MIB, &[]);
    let name = &image.name;
    for (options, words) in [
        (format!("pool=none,image={name}"), "there is no pool 'none'".to_owned()),
        ("pool=rbd,image=none".to_owned(), "there is no image 'none' in pool 'rbd'".to_owned()),
        (
            format!("pool=rbd,namespace=none,image={name}"),
            format!("there is no image '{name}' in namespace 'none' of pool 'rbd'"),
        ),
        (
            format!("pool=rbd,image={name},snapshot=none,read-only=on"),
            format!("image '{name}' in pool 'rbd' has no snapshot 'none'"),
        ),
        (
            format!("pool=rbd,image={name},user=nobody"),
            "the cluster does not let user 'nobody' in".to_owned(),
        ),
        (format!("pool=,image={name}"), "option 'pool': it is empty".to_owned()),
        (
            format!(
                "pool=rbd,image={name},x-coblk-settings.0.name=nonsense,x-coblk-settings.0.value=1"
            ),
            "Ceph has no option 'nonsense'".to_owned(),
        ),
        (
            format!("pool=rbd,image={name},server.0.host=a;b,server.0.port=1"),
            "option 'server': host and port are those of one monitor".to_owned(),
        ),
        (
            format!("pool=rbd,image={name},encrypt.format=luks,encrypt.key-secret=none"),
            "there is no secret 'none'".to_owned(),
        ),
    ] {
        let refused = bench.try_open(&format!("rbd,{options},conf={conf}")).err();
        assert!(refused.as_ref().is_some_and(|it| it.contains(&words)), "{options}: {refused:?}");
    }
    let refused = bench.try_open("rbd,pool=rbd,image=a,conf=/none").err().expect("no such file");
    assert!(refused.contains("configuration '/none': No such file"), "{refused}");
}

/// Users with keys, and what they may do.
#[test]
fn ceph_a_secret_is_the_key_of_its_user() {
    let image = Image::new("rbd", MIB, &[]);
    let place = Place::new();
    let server = fs::read_to_string(conf()).unwrap();
    let port = server.split("v2:127.0.0.1:").nth(1).unwrap().lines().next().unwrap();
    fs::write(place.path("guest"), key("client.guest")).unwrap();
    // A key of the right form, and of no user.
    fs::write(place.path("wrong"), key("mon.")).unwrap();
    // All is said by options: there is no configuration, and no keyring.
    let node = |user: &str, secret: &str| {
        let node = json!({"driver": "rbd", "node-name": "disk", "pool": "rbd", "image": image.name,
            "user": user, "conf": "/dev/null", "key-secret": secret,
            "auth-client-required": ["cephx"], "server": [{"host": "127.0.0.1", "port": port}],
            "x-coblk-settings": [{"name": "client_mount_timeout", "value": "2"}]});
        node.to_string()
    };
    let objects = ["guest", "wrong"].map(|name| {
        place.fill_in(&format!("secret,id={name},file=@/{name},format=base64")) //
    });
    let run = |node: &str| {
        let mut command = place.command("");
        for object in &objects {
            command.args(["--object", object]);
        }
        command.args(["--blockdev", node, "--dump-config"]).output().unwrap()
    };
    let good = run(&node("guest", "guest"));
    assert!(good.status.success(), "{}", stderr(&good));
    // librados tries a key that is refused until it gives up.
    let denied = run(&node("guest", "wrong"));
    assert!(stderr(&denied).contains("no connection with the cluster"), "{}", stderr(&denied));
    let missing = run(&node("guest", "other"));
    assert!(stderr(&missing).contains("there is no secret 'other'"), "{}", stderr(&missing));
}

/// A user that may only read gets a node that is read-only, if that will do.
#[test]
fn ceph_a_reader_is_not_let_write() {
    let (bench, image) = (Bench::new(), Image::new("rbd", MIB, &[]));
    let options = format!("{},user=reader", image.options());
    let refused = bench.try_open(&options).err().expect("an image that cannot be written");
    assert!(refused.contains(&format!("image '{}'", image.name)), "{refused}");
    for modes in ["read-only=on", "auto-read-only=on"] {
        let node = bench.open(&format!("{options},{modes},node-name=disk"));
        assert!(node.is_read_only(), "{modes}");
        drop(node);
        bench.blockdevs.close(&bench.ctx, "disk").unwrap();
    }
}

/// Without the libraries there is a driver all the same, and it says which package has them.
#[test]
fn without_the_libraries_the_package_is_named() {
    let place = Place::new();
    let script = place.fill_in(
        "mount -t tmpfs none @ && \
         for file in $(ldconfig -p | sed -n 's/.*librados.so.2.* => //p'); do \
             : >@/empty; mount --bind @/empty $(readlink -f $file); done; \
         exec $0 --blockdev rbd,node-name=disk,pool=rbd,image=a --dump-config",
    );
    let program = env!("CARGO_BIN_EXE_coblk-storage-daemon");
    let output = tools::output("unshare", ["-m", "sh", "-c", &script, program]);
    let said = stderr(&output);
    assert!(!output.status.success() && said.contains("the package librbd1"), "{said}");
}
