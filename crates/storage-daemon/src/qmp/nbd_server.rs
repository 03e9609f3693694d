//! The NBD server, and the older commands for its exports, which QEMU still has.

use coblk::export::{ExportError, ExportOptions, RemoveMode};
use coblk::qapi::{Member, Schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Arguments, Commands, options};
use crate::daemon::DaemonError;
use crate::options::{NbdServerOptions, OptionError};

/// What `nbd-server-add` shows of a node.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Add {
    device: String,
    name: Option<String>,
    description: Option<String>,
    #[serde(default)]
    writable: bool,
    /// The name of a dirty bitmap that clients may look at.
    bitmap: Option<String>,
}

#[derive(Deserialize)]
struct Remove {
    name: String,
    #[serde(default)]
    mode: RemoveMode,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("nbd-server-start", |daemon, co, mut arguments: Arguments| {
        if let Some(address) = arguments.remove("addr") {
            arguments.insert("addr".to_owned(), flattened(address)?);
        }
        daemon.nbd_server_start(co, options(arguments)?)
    });
    if let Some(schema) = start_schema() {
        commands.table.describe("nbd-server-start", schema);
    }
    commands.add("nbd-server-stop", |daemon, co, ()| daemon.nbd_server_stop(co));
    commands.add("nbd-server-add", |daemon, co, mut add: Add| {
        let device = add.device.clone();
        // Unlike block-export-add, this one takes what it can get.
        let node = daemon.blockdevs().node(&device);
        add.writable &= !node.is_some_and(|node| node.is_read_only());
        daemon.export_add(co, export_options(add)?).map_err(|error| match error {
            DaemonError::Export(ExportError::NoSuchNode(node_name)) => {
                DaemonError::NoSuchDevice { device, node_name }
            }
            other => other,
        })
    });
    commands.add("nbd-server-remove", |daemon, co, Remove { name, mode }| {
        daemon.export_del(co, &name, mode)
    });
}

/// The options of `--nbd-server`, but for the address.
fn start_schema() -> Option<Schema> {
    let Ok(Schema::Object(mut options)) = Schema::of::<NbdServerOptions>() else { return None };
    let addr = options.members.iter_mut().find(|member| member.name == "addr")?;
    if let Schema::Object(addr) = &mut addr.schema {
        for (_, variant) in &mut addr.variants {
            let schema = Schema::Object(std::mem::take(variant));
            variant.members = vec![Member { name: "data".to_owned(), schema, optional: false }];
        }
    }
    Some(Schema::Object(options))
}

/// An address of this command has what belongs to its type in a member `data`, unlike those of the
/// command line.
fn flattened(address: Value) -> Result<Value, DaemonError> {
    let Value::Object(mut members) = address else { return Ok(address) };
    let data = members.remove("data").ok_or_else(|| OptionError::missing("addr.data"))?;
    let Value::Object(data) = data else {
        let text = "Invalid parameter type for 'addr.data', expected: object";
        return Err(OptionError::other(text).into());
    };
    if let Some(name) = members.keys().find(|name| *name != "type") {
        return Err(OptionError::unexpected(&format!("addr.{name}")).into());
    }
    if data.contains_key("type") {
        return Err(OptionError::unexpected("addr.data.type").into());
    }
    let flat: Map<String, Value> = members.into_iter().chain(data).collect();
    Ok(Value::Object(flat))
}

/// The export goes by the name that clients see.
fn export_options(add: Add) -> Result<ExportOptions, DaemonError> {
    let name = add.name.unwrap_or_else(|| add.device.clone());
    let mut members = json!({
        "type": "nbd",
        "id": name,
        "name": name,
        "node-name": add.device,
        "writable": add.writable,
    });
    if let Some(bitmap) = add.bitmap {
        members["bitmaps"] = json!([bitmap]);
    }
    if let Some(description) = add.description {
        members["description"] = description.into();
    }
    Ok(coblk::qapi::from_value(members)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_inner_object() {
        let address = json!({"type": "inet", "data": {"host": "::1", "port": "0"}});
        let flat = json!({"type": "inet", "host": "::1", "port": "0"});
        assert_eq!(flattened(address).unwrap(), flat);
        for (bad, expected) in [
            (json!({"type": "unix", "path": "/a"}), "Parameter 'addr.data' is missing"),
            (json!({"type": "unix", "data": 1}), "'addr.data', expected: object"),
            (json!({"type": "unix", "data": {}, "x": 1}), "Parameter 'addr.x' is unexpected"),
            (json!({"data": {"type": "unix"}}), "Parameter 'addr.data.type' is unexpected"),
        ] {
            let error = flattened(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
