//! Paths that are not UTF-8 are taken as they are, and printed as they are.

mod util;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Place, SIZE, stderr};

/// `~` is a byte that is not UTF-8.
const LINE: &str = "--blockdev file,node-name=disk,filename=@/a~,,b.img \
    --nbd-server addr.type=unix,addr.path=@/n~ --export nbd,id=e0,node-name=disk \
    --export vhost-user-blk,id=e1,node-name=disk,addr.type=unix,addr.path=@/v~ \
    --chardev socket,id=c0,path=@/q~,server=on,wait=off --monitor chardev=c0 --metrics unix:@/m~";

fn bytes(text: &str) -> OsString {
    let bytes: Vec<u8> = text.bytes().map(|it| if it == b'~' { 0xE9 } else { it }).collect();
    OsStr::from_bytes(&bytes).to_owned()
}

fn path(place: &Place, name: &str) -> PathBuf {
    place.path("").join(bytes(name))
}

fn command(place: &Place, line: &str) -> Command {
    let mut command = place.command("");
    command.args(place.fill_in(line).split_whitespace().map(bytes));
    command
}

#[test]
fn a_path_that_is_not_utf8_is_taken_as_it_is() {
    let place = Place::new();
    File::create(path(&place, "a~,b.img")).unwrap().set_len(SIZE).unwrap();
    let daemon =
        place.start_command(command(&place, &format!("{LINE} --trace file=@/t~ --pidfile @/pid")));
    for socket in ["n~", "v~", "m~"] {
        drop(
            UnixStream::connect(path(&place, socket)).unwrap_or_else(|it| panic!("{socket}: {it}")),
        );
    }
    assert!(path(&place, "t~").exists());
    let mut qmp = Client::new(&path(&place, "q~"));
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    assert_eq!(nodes[0]["image"]["virtual-size"], SIZE);
    // JSON has no place for them: the path of another file is not told.
    let refused = qmp.refused("x-coblk-config", json!({}));
    assert!(refused.contains("--blockdev"), "{refused}");
    daemon.stop(Signal::TERM);
}

#[test]
fn a_path_that_is_not_utf8_is_printed_as_it_is() {
    let place = Place::new();
    File::create(path(&place, "a~,b.img")).unwrap().set_len(SIZE).unwrap();
    let print = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    let printed = print(command(&place, &format!("--dump-config {LINE}")));
    let bytes = printed.iter().filter(|it| **it == 0xE9).count();
    assert_eq!(bytes, LINE.matches('~').count(), "{}", printed.escape_ascii());
    let program = env!("CARGO_BIN_EXE_coblk-storage-daemon");
    let again = [b"\"$0\" --dump-config", &printed["coblk-storage-daemon".len()..]].concat();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(OsStr::from_bytes(&again)).arg(program).env_remove("RUST_LOG");
    assert_eq!(print(shell).escape_ascii().to_string(), printed.escape_ascii().to_string());
}

#[test]
fn what_is_no_path_must_be_utf8() {
    let place = Place::new();
    for (line, named) in [
        ("--blockdev null-co,node-name=a~", "'node-name' expects UTF-8"),
        ("--blockdev raw,file=a~", "'file' expects UTF-8"),
        ("--blockdev null-co,node-name=a,read-only=~", "'read-only' expects 'on' or 'off'"),
        ("--object iothread,id=a~", "'id' expects UTF-8"),
        ("--nbd-server addr.type=inet,addr.host=~,addr.port=0", "'addr.host' expects UTF-8"),
        ("--metrics localhost~:1", "expected unix:PATH or HOST:PORT"),
        ("--trace ~", "'enable' expects UTF-8"),
        ("--blockdev {\"driver\":\"file\",\"filename\":\"~\"}", "JSON parse error, invalid UTF-8"),
    ] {
        let output = command(&place, line).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(stderr(&output).contains(named), "{line}: {}", stderr(&output));
    }
}
