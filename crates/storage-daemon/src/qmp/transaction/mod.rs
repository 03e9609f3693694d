//! `transaction`: several commands that all take effect, or none.
//!
//! A file a group of actions: it adds them to the table, each with the type of its `data`, and what makes it.

mod bitmaps;
mod filters;
mod jobs;
mod overlays;
mod snapshots;

use std::rc::Rc;

use coblk::jobs::{AbortAction, Action, CompletionMode, Transaction};
use coblk::qapi::{Member, Schema, Shape};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Arguments, Commands, options};
use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

#[derive(Deserialize)]
struct Arg {
    actions: Vec<Given>,
    #[serde(default)]
    properties: Properties,
}

/// QAPI's `TransactionAction`.
#[derive(Deserialize)]
struct Given {
    #[serde(rename = "type")]
    kind: String,
    data: Arguments,
}

/// QAPI's `TransactionProperties`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Properties {
    completion_mode: Mode,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Individual,
    Grouped,
}

#[derive(Deserialize)]
struct Nothing {}

type Made = Result<Box<dyn Action>, DaemonError>;

/// A type of actions.
struct ActionType {
    name: &'static str,
    make: Box<dyn Fn(&Rc<Daemon>, Arguments) -> Made>,
    data: fn() -> Result<Schema, OptionError>,
}

/// The types of actions that there are.
struct ActionTypes(Vec<ActionType>);

impl ActionTypes {
    /// Adds one whose `data` is a `D`. What it needs of the daemon it finds when it is prepared.
    fn add<D: DeserializeOwned, A: Action + 'static>(
        &mut self,
        name: &'static str,
        make: impl Fn(&Rc<Daemon>, D) -> A + 'static,
    ) {
        let make = move |daemon: &Rc<Daemon>, data| Ok(Box::new(make(daemon, options(data)?)) as _);
        self.0.push(ActionType { name, make: Box::new(make), data: Schema::of::<D> });
    }

    fn make(&self, daemon: &Rc<Daemon>, place: usize, given: Given) -> Made {
        let names = || self.0.iter().map(|it| it.name).collect::<Vec<_>>();
        let found = self.0.iter().find(|it| it.name == given.kind);
        let found =
            found.ok_or_else(|| OptionError::not_accepted("type", &given.kind, &names()))?;
        (found.make)(daemon, given.data).map_err(|error| match error {
            DaemonError::Options(error) => error.within(&format!("actions[{place}].data")).into(),
            other => other,
        })
    }

    /// QAPI's `TransactionArg`.
    fn schema(&self) -> Result<Schema, OptionError> {
        let member =
            |name: &str, schema, optional| Member { name: name.to_owned(), schema, optional };
        let variant =
            |it: &ActionType| Ok((it.name.to_owned(), Schema::with("data", (it.data)()?)));
        let variants = self.0.iter().map(variant).collect::<Result<Vec<_>, OptionError>>()?;
        let action = Schema::object(&[]).with_variants("type", variants);
        let members = vec![
            member("actions", Schema::Array(Box::new(action)), false),
            member("properties", Schema::of::<Properties>()?, true),
        ];
        Ok(Schema::Object(Shape { members, ..Shape::default() }))
    }
}

fn types() -> ActionTypes {
    let mut types = ActionTypes(Vec::new());
    types.add("abort", |_, Nothing {}| AbortAction::new());
    bitmaps::add(&mut types);
    filters::add(&mut types);
    jobs::add(&mut types);
    overlays::add(&mut types);
    snapshots::add(&mut types);
    types
}

pub(super) fn add(commands: &mut Commands) {
    let types = types();
    let schema = types.schema();
    commands.add("transaction", move |daemon, co, Arg { actions, properties }| {
        let mode = match properties.completion_mode {
            Mode::Individual => CompletionMode::Individual,
            Mode::Grouped => CompletionMode::Grouped,
        };
        let mut transaction = Transaction::new().completion_mode(mode);
        for (place, given) in actions.into_iter().enumerate() {
            let action = types.make(daemon, place, given)?;
            transaction = transaction.boxed(action);
        }
        daemon.transaction(co, transaction)
    });
    match schema {
        Ok(schema) => commands.table.describe("transaction", schema),
        Err(error) => tracing::error!(%error, "the schema lacks the actions of transactions"),
    }
    filters::add_commands(commands);
}
