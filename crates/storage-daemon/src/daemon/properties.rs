//! Properties of objects: read, and changed while they are used.

use coblk::Co;
use coblk::qapi::from_value;
use serde_json::{Map, Value, json};

use super::objects::{Object, Polling};
use super::{Daemon, DaemonError};
use crate::options::{IothreadOptions, ObjectKind, OptionError, ThrottleGroupOptions};

/// An iothread, as `query-iothreads` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IothreadInfo {
    /// Its id.
    pub id: String,
    /// The number that the system knows the thread by.
    pub thread_id: i64,
    /// Its properties.
    pub properties: IothreadOptions,
}

impl Daemon {
    /// The ids of all objects, with their types.
    pub fn objects(&self) -> Vec<(String, &'static str)> {
        let properties = self.properties.borrow();
        properties.iter().map(|(id, kind)| (id.clone(), kind.name())).collect()
    }

    /// The type of an object and its properties as they are now. `None` if there is no such object.
    pub fn object_properties(&self, id: &str) -> Option<(&'static str, Map<String, Value>)> {
        let properties = self.properties.borrow();
        let kind = properties.get(id)?;
        Some((kind.name(), kind.values()))
    }

    /// Changes a property of an object. What an iothread does takes effect at once; requests that wait
    /// in a throttle group go by its new limits.
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
        let kind = self.properties.borrow().get(id).cloned();
        let no_object = || DaemonError::NoSuchObject(id.to_owned());
        let fixed = || {
            let text = format!("Property '{property}' cannot be set after initialization");
            DaemonError::Options(OptionError::other(text))
        };
        let kind = match kind.ok_or_else(no_object)? {
            ObjectKind::Iothread(options) => {
                let mut values = ObjectKind::Iothread(options).values();
                values.insert(property.to_owned(), value);
                let options = from_value(Value::Object(values))?;
                self.set_polling(co, id, &options)?;
                ObjectKind::Iothread(options)
            }
            ObjectKind::ThrottleGroup(group) if property == "limits" => {
                let limits = from_value(json!({ "limits": value }))?;
                let group = group.with(limits);
                self.set_limits(id, &group)?;
                ObjectKind::ThrottleGroup(group)
            }
            ObjectKind::ThrottleGroup(_) | ObjectKind::TlsCredsX509(_) => return Err(fixed()),
        };
        self.properties.borrow_mut().insert(id.to_owned(), kind);
        Ok(())
    }

    fn set_polling(
        &self,
        co: &Co<'_>,
        id: &str,
        options: &IothreadOptions,
    ) -> Result<(), DaemonError> {
        let polling = Polling::new(options)?;
        let no_thread = || DaemonError::NoSuchIothread(id.to_owned());
        let handle = self.iothread(id).ok_or_else(no_thread)?;
        let set = handle.spawn("poll parameters", move |co| polling.apply(co.context()));
        co.block_on(set).map_err(|error| DaemonError::Iothread {
            id: id.to_owned(),
            source: std::io::Error::other(error),
        })?
    }

    fn set_limits(&self, id: &str, options: &ThrottleGroupOptions) -> Result<(), DaemonError> {
        let limits = options.checked_limits()?;
        match self.objects.borrow().get(id) {
            Some(Object::ThrottleGroup(group)) => {
                let set = group.set_limits(limits);
                set.map_err(|error| OptionError::other(error).into())
            }
            _ => Err(DaemonError::NoSuchObject(id.to_owned())),
        }
    }

    /// `query-iothreads`.
    ///
    /// # Errors
    /// If one has just ended.
    pub fn iothread_infos(&self, co: &Co<'_>) -> Result<Vec<IothreadInfo>, DaemonError> {
        let mut infos = Vec::new();
        for (id, handle) in self.iothread_handles() {
            let thread_id = handle.spawn("thread id", |_| rustix::thread::gettid());
            let thread_id = co.block_on(thread_id);
            let Some(ObjectKind::Iothread(properties)) = self.properties.borrow().get(&id).cloned()
            else {
                continue;
            };
            let gone = |error| {
                let (id, source) = (id.clone(), std::io::Error::other(error));
                DaemonError::Iothread { id, source }
            };
            let thread_id = thread_id.map_err(gone)?.as_raw_nonzero().get().into();
            infos.push(IothreadInfo { id, thread_id, properties });
        }
        Ok(infos)
    }
}
