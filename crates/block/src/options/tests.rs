use super::*;
use crate::DebugEvent;
use crate::DetectZeroes;
use crate::accounting::RequestKind;
use crate::drivers::{Engine, Locking};

#[test]
fn typed_json_and_command_line_say_the_same() {
    let json = r#"{"driver": "throttle", "node-name": "t0", "throttle-group": "g", "file":
        {"driver": "raw", "offset": 1048576, "discard": "unmap", "read-only": true, "file":
        {"driver": "file", "filename": "a,b.img", "aio": "io_uring", "auto-read-only": true,
         "locking": "off", "cache": {"direct": true, "no-flush": false}, "detect-zeroes": "off"}}}"#;
    let line = "throttle,node-name=t0,throttle-group=g,file.driver=raw,file.discard=unmap,\
        file.offset=1M,file.file.locking=off,\
        file.read-only=on,file.file.driver=file,file.file.filename=a,,b.img,file.file.aio=io_uring,\
        file.file.auto-read-only=on,file.file.cache.direct=on,file.file.cache.no-flush=off,\
        file.file.detect-zeroes=off";
    let image = NodeOptions::new(DriverOptions::File {
        filename: "a,b.img".into(),
        aio: Engine::IoUring,
        locking: Locking::Off,
        device: false,
    })
    .auto_read_only(true)
    .cache_direct(true)
    .cache_no_flush(false)
    .detect_zeroes(DetectZeroes::Off);
    let raw = DriverOptions::Raw { file: image.into(), offset: 1 << 20, size: None };
    let raw = NodeOptions::new(raw);
    let raw = raw.discard(true).read_only(true);
    let throttle = DriverOptions::Throttle { file: raw.into(), throttle_group: "g".into() };
    let typed = NodeOptions::new(throttle).named("t0");
    assert_eq!(NodeOptions::from_json(json).unwrap(), typed);
    assert_eq!(NodeOptions::from_keyval(line).unwrap(), typed);
}

#[test]
fn a_child_may_be_the_name_of_a_node() {
    let options = NodeOptions::from_keyval("driver=raw,file=disk").unwrap();
    assert_eq!(options, NodeOptions::new(DriverOptions::raw("disk")));
    assert_eq!(
        NodeOptions::from_keyval("driver=file,filename=a").unwrap(),
        NodeOptions::new(DriverOptions::file("a"))
    );
}

#[test]
fn rules_of_blkdebug() {
    let json = r#"{"driver": "blkdebug", "image": "disk", "inject-error": [
        {"event": "none", "iotype": "write", "errno": 28, "sector": 8, "once": true}, {},
        {"event": "l2_load", "state": 3}],
        "set-state": [{"event": "pwritev_done", "state": 2, "new_state": 3},
        {"event": "read_aio", "new_state": 2}]}"#;
    let any = InjectError {
        event: None,
        state: None,
        iotype: None,
        errno: libc::EIO,
        sector: None,
        once: false,
    };
    let kind = Some(RequestKind::Write);
    let load = DebugEvent::named("l2_load");
    let expected = vec![
        InjectError { iotype: kind, errno: 28, sector: Some(8), once: true, ..any },
        any,
        InjectError { event: load, state: Some(3), ..any },
    ];
    let set_state = vec![
        SetState { event: DebugEvent::PWRITEV_DONE, state: Some(2), new_state: 3 },
        SetState { event: DebugEvent::READ_AIO, state: None, new_state: 2 },
    ];
    let driver = DriverOptions::BlkDebug {
        image: "disk".into(),
        inject_error: expected,
        set_state,
        constraints: DebugConstraints::default(),
    };
    assert_eq!(NodeOptions::from_json(json).unwrap(), NodeOptions::new(driver));
}

