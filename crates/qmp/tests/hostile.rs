//! Clients that send nonsense, stop half-way, never read, or are gone: each is answered or dropped, and an
//! honest client finds the monitor as it should be.

mod util;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use util::{Client, Served, connect};

/// What is sent after the negotiation, and how many errors answer it.
fn nonsense() -> Vec<(Vec<u8>, usize)> {
    let nested = |levels: usize, byte: u8| vec![byte; levels];
    let fixed: [(&[u8], usize); 36] = [
        (b"\n", 0),
        (b"{}", 1),
        (b"[]", 1),
        (b"null\n", 1),
        (b"\"text\"", 1),
        (b"1 2 3\n", 3),
        (b"}", 1),
        (b"]]", 2),
        (b"{]", 1),
        (b"{\"execute\"}", 1),
        (b"{\"execute\": }", 1),
        (b"{\"execute\": \"query-version\" ]", 1),
        (b"{\"execute\": \"query-version\",}", 1),
        (b"{\"execute\": \"query-version\" \"id\": 1}", 1),
        (b"{\"execute\": \"query-version\", \"id\": 1, \"id\": 2}", 1),
        (b"{\"execute\": 5}", 1),
        (b"{\"execute\": null}", 1),
        (b"{\"execute\": \"\"}", 1),
        (b"{\"execute\": \"a\\u0000b\"}", 1),
        (b"{\"execute\": \"\\ud800\"}", 1),
        (b"{\"execute\": \"\xf3\x80\x80\"}", 1),
        (b"{\"execute\": \"query-version\", \"arguments\": []}", 1),
        (b"{\"execute\": \"query-version\", \"arguments\": {\"\": {}}}", 1),
        (b"{\"exec-oob\": \"query-version\"}", 1),
        (b"{\"return\": {}}", 1),
        (b"nonsense\n", 1),
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (b"\xff", 1),
        (b"\0", 1),
        (b"\0\0\0\0", 4),
        (b"@\n@\n", 2),
        (b"\"unfinished\n", 1),
        (b"{\"unfinished\n", 1),
        (b"{\"execute\": \"\x01\"}", 2),
        (b"\x1b[A", 2),
        (b"1e999\n", 1),
    ];
    let mut cases: Vec<(Vec<u8>, usize)> =
        fixed.into_iter().map(|(bytes, errors)| (bytes.to_vec(), errors)).collect();
    cases.push((nested(128, b'['), 1));
    cases.push((nested(10_000, b'['), 10_000 / 128));
    cases.push((nested(5_000, b'}'), 5_000));
    cases.push((vec![b'a'; 3 << 20], 1));
    cases.push(([b"\"", &vec![b'a'; 3 << 20][..]].concat(), 1));
    cases.push(([b"{\"execute\": \"", &vec![b'a'; 3 << 20][..]].concat(), 1));
    cases.push(([b"[", &vec![b' '; 3 << 20][..]].concat(), 1));
    cases
}

#[test]
fn nonsense_is_answered_with_errors_and_the_session_goes_on() {
    let served = Served::new();
    for (bytes, errors) in nonsense() {
        let name = bytes[..bytes.len().min(60)].escape_ascii().to_string();
        let mut client = served.client();
        let mut writer = client.stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        for number in 0..errors {
            let answer = client.receive();
            let class = answer["error"]["class"].as_str();
            assert!(
                matches!(class, Some("GenericError" | "CommandNotFound")),
                "{name}: answer {number}: {answer}"
            );
            assert!(answer["error"]["desc"].as_str().unwrap().len() < 300, "{name}: {answer}");
        }
        thread.join().unwrap();
        // Whatever has begun, this ends it; the one answer with an id is the next one but that.
        client.send(b"\xff{\"execute\": \"query-version\", \"id\": \"still here\"}");
        let mut answer = client.receive();
        if answer.get("id").is_none() {
            answer = client.receive();
        }
        assert_eq!(answer["id"], "still here", "{name}: {answer}");
        assert!(answer.get("return").is_some(), "{name}: {answer}");
        drop(client);
        served.check();
    }
}

