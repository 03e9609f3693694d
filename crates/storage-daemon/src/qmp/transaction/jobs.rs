//! Jobs that begin with a transaction.

use std::rc::Rc;

use coblk::jobs::StartJob;

use super::ActionTypes;
use crate::qmp::jobs::backup;

pub(super) fn add(types: &mut ActionTypes) {
    types.add("blockdev-backup", |daemon, arguments: backup::Arguments| {
        let nodes = arguments.nodes().filter_map(|name| daemon.blockdevs().node(name));
        let (nodes, own) = (nodes.collect(), Rc::clone(daemon));
        StartJob::new("blockdev-backup", nodes, daemon.jobs(), move |co, group| {
            let (backup, options) = arguments.backup(&own)?;
            Ok(own.make_backup(co, group, backup, options)?)
        })
    });
}