/// Each text, and what its error must say.
const BAD: [(&str, &str); 29] = [
    ("", "not a JSON object"),
    ("[1]", "not a JSON object"),
    (r#"{"driver": "file""#, "not a JSON object"),
    ("{}", "node '(unnamed)': option 'driver' is missing"),
    (r#"{"driver": 7}"#, "option 'driver': expected text, not 7"),
    (r#"{"driver": "qcow3"}"#, "unknown driver 'qcow3'; there is file, "),
    (r#"{"driver": "file"}"#, "option 'filename' is missing"),
    (r#"{"driver": "file", "filename": ""}"#, "option 'filename': not a path"),
    (r#"{"driver": "file", "filename": "a\u0000b"}"#, "option 'filename': not a path"),
    (r#"{"driver": "file", "filename": "a", "aio": "posix"}"#, "'posix' is not supported"),
    (r#"{"driver": "file", "filename": "a", "pr-manager": "p"}"#, "'pr-manager': not supported"),
    (r#"{"driver": "file", "filename": "a", "drop-cache": 1}"#, "'drop-cache': expected true"),
    (r#"{"driver": "file", "filename": "a", "read-only": "on"}"#, "expected true or false, not"),
    (r#"{"driver": "file", "filename": "a", "x": 1}"#, "driver 'file' has no option 'x'"),
    (r#"{"driver": "file", "filename": "a", "cache": 1}"#, "expected a group of options"),
    (r#"{"driver": "file", "filename": "a", "cache": {"x": 1}}"#, "cache has no option 'cache.x'"),
    (r#"{"driver": "file", "filename": "a", "node-name": "1a"}"#, "'1a' is not a name"),
    (r##"{"driver": "file", "filename": "a", "node-name": "#b"}"##, "'#b' is not a name"),
    (r#"{"driver": "file", "filename": "a", "detect-zeroes": true}"#, "'detect-zeroes': expected"),
    (r#"{"driver": "file", "filename": "a", "force-share": "on"}"#, "option 'force-share'"),
    (r#"{"driver": "null-co", "size": -1}"#, "expected a whole number from 0 on, not -1"),
    (r#"{"driver": "null-co", "size": "1"}"#, "expected a whole number"),
    (r#"{"driver": "raw", "node-name": "d0"}"#, "node 'd0': option 'file' is missing"),
    (r#"{"driver": "raw", "node-name": "d0", "file": 1}"#, "the name of a node, or the options"),
    (
        r#"{"driver": "raw", "node-name": "d0", "file": {"driver": "file"}}"#,
        "node 'd0/file': option 'file.filename' is missing",
    ),
    (
        r#"{"driver": "blkdebug", "image": "a", "inject-error": [{"errno": 0}]}"#,
        "option 'inject-error.0.errno'",
    ),
    (
        r#"{"driver": "blkdebug", "image": "a", "take-child-perms": ["write", "x"]}"#,
        "option 'take-child-perms.1': 'x' is not supported; there is consistent-read, write, ",
    ),
    (
        r#"{"driver": "blkdebug", "image": "a", "align": 100}"#,
        "option 'align': 100 is not a power of two",
    ),
    (
        r#"{"driver": "blklogwrites", "file": "a", "log": "b", "log-append": true}"#,
        "option 'log-append': not supported",
    ),
];

#[test]
fn what_is_wrong_is_named() {
    for (text, expected) in BAD {
        let error = NodeOptions::from_json(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = NodeOptions::from_keyval("driver=file,filename=a,read-only=maybe").unwrap_err();
    assert!(error.to_string().contains("expected 'on' or 'off', not 'maybe'"), "{error}");
}

#[test]
fn what_was_sent_does_not_make_messages_long() {
    let long = "x".repeat(1 << 20);
    for text in [
        format!(r#"{{"driver": "{long}"}}"#),
        format!(r#"{{"driver": "file", "filename": "a", "aio": "{long}"}}"#),
        format!(r#"{{"driver": "file", "filename": "a", "{long}": 1}}"#),
        format!(r#"{{"driver": "file", "node-name": "{long}"}}"#),
        format!(r#"{{"driver": "raw", "file": {{"node-name": "{long}", "driver": 1}}}}"#),
    ] {
        let error = NodeOptions::from_json(&text).unwrap_err().to_string();
        assert!(error.len() < 500, "{}", error.len());
    }
}

#[test]
fn only_sizes_have_suffixes() {
    assert!(NodeOptions::from_keyval("null-co,size=1k").is_ok());
    let error = NodeOptions::from_keyval("null-co,latency-ns=1k").unwrap_err().to_string();
    assert!(error.contains("option 'latency-ns': expected a whole number"), "{error}");
}

#[test]
fn nesting_has_an_end() {
    let nested = |levels: usize| {
        let begin = r#"{"driver": "raw", "file": "#.repeat(levels);
        NodeOptions::from_json(&format!("{begin}\"disk\"{}", "}".repeat(levels)))
    };
    assert!(nested(30).is_ok());
    assert!(nested(40).unwrap_err().to_string().contains("levels deep"));
    // Deeper than the parser goes.
    assert!(matches!(nested(10_000), Err(OptionsError::Json(_))));
}
