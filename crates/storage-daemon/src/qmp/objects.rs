//! Objects: iothreads and throttle groups.

use super::{Arguments, Commands, Id, options};

pub(super) fn add(commands: &mut Commands) {
    commands.add("object-add", |daemon, co, arguments: Arguments| {
        daemon.object_add(co, options(arguments)?)
    });
    commands.add("object-del", |daemon, co, Id { id }| daemon.object_del(co, &id));
}
