//! Objects: made, found, changed and deleted.

use std::sync::Arc;

use coblk::export::{FindObjects, SharedObject};
use coblk::{AioHandle, Co, IoThread};
use serde_json::{Map, Value};

use super::{Daemon, DaemonError};
use crate::objects::iothread::{self, IothreadInfo};
use crate::objects::{ObjectInfo, ObjectPlace, ObjectTypes};
use crate::options::ObjectOptions;

impl Daemon {
    fn place<'a, 'co>(&'a self, co: &'a Co<'co>, id: &'a str) -> ObjectPlace<'a, 'co> {
        ObjectPlace { co, id, blockdevs: &self.blockdevs, exports: &self.exports }
    }

    /// `object-add`.
    ///
    /// # Errors
    /// If the name is taken, there is no such type, or the properties make no sense.
    pub fn object_add(&self, co: &Co<'_>, options: ObjectOptions) -> Result<(), DaemonError> {
        let command = self.begin_command("object-add")?;
        self.objects.co_add(&self.place(co, &options.id), &options, || command.check())
    }

    /// `object-del`.
    ///
    /// # Errors
    /// If there is none, or others refer to it.
    pub fn object_del(&self, co: &Co<'_>, id: &str) -> Result<(), DaemonError> {
        let _command = self.begin_command("object-del")?;
        self.objects.co_remove(&self.place(co, id))
    }

    /// `qom-set`: changes a property of an object.
    ///
    /// # Errors
    /// If there is no such object, the property does not change, or it cannot have that value.
    pub fn object_set(
        &self,
        co: &Co<'_>,
        id: &str,
        property: &str,
        value: Value,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("qom-set")?;
        self.objects.co_set(&self.place(co, id), property, value)
    }

    /// The object of this id. `None` if there is none, or it is something else. It is in use, and not deleted,
    /// as long as it is held.
    pub fn object<T: Send + Sync + 'static>(&self, id: &str) -> Option<Arc<T>> {
        self.objects.find(id)
    }

    /// The types of objects that there can be.
    pub fn object_types(&self) -> &ObjectTypes {
        self.objects.types()
    }

    /// The ids of all objects, with their types.
    pub fn objects(&self) -> Vec<ObjectInfo> {
        self.objects.infos()
    }

    /// The type of an object and its properties as they are now. `None` if there is no such object.
    pub fn object_properties(&self, id: &str) -> Option<(&'static str, Map<String, Value>)> {
        self.objects.properties(id)
    }

    /// The names of the iothreads, with the ways into their contexts.
    pub fn iothread_handles(&self) -> Vec<(String, AioHandle)> {
        iothread::handles(&self.objects)
    }

    /// `query-iothreads`: those that there are when it begins, but for those that end meanwhile.
    ///
    /// # Errors
    /// If the properties of one cannot be read.
    pub fn iothread_infos(&self, co: &Co<'_>) -> Result<Vec<IothreadInfo>, DaemonError> {
        iothread::co_infos(co, &self.objects)
    }
}

/// What exports refer to.
impl FindObjects for Daemon {
    fn iothread(&self, id: &str) -> Option<AioHandle> {
        Some(self.object::<IoThread>(id)?.handle().clone())
    }

    fn object(&self, id: &str) -> Option<SharedObject> {
        self.objects.any(id)
    }
}
