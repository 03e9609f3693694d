//! [`CommandTable`]: the commands that a daemon offers.

use std::collections::BTreeMap;

use coblk_aio::Co;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::arguments::from_arguments;
use crate::error::{ErrorClass, QmpError, shorten};
use crate::request::Request;

type Handler = Box<dyn Fn(&Co<'_>, Map<String, Value>) -> Result<Value, QmpError>>;

/// Commands by name.
///
/// Several monitors may share one table. A session runs one command after the other; those of different
/// sessions do not wait for each other, so that one that waits for a dead disk stops no other monitor.
/// What a command finds when it has suspended may have been changed by another one.
///
/// `query-commands` is there from the start. `qmp_capabilities` and `query-version` are the monitor's.
///
/// ```
/// use coblk_qmp::{CommandTable, QmpError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// #[serde(rename_all = "kebab-case", deny_unknown_fields)]
/// struct Resize {
///     node_name: String,
///     size: u64,
/// }
///
/// let mut table = CommandTable::new();
/// table.command("block_resize", |_co, resize: Resize| {
///     if resize.node_name != "disk0" {
///         return Err(QmpError::generic(format!("no node '{}'", resize.node_name)));
///     }
///     Ok(())
/// });
/// ```
pub struct CommandTable {
    commands: BTreeMap<&'static str, Handler>,
}

impl Default for CommandTable {
    fn default() -> CommandTable {
        CommandTable::new()
    }
}

impl CommandTable {
    /// A table without commands of its own.
    pub fn new() -> CommandTable {
        CommandTable { commands: BTreeMap::new() }
    }

    /// Adds a command. Its arguments become an `A`, see [`from_arguments`]; let it deny unknown fields.
    /// What it returns becomes the answer; `()` an empty object. It runs in a coroutine, so it may
    /// suspend, and must not block.
    ///
    /// A panic in it is answered with an error.
    ///
    /// # Panics
    /// If there is a command of this name.
    pub fn command<A: DeserializeOwned, R: Serialize>(
        &mut self,
        name: &'static str,
        handler: impl Fn(&Co<'_>, A) -> Result<R, QmpError> + 'static,
    ) {
        let handler: Handler = Box::new(move |co: &Co<'_>, arguments| {
            let result = handler(co, from_arguments(arguments)?)?;
            match serde_json::to_value(result).map_err(QmpError::generic)? {
                Value::Null => Ok(json!({})),
                value => Ok(value),
            }
        });
        let previous = self.commands.insert(name, handler);
        assert!(previous.is_none(), "two commands are called '{name}'");
    }

    /// The names of all commands, sorted; with those that every monitor has.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self.commands.keys().copied().collect();
        names.extend(["qmp_capabilities", "query-commands", "query-version"]);
        names.sort_unstable();
        names
    }

    /// Runs a command.
    pub(crate) fn run(&self, co: &Co<'_>, request: Request) -> Result<Value, QmpError> {
        if request.execute == "query-commands" {
            from_arguments::<()>(request.arguments)?;
            let names = self.names().into_iter().map(|name| json!({"name": name}));
            return Ok(names.collect());
        }
        let Some(handler) = self.commands.get(request.execute.as_str()) else {
            let name = shorten(&request.execute);
            let desc = format!("The command {name} has not been found");
            return Err(QmpError::new(ErrorClass::CommandNotFound, desc));
        };
        let result = co.catch_unwind(|| handler(co, request.arguments));
        result.unwrap_or_else(|_| {
            // The panic's own message is in the log: the hook has written it.
            tracing::error!(command = %shorten(&request.execute), "a QMP command panicked");
            Err(QmpError::generic("the command failed in a way that it should not"))
        })
    }
}
