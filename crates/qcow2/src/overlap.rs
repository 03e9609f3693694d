//! [`OverlapCheck`]: the option `overlap-check`.

use coblk_qapi::{WordOrObject, word_or_object};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::metadata::Metadata;

/// A set of kinds of metadata by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlapTemplate {
    /// None.
    None,
    /// Those that need no look at tables.
    Constant,
    /// Those that need a look at what is cached.
    #[default]
    Cached,
    /// All.
    All,
}

/// Kinds of metadata that are found out, or not, whatever a template says of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct OverlapKinds {
    /// `template`: says of the kinds that are not named; `cached` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<OverlapTemplate>,
    /// `main-header`: the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_header: Option<bool>,
    /// `active-l1`: the L1 table of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l1: Option<bool>,
    /// `active-l2`: the L2 tables of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l2: Option<bool>,
    /// `refcount-table`: the refcount table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_table: Option<bool>,
    /// `refcount-block`: the blocks of refcounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_block: Option<bool>,
    /// `snapshot-table`: the table of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_table: Option<bool>,
    /// `inactive-l1`: the L1 tables of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l1: Option<bool>,
    /// `inactive-l2`: the L2 tables of snapshots; without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l2: Option<bool>,
    /// `bitmap-directory`: the directory of bitmaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap_directory: Option<bool>,
}

/// Which writes to metadata are found out; for images that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlapCheck {
    /// Those of a template.
    Template(OverlapTemplate),
    /// Those of a template, but for kinds that are named.
    Kinds(OverlapKinds),
}

impl Default for OverlapCheck {
    fn default() -> OverlapCheck {
        OverlapCheck::Template(OverlapTemplate::default())
    }
}

impl From<OverlapTemplate> for OverlapCheck {
    fn from(template: OverlapTemplate) -> OverlapCheck {
        OverlapCheck::Template(template)
    }
}

impl From<OverlapKinds> for OverlapCheck {
    fn from(kinds: OverlapKinds) -> OverlapCheck {
        OverlapCheck::Kinds(kinds)
    }
}

impl WordOrObject for OverlapCheck {
    const NAME: &'static str = "Qcow2OverlapChecks";
    type Word = OverlapTemplate;
    type Object = OverlapKinds;

    fn of_word(word: OverlapTemplate) -> OverlapCheck {
        word.into()
    }

    fn of_object(object: OverlapKinds) -> OverlapCheck {
        object.into()
    }
}

impl<'de> Deserialize<'de> for OverlapCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OverlapCheck, D::Error> {
        word_or_object(deserializer)
    }
}

impl Serialize for OverlapCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OverlapCheck::Template(template) => template.serialize(serializer),
            OverlapCheck::Kinds(kinds) => kinds.serialize(serializer),
        }
    }
}

impl OverlapTemplate {
    fn metadata(self) -> Metadata {
        match self {
            OverlapTemplate::None => Metadata::empty(),
            OverlapTemplate::Constant => {
                Metadata::MAIN_HEADER
                    | Metadata::ACTIVE_L1
                    | Metadata::REFCOUNT_TABLE
                    | Metadata::SNAPSHOT_TABLE
                    | Metadata::BITMAP_DIRECTORY
            }
            OverlapTemplate::Cached => Metadata::all() - Metadata::INACTIVE_L2,
            OverlapTemplate::All => Metadata::all(),
        }
    }
}

impl OverlapCheck {
    /// The kinds of metadata that writes of data must not meet.
    pub(crate) fn metadata(self) -> Metadata {
        let kinds = match self {
            OverlapCheck::Template(template) => return template.metadata(),
            OverlapCheck::Kinds(kinds) => kinds,
        };
        let mut metadata = kinds.template.unwrap_or_default().metadata();
        for (kind, is_on) in [
            (Metadata::MAIN_HEADER, kinds.main_header),
            (Metadata::ACTIVE_L1, kinds.active_l1),
            (Metadata::ACTIVE_L2, kinds.active_l2),
            (Metadata::REFCOUNT_TABLE, kinds.refcount_table),
            (Metadata::REFCOUNT_BLOCK, kinds.refcount_block),
            (Metadata::SNAPSHOT_TABLE, kinds.snapshot_table),
            (Metadata::INACTIVE_L1, kinds.inactive_l1),
            (Metadata::INACTIVE_L2, kinds.inactive_l2),
            (Metadata::BITMAP_DIRECTORY, kinds.bitmap_directory),
        ] {
            if let Some(is_on) = is_on {
                metadata.set(kind, is_on);
            }
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use coblk_block::options::NodeOptions;

    use super::*;
    use crate::options::Qcow2Options;

    fn read(text: &str) -> Result<OverlapCheck, String> {
        let text = format!("driver=qcow2,file=f,{text}");
        let options = NodeOptions::from_keyval(&text).map_err(|error| error.to_string())?;
        let mut drivers = coblk_block::drivers();
        drivers.add::<crate::Qcow2>();
        let options = drivers.resolve(options).map_err(|error| error.to_string())?;
        let own = options.driver.options::<Qcow2Options>().expect("of this driver");
        Ok(own.overlap_check.expect("it is said"))
    }

    #[test]
    fn q54_a_template_is_changed_kind_by_kind() {
        let cached = Metadata::all() - Metadata::INACTIVE_L2;
        for (text, wanted) in [
            ("overlap-check=none", Metadata::empty()),
            ("overlap-check=all", Metadata::all()),
            ("overlap-check.template=all,overlap-check.active-l2=off", {
                Metadata::all() - Metadata::ACTIVE_L2
            }),
            ("overlap-check.template=none,overlap-check.refcount-block=on", {
                Metadata::REFCOUNT_BLOCK
            }),
            ("overlap-check.bitmap-directory=off", cached - Metadata::BITMAP_DIRECTORY),
            ("overlap-check.inactive-l2=on", Metadata::all()),
        ] {
            let check = read(text).unwrap();
            assert_eq!(check.metadata(), wanted, "{text}");
            // As it was written.
            let json = serde_json::to_value(check).unwrap();
            assert_eq!(json.is_object(), text.contains('.'), "{json}");
        }
        assert_eq!(OverlapCheck::default().metadata(), cached);
        let text = "overlap-check.template=none,overlap-check.active-l1=on";
        let json = serde_json::to_value(read(text).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"template": "none", "active-l1": true}));
    }

    #[test]
    fn q54_other_words_and_kinds_are_refused() {
        for (text, why) in [
            ("overlap-check=bad", "Parameter 'overlap-check' does not accept value 'bad'"),
            ("overlap-check.template=bad", "template' does not accept value 'bad'"),
            ("overlap-check.frob=on", "Parameter 'overlap-check.frob' is unexpected"),
            (
                "overlap-check.main-header=maybe",
                "Parameter 'overlap-check.main-header' expects 'on' or 'off'",
            ),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
