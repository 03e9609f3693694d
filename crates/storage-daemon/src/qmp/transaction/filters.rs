//! Filters that come and go while requests run: as actions, and as commands.

use coblk::jobs::{InsertFilter, RemoveFilter, Transaction};
use serde::Deserialize;

use super::ActionTypes;
use crate::qmp::Commands;

#[derive(Deserialize)]
struct Insert {
    node: String,
    filter: String,
}

#[derive(Deserialize)]
struct Remove {
    filter: String,
}

const INSERT: &str = "x-coblk-filter-insert";
const REMOVE: &str = "x-coblk-filter-remove";

pub(super) fn add(types: &mut ActionTypes) {
    types.add(INSERT, |daemon, Insert { node, filter }| {
        InsertFilter::new(daemon.device_finder(&node), daemon.device_finder(&filter))
    });
    types.add(REMOVE, |daemon, Remove { filter }| RemoveFilter::new(daemon.device_finder(&filter)));
}

pub(super) fn add_commands(commands: &mut Commands) {
    commands.add(INSERT, |daemon, co, Insert { node, filter }| {
        let (node, filter) = (daemon.device_finder(&node), daemon.device_finder(&filter));
        daemon.transaction(co, Transaction::new().action(InsertFilter::new(node, filter)))
    });
    commands.add(REMOVE, |daemon, co, Remove { filter }| {
        let filter = daemon.device_finder(&filter);
        daemon.transaction(co, Transaction::new().action(RemoveFilter::new(filter)))
    });
}
