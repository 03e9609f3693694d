//! `-o help`: the options that a new image has, or that can be changed.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use super::Tool;
use crate::failure::Failure;
use crate::output::print;

/// Name, type and meaning of an option.
type Described = (&'static str, &'static str, &'static str);

/// Options of new qcow2 images.
const QCOW2: [Described; 20] = [
    ("backing_file", "str", "The image that has what this one has not"),
    ("backing_fmt", "str", "The format of the backing file"),
    ("cluster_size", "size", "Bytes of a cluster: 512 to 2M, a power of two"),
    ("compat", "str", "The version: 1.1 (v3) or 0.10 (v2)"),
    ("compression_type", "str", "How clusters are compressed: zlib or zstd"),
    ("data_file", "str", "A file of its own for the data"),
    ("data_file_raw", BOOL, "The data file can be used as a raw image"),
    ("encrypt.cipher-alg", "str", "The cipher: aes-128, aes-192 or aes-256"),
    ("encrypt.cipher-mode", "str", "Its mode: xts or cbc"),
    ("encrypt.format", "str", "How the data is encrypted: luks, or aes, which protects little"),
    ("encrypt.hash-alg", "str", "The hash of passwords"),
    ("encrypt.iter-time", "num", "Milliseconds that it takes to try a password"),
    ("encrypt.ivgen-alg", "str", "How sectors differ: plain, plain64 or essiv"),
    ("encrypt.ivgen-hash-alg", "str", "The hash of essiv"),
    ("encrypt.key-secret", "str", "The id of the secret that has the password"),
    ("extended_l2", BOOL, "Clusters have 32 parts that are allocated by themselves"),
    ("lazy_refcounts", BOOL, "Refcounts may be written late"),
    ("preallocation", "str", "Space that is taken at once: off, metadata, falloc or full"),
    ("refcount_bits", "num", "Bits of a refcount: 1 to 64, a power of two"),
    SIZE,
];
/// Options of new raw images.
const RAW: [Described; 1] = [SIZE];
/// Options of new files.
const FILE: [Described; 3] = [
    ("nocow", BOOL, "The file is written in place, on btrfs"),
    ("preallocation", "str", "Space that is taken at once: off, falloc or full"),
    SIZE,
];
/// Options of qcow2 images that can be changed.
const AMEND_QCOW2: [Described; 11] = [
    ("compat", "str", "The version: 1.1 (v3) or 0.10 (v2)"),
    ("data_file", "str", "The name of the data file"),
    ("data_file_raw", BOOL, "Off: the data file need not be a raw image any more"),
    ("encrypt.iter-time", "num", "Milliseconds that it takes to try the new password"),
    ("encrypt.keyslot", "num", "The slot that is changed"),
    ("encrypt.new-secret", "str", "The id of the secret that has the new password"),
    ("encrypt.old-secret", "str", "The id of a secret that has an old password"),
    ("encrypt.state", "str", "What a slot becomes: active or inactive"),
    ("lazy_refcounts", BOOL, "Refcounts may be written late"),
    ("refcount_bits", "num", "Bits of a refcount: 1 to 64, a power of two"),
    SIZE,
];
const SIZE: Described = ("size", "size", "The length of the disk");
const BOOL: &str = "bool (on/off)";

/// Whether options ask for help: `help` or `?` is among them.
pub(super) fn is_asked(options: &[OsString]) -> bool {
    let mut members = options.iter().flat_map(|text| text.as_bytes().split(|it| *it == b','));
    members.any(|member| matches!(member, b"help" | b"?"))
}

/// Prints the options of new images of a format, with those of the file if its name is known.
///
/// # Errors
/// If there is no such format.
pub(super) fn show_create(
    tool: &Tool<'_, '_>,
    format: &str,
    name: Option<&OsStr>,
) -> Result<(), Failure> {
    let mut options = match format {
        "qcow2" => QCOW2.to_vec(),
        "raw" => RAW.to_vec(),
        "file" => FILE.to_vec(),
        known if tool.images.blockdevs().drivers().names().contains(&known) => {
            let why = format!("Format driver '{known}' does not support image creation");
            return Err(Failure::new(why));
        }
        unknown => return Err(Failure::new(format!("Unknown file format '{unknown}'"))),
    };
    if name.is_some() {
        let has = |option: &Described| options.iter().any(|(name, ..)| *name == option.0);
        let others: Vec<_> = FILE.into_iter().filter(|option| !has(option)).collect();
        options.extend(others);
        options.sort_unstable();
        return Ok(print(&text("Supported options:", &options))?);
    }
    let mut text = text(&format!("Supported {format} options:"), &options);
    text.push_str("\nThe file has options of its own, which are told if its name is given.\n");
    Ok(print(&text)?)
}

/// Prints what can be changed of images of a format.
///
/// # Errors
/// If nothing can.
pub(super) fn show_amend(format: &str) -> Result<(), Failure> {
    match format {
        "qcow2" => Ok(print(&text("Amend options for 'qcow2':", &AMEND_QCOW2))?),
        _ => {
            let why = format!("Format driver '{format}' does not support option amendment");
            Err(Failure::new(why))
        }
    }
}

fn text(title: &str, options: &[Described]) -> String {
    let mut text = format!("{title}\n");
    for (name, kind, meaning) in options {
        let _ = writeln!(text, "  {:<22} - {meaning}", format!("{name}=<{kind}>"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use coblk::qapi::{Schema, Shape};

    use super::*;

    /// The names that a driver takes for a new image, in the words of the command line.
    fn names(driver: &str) -> BTreeSet<String> {
        fn add(names: &mut BTreeSet<String>, prefix: &str, shape: &Shape) {
            for member in &shape.members {
                let name = match (prefix, &*member.name) {
                    ("", "version") => "compat".to_owned(),
                    ("", name) => name.replace('-', "_"),
                    (prefix, name) => format!("{prefix}.{name}"),
                };
                match &member.schema {
                    Schema::Object(shape) if name == "encrypt" => add(names, &name, shape),
                    _ => drop(names.insert(name)),
                }
            }
        }
        let schema = coblk::drivers().create_schema().unwrap();
        let Schema::Object(shape) = schema else { panic!("{schema:?}") };
        let (_, own) = shape.variants.iter().find(|(name, _)| name == driver).unwrap();
        let mut names_of = BTreeSet::new();
        add(&mut names_of, "", own);
        names_of
    }

    #[test]
    fn all_options_that_drivers_take_are_told() {
        for (driver, options) in [("qcow2", &QCOW2[..]), ("file", &FILE[..])] {
            let told: BTreeSet<_> = options.iter().map(|(name, ..)| (*name).to_owned()).collect();
            let mut taken = names(driver);
            // Names of the nodes and files themselves.
            taken.retain(|name| !matches!(&**name, "file" | "filename" | "extent_size_hint"));
            assert_eq!(told, taken, "{driver}");
            assert!(options.is_sorted(), "{driver}");
        }
    }

    #[test]
    fn help_is_a_member_of_a_list() {
        let asked = |text: &str| is_asked(&[OsString::from(text)]);
        assert!(asked("help") && asked("?") && asked("cluster_size=4k,help"));
        assert!(!asked("backing_file=help") && !asked("") && !asked("helpful"));
    }
}
