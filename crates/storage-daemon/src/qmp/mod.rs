//! The daemon's QMP commands: each is a call of one of its methods, or a question about what it has. One
//! file a group.

mod bitmaps;
mod blockdevs;
mod blockstats;
mod chain_snapshots;
mod check;
mod events;
mod exports;
mod image;
mod jobs;
mod nbd_server;
mod nodes;
mod objects;
mod qom;
mod snapshots;
mod transaction;

use std::rc::{Rc, Weak};

use coblk::Co;
use coblk::block::Drivers;
use coblk::export::ExportTypes;
use coblk::qmp::{CommandTable, QmpError, QmpVersion};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::daemon::{Daemon, DaemonError, ShutdownCause};
use crate::objects::ObjectTypes;
use crate::options::OptionError;

pub(crate) use events::to_qmp;

/// Arguments that the daemon's own options are made of.
type Arguments = Map<String, Value>;

/// The name of something.
#[derive(Deserialize)]
struct Id {
    id: String,
}

/// All commands of a daemon that has these drivers, and can make exports and objects of these types. They
/// do not keep it.
pub(crate) fn commands(
    daemon: &Weak<Daemon>,
    drivers: &Drivers,
    types: &ExportTypes,
    objects: &ObjectTypes,
) -> Commands {
    let mut commands = Commands { table: CommandTable::new(), daemon: Weak::clone(daemon) };
    bitmaps::add(&mut commands);
    blockdevs::add(&mut commands, drivers);
    blockstats::add(&mut commands);
    chain_snapshots::add(&mut commands);
    check::add(&mut commands);
    exports::add(&mut commands, types);
    jobs::add(&mut commands, drivers);
    nbd_server::add(&mut commands);
    nodes::add(&mut commands);
    objects::add(&mut commands, objects);
    qom::add(&mut commands);
    snapshots::add(&mut commands);
    transaction::add(&mut commands);
    commands.add("quit", |daemon, _, ()| {
        daemon.quit(ShutdownCause::Quit);
        Ok(())
    });
    commands.add("x-coblk-config", |daemon, _, ()| {
        let mut arguments = Vec::new();
        for (name, text) in daemon.configuration() {
            let text = text.into_string().map_err(|text| {
                OptionError::other(format!("--{name} {}: JSON is UTF-8", text.display()))
            })?;
            arguments.extend([format!("--{name}"), text]);
        }
        Ok(json!({ "arguments": arguments }))
    });
    for (name, data) in events::schemas() {
        commands.table.event(name, data);
    }
    events::add_those_of_drivers(&mut commands.table, drivers);
    commands
}

/// What clients are told that ask for the version: whose commands these are, and what program it is.
pub(crate) fn version() -> QmpVersion {
    let package = concat!("coblk-storage-daemon ", env!("CARGO_PKG_VERSION")).to_owned();
    let mut version = QmpVersion::default();
    version.package = package;
    version
}

/// A table in the making.
pub(crate) struct Commands {
    pub(crate) table: CommandTable,
    daemon: Weak<Daemon>,
}

impl Commands {
    fn add<A: DeserializeOwned, R: Serialize>(
        &mut self,
        name: &'static str,
        handler: impl Fn(&Rc<Daemon>, &Co<'_>, A) -> Result<R, DaemonError> + 'static,
    ) {
        self.add_qmp(name, move |daemon, co, arguments| {
            handler(daemon, co, arguments).map_err(QmpError::generic)
        });
    }

    /// One whose errors have classes.
    pub(crate) fn add_qmp<A: DeserializeOwned, R: Serialize>(
        &mut self,
        name: &'static str,
        handler: impl Fn(&Rc<Daemon>, &Co<'_>, A) -> Result<R, QmpError> + 'static,
    ) {
        let daemon = self.daemon.clone();
        self.table.command(name, move |co, arguments| handler(&alive(&daemon)?, co, arguments));
    }
}

fn alive(daemon: &Weak<Daemon>) -> Result<Rc<Daemon>, QmpError> {
    daemon.upgrade().ok_or_else(|| QmpError::generic(DaemonError::ShuttingDown))
}

/// The daemon's own options, of arguments.
fn options<T: DeserializeOwned>(arguments: Arguments) -> Result<T, DaemonError> {
    Ok(coblk::qapi::from_value(Value::Object(arguments))?)
}
