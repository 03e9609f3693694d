use super::*;
use crate::DebugEvent;
use crate::DetectZeroes;
use crate::accounting::RequestKind;
use crate::drivers::{Engine, FileNodeOptions, Locking, RawOptions};
use crate::filters::blkdebug::{BlkDebugOptions, DebugConstraints, InjectError, SetState};
use crate::filters::throttle::ThrottleNodeOptions;

fn json(text: &str) -> Result<NodeOptions, OptionsError> {
    crate::drivers().resolve(NodeOptions::from_json(text)?)
}

fn keyval(text: &str) -> Result<NodeOptions, OptionsError> {
    crate::drivers().resolve(NodeOptions::from_keyval(text)?)
}

#[test]
fn typed_json_and_command_line_say_the_same() {
    let text = r#"{"driver": "throttle", "node-name": "t0", "throttle-group": "g", "file":
        {"driver": "raw", "offset": 1048576, "discard": "unmap", "read-only": true, "file":
        {"driver": "file", "filename": "a,b.img", "aio": "io_uring", "auto-read-only": true,
         "locking": "off", "cache": {"direct": true, "no-flush": false}, "detect-zeroes": "off"}}}"#;
    let line = "throttle,node-name=t0,throttle-group=g,file.driver=raw,file.discard=unmap,\
        file.offset=0x100000,file.file.locking=off,\
        file.read-only=on,file.file.driver=file,file.file.filename=a,,b.img,file.file.aio=io_uring,\
        file.file.auto-read-only=on,file.file.cache.direct=on,file.file.cache.no-flush=off,\
        file.file.detect-zeroes=off";
    let image = NodeOptions::new(FileNodeOptions {
        filename: "a,b.img".into(),
        aio: Engine::IoUring,
        locking: Locking::Off,
    })
    .auto_read_only(true)
    .cache_direct(true)
    .cache_no_flush(false)
    .detect_zeroes(DetectZeroes::Off);
    let raw = RawOptions { offset: 1 << 20, ..RawOptions::new(image) };
    let raw = NodeOptions::new(raw);
    let raw = raw.discard(true).read_only(true);
    let throttle = ThrottleNodeOptions { file: raw.into(), throttle_group: "g".into() };
    let typed = NodeOptions::new(throttle).named("t0");
    assert_eq!(json(text).unwrap(), typed);
    assert_eq!(keyval(line).unwrap(), typed);
}

#[test]
fn a_child_may_be_the_name_of_a_node() {
    let options = keyval("driver=raw,file=disk").unwrap();
    assert_eq!(options, NodeOptions::new(RawOptions::new("disk")));
    assert_eq!(
        keyval("driver=file,filename=a").unwrap(),
        NodeOptions::new(FileNodeOptions::new("a"))
    );
}

#[test]
fn rules_of_blkdebug() {
    let text = r#"{"driver": "blkdebug", "image": "disk", "inject-error": [
        {"event": "none", "iotype": "write", "errno": 28, "sector": 8, "once": true}, {"event": "none"},
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
    let load = Some(DebugEvent::L2Load);
    let expected = vec![
        InjectError { iotype: kind, errno: 28, sector: Some(8), once: true, ..any },
        any,
        InjectError { event: load, state: Some(3), ..any },
    ];
    let set_state = vec![
        SetState { event: DebugEvent::PwritevDone, state: Some(2), new_state: 3 },
        SetState { event: DebugEvent::ReadAio, state: None, new_state: 2 },
    ];
    let driver = BlkDebugOptions {
        image: "disk".into(),
        inject_error: expected,
        set_state,
        constraints: DebugConstraints::default(),
    };
    assert_eq!(json(text).unwrap(), NodeOptions::new(driver));
}

