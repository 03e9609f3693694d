//! `--object`: QAPI's `ObjectOptions`, as far as they are those of all types.

use coblk::qapi::{Deferred, FromParts, Parts};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

/// Something that others refer to by its name.
///
/// ```
/// use coblk_storage_daemon::options::{ObjectOptions, from_argument};
///
/// let options: ObjectOptions = from_argument("iothread,id=t0,poll-max-ns=0", "qom-type")?;
/// assert_eq!((options.kind.as_str(), options.id.as_str()), ("iothread", "t0"));
/// let error = from_argument::<ObjectOptions>("iothread", "qom-type").unwrap_err();
/// assert_eq!(error.to_string(), "Parameter 'id' is missing");
/// # Ok::<(), coblk_storage_daemon::options::OptionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectOptions {
    /// `qom-type`: the name of an [`ObjectType`](crate::objects::ObjectType).
    pub kind: String,
    /// `id`: unique among objects.
    pub id: String,
    /// The properties of its type, which reads them.
    pub others: Deferred,
}

/// What all objects have.
#[derive(Deserialize, Serialize)]
pub(crate) struct Common {
    id: String,
}

/// The member that names the type.
pub(crate) const TAG: &str = "qom-type";

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Type {
    qom_type: String,
}

impl FromParts for ObjectOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<ObjectOptions, M::Error> {
        let Type { qom_type: kind } = parts.take()?;
        let Common { id } = parts.take()?;
        Ok(ObjectOptions { kind, id, others: parts.take()? })
    }
}

impl<'de> Deserialize<'de> for ObjectOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObjectOptions, D::Error> {
        coblk::qapi::parts(deserializer)
    }
}

impl Serialize for ObjectOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = json!({ self.kind.as_str(): self.others });
        coblk::qapi::write_variant(serializer, TAG, &kind, &Common { id: self.id.clone() })
    }
}
