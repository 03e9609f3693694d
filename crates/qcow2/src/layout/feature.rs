//! Feature bits, and the names that an image has for them.

bitflags::bitflags! {
    /// Features without which an image must not be opened.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// Refcounts may be too low: a check comes before the first write.
        const DIRTY = 1;
        /// Tables are known to be wrong: the image is not written before a repair.
        const CORRUPT = 2;
        /// Data lies in a file of its own.
        const DATA_FILE = 4;
        /// The header says how clusters are compressed.
        const COMPRESSION = 8;
        /// L2 entries have two words.
        const EXTENDED_L2 = 16;
        const _ = !0;
    }

    /// Features that a program may ignore.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Compatible: u64 {
        /// Refcounts are written late.
        const LAZY_REFCOUNTS = 1;
        const _ = !0;
    }

    /// Features that a program clears when it writes and does not know them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Autoclear: u64 {
        /// The bitmaps are those of the data.
        const BITMAPS = 1;
        /// The data file can be used as a raw image.
        const RAW_DATA_FILE = 2;
        const _ = !0;
    }
}

/// The incompatible features that are known here.
pub(crate) const KNOWN: Incompatible = Incompatible::DIRTY
    .union(Incompatible::CORRUPT)
    .union(Incompatible::DATA_FILE)
    .union(Incompatible::COMPRESSION)
    .union(Incompatible::EXTENDED_L2);

/// The kinds of features in a table of names.
const INCOMPATIBLE: u8 = 0;
const COMPATIBLE: u8 = 1;
const AUTOCLEAR: u8 = 2;

/// Length of an entry of a table of names.
const ENTRY_BYTES: usize = 48;

/// The name that an image has for a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 for an incompatible feature, 1 for a compatible one, 2 for an autoclear one.
    pub kind: u8,
    /// The number of the bit, up to 63.
    pub bit: u8,
    /// The name; not empty.
    pub name: String,
}

impl FeatureName {
    /// Reads a table of names. Entries without a name, or of no bit, are left out, as are bytes at the end
    /// that are no whole entry.
    pub fn parse_table(bytes: &[u8]) -> Vec<FeatureName> {
        let entries = bytes.as_chunks::<ENTRY_BYTES>().0.iter();
        let names = entries.filter_map(|entry| {
            let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
            let is_name = entry[1] < 64 && !name.is_empty();
            let name = || String::from_utf8_lossy(name).into_owned();
            is_name.then(|| FeatureName { kind: entry[0], bit: entry[1], name: name() })
        });
        names.collect()
    }

    /// The table for an image that is made here, with QEMU's names.
    pub fn default_table() -> Vec<u8> {
        let names: [(u8, u8, &str); 8] = [
            (INCOMPATIBLE, 0, "dirty bit"),
            (INCOMPATIBLE, 1, "corrupt bit"),
            (INCOMPATIBLE, 2, "external data file"),
            (INCOMPATIBLE, 3, "compression type"),
            (INCOMPATIBLE, 4, "extended L2 entries"),
            (COMPATIBLE, 0, "lazy refcounts"),
            (AUTOCLEAR, 0, "bitmaps"),
            (AUTOCLEAR, 1, "raw external data"),
        ];
        let mut table = Vec::with_capacity(names.len() * ENTRY_BYTES);
        for (kind, bit, name) in names {
            let end = table.len() + ENTRY_BYTES;
            table.extend([kind, bit]);
            table.extend(name.as_bytes());
            table.resize(end, 0);
        }
        table
    }

    /// Names incompatible features for a message: each by its name in `table`, and those without one as one
    /// number.
    pub(crate) fn describe(mut features: Incompatible, table: &[FeatureName]) -> String {
        let mut known = Vec::new();
        for entry in table.iter().filter(|entry| entry.kind == INCOMPATIBLE) {
            let bit = Incompatible::from_bits_retain(1 << entry.bit);
            if features.intersects(bit) {
                known.push(format!("'{}'", entry.name));
                features.remove(bit);
            }
        }
        if !features.is_empty() {
            known.push(format!("unknown incompatible feature: {:x}", features.bits()));
        }
        known.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q26_names_without_a_bit_or_a_text_are_left_out() {
        let mut table = FeatureName::default_table();
        table[1] = 64;
        table[ENTRY_BYTES + 2] = 0;
        table.push(7);
        let names = FeatureName::parse_table(&table);
        assert_eq!(names.len(), 6);
        assert_eq!((names[0].kind, names[0].bit, &*names[0].name), (0, 2, "external data file"));
        // 46 bytes need no terminating zero.
        let long = [&[0, 63][..], &[b'x'; 46]].concat();
        assert_eq!(FeatureName::parse_table(&long)[0].name, "x".repeat(46));
    }

    #[test]
    fn q27_names_of_a_new_image_are_qemus() {
        let names = FeatureName::parse_table(&FeatureName::default_table());
        let names: Vec<_> = names.iter().map(|it| (it.kind, it.bit, &*it.name)).collect();
        assert_eq!(
            names[5..],
            [(1, 0, "lazy refcounts"), (2, 0, "bitmaps"), (2, 1, "raw external data")]
        );
        assert_eq!(FeatureName::default_table().len(), 8 * 48);
    }

    #[test]
    fn q14_features_are_told_by_their_names_and_the_rest_as_a_mask() {
        let table = FeatureName { kind: 0, bit: 40, name: "time travel".to_owned() };
        let other = FeatureName { kind: 1, bit: 41, name: "compatible".to_owned() };
        let features = Incompatible::from_bits_retain(1 << 40 | 1 << 41 | 1 << 63);
        let told = FeatureName::describe(features, &[table, other]);
        assert_eq!(told, "'time travel', unknown incompatible feature: 8000020000000000");
    }
}
