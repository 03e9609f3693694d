//! Our monitor and QEMU's are told the same things, and answer alike: as many answers, of the same kinds,
//! errors of the same class, with the same ids.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk::AioContext;
use coblk::qmp::{CommandTable, Monitor, QmpOptions, SocketAddress};
use coblk_tests::tools;
use serde_json::{Value, json};

/// What is sent, one after the other.
const INPUTS: [&[u8]; 72] = [
    br#"{"execute": "query-version"}"#,
    br#"{"execute": "query-version", "id": 5}"#,
    br#"{"execute": "query-version", "id": null}"#,
    br#"{"execute": "query-version", "id": {"a": [1.5, true]}}"#,
    br#"{"execute": "query-version", "id": 18446744073709551615}"#,
    br#"{"execute": "query-version", "id": -9223372036854775808}"#,
    br#"{"execute": "query-version", "id": "\u00e9\n\/"}"#,
    "{\"execute\": \"query-version\", \"id\": \"é€🦀\"}".as_bytes(),
    br#"{"execute": "query-version", "arguments": {}}"#,
    br#"{"execute": "query-version", "arguments": {"x": 1}}"#,
    br#"{"execute": "query-version", "arguments": {"x": 1}, "id": 1}"#,
    br#"{"execute": "query-version", "arguments": []}"#,
    br#"{"execute": "query-version", "arguments": null}"#,
    br#"{"execute": "query-version", "x": 1}"#,
    br#"{"execute": "query-version", "x": 1, "id": 7}"#,
    br#"{"execute": "query-version"}{"execute": "query-version"}"#,
    b"\n\n\r\t {\"execute\": \"query-version\"}\n\n",
    br#"{'execute': 'query-version', 'id': 'it\'s "it"'}"#,
    br#"{"execute": "query-version", "id": "it's"}"#,
    br#"{"execute": "query-version", "id": "it\'s"}"#,
    br#"{"execute": "no-such-command"}"#,
    br#"{"execute": "no-such-command", "id": "x"}"#,
    br#"{"execute": ""}"#,
    br#"{"execute": "a\u0000b"}"#,
    br#"{"execute": "qmp_capabilities", "id": 1}"#,
    br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}"#,
    br#"{"execute": 5}"#,
    br#"{"execute": null, "id": 3}"#,
    br#"{"exec-oob": "query-version"}"#,
    br#"{"exec-oob": "query-version", "id": 1}"#,
    br#"{"execute": "query-version", "exec-oob": "query-version"}"#,
    br#"{"arguments": {}}"#,
    br#"{"return": {}}"#,
    br#"{"QMP": {}}"#,
    b"{}",
    b"[]",
    b"[1, {}]",
    b"\"text\"",
    b"1 2 3 ",
    b"-1.5e3\n",
    b"99999999999999999999999 ",
    b"null\n",
    b"true false\n",
    b"foo\n",
    b"nul\n",
    b"}",
    b"]]",
    b":,",
    b"}}{\"execute\": \"query-version\", \"id\": 1}",
    br#"{"execute": "query-version" ]"#,
    br#"{"execute": "query-version" "id": 1}"#,
    br#"{"execute": "query-version",}"#,
    br#"{"execute": "query-version", "id": 1, "id": 2}"#,
    br#"{"execute"}"#,
    br#"{"execute": }{"execute": "query-version", "id": 1}"#,
    br#"{"execute": "\ud800"}"#,
    b"{\"execute\": \"\xff\"}",
    b"{\"execute\": \"\x01\"}",
    b"{\"execute\": \"a\nb\"}\n",
    b"\"unfinished\n",
    b"{\"execute\": \"query-version\"",
    b"[[[[[[[[",
    b"\xff",
    b"\xff{\"execute\": \"query-version\", \"id\": 1}",
    b"\xf3\x80\x80\x80\n",
    b"\0",
    b"@",
    b"%s {\"execute\": %s}",
    b"/* no */ {\"execute\": \"query-version\", \"id\": 1}",
    b"{\"execute\": \"query-version\", \"id\": 1} // no\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"EHLO {[ mail ]}\r\n",
];

/// QEMU's daemon, until it is dropped.
struct Qemu(Child);

