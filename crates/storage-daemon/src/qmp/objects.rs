//! Objects: iothreads and throttle groups.

use super::{Commands, Id};
use crate::options::ObjectOptions;

pub(super) fn add(commands: &mut Commands) {
    commands.add("object-add", |daemon, co, options: ObjectOptions| daemon.object_add(co, options));
    commands.add("object-del", |daemon, co, Id { id }| daemon.object_del(co, &id));
}
