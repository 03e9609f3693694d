//! Encrypted images, and secrets that open them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use coblk_block::Secret;
use coblk_tests::tools;
use serde_json::{Value, json};

use super::Stand;

pub const PASSWORD: &str = "correct horse";

/// A stand with secrets: `right` and `wrong`, and `binary`, which is no password.
pub fn stand() -> Stand {
    let stand = Stand::new();
    let secrets = [("right", PASSWORD.as_bytes()), ("wrong", b"battery"), ("binary", &[0xff])];
    for (id, bytes) in secrets {
        let secret = Arc::new(Secret::new(bytes.to_vec()));
        stand.blockdevs.add_object(id, secret).unwrap();
    }
    stand
}

/// A program of QEMU's with the secret `right`.
pub fn program(stand: &Stand, program: &str, arguments: &[&str]) -> String {
    let secret = format!("secret,id=right,data={PASSWORD}");
    let mut command = tools::command(program);
    command.current_dir(stand.dir.path());
    let (first, rest) = match program {
        "qemu-img" => (&arguments[..1], &arguments[1..]),
        _ => (&arguments[..0], arguments),
    };
    command.args(first).args(["--object", &secret]).args(rest);
    let said = tools::expect_success(program, &tools::finish(program, &mut command));
    assert!(!said.contains("failed"), "{said}");
    said
}

/// How QEMU opens an image that has no key of its own in its options.
pub fn qemus(name: &str) -> String {
    format!("driver=qcow2,file.filename={name},encrypt.key-secret=right")
}

/// An empty image of LUKS.
pub fn luks_image(stand: &Stand) -> PathBuf {
    create(stand, "image.qcow2", "encrypt.format=luks", "4M")
}

/// Creates an image; of LUKS with few rounds, and once for all tests: QEMU takes seconds to find out how fast the
/// machine is.
pub fn create(stand: &Stand, name: &str, options: &str, size: &str) -> PathBuf {
    static MADE: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let is_luks = options.contains("encrypt.format=luks");
    let mut all = format!("encrypt.key-secret=right,{options}");
    if is_luks {
        all.push_str(",encrypt.iter-time=1");
    }
    let (path, what) = (stand.path(name), format!("{all} {size}"));
    let made = MADE.lock().unwrap().get(&what).cloned();
    if let Some(image) = made {
        fs::write(&path, image).unwrap();
        return path;
    }
    program(stand, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", &all, name, size]);
    if is_luks && !options.contains("data_file") {
        MADE.lock().unwrap().insert(what, fs::read(&path).unwrap());
    }
    path
}

pub fn qemu_io(stand: &Stand, name: &str, commands: &[String]) {
    let options = qemus(name);
    let mut arguments = vec!["--image-opts", &options];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    program(stand, "qemu-io", &arguments);
}

/// What a guest reads, as QEMU has it.
pub fn content(stand: &Stand, name: &str) -> Vec<u8> {
    let options = qemus(name);
    program(stand, "qemu-img", &["convert", "-O", "raw", "--image-opts", &options, "as.raw"]);
    let content = fs::read(stand.path("as.raw")).unwrap();
    fs::remove_file(stand.path("as.raw")).unwrap();
    content
}

pub fn key(secret: &str) -> Value {
    json!({"encrypt": {"format": "luks", "key-secret": secret}})
}

/// Writes of random places, lengths and bytes; some of zeroes, some discards.
pub fn requests(random: &mut fastrand::Rng, size: u64) -> Vec<String> {
    let one = |_| {
        let bytes = 512 << random.u32(0..10);
        let offset = random.u64(..(size - bytes) / 512) * 512;
        match random.u32(..6) {
            0 => format!("write -z {offset} {bytes}"),
            1 => format!("discard {offset} {bytes}"),
            _ => format!("write -P {} {offset} {bytes}", random.u8(1..)),
        }
    };
    (0..24).map(one).collect()
}

/// Makes an image as `blockdev-create` does, for the password `right`. `options` are others than `encrypt`.
pub fn make(stand: &Stand, name: &str, encrypt: Value, options: Value) -> Result<PathBuf, String> {
    let path = stand.path(name);
    fs::File::create(&path).unwrap();
    let mut members = json!({
        "driver": "qcow2",
        "size": 4 << 20,
        "file": {"driver": "file", "filename": tools::text(&path)},
        "encrypt": {"key-secret": "right"},
    });
    let mut add = |place: &str, more: Value| {
        let to = members.pointer_mut(place).unwrap().as_object_mut().unwrap();
        to.extend(more.as_object().unwrap().clone());
    };
    add("", options);
    add("/encrypt", encrypt);
    let creation = stand.blockdevs.drivers().creation(members.as_object().unwrap().clone());
    let creation = creation.map_err(|error| error.to_string())?;
    let made = stand.ctx.run(|co| stand.blockdevs.co_create(co, creation));
    assert!(stand.blockdevs.nodes().is_empty(), "nodes are left");
    made.map(|()| path).map_err(|error| error.to_string())
}

/// LUKS with few rounds, for [`make`].
pub fn quick() -> Value {
    json!({"format": "luks", "iter-time": 1})
}
