//! One script on both daemons, this one and QEMU's, and what they say.

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::Value;

use super::qmp::Client;
use super::{Place, wait_until};

/// A monitor at `qmp.sock`.
pub const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

/// What a daemon has said.
#[derive(Default)]
pub struct Said {
    /// Each with what was asked.
    pub replies: Vec<(String, Value)>,
    /// As `ID STATUS` if it is a job's state, and with its data otherwise.
    pub events: Vec<String>,
}

/// A monitor, and what it has said.
pub struct Talk<'a> {
    pub place: &'a Place,
    pub qmp: Client,
    pub said: Said,
}

impl Talk<'_> {
    /// Has the reply to a command compared.
    pub fn ask(&mut self, command: &str, arguments: Value) {
        let reply = self.qmp.ask(command, arguments.clone());
        self.note(format!("{command} {arguments}"), reply);
    }

    /// Has something else compared.
    pub fn note(&mut self, what: impl Into<String>, value: Value) {
        self.said.replies.push((what.into(), value));
    }

    /// Waits for an event that begins so; all that come until then are compared.
    pub fn until(&mut self, wanted: &str) {
        loop {
            let (name, data) = self.qmp.any_event();
            let event = match name.as_str() {
                "JOB_STATUS_CHANGE" => {
                    let [id, status] = ["id", "status"].map(|it| data[it].as_str().unwrap());
                    format!("{id} {status}")
                }
                _ => format!("{name} {data}"),
            };
            let is_it = event.starts_with(wanted);
            self.said.events.push(event);
            if is_it {
                return;
            }
        }
    }
}

/// Starts QEMU's daemon with these arguments, cut at blanks, and waits until it serves.
pub fn start_peer(place: &Place, arguments: &str) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(arguments.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    let peer = command.stdin(Stdio::null()).spawn();
    let peer = peer.expect("qemu-storage-daemon: install qemu-system-common");
    wait_until("QEMU's daemon serves", || place.pid_file().exists());
    peer
}

/// Runs a script on QEMU's daemon and then on this one, each with these arguments and at a place of its own. It
/// need not end them. Returns what they have said, and the places.
pub fn on_both(
    prepare: impl Fn() -> Place,
    arguments: &str,
    script: impl Fn(&mut Talk<'_>),
) -> [(Place, Said); 2] {
    let theirs = prepare();
    let mut peer = start_peer(&theirs, arguments);
    let said_by_peer = talk(&theirs, Client::of_peer(&theirs.path("qmp.sock")), &script);
    assert!(peer.wait().unwrap().success());
    let ours = prepare();
    let daemon = ours.start(arguments);
    let said = talk(&ours, Client::new(&ours.path("qmp.sock")), &script);
    assert!(daemon.wait().success());
    [(theirs, said_by_peer), (ours, said)]
}

fn talk(place: &Place, qmp: Client, script: impl Fn(&mut Talk<'_>)) -> Said {
    let mut talk = Talk { place, qmp, said: Said::default() };
    script(&mut talk);
    talk.ask("quit", serde_json::json!({}));
    talk.said
}

/// That both have said the same, but for what `comparable` leaves out of replies, and for stops of jobs at drains.
#[track_caller]
pub fn assert_same(both: &[(Place, Said); 2], comparable: impl Fn(Value) -> Value) {
    let [(_, expected), (_, found)] = both;
    let events = [&found.events, &expected.events].map(|events| without_pauses(events));
    assert_eq!(events[0], events[1]);
    assert_eq!(found.replies.len(), expected.replies.len());
    let pairs = found.replies.iter().zip(&expected.replies);
    let differ: Vec<_> = pairs
        .filter(|((_, found), (_, expected))| {
            comparable(found.clone()) != comparable(expected.clone())
        })
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

/// How often a job stops for a drain is not promised.
pub fn without_pauses(events: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for event in events {
        let is_end_of = |before: &String| {
            let of = |stopped, goes_on| before.ends_with(stopped) && event.ends_with(goes_on);
            of(" paused", " running") || of(" standby", " ready")
        };
        match kept.last() {
            Some(before) if is_end_of(before) => drop(kept.pop()),
            _ => kept.push(event.clone()),
        }
    }
    kept
}
