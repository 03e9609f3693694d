//! Objects as QOM shows them: a tree of paths, with properties that can be read and some that change.

use std::time::Duration;

use coblk::qapi::shorten;
use coblk::qmp::{ErrorClass, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Commands;
use crate::daemon::Daemon;
use crate::objects::iothread::IothreadInfo;
use crate::objects::{ObjectInfo, Property as ObjectProperty};

#[derive(Deserialize)]
struct List {
    path: String,
}

#[derive(Deserialize)]
struct Get {
    path: String,
    property: String,
}

#[derive(Deserialize)]
struct Set {
    path: String,
    property: String,
    value: Value,
}

#[derive(Deserialize)]
struct ListTypes {
    implements: Option<String>,
    /// Whether abstract types are listed too. There are none.
    #[serde(rename = "abstract")]
    _abstract: Option<bool>,
}

#[derive(Deserialize)]
struct ListProperties {
    typename: String,
}

/// QAPI's `ObjectPropertyInfo`.
#[derive(Serialize)]
struct Property {
    name: String,
    r#type: String,
}

/// QAPI's `IOThreadInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Iothread {
    id: String,
    thread_id: i64,
    poll_max_ns: i64,
    poll_grow: i64,
    poll_shrink: i64,
    aio_max_batch: i64,
    #[serde(rename = "x-coblk-waits")]
    waits: Waits,
}

/// How a loop waits for work.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Waits {
    /// What a wake-up costs here.
    wake_cost_ns: u64,
    /// How long the loop looks for work at most before it sleeps.
    max_ns: u64,
    active: u64,
    slept: u64,
    in_vain_ns: u64,
}

/// What a path leads to.
enum Place {
    Root,
    Objects,
    Object { id: String, kind: &'static str, values: Map<String, Value> },
}

pub(super) fn add(commands: &mut Commands) {
    commands.add_qmp("qom-list", |daemon, _, List { path }| {
        Ok(match find(daemon, &path)? {
            Place::Root => container(vec![child("objects", "container")]),
            Place::Objects => {
                let objects = daemon.objects().into_iter();
                container(objects.map(|ObjectInfo { id, kind, .. }| child(&id, kind)).collect())
            }
            Place::Object { kind, .. } => {
                properties(daemon.object_types().properties(kind).unwrap_or_default())
            }
        })
    });
    commands.add_qmp("qom-get", |daemon, _, Get { path, property }| {
        let (kind, mut values) = match find(daemon, &path)? {
            Place::Root | Place::Objects => ("container", Map::new()),
            Place::Object { kind, values, .. } => (kind, values),
        };
        match values.remove(&property) {
            Some(value) => Ok(value),
            None if property == "type" => Ok(kind.into()),
            None => Err(no_property(kind, &property)),
        }
    });
    commands.add_qmp("qom-set", |daemon, co, Set { path, property, value }| {
        let (id, kind, values) = match find(daemon, &path)? {
            Place::Root | Place::Objects => (String::new(), "container", Map::new()),
            Place::Object { id, kind, values } => (id, kind, values),
        };
        if property == "type" {
            let text = format!("Property '{kind}.type' is not writable");
            return Err(QmpError::generic(text));
        }
        if !values.contains_key(&property) {
            return Err(no_property(kind, &property));
        }
        daemon.object_set(co, &id, &property, value).map_err(QmpError::generic)
    });
    commands.add("qom-list-types", |daemon, _, list: ListTypes| {
        let implements = list.implements.as_deref();
        let types = daemon.object_types().names().into_iter().filter(|name| {
            let is_any = |kind| ["object", "user-creatable"].contains(&kind);
            implements.is_none_or(|kind| is_any(kind) || kind == *name)
        });
        Ok(types.map(|name| json!({"name": name, "parent": "object"})).collect::<Vec<_>>())
    });
    commands.add_qmp("qom-list-properties", |daemon, _, ListProperties { typename }| {
        let found = daemon.object_types().properties(&typename);
        found.map(properties).ok_or_else(|| {
            let text = format!("Class '{}' not found", shorten(&typename));
            QmpError::new(ErrorClass::DeviceNotFound, text)
        })
    });
    commands.add("query-iothreads", |daemon, co, ()| {
        let infos = daemon.iothread_infos(co)?.into_iter();
        Ok(infos.map(iothread).collect::<Vec<_>>())
    });
}

/// By its full path, or by the last part of it.
fn find(daemon: &Daemon, path: &str) -> Result<Place, QmpError> {
    let object = |id: &str| {
        let (kind, values) = daemon.object_properties(id)?;
        Some(Place::Object { id: id.to_owned(), kind, values })
    };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let found = match (path.starts_with('/'), parts.as_slice()) {
        (true, []) => Some(Place::Root),
        (_, ["objects"]) => Some(Place::Objects),
        (false, [id]) | (_, ["objects", id]) => object(id),
        _ => None,
    };
    found.ok_or_else(|| {
        let text = format!("Device '{}' not found", shorten(path));
        QmpError::new(ErrorClass::DeviceNotFound, text)
    })
}

fn no_property(kind: &str, property: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{}' not found", shorten(property)))
}

fn child(name: &str, kind: &str) -> Property {
    Property { name: name.to_owned(), r#type: format!("child<{kind}>") }
}

/// Properties with the one that all have.
fn container(children: Vec<Property>) -> Vec<Property> {
    let own = Property { name: "type".to_owned(), r#type: "string".to_owned() };
    [own].into_iter().chain(children).collect()
}

fn properties(own: Vec<ObjectProperty>) -> Vec<Property> {
    let own = own.into_iter();
    container(own.map(|it| Property { name: it.name, r#type: it.kind }).collect())
}

fn iothread(info: IothreadInfo) -> Iothread {
    let IothreadInfo { id, thread_id, properties, waits, .. } = info;
    let properties = properties.with_defaults();
    let number = Option::unwrap_or_default;
    Iothread {
        id,
        thread_id,
        poll_max_ns: number(properties.poll_max_ns),
        poll_grow: number(properties.poll_grow),
        poll_shrink: number(properties.poll_shrink),
        aio_max_batch: number(properties.aio_max_batch),
        waits: Waits {
            wake_cost_ns: ns(waits.wake_cost),
            max_ns: ns(waits.max),
            active: waits.active,
            slept: waits.slept,
            in_vain_ns: ns(waits.in_vain),
        },
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
