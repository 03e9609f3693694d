//! Objects: made and deleted.

use super::{Commands, Id};
use crate::objects::ObjectTypes;
use crate::options::ObjectOptions;

pub(super) fn add(commands: &mut Commands, types: &ObjectTypes) {
    commands.add("object-add", |daemon, co, options: ObjectOptions| daemon.object_add(co, options));
    if let Ok(schema) = types.schema() {
        commands.table.describe("object-add", schema);
    }
    commands.add("object-del", |daemon, co, Id { id }| daemon.object_del(co, &id));
}
