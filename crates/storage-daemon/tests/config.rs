//! The daemon prints the command line that makes it again, with what QMP has changed.

mod util;

use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, stderr};

const LINE: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off \
    --monitor chardev=c0,pretty=off --metrics unix:@/metrics.sock \
    --object iothread,id=t0,poll-max-ns=5 --object throttle-group,id=g0,x-iops-total=1000 \
    --blockdev file,node-name=a-file,filename=@/disk.img,discard=unmap,cache.no-flush=on \
    --blockdev throttle,node-name=slow,throttle-group=g0,file.driver=raw,file.size=1048576,file.file=a-file \
    --blockdev blkdebug,node-name=debug,image.driver=null-co,image.node-name=below,align=4096 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock,max-connections=7 \
    --export nbd,id=e0,node-name=slow,name=a,,b,writable=on,werror=stop \
    --export vhost-user-blk,id=v0,node-name=debug,addr.type=unix,addr.path=@/v.sock,iothread=t0,num-queues=3";

/// What the daemon says of itself.
fn queries(qmp: &mut Client) -> Vec<Value> {
    let limits = json!({"path": "g1", "property": "limits"});
    let polling = json!({"path": "t0", "property": "poll-max-ns"});
    let none = || json!({});
    vec![
        qmp.run("query-named-block-nodes", none()),
        qmp.run("query-block-exports", none()),
        qmp.run("qom-list", json!({"path": "/objects"})),
        qmp.run("qom-get", limits),
        qmp.run("qom-get", polling),
        qmp.run("x-coblk-config", none()),
    ]
}

/// Names that the daemon makes up are counted on.
fn without_numbers(answers: &[Value]) -> String {
    let text = Value::from(answers.to_vec()).to_string();
    text.split("#block")
        .map(|part| part.trim_start_matches(|it: char| it.is_ascii_digit()))
        .collect()
}

#[test]
fn a_daemon_is_made_again_as_qmp_has_changed_it() {
    let place = Place::new();
    let daemon = place.start(LINE);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    qmp.run("object-add", json!({"qom-type": "throttle-group", "id": "g1"}));
    qmp.run(
        "qom-set",
        json!({"path": "g1", "property": "limits", "value": {"bps-total": 9999999}}),
    );
    qmp.run("qom-set", json!({"path": "t0", "property": "poll-max-ns", "value": 77}));
    // The children by their names, another group, and no size.
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    let raw = nodes.as_array().unwrap().iter().find(|node| node["drv"] == "raw").unwrap();
    let reopened = json!({"driver": "throttle", "node-name": "slow", "throttle-group": "g1",
        "file": raw["node-name"]});
    let file = json!({"driver": "file", "node-name": "a-file", "filename": place.image(),
        "detect-zeroes": "on"});
    qmp.run("blockdev-reopen", json!({"options": [file, reopened]}));
    qmp.run(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "a", "file": "slow",
        "offset": 512, "read-only": true}),
    );
    let export = json!({"type": "nbd", "id": "e1", "node-name": "a", "name": "it's, \"so\""});
    qmp.run("block-export-add", export);
    qmp.run("block-export-del", json!({"id": "v0"}));
    qmp.event("BLOCK_EXPORT_DELETED");
    let before = queries(&mut qmp);
    daemon.stop(Signal::TERM);

    let arguments: Vec<String> =
        serde_json::from_value(before.last().unwrap()["arguments"].clone()).unwrap();
    assert!(!arguments.iter().any(|text| text.contains("v.sock")), "{arguments:?}");
    let mut command = place.command("--pidfile @/pid");
    command.args(&arguments);
    let daemon = place.start_command(command);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let after = queries(&mut qmp);
    assert_eq!(without_numbers(&after), without_numbers(&before));
    daemon.stop(Signal::TERM);
}

#[test]
fn what_is_printed_prints_the_same_again() {
    let place = Place::new();
    let print = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    // A character device that waits for a client does not keep it from being printed.
    let line = format!(
        "{LINE} --chardev stdio,id=c1,signal=off \
         --chardev socket,id=c2,host=127.0.0.1,port=0,server=on,keep-alive-idle=7,to=9 \
         --chardev socket,id=c3,path=name,abstract=on,tight=off,reconnect-ms=900"
    );
    let printed = print(place.command(&format!("--dump-config {line}")));
    assert!(printed.starts_with("coblk-storage-daemon \\\n    --object "), "{printed}");
    assert_eq!(printed.matches("--").count(), line.matches("--").count(), "{printed}");
    for part in ["signal=off", "wait=on", "keep-alive-idle=7", "tight=off", "reconnect-ms=900"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let program = env!("CARGO_BIN_EXE_coblk-storage-daemon");
    let again = printed.replacen("coblk-storage-daemon", "\"$0\" --dump-config", 1);
    let mut shell = Command::new("sh");
    shell.args(["-c", &again, program]).env_remove("RUST_LOG");
    assert_eq!(print(shell), printed);
}