#[test]
fn a_client_may_go_at_any_moment() {
    let served = Served::new();
    let conversation = br#"{"execute": "qmp_capabilities"}
        {"execute": "echo", "arguments": {"text": "a", "times": 6000}, "id": [1]}
        {"execute": "wait", "arguments": {"ms": 1}}
        {"execute": "emit", "arguments": {"count": 10, "bytes": 1000}}"#;
    for end in 0..=conversation.len() {
        for how in [Shutdown::Both, Shutdown::Write, Shutdown::Read] {
            let mut stream = connect(&served.path());
            stream.write_all(&conversation[..end]).unwrap();
            stream.shutdown(how).unwrap();
            if end % 3 == 0 && how == Shutdown::Write {
                // What was asked in full is answered all the same.
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                assert!(text.starts_with("{\"QMP\""), "{text}");
            }
        }
    }
    served.check();
}

#[test]
fn a_client_that_is_gone_while_its_command_runs_makes_room_for_the_next() {
    let served = Served::new();
    for _ in 0..5 {
        let mut client = served.client();
        client.send(br#"{"execute": "wait", "arguments": {"ms": 20}}"#);
        drop(client);
        served.check();
    }
}

#[test]
fn events_for_a_client_that_does_not_read_are_dropped_and_later_ones_told() {
    let served = Served::new();
    let mut client = served.client();
    // 64 MB of events.
    client.send(
        br#"{"execute": "emit", "arguments": {"count": 64000, "bytes": 1000}, "id": "many"}"#,
    );
    while served.emitted.load(Ordering::Acquire) < 64_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (mut told, mut missing) = (0, 0);
    let answer = loop {
        let message = client.receive();
        if message.get("event").is_none() {
            break message;
        }
        if message["event"] == "X_COBLK_EVENTS_DROPPED" {
            missing += message["data"]["count"].as_u64().unwrap();
            continue;
        }
        // What is told is told in order, and from the first one on.
        assert_eq!(message["data"]["number"], json!(told + missing));
        told += 1;
    };
    assert_eq!(answer, json!({"return": {}, "id": "many"}));
    assert!((1..64_000).contains(&told), "{told}");
    assert_eq!(told + missing, 64_000, "events are missing, and nothing says so");
    let again = br#"{"execute": "emit", "arguments": {"count": 1, "bytes": 1}}"#;
    assert_eq!(client.ask(again)["event"], "TEST");
    assert_eq!(client.receive(), json!({"return": {}}));
}

#[test]
fn random_bytes_and_broken_requests_do_no_harm() {
    let served = Served::new();
    let good = br#"{"execute": "echo", "arguments": {"text": "a\u00e9", "times": 2}, "id": {"a": [1.5, null]}}"#;
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut client = Client::new(connect(&served.path()));
        client.receive();
        let mut bytes = br#"{"execute": "qmp_capabilities"}"#.to_vec();
        for _ in 0..20 {
            let mut request = good.to_vec();
            for _ in 0..random.usize(0..4) {
                let place = random.usize(0..request.len());
                match random.u8(0..3) {
                    0 => request[place] = random.u8(..),
                    1 => _ = request.remove(place),
                    _ => request.insert(place, *random.choice(b"{}[]\":,\\'\n").unwrap()),
                }
            }
            bytes.extend_from_slice(&request);
        }
        bytes
            .extend_from_slice(b"\xff\n{\"execute\": \"query-version\", \"id\": \"the last one\"}");
        client.send(&bytes);
        client.stream.shutdown(Shutdown::Write).unwrap();
        let mut last = Value::Null;
        while let Some(line) = client.line() {
            last = serde_json::from_str(&line).unwrap();
        }
        assert_eq!(last["id"], "the last one", "{}", bytes.escape_ascii());
    }
    served.check();
}
