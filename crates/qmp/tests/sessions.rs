//! Sessions of well-behaved clients.

mod util;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;

use coblk_qmp::{CommandTable, Listener, Monitor, QmpOptions, SocketAddress};
use serde_json::json;
use util::{Client, Served, connect};

#[test]
fn a_session_begins_with_a_greeting_and_a_negotiation() {
    let served = Served::new();
    let mut client = Client::new(connect(&served.path()));
    let version = json!({
        "qemu": {"major": 10, "minor": 0, "micro": 2},
        "package": concat!("coblk ", env!("CARGO_PKG_VERSION")),
    });
    assert_eq!(client.receive(), json!({"QMP": {"version": version, "capabilities": []}}));
    for early in ["query-version", "echo", "no-such-command"] {
        let answer = client.ask(json!({"execute": early, "id": early}).to_string().as_bytes());
        let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
        let error = json!({"class": "CommandNotFound", "desc": desc});
        assert_eq!(answer, json!({"error": error, "id": early}));
    }
    for (bad, expected) in [
        (r#"{"enable": ["oob"]}"#, "Capability 'oob' is not available"),
        (r#"{"enable": ["x"]}"#, "Parameter 'enable[0]' does not accept value 'x'; there is oob"),
        (r#"{"x": 1}"#, "Parameter 'x' is unexpected"),
    ] {
        let request = format!(r#"{{"execute": "qmp_capabilities", "arguments": {bad}}}"#);
        assert_eq!(client.error(request.as_bytes()), ("GenericError".into(), expected.into()));
    }
    let negotiate = br#"{"execute": "qmp_capabilities", "arguments": {"enable": []}, "id": 7}"#;
    assert_eq!(client.ask(negotiate), json!({"return": {}, "id": 7}));
    assert_eq!(client.ask(br#"{"execute": "query-version"}"#), json!({"return": version}));
    let (class, desc) = client.error(negotiate);
    assert_eq!(class, "CommandNotFound");
    assert_eq!(desc, "Capabilities negotiation is already complete, command ignored");
}

#[test]
fn an_id_of_any_type_comes_back() {
    let served = Served::new();
    let mut client = served.client();
    for id in [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1.5),
        json!("é\u{1F980}\n"),
        json!([1, [2]]),
        json!({"a": {"b": []}}),
    ] {
        let request = json!({"execute": "refuse", "id": id});
        let error = json!({"class": "GenericError", "desc": "no"});
        assert_eq!(client.ask(request.to_string().as_bytes()), json!({"error": error, "id": id}));
        let request = json!({"execute": "echo", "arguments": {"text": "a"}, "id": id});
        let expected = json!({"return": {"text": "a"}, "id": id});
        assert_eq!(client.ask(request.to_string().as_bytes()), expected);
    }
}

#[test]
fn commands_come_with_or_without_line_ends_and_run_in_order() {
    let served = Served::new();
    let mut client = served.client();
    let mut bytes = Vec::new();
    for number in 0..1000 {
        let end = ["", "\n", "\r\n", " \t\n\n"][number % 4];
        let request = json!({"execute": "echo", "arguments": {"text": "a"}, "id": number});
        bytes.extend_from_slice(format!("{request}{end}").as_bytes());
    }
    client.send(&bytes);
    for number in 0..1000 {
        assert_eq!(client.receive(), json!({"return": {"text": "a"}, "id": number}));
    }
    for byte in br#"{"execute": "echo", "arguments": {"text": "bit by bit"}}"# {
        client.send(&[*byte]);
    }
    assert_eq!(client.receive(), json!({"return": {"text": "bit by bit"}}));
}

#[test]
fn commands_are_listed() {
    let served = Served::new();
    let answer = served.client().ask(br#"{"execute": "query-commands"}"#);
    let names: Vec<&str> = answer["return"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "echo",
            "emit",
            "panic",
            "qmp_capabilities",
            "query-commands",
            "query-qmp-schema",
            "query-version",
            "refuse",
            "wait",
        ]
    );
}

#[test]
fn arguments_and_commands_that_are_wrong_are_named() {
    let served = Served::new();
    let mut client = served.client();
    for (request, class, desc) in [
        (r#"{"execute": "x"}"#, "CommandNotFound", "The command x has not been found"),
        (r#"{"execute": "echo"}"#, "GenericError", "Parameter 'text' is missing"),
        (
            r#"{"execute": "echo", "arguments": {"text": "a", "x": 1}}"#,
            "GenericError",
            "Parameter 'x' is unexpected",
        ),
        (
            r#"{"execute": "echo", "arguments": {"text": 1}}"#,
            "GenericError",
            "Invalid parameter type for 'text', expected: string",
        ),
        (
            r#"{"execute": "query-commands", "arguments": {"x": 1}}"#,
            "GenericError",
            "Parameter 'x' is unexpected",
        ),
        (
            r#"{"execute": "query-version", "arguments": {"x": 1}}"#,
            "GenericError",
            "Parameter 'x' is unexpected",
        ),
        (r#"{"execute": "echo", "x": 1}"#, "GenericError", "QMP input member 'x' is unexpected"),
    ] {
        assert_eq!(client.error(request.as_bytes()), (class.into(), desc.into()), "{request}");
    }
}

#[test]
fn a_command_that_panics_is_answered_and_the_session_goes_on() {
    let served = Served::new();
    let mut client = served.client();
    assert_eq!(client.error(br#"{"execute": "panic"}"#).0, "GenericError");
    let echo = br#"{"execute": "echo", "arguments": {"text": "a"}}"#;
    assert_eq!(client.ask(echo), json!({"return": {"text": "a"}}));
}

#[test]
fn events_come_between_answers_and_only_after_the_negotiation() {
    let served = Served::new();
    let mut client = served.client();
    client.send(br#"{"execute": "emit", "arguments": {"count": 3}, "id": 1}"#);
    for number in 0..3 {
        let event = client.receive();
        assert_eq!((&event["event"], &event["data"]["number"]), (&json!("TEST"), &json!(number)));
        let time = &event["timestamp"];
        assert!(time["seconds"].as_u64().unwrap() > 1_700_000_000, "{time}");
        assert!(time["microseconds"].as_u64().unwrap() < 1_000_000, "{time}");
    }
    assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
    // Of many that are limited the first is told at once, and the last one later.
    client.send(br#"{"execute": "emit", "arguments": {"count": 100, "limited": true}}"#);
    assert_eq!(client.receive()["data"]["number"], 0);
    assert_eq!(client.receive(), json!({"return": {}}));
    assert_eq!(client.receive()["data"]["number"], 99);
}

#[test]
fn clients_take_turns() {
    let served = Served::new();
    let mut first = served.client();
    let mut others: Vec<Client> = (0..3).map(|_| Client::new(connect(&served.path()))).collect();
    others[0].stream.set_nonblocking(true).unwrap();
    for _ in 0..100 {
        let echo = br#"{"execute": "echo", "arguments": {"text": "a"}}"#;
        assert_eq!(first.ask(echo), json!({"return": {"text": "a"}}));
        let error = (&others[0].stream).read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
    others[0].stream.set_nonblocking(false).unwrap();
    drop(first);
    for client in &mut others {
        assert!(client.receive().get("QMP").is_some());
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    served.check();
}

#[test]
fn answers_may_be_pretty() {
    let mut options = QmpOptions::default();
    options.pretty = true;
    let served = Served::with(options, None);
    let mut client = Client::new(connect(&served.path()));
    client
        .send(br#"{"execute": "qmp_capabilities"}{"execute": "echo", "arguments": {"text": "a"}}"#);
    let mut lines = Vec::new();
    while !lines.contains(&"        \"text\": \"a\"\n".to_owned()) {
        lines.push(client.line().unwrap());
    }
    assert_eq!(lines[..2], ["{\n", "    \"QMP\": {\n"]);
    assert!(lines.contains(&"    \"return\": {}\n".to_owned()), "{lines:?}");
}

#[test]
fn an_id_does_not_make_pretty_answers_long() {
    let mut options = QmpOptions::default();
    options.pretty = true;
    let served = Served::with(options, None);
    let mut client = Client::new(connect(&served.path()));
    let id = format!("{}{}1{}", "[".repeat(100), "1,".repeat(100_000), "]".repeat(100));
    client.send(format!(r#"{{"execute": "x", "id": {id}}}"#).as_bytes());
    let mut bytes = 0;
    loop {
        let line = client.line().unwrap();
        bytes += line.len();
        if line == format!("    \"id\": {id}\n") {
            break;
        }
    }
    assert!(bytes < 250_000, "{bytes}");
}

#[test]
fn tcp_does_as_well() {
    let any = "127.0.0.1:0".parse().unwrap();
    let served = Served::with(QmpOptions::default(), Some(any));
    let address = served.address.socket_addr().expect("a TCP address");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(br#"{"execute": "qmp_capabilities", "id": "tcp"}"#).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("{\"return\": {}, \"id\": \"tcp\"}\r\n"), "{text}");
}

#[test]
fn a_monitor_may_connect_and_do_so_again() {
    let served = Served::connecting();
    let path = served.dir.path().join("client.sock");
    for _ in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..3 {
            let mut client = Client::new(listener.accept().unwrap().0);
            assert!(client.receive().get("QMP").is_some());
            assert_eq!(client.ask(br#"{"execute": "qmp_capabilities"}"#), json!({"return": {}}));
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_monitor_that_is_paused_lets_clients_wait() {
    let ctx = coblk_aio::AioContext::for_test().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let socket = Listener::from_fd(UnixListener::bind(&path).unwrap()).unwrap();
    let mut options = QmpOptions::default();
    options.paused = true;
    let monitor =
        Monitor::from_listener(&ctx, socket, CommandTable::new().into(), options).unwrap();
    assert_eq!(monitor.addresses(), [SocketAddress::unix(&path)]);
    let stream = connect(&path);
    stream.set_nonblocking(true).unwrap();
    for _ in 0..10 {
        ctx.try_poll();
        let error = (&stream).read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
    monitor.begin();
    ctx.run_until(|| monitor.is_connected());
    ctx.run(|co| monitor.co_shutdown(co, std::time::Duration::from_secs(10)));
    stream.set_nonblocking(false).unwrap();
    assert!(Client::new(stream).receive().get("QMP").is_some());
    assert!(path.exists(), "it is not the monitor's");
}

#[test]
fn an_address_that_cannot_be_used_is_an_error() {
    let ctx = coblk_aio::AioContext::for_test().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listen = |name: &str| {
        let address = SocketAddress::unix(dir.path().join(name));
        Monitor::listen(&ctx, &address, CommandTable::new().into(), QmpOptions::default())
    };
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    assert!(listen("file").is_err());
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"precious");
    assert!(listen("none/qmp.sock").is_err());
    let first = listen("qmp.sock").unwrap();
    assert!(listen("qmp.sock").is_err(), "somebody listens there");
    drop(first);
    // The socket of a program that is gone.
    drop(UnixListener::bind(dir.path().join("left.sock")).unwrap());
    listen("left.sock").unwrap();
    let nobody = SocketAddress::unix(dir.path().join("nobody"));
    let table = CommandTable::new().into();
    assert!(Monitor::connect(&ctx, &nobody, None, table, QmpOptions::default()).is_err());
}

#[test]
fn a_shutdown_lets_the_command_that_runs_answer() {
    let served = Served::new();
    let mut client = served.client();
    client.send(
        br#"{"execute": "wait", "arguments": {"ms": 50}, "id": 1}{"execute": "query-version"}"#,
    );
    // Nothing tells that it runs already, so there may also be no answer at all; but never that of
    // the command after it without its own, and no half.
    served.begin_stop();
    let answers = std::iter::from_fn(|| client.line()).collect::<Vec<_>>();
    let expected = ["{\"return\": {}, \"id\": 1}\r\n"];
    assert!(answers.is_empty() || answers == expected, "{answers:?}");
}

#[test]
fn a_command_that_waits_does_not_hold_up_those_of_other_monitors() {
    use std::cell::Cell;
    use std::rc::Rc;
    let ctx = coblk_aio::AioContext::for_test().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (inside, releases) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut table = CommandTable::new();
    let (waiting, released) = (Rc::clone(&inside), Rc::clone(&releases));
    table.command("wait", move |co, ()| {
        waiting.set(waiting.get() + 1);
        let before = released.get();
        while released.get() == before {
            co.yield_now();
        }
        waiting.set(waiting.get() - 1);
        Ok(())
    });
    let waiting = Rc::clone(&inside);
    table.command("query-inside", move |_, ()| Ok(waiting.get()));
    table.command("release", move |_, ()| {
        releases.set(releases.get() + 1);
        Ok(())
    });
    let table = Rc::new(table);
    let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
    let monitors = paths.clone().map(|path| {
        let address = SocketAddress::unix(path);
        Monitor::listen(&ctx, &address, Rc::clone(&table), QmpOptions::default()).unwrap()
    });
    let path = paths[0].clone();
    let clients = std::thread::spawn(move || {
        let [mut a, mut b, mut c] = paths.map(|path| {
            let mut client = Client::new(connect(&path));
            client.receive();
            client.ask(br#"{"execute": "qmp_capabilities"}"#);
            client
        });
        a.send(br#"{"execute": "wait"}"#);
        b.send(br#"{"execute": "wait"}"#);
        while c.ask(br#"{"execute": "query-inside"}"#)["return"] != json!(2) {}
        // A client that goes is waited for by nothing: the next one is served, though the command runs.
        drop(a);
        let mut a = Client::new(connect(&path));
        a.receive();
        a.ask(br#"{"execute": "qmp_capabilities"}"#);
        assert_eq!(a.ask(br#"{"execute": "query-inside"}"#)["return"], json!(2));
        c.ask(br#"{"execute": "release"}"#);
        assert_eq!(b.receive(), json!({"return": {}}));
        while c.ask(br#"{"execute": "query-inside"}"#)["return"] != json!(0) {}
    });
    ctx.run_until(|| clients.is_finished());
    clients.join().unwrap();
    drop(monitors);
}
