//! [`CommandTable`]: the commands that a daemon offers.

use std::collections::BTreeMap;
use std::fmt;

use coblk_aio::Co;
use coblk_qapi::{Error, Schema, Schemas, shorten};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::arguments::from_arguments;
use crate::error::{ErrorClass, QmpError};
use crate::event::EVENTS_DROPPED;
use crate::request::{Negotiation, Request};

type Handler = Box<dyn Fn(&Co<'_>, Map<String, Value>) -> Result<Value, QmpError>>;

/// Commands by name.
///
/// Several monitors may share one table. A session runs one command after the other; those of different
/// sessions do not wait for each other, so that one that waits for a dead disk stops no other monitor.
/// What a command finds when it has suspended may have been changed by another one.
///
/// `query-commands` and `query-qmp-schema` are there from the start. `qmp_capabilities` and
/// `query-version` are the monitor's.
///
/// ```
/// use coblk_qmp::{CommandTable, QmpError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// #[serde(rename_all = "kebab-case")]
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
    commands: BTreeMap<&'static str, Command>,
    events: BTreeMap<&'static str, Schema>,
    alternates: BTreeMap<&'static str, Vec<Schema>>,
}

struct Command {
    handler: Handler,
    /// What its arguments are.
    schema: fn() -> Result<Schema, Error>,
    /// The same, if the type does not say it.
    described: Option<Schema>,
}

impl Default for CommandTable {
    fn default() -> CommandTable {
        CommandTable::new()
    }
}

impl CommandTable {
    /// A table without commands of its own.
    pub fn new() -> CommandTable {
        let (commands, events, alternates) = Default::default();
        CommandTable { commands, events, alternates }
    }

    /// Adds a command. Its arguments become an `A`, see [`from_arguments`]. What it returns becomes the
    /// answer; `()` an empty object. It runs in a coroutine, so it may suspend, and must not block.
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
        let command = Command { handler, schema: Schema::of::<A>, described: None };
        let previous = self.commands.insert(name, command);
        assert!(previous.is_none(), "two commands are called '{name}'");
    }

    /// Says what the arguments of a command are, if its type does not.
    ///
    /// # Panics
    /// If there is no such command.
    pub fn describe(&mut self, command: &str, arguments: Schema) {
        let command = self.commands.get_mut(command).expect("a command of this table");
        command.described = Some(arguments);
    }

    /// Says that there is an event, and what it tells: for `query-qmp-schema`.
    pub fn event(&mut self, name: &'static str, data: Schema) {
        self.events.insert(name, data);
    }

    /// Says what a type can be that is read by hand, by the name that it expects to be.
    pub fn alternate(&mut self, name: &'static str, choices: Vec<Schema>) {
        self.alternates.insert(name, choices);
    }

    /// `query-qmp-schema`: found by reading the types of all arguments.
    fn schema(&self) -> Result<Value, QmpError> {
        let mut schemas = Schemas::default();
        for (name, choices) in &self.alternates {
            schemas.alternate(name, choices.clone());
        }
        for (name, command) in &self.commands {
            let arguments = match &command.described {
                Some(arguments) => arguments.clone(),
                None => (command.schema)().map_err(QmpError::generic)?,
            };
            schemas.command(name, &arguments);
        }
        for name in ["query-commands", "query-qmp-schema", "query-version"] {
            schemas.command(name, &Schema::object(&[]));
        }
        schemas
            .command("qmp_capabilities", &Schema::of::<Negotiation>().map_err(QmpError::generic)?);
        schemas.event(EVENTS_DROPPED, &Schema::object(&[("count", "uint64")]));
        for (name, data) in &self.events {
            schemas.event(name, data);
        }
        Ok(schemas.finish().into())
    }

    /// The names of all commands, sorted; with those that every monitor has.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self.commands.keys().copied().collect();
        names.extend(["qmp_capabilities", "query-commands", "query-qmp-schema", "query-version"]);
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
        if request.execute == "query-qmp-schema" {
            from_arguments::<()>(request.arguments)?;
            return self.schema();
        }
        let Some(command) = self.commands.get(request.execute.as_str()) else {
            let name = shorten(&request.execute);
            let desc = format!("The command {name} has not been found");
            return Err(QmpError::new(ErrorClass::CommandNotFound, desc));
        };
        let result = co.catch_unwind(|| (command.handler)(co, request.arguments));
        result.unwrap_or_else(|_| {
            // The panic's own message is in the log: the hook has written it.
            tracing::error!(command = %shorten(&request.execute), "a QMP command panicked");
            Err(QmpError::generic("the command failed in a way that it should not"))
        })
    }
}

impl fmt::Debug for CommandTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.commands.keys()).finish()
    }
}
