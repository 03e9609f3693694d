//! The same command line, given to qemu-storage-daemon and to this daemon, shows the same exports.

mod util;

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use rustix::process::Signal;
use util::{Place, wait_until};

/// Each command line, and the names of its exports.
const LINES: [(&str, &[&str]); 5] = [
    (
        "--blockdev driver=file,node-name=disk,filename=@/disk.img \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock,max-connections=7 \
         --export type=nbd,id=e0,node-name=disk,writable=on,description=a.disk",
        &["disk"],
    ),
    (
        "--object iothread,id=t0,poll-max-ns=0 --object throttle-group,id=g0,x-iops-total=100000 \
         --blockdev file,node-name=disk,filename=@/disk.img,cache.direct=on,discard=unmap \
         --blockdev raw,node-name=part,file=disk,offset=1048576,size=2097152 \
         --blockdev throttle,node-name=slow,throttle-group=g0,file=part \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=slow,name=a \
         --export nbd,id=e1,node-name=disk,name=b,writethrough=on",
        &["a", "b"],
    ),
    (
        "--blockdev {\"driver\":\"null-co\",\"node-name\":\"n\",\"size\":65536,\"read-zeroes\":true} \
         --nbd-server {\"addr\":{\"type\":\"unix\",\"path\":\"@/nbd.sock\"}} \
         --export {\"type\":\"nbd\",\"id\":\"e0\",\"node-name\":\"n\",\"name\":\"\",\"writable\":true}",
        &[""],
    ),
    // Strings in apostrophes, numbers in other bases.
    (
        "--blockdev {'driver':'null-co','node-name':'n','size':65536,'read-zeroes':true} \
         --blockdev null-co,node-name=m,size=0x10000,read-zeroes=y \
         --nbd-server {'addr':{'type':'unix','path':'@/nbd.sock'}} \
         --export {'type':'nbd','id':'e0','node-name':'n'} --export nbd,id=e1,node-name=m",
        &["n", "m"],
    ),
    (
        "--object {\"qom-type\":\"throttle-group\",\"id\":\"g\",\"limits\":{\"bps-total\":1000000}} \
         --block raw,node-name=disk,read-only=on,file.driver=file,file.filename=@/disk.img \
         --nbd addr.type=unix,addr.path=@/nbd.sock --exp nbd,id=e0,node-name=disk",
        &["disk"],
    ),
];

/// What a client is told of an export, without what may differ: hints about sizes of requests.
fn told(place: &Place, name: &str) -> Vec<String> {
    let info = tools::run("nbdinfo", ["--json", &place.uri(name)]);
    let keys = [
        "\"export-name\"",
        "\"description\"",
        "\"export-size\"",
        "\"is_read_only\"",
        "\"can_flush\"",
        "\"can_fua\"",
        "\"can_trim\"",
        "\"can_zero\"",
        "\"can_fast_zero\"",
        "\"can_multi_conn\"",
        "\"can_cache\"",
        "\"can_df\"",
        "\"structured\"",
        "\"base:allocation\"",
    ];
    let lines = info.lines().map(|line| line.trim().trim_end_matches(',').to_owned());
    let told: Vec<String> =
        lines.filter(|line| keys.iter().any(|key| line.starts_with(key))).collect();
    assert!(told.iter().any(|line| line.starts_with("\"export-size\"")), "{info}");
    told
}

fn qemu(place: &Place, arguments: &str) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(arguments.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

#[test]
fn the_same_command_line_shows_the_same_exports() {
    for (line, exports) in LINES {
        let theirs = Place::new();
        let mut daemon = qemu(&theirs, line);
        wait_until("QEMU's daemon serves", || {
            assert!(daemon.try_wait().unwrap().is_none(), "QEMU's daemon refuses {line}");
            theirs.pid_file().exists()
        });
        let expected: Vec<_> = exports.iter().map(|name| told(&theirs, name)).collect();
        util::kill(daemon.id(), Signal::TERM);
        assert!(daemon.wait().unwrap().success());

        let ours = Place::new();
        let daemon = ours.start(line);
        let found: Vec<_> = exports.iter().map(|name| told(&ours, name)).collect();
        daemon.stop(Signal::TERM);
        assert_eq!(found, expected, "{line}");
    }
}
