//! One type with everything in it, read from texts that QEMU's daemon was given too: its words, for
//! options of these types.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use crate::{
    Error, FromParts, OneOrMany, Parts, Size, StrOrNull, from_argument, parts, to_argument,
};

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Common {
    node_name: Option<String>,
    #[serde(default)]
    cache: Cache,
}

#[derive(Debug, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cache {
    direct: Option<bool>,
}

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum Driver {
    NullCo {
        size: Option<u64>,
        latency_ns: Option<i64>,
        num_queues: Option<u16>,
        block_size: Option<Size>,
        read_zeroes: Option<bool>,
        aio: Option<Aio>,
        iothread: Option<OneOrMany>,
        tls: Option<StrOrNull>,
        rules: Option<Vec<Rule>>,
    },
    Raw {
        file: NodeRef,
    },
}

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Aio {
    Threads,
    IoUring,
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Rule {
    event: Aio,
    errno: Option<i32>,
}

#[derive(Debug, PartialEq)]
struct Node {
    common: Common,
    driver: Driver,
}

#[derive(Debug, PartialEq)]
enum NodeRef {
    Name(String),
    Node(Box<Node>),
}

impl FromParts for Node {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Node, M::Error> {
        let driver = parts.variant("driver")?;
        Ok(Node { common: parts.take()?, driver })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        parts(deserializer)
    }
}

impl<'de> Deserialize<'de> for NodeRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeRef, D::Error> {
        struct NameOrNode;
        impl<'de> Visitor<'de> for NameOrNode {
            type Value = NodeRef;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("BlockdevRef")
            }

            fn visit_str<E>(self, name: &str) -> Result<NodeRef, E> {
                Ok(NodeRef::Name(name.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<NodeRef, M::Error> {
                Node::from_parts(&mut Parts::new(members)).map(|node| NodeRef::Node(node.into()))
            }
        }
        deserializer.deserialize_any(NameOrNode)
    }
}

fn read(text: &str) -> Result<Node, String> {
    from_argument(text, "driver").map_err(|error| error.to_string())
}

const TAKEN: [(&str, &str); 10] = [
    ("null-co", "{'driver': 'null-co'}"),
    ("null-co,size=0x400,node-name=a", "{'driver': 'null-co', 'size': 1024, 'node-name': 'a'}"),
    ("null-co,size=010,latency-ns=-1", "{'driver': 'null-co', 'size': 8, 'latency-ns': -1}"),
    ("null-co,block-size=4k", "{'driver': 'null-co', 'block-size': 4096}"),
    ("null-co,read-zeroes=y", "{'driver': 'null-co', 'read-zeroes': true}"),
    ("null-co,iothread.0=a,iothread.1=b", "{'driver': 'null-co', 'iothread': ['a', 'b']}"),
    ("null-co,iothread=a,tls=", "{'driver': 'null-co', 'iothread': 'a', 'tls': null}"),
    ("null-co,rules.0.event=threads", "{'driver': 'null-co', 'rules': [{'event': 'threads'}]}"),
    ("raw,file=a", "{'driver': 'raw', 'file': 'a'}"),
    (
        "raw,file.driver=null-co,file.cache.direct=on,file.aio=io-uring",
        "{'driver': 'raw', 'file': {'driver': 'null-co', 'cache': {'direct': true}, 'aio': 'io-uring'}}",
    ),
];

#[test]
fn both_notations_say_the_same() {
    for (keyval, json) in TAKEN {
        assert_eq!(read(keyval).unwrap(), read(json).unwrap(), "{keyval}");
    }
}

const REFUSED: [(&str, &str); 36] = [
    ("", "Parameter 'driver' is missing"),
    ("{}", "Parameter 'driver' is missing"),
    ("zork", "Parameter 'driver' does not accept value 'zork'; there is null-co, raw"),
    ("{'driver': 5}", "Invalid parameter type for 'driver', expected: string"),
    ("null-co,size=1G", "Parameter 'size' expects integer"),
    ("null-co,size=", "Parameter 'size' expects integer"),
    ("null-co,size=-10", "Value '-10' is out of range for parameter 'size'"),
    ("null-co,latency-ns=9223372036854775808", "out of range for parameter 'latency-ns'"),
    ("null-co,num-queues=65536", "Parameter 'num-queues' expects uint16_t"),
    ("null-co,num-queues=-1", "Parameter 'num-queues' expects uint16_t"),
    ("null-co,num-queues=x", "Parameter 'num-queues' expects integer"),
    ("null-co,block-size=x", "Parameter 'block-size' expects size"),
    ("null-co,read-zeroes=ON", "Parameter 'read-zeroes' expects 'on' or 'off'"),
    (
        "null-co,aio=zork",
        "Parameter 'aio' does not accept value 'zork'; there is threads, io-uring",
    ),
    ("null-co,aio.x=1", "Invalid parameter type for 'aio', expected: string"),
    ("null-co,node-name.0=a", "Invalid parameter type for 'node-name', expected: string"),
    ("null-co,zork.x=1", "Parameter 'zork' is unexpected"),
    ("null-co,cache.zork=1", "Parameter 'cache.zork' is unexpected"),
    ("null-co,cache=1", "Invalid parameter type for 'cache', expected: object"),
    ("null-co,file=a", "Parameter 'file' is unexpected"),
    ("null-co,rules=x", "Invalid parameter type for 'rules', expected: array"),
    ("null-co,rules.0.errno=5", "Parameter 'rules.0.event' is missing"),
    ("null-co,rules.0.event=threads,rules.0.x=1", "Parameter 'rules.0.x' is unexpected"),
    ("raw", "Parameter 'file' is missing"),
    ("raw,file.0=a", "Invalid parameter type for 'file', expected: BlockdevRef"),
    ("raw,file.size=1", "Parameter 'file.driver' is missing"),
    ("raw,file.driver=null-co,file.size=1G", "Parameter 'file.size' expects integer"),
    ("{'driver': 'null-co', 'size': '5'}", "Invalid parameter type for 'size', expected: integer"),
    ("{'driver': 'null-co', 'size': 1e3}", "Invalid parameter type for 'size', expected: integer"),
    (
        "{'driver': 'null-co', 'size': 18446744073709551616}",
        "Invalid parameter type for 'size', expected: integer",
    ),
    ("{'driver': 'null-co', 'size': null}", "Invalid parameter type for 'size', expected: integer"),
    (
        "{'driver': 'null-co', 'read-zeroes': 'on'}",
        "Invalid parameter type for 'read-zeroes', expected: boolean",
    ),
    ("{'driver': 'null-co', 'rules': [{'errno': 1}]}", "Parameter 'rules[0].event' is missing"),
    ("{'driver': 'raw', 'file': null}", "Invalid parameter type for 'file', expected: BlockdevRef"),
    ("{'driver': 'null-co', 'driver': 'raw'}", "JSON parse error, duplicate key"),
    ("{'driver': 'null-co'", "JSON parse error, premature EOI"),
];

#[test]
fn what_is_wrong_is_said_in_qemus_words() {
    for (text, expected) in REFUSED {
        let error = read(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_was_sent_does_not_make_messages_long_or_the_stack_deep() {
    let long = "x".repeat(100_000);
    for text in [
        format!("null-co,{long}=1"),
        long.clone(),
        format!("null-co,aio={long}"),
        format!("null-co,rules.{long}=1,rules.0=1"),
        format!("{{'driver': 'null-co', '{long}': 1}}"),
        format!("{}'a'{}", "{'driver': 'raw', 'file': ".repeat(60), "}".repeat(60)),
        "{'driver': ".repeat(100_000),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.len() < 300, "{error}");
    }
}

/// Values that a command line can have, and those that only JSON can.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_filter("text", |text| !crate::path::has_bytes(text)).prop_map(Value::from),
        Just(json!([])),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map("[a-z][a-z0-9_-]{0,5}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Whether a tree says the same as another, all of whose values may be texts.
fn says(text: &Value, value: &Value) -> bool {
    match (text, value) {
        (Value::Object(texts), Value::Object(values)) => {
            texts.len() == values.len()
                && values
                    .iter()
                    .all(|(name, value)| texts.get(name).is_some_and(|text| says(text, value)))
        }
        (Value::Array(texts), Value::Array(values)) => {
            texts.len() == values.len() && texts.iter().zip(values).all(|(a, b)| says(a, b))
        }
        (Value::String(text), Value::Bool(flag)) => text == if *flag { "on" } else { "off" },
        (Value::String(text), Value::Number(number)) => *text == number.to_string(),
        (text, value) => text == value,
    }
}

#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct Paths {
    #[serde(with = "crate::path")]
    filename: PathBuf,
    #[serde(default, with = "crate::path::option")]
    dir: Option<PathBuf>,
    id: Option<String>,
}

fn paths(line: &[u8]) -> Result<Paths, Error> {
    from_argument(OsStr::from_bytes(line), "filename")
}

#[test]
fn paths_have_any_bytes_and_nothing_else_has() {
    let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
    let both = paths(b"a\xe9.img,dir=\xf4\x8f\xbf\x80,id=\xc3\xa9").unwrap();
    assert_eq!((both.filename, both.dir), (path(b"a\xe9.img"), Some(path(b"\xf4\x8f\xbf\x80"))));
    assert_eq!(both.id.as_deref(), Some("é"));
    let json = paths("{'filename': '\u{10FFE9}', 'dir': 'é'}".as_bytes()).unwrap();
    assert_eq!(
        (json.filename, json.dir),
        (path("\u{10FFE9}".as_bytes()), Some(path("é".as_bytes())))
    );
    for (line, expected) in [
        (&b"a,id=x\xe9"[..], "Parameter 'id' expects UTF-8"),
        (b"a,id=\xf4\x8f\xbf\x80", "Parameter 'id' expects UTF-8"),
        (b"a,\xe9=1", "Invalid parameter '\u{FFFD}'"),
        (b"a,dir.\xe9=1", "Invalid parameter 'dir.\u{FFFD}'"),
        (b"{'filename': '\xe9'}", "JSON parse error, invalid UTF-8 sequence in string"),
        (b"{'filename': 'a\\u0000b'}", "Parameter 'filename': a path has no zeroes"),
        (b"{'filename': 1}", "Invalid parameter type for 'filename', expected: string"),
        (b"dir=a", "Parameter 'filename' is missing"),
    ] {
        assert_eq!(paths(line).unwrap_err().to_string(), expected, "{}", line.escape_ascii());
    }
    let word = from_argument::<Node>(OsStr::from_bytes(b"driver=\xe9"), "driver").unwrap_err();
    assert_eq!(word.parameter(), "driver");
}

proptest! {
    #[test]
    fn paths_are_written_and_read_again(bytes in vec(1u8.., 0..20), dir in vec(0xF0u8.., 0..9)) {
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let (filename, dir) = (path(&bytes), Some(path(&dir)));
        let paths = Paths { filename, dir, id: Some("é".to_owned()) };
        let text = to_argument(&paths, "filename");
        prop_assert_eq!(from_argument::<Paths>(&text, "filename"), Ok(paths));
    }

    #[test]
    fn what_is_written_is_read_again(
        members in btree_map("[a-z][a-z0-9_-]{0,5}", any_value(), 0..5),
    ) {
        let value = Value::Object(members.into_iter().collect());
        let text = to_argument(&value, "a").into_string().unwrap();
        let tree = match text.starts_with('{') {
            true => crate::json::parse(&text).unwrap(),
            false => Value::Object(crate::keyval::parse(&text, "a").unwrap()),
        };
        prop_assert!(says(&tree, &value), "{text}: {tree} is not {value}");
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,60}") {
        let _ = read(&text);
        let _ = read(&format!("null-co,{text}"));
        let _ = read(&format!("{{'driver': 'null-co', {text}"));
    }

    #[test]
    fn no_tree_makes_it_panic(value in any_value()) {
        let _ = read(&json!({"driver": "null-co", "rules": value}).to_string());
        let _ = read(&json!({"driver": "raw", "file": value}).to_string());
    }
}