/// Each text, and what its error must say.
const BAD: [(&str, &str); 25] = [
    ("", "JSON parse error, premature EOI"),
    ("[1]", "Invalid parameter type for '', expected: object"),
    (r#"{"driver": "file""#, "JSON parse error, premature EOI"),
    ("{}", "Parameter 'driver' is missing"),
    (r#"{"driver": 7}"#, "Invalid parameter type for 'driver', expected: string"),
    (r#"{"driver": "qcow3"}"#, "'driver' does not accept value 'qcow3'; there is blkdebug, "),
    (r#"{"driver": "file"}"#, "Parameter 'filename' is missing"),
    (
        r#"{"driver": "file", "filename": "a", "aio": "posix"}"#,
        "'aio' does not accept value 'posix'",
    ),
    (r#"{"driver": "file", "filename": "a", "pr-manager": "p"}"#, "'pr-manager': not supported"),
    (r#"{"driver": "file", "filename": "a", "drop-cache": 1}"#, "'drop-cache', expected: boolean"),
    (r#"{"driver": "file", "filename": "a", "read-only": "on"}"#, "'read-only', expected: boolean"),
    (r#"{"driver": "file", "filename": "a", "x": 1}"#, "Parameter 'x' is unexpected"),
    (r#"{"driver": "file", "filename": "a", "size": 1}"#, "Parameter 'size' is unexpected"),
    (r#"{"driver": "file", "filename": "a", "cache": 1}"#, "'cache', expected: object"),
    (r#"{"driver": "file", "filename": "a", "cache": {"x": 1}}"#, "'cache.x' is unexpected"),
    (r#"{"driver": "file", "filename": "a", "detect-zeroes": true}"#, "expected: string"),
    (r#"{"driver": "file", "filename": "a", "active": "on"}"#, "'active', expected: boolean"),
    (r#"{"driver": "null-co", "size": -1}"#, "Value '-1' is out of range for parameter 'size'"),
    (r#"{"driver": "null-co", "size": "1"}"#, "'size', expected: integer"),
    (r#"{"driver": "raw", "node-name": "d0"}"#, "Parameter 'file' is missing"),
    (r#"{"driver": "raw", "node-name": "d0", "file": 1}"#, "'file', expected: BlockdevRef"),
    (r#"{"driver": "raw", "file": {"driver": "file"}}"#, "Parameter 'file.filename' is missing"),
    (
        r#"{"driver": "blkdebug", "image": "a", "inject-error": [{"event": "none", "errno": 0}]}"#,
        "Parameter 'inject-error[0].errno': expected a number from 1 to 4095",
    ),
    (
        r#"{"driver": "blkdebug", "image": "a", "take-child-perms": ["write", "x"]}"#,
        "'take-child-perms[1]' does not accept value 'x'; there is consistent-read, write, ",
    ),
    (
        r#"{"driver": "blklogwrites", "file": "a", "log": "b", "log-append": true}"#,
        "Parameter 'log-append': not supported but as 'off'",
    ),
];

#[test]
fn what_is_wrong_is_named() {
    for (text, expected) in BAD {
        let error = json(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = keyval("driver=file,filename=a,read-only=maybe").unwrap_err();
    assert_eq!(error.to_string(), "Parameter 'read-only' expects 'on' or 'off'");
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
        let error = json(&text).unwrap_err().to_string();
        assert!(error.len() < 500, "{}", error.len());
    }
}

/// As in QEMU, which has integers here.
#[test]
fn integers_have_no_suffixes() {
    for line in ["null-co,size=1k", "null-co,latency-ns=1k", "raw,file=a,offset=1k"] {
        let error = keyval(line).unwrap_err().to_string();
        assert!(error.ends_with("expects integer"), "{line}: {error}");
    }
}

/// A node of each driver with all that it can be told.
#[test]
fn what_is_written_is_read_again() {
    for line in [
        "file,filename=a,,b.img,aio=native,locking=off,node-name=f,read-only=on,discard=unmap",
        "host_device,filename=/dev/a,cache.direct=on,cache.no-flush=off,auto-read-only=on",
        "raw,file.driver=raw,file.file=disk,offset=512,size=1024,force-share=on,detect-zeroes=unmap",
        "null-co,size=7,read-zeroes=on,latency-ns=9",
        "null-aio",
        "throttle,file=a,throttle-group=g",
        "blklogwrites,file=a,log.driver=null-co,log-sector-size=512",
        "blkdebug,image=a",
        "blkdebug,image=a,align=4096,max-transfer=8192,opt-write-zero=4096,max-write-zero=65536,\
         opt-discard=512,max-discard=1024,take-child-perms.0=write,unshare-child-perms.0=resize,\
         inject-error.0.event=none,inject-error.0.iotype=write-zeroes,inject-error.0.errno=28,\
         inject-error.1.event=none,inject-error.1.sector=8,inject-error.1.once=on",
    ] {
        let options = keyval(line).unwrap();
        let written = coblk_qapi::to_argument(&options, "driver").into_string().unwrap();
        assert!(!written.starts_with('{'), "{written} is for people, too");
        let read: NodeOptions = coblk_qapi::from_argument(&written, "driver").unwrap();
        let read = crate::drivers().resolve(read).unwrap();
        assert_eq!(read, options, "{written}");
        let value = NodeOptions::from_value(serde_json::to_value(&options).unwrap()).unwrap();
        assert_eq!(crate::drivers().resolve(value), Ok(read));
    }
}

#[test]
fn nesting_has_an_end() {
    let nested = |levels: usize| {
        let begin = r#"{"driver": "raw", "file": "#.repeat(levels);
        json(&format!("{begin}\"disk\"{}", "}".repeat(levels)))
    };
    assert!(nested(30).is_ok());
    assert!(nested(40).unwrap_err().to_string().contains("levels deep"));
    // Deeper than the parser goes.
    assert!(nested(10_000).unwrap_err().to_string().contains("nesting depth limit"));
    let nested = |levels: usize| {
        NodeOptions::from_keyval(format!("raw,{}file=disk", "file.".repeat(levels)))
    };
    for levels in [10_000, 1_000_000] {
        let refused = nested(levels).unwrap_err().to_string();
        let is_named = refused.starts_with("Invalid parameter 'file.file.");
        assert!(is_named && refused.len() < 1000, "{refused}");
    }
}
