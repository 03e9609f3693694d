use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Cache {
    direct: bool,
    no_flush: Option<bool>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Safe,
    Hard,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Options {
    node_name: String,
    size: Option<u64>,
    small: Option<u8>,
    offset: Option<i64>,
    share: Option<f64>,
    mode: Option<Mode>,
    #[serde(default)]
    cache: Cache,
    #[serde(default)]
    caches: Vec<Cache>,
    any: Option<Value>,
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    let Value::Object(arguments) = value else { panic!("an object") };
    from_arguments(arguments).map_err(|error| error.desc)
}

#[test]
fn arguments_become_a_type() {
    let options: Options = parse(json!({
        "node-name": "a", "size": u64::MAX, "small": 255, "offset": -1, "share": 1, "mode": "hard",
        "cache": {"direct": true, "no-flush": false}, "caches": [{}, {"direct": true}],
        "any": {"a": [null, 1.5]},
    }))
    .unwrap();
    assert_eq!(
        (options.size, options.small, options.offset),
        (Some(u64::MAX), Some(255), Some(-1))
    );
    assert_eq!((options.share, options.mode), (Some(1.0), Some(Mode::Hard)));
    assert_eq!(options.cache, Cache { direct: true, no_flush: Some(false) });
    assert_eq!(options.caches.len(), 2);
    assert_eq!(options.any, Some(json!({"a": [null, 1.5]})));
    let options: Options = parse(json!({"node-name": "a"})).unwrap();
    assert_eq!((options.cache, options.mode), (Cache::default(), None));
    assert_eq!(parse::<()>(json!({})), Ok(()));
    let map: Map<String, Value> = parse(json!({"a": 1})).unwrap();
    assert_eq!(map["a"], 1);
}

#[test]
fn what_is_wrong_is_named_as_in_qemu() {
    let with = |name: &str, value: Value| json!({"node-name": "a", name: value});
    for (value, expected) in [
        (json!({}), "Parameter 'node-name' is missing"),
        (with("x", json!(1)), "Parameter 'x' is unexpected"),
        (json!({"node-name": 1}), "Invalid parameter type for 'node-name', expected: string"),
        (json!({"node-name": null}), "Invalid parameter type for 'node-name', expected: string"),
        (with("size", json!("1")), "Invalid parameter type for 'size', expected: integer"),
        (with("size", json!(1.5)), "Invalid parameter type for 'size', expected: integer"),
        (with("size", json!(null)), "Invalid parameter type for 'size', expected: integer"),
        (with("size", json!(-1)), "Parameter 'size' expects u64"),
        (with("small", json!(256)), "Parameter 'small' expects u8"),
        (with("share", json!(true)), "Invalid parameter type for 'share', expected: number"),
        (with("mode", json!("soft")), "Parameter 'mode' does not accept value 'soft'"),
        (with("mode", json!(1)), "Invalid parameter type for 'mode', expected: string"),
        (with("cache", json!(1)), "Invalid parameter type for 'cache', expected: object"),
        (with("cache", json!({"x": 1})), "Parameter 'cache.x' is unexpected"),
        (
            with("cache", json!({"direct": 1})),
            "Invalid parameter type for 'cache.direct', expected: boolean",
        ),
        (with("caches", json!({})), "Invalid parameter type for 'caches', expected: array"),
        (
            with("caches", json!([{}, 1])),
            "Invalid parameter type for 'caches[1]', expected: object",
        ),
        (with("caches", json!([{"x": 1}])), "Parameter 'caches[0].x' is unexpected"),
    ] {
        assert_eq!(parse::<Options>(value).unwrap_err(), expected);
    }
    assert_eq!(parse::<()>(json!({"x": 1})).unwrap_err(), "Parameter 'x' is unexpected");
}

#[test]
fn what_was_sent_does_not_make_messages_long() {
    let long = "x".repeat(1 << 20);
    for value in [
        json!({"node-name": "a", &long: 1}),
        json!({"node-name": "a", "mode": &long}),
        json!({"node-name": "a", "cache": {&long: 1}}),
    ] {
        assert!(parse::<Options>(value).unwrap_err().len() < 200);
    }
}

/// A union by one of its members, as QAPI has them.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Export {
    Nbd {
        name: Option<String>,
    },
    #[serde(rename_all = "kebab-case")]
    VhostUserBlk {
        num_queues: u16,
    },
}

#[test]
fn unions_are_told_apart_by_a_member() {
    let nbd = parse(json!({"type": "nbd", "name": "a"}));
    assert_eq!(nbd, Ok(Export::Nbd { name: Some("a".into()) }));
    let vhost = parse(json!({"num-queues": 4, "type": "vhost-user-blk"}));
    assert_eq!(vhost, Ok(Export::VhostUserBlk { num_queues: 4 }));
    assert_eq!(parse::<Export>(json!({})).unwrap_err(), "Parameter 'type' is missing");
    let error = parse::<Export>(json!({"type": "fuse"})).unwrap_err();
    assert!(error.contains("does not accept value 'fuse'"), "{error}");
}
