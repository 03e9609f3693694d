use serde::Deserialize;
use serde::de::{Deserializer, MapAccess};
use serde_json::{Value, json};

use super::*;
use crate::{FromParts, OneOrMany, Only, Parts, Size, Unsupported};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(dead_code, reason = "it is only described")]
struct Common {
    id: String,
    #[serde(default, alias = "an-error")]
    error: Word,
    #[serde(alias = "x-cache")]
    cache: Option<Cache>,
    iothread: Option<OneOrMany>,
    bitmaps: Option<Unsupported>,
    inactive: Option<Only<false>>,
    active: Option<Only<true>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "it is only described")]
struct Cache {
    direct: bool,
    size: Option<Size>,
}

/// One that takes one of its members.
#[derive(Deserialize)]
#[serde(try_from = "Both")]
struct Checked;

#[derive(Deserialize)]
struct Both {
    path: Option<String>,
    host: Option<String>,
}

impl TryFrom<Both> for Checked {
    type Error = &'static str;
    fn try_from(both: Both) -> Result<Checked, &'static str> {
        match (both.path, both.host) {
            (Some(_), None) | (None, Some(_)) => Ok(Checked),
            _ => Err("one of them"),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    #[default]
    Report,
    Ignore,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
#[allow(dead_code, reason = "it is only described")]
enum Kind {
    Nbd { name: Option<String> },
    Vhost { num_queues: u16, socket: Socket, addr: Checked, rules: Option<Vec<Cache>> },
    None,
}

/// A union in a variant of another one.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(dead_code, reason = "it is only described")]
enum SocketKind {
    Fd { str: String },
    Unix { path: String, tight: Option<bool> },
}

struct Socket;

impl FromParts for Socket {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Socket, M::Error> {
        parts.variant("type").map(|_: SocketKind| Socket)
    }
}

impl<'de> Deserialize<'de> for Socket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Socket, D::Error> {
        crate::parts(deserializer)
    }
}

#[allow(dead_code, reason = "it is only described")]
struct Export {
    common: Common,
    kind: Kind,
}

impl FromParts for Export {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Export, M::Error> {
        let kind = parts.variant("type")?;
        Ok(Export { common: parts.take()?, kind })
    }
}

impl<'de> Deserialize<'de> for Export {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Export, D::Error> {
        crate::parts(deserializer)
    }
}

/// In short: a question mark for what may be left out.
fn short(schema: &Schema) -> Value {
    match schema {
        Schema::Builtin(name) => json!(name),
        Schema::Enum(words) => json!(words.join("|")),
        Schema::Array(item) => json!([short(item)]),
        Schema::Alternate(name, _) => json!(name),
        Schema::Object(shape) => {
            let mut members = shape_members(shape);
            for (word, variant) in &shape.variants {
                members[format!("={word}")] = shape_members(variant);
            }
            members
        }
    }
}

fn shape_members(shape: &Shape) -> Value {
    let member = |member: &Member| {
        let mark = if member.optional { "?" } else { "" };
        (format!("{}{mark}", member.name), short(&member.schema))
    };
    Value::Object(shape.members.iter().map(member).collect())
}

#[test]
fn a_type_is_described_by_reading_it() {
    let cache = json!({"direct": "bool", "size?": "size"});
    let socket = json!({
        "type": "fd|unix",
        "=fd": {"str": "str"},
        "=unix": {"path": "str", "tight?": "bool"},
    });
    let expected = json!({
        "type": "nbd|vhost|none",
        "id": "str",
        "error?": "report|ignore",
        "cache?": cache,
        "iothread?": "string or array of strings",
        "inactive?": "bool",
        "active?": "bool",
        "=nbd": {"name?": "str"},
        "=vhost": {
            "num-queues": "uint16",
            "socket": socket,
            "addr": {"path?": "str", "host?": "str"},
            "rules?": [cache],
        },
        "=none": {},
    });
    assert_eq!(short(&Schema::of::<Export>().unwrap()), expected);
    assert_eq!(short(&Schema::of::<()>().unwrap()), json!({}));
}

#[test]
fn a_schema_is_written_as_qemu_does() {
    let mut schemas = Schemas::default();
    schemas.command("export-add", &Schema::of::<Export>().unwrap());
    schemas.event("EXPORT_DELETED", &Schema::object(&[("id", "str")]));
    let infos = schemas.finish();
    let find = |name: &str| infos.iter().find(|info| info["name"] == name).unwrap();
    let arguments = find(find("export-add")["arg-type"].as_str().unwrap());
    assert_eq!((&arguments["meta-type"], &arguments["tag"]), (&json!("object"), &json!("type")));
    let member = |name: &str| {
        let members = arguments["members"].as_array().unwrap();
        members.iter().find(|member| member["name"] == name).unwrap()
    };
    assert_eq!((member("id").get("default"), &member("id")["type"]), (None, &json!("str")));
    assert_eq!(member("cache").get("default"), Some(&Value::Null));
    let words = find(member("type")["type"].as_str().unwrap());
    assert_eq!(words["values"], json!(["nbd", "vhost", "none"]));
    let vhost = find(arguments["variants"][1]["type"].as_str().unwrap());
    assert_eq!(arguments["variants"][1]["case"], "vhost");
    assert_eq!(vhost["members"][0], json!({"name": "num-queues", "type": "uint16"}));
    let data = find(find("EXPORT_DELETED")["arg-type"].as_str().unwrap());
    assert_eq!(data["members"], json!([{"name": "id", "type": "str"}]));
    assert_eq!(find("uint16")["json-type"], "int");
    // No name is told twice, and none that is used is not.
    let names: BTreeSet<&str> = infos.iter().map(|info| info["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), infos.len());
}