impl Qemu {
    fn start(socket: &Path) -> Qemu {
        let chardev = format!("socket,id=c,path={},server=on,wait=off", tools::text(socket));
        let mut command: Command = tools::command("qemu-storage-daemon");
        command.args(["--chardev", &chardev, "--monitor", "chardev=c"]);
        match command.spawn() {
            Ok(child) => Qemu(child),
            Err(error) => panic!("qemu-storage-daemon (Debian: qemu-system-common): {error}"),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself, and then the test has failed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A monitor of ours without commands of its own, for as long as `code` runs.
fn with_ours<R>(socket: &Path, code: impl FnOnce() -> R) -> R {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, address) = (Arc::clone(&stop), SocketAddress::unix(socket.to_owned()));
    let thread = std::thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        let table = CommandTable::new().into();
        let monitor = Monitor::listen(&ctx, &address, table, QmpOptions::default()).unwrap();
        while !flag.load(Ordering::Acquire) {
            ctx.run(|co| co.sleep(Duration::from_millis(5)));
        }
        ctx.run(|co| monitor.co_shutdown(co, Duration::from_secs(10)));
    });
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code));
    stop.store(true, Ordering::Release);
    thread.join().unwrap();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn connect(socket: &Path) -> UnixStream {
    let mut tries = 0;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                return stream;
            }
            Err(_) if tries < 3000 => tries += 1,
            Err(error) => panic!("{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The kind of a message, its class if it is an error, and the id of the command that it answers.
fn kind(message: &Value) -> String {
    let id = message.get("id").map(|id| format!(" to {id}")).unwrap_or_default();
    let members: Vec<&String> = message.as_object().unwrap().keys().collect();
    let others = members.iter().filter(|name| !matches!(name.as_str(), "id" | "return" | "error"));
    assert_eq!(others.count(), 0, "{message}");
    match message.get("error") {
        Some(error) => {
            assert!(error["desc"].as_str().is_some_and(|desc| !desc.is_empty()), "{message}");
            format!("{}{id}", error["class"].as_str().expect("a class"))
        }
        None => format!("return{id}"),
    }
}

/// A client that has negotiated. One for all inputs: of those who come shortly after another one QEMU
/// greets some twice.
struct Client {
    stream: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Client {
    fn new(socket: &Path) -> Client {
        let stream = connect(socket);
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut client = Client { stream, lines };
        assert!(client.receive().get("QMP").is_some());
        client.stream.write_all(br#"{"execute": "qmp_capabilities"}"#).unwrap();
        let mut answer = client.receive();
        // A second greeting, of QEMU.
        while answer.get("QMP").is_some() {
            answer = client.receive();
        }
        assert_eq!(answer, json!({"return": {}}));
        client
    }

    fn receive(&mut self) -> Value {
        let line = self.lines.next().expect("a message and not the end").unwrap();
        assert!(line.is_ascii(), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    /// The kinds of answers to an input.
    fn answers(&mut self, input: &[u8]) -> Vec<String> {
        self.stream.write_all(input).unwrap();
        // Ends what has begun, with an error, and is answered then.
        let end = b"\xff\n{\"execute\": \"query-version\", \"id\": \"end\"}";
        self.stream.write_all(end).unwrap();
        let mut found = Vec::new();
        while found.last().is_none_or(|last| last != "return to \"end\"") {
            found.push(kind(&self.receive()));
        }
        found
    }
}

#[test]
fn everything_is_answered_as_qemu_does() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours.sock"), dir.path().join("theirs.sock"));
    let _qemu = Qemu::start(&theirs);
    with_ours(&ours, || {
        let (mut ours, mut theirs) = (Client::new(&ours), Client::new(&theirs));
        for input in INPUTS {
            let (ours, theirs) = (ours.answers(input), theirs.answers(input));
            assert_eq!(ours, theirs, "ours and QEMU's, to {}", input.escape_ascii());
        }
    });
}

#[test]
fn the_greeting_has_the_members_of_qemus() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours.sock"), dir.path().join("theirs.sock"));
    let _qemu = Qemu::start(&theirs);
    let greeting = |socket: &Path| -> Value {
        let mut line = String::new();
        BufReader::new(connect(socket)).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let members = |greeting: &Value| {
        let version = &greeting["QMP"]["version"];
        let numbers: Vec<String> = version["qemu"].as_object().unwrap().keys().cloned().collect();
        assert!(version["package"].is_string() && greeting["QMP"]["capabilities"].is_array());
        numbers
    };
    let ours = with_ours(&ours, || greeting(&ours));
    assert_eq!(members(&ours), members(&greeting(&theirs)));
}
