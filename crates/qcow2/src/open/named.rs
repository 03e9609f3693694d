//! Files that an image names: the backing file, and the file with data.

use std::path::{Path, PathBuf};

use coblk_aio::PoolShare;
use coblk_block::drivers::{FileNodeOptions, RawOptions};
use coblk_block::options::{DriverConfig, NodeOptions, NodeRef};
use coblk_block::{Child, ChildRole, OpenError, Opening};

use super::refused;
use crate::layout::{FormatError, Header, Incompatible};
use crate::name::{FileName, NameError, check_definition, resolve};
use crate::options::{NamedFiles, Qcow2Options};
use crate::source::Source;
use crate::tables;

/// Most backing files that images name, one below the other.
const MAX_DEPTH: usize = 200;

/// The first bytes of other formats, and where they are. A file that begins so is not raw.
const OTHER_FORMATS: [(&str, usize, &[u8]); 9] = [
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("luks", 0, b"LUKS\xba\xbe"),
];

/// The format of an image whose first bytes, 512 or more unless it is shorter, are these: `qcow2`, or the
/// name of another one. `None` if they are those of no format, so that the image may be raw.
pub fn probe_format(bytes: &[u8]) -> Option<&'static str> {
    let is_other = |(_, at, magic): &&(&str, usize, &[u8])| {
        bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    let other = OTHER_FORMATS.iter().find(is_other).map(|(format, ..)| *format);
    other.or_else(|| Header::probe(bytes).then_some("qcow2"))
}

/// The path of an image, if its node knows one.
fn image_path(file: &Child) -> Option<PathBuf> {
    file.node().driver().filename().map(PathBuf::from)
}

/// Decides whether a file is opened that only the image names. All such files come past here.
fn check_gate(options: &Qcow2Options, option: &str, name: &[u8]) -> Result<(), OpenError> {
    match options.named_files {
        NamedFiles::Allow => Ok(()),
        NamedFiles::Refuse => {
            let name = String::from_utf8_lossy(name);
            let why = format!("the image names '{name}', and only options may name files");
            Err(OpenError::option(option, why))
        }
    }
}

/// The node of the data file that the image names.
pub(super) fn co_data_file(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    header: &Header,
    file: &Child,
) -> Result<NodeRef, OpenError> {
    let Some(name) = header.extensions.data_file() else {
        return Err(OpenError::option("data-file", "the image needs one, and names none"));
    };
    check_gate(options, "data-file", name)?;
    // The name is taken as it is: no protocol, no definition.
    let FileName::Path(name) = FileName::path(name) else { return Err(no_path()) };
    let path = resolve(name, image_path(file).as_deref()).map_err(OpenError::of_driver)?;
    Ok(co_file_node(opening, &path))
}

#[cold]
fn no_path() -> OpenError {
    OpenError::of_driver(FormatError::invalid("the name of the data file is no path"))
}

/// The node of a path: of a device, if it is one.
fn co_file_node(opening: &Opening<'_, '_>, path: &Path) -> NodeRef {
    let is_device = PoolShare::once(opening.co(), || {
        use std::os::unix::fs::FileTypeExt;
        let kind = path.metadata().map(|it| it.file_type());
        kind.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device())
    });
    let driver = if is_device { "host_device" } else { "file" };
    NodeOptions::new(DriverConfig::new(driver, FileNodeOptions::new(path))).into()
}

/// The node of the backing file that the image names, if it names one.
pub(super) fn co_backing(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    header: &Header,
    file: &Child,
) -> Result<Option<Box<NodeRef>>, OpenError> {
    let Some(name) = &header.backing else { return Ok(None) };
    check_gate(options, "backing", name)?;
    if opening.depth() >= MAX_DEPTH {
        let why = format!("more than {MAX_DEPTH} backing files one below the other");
        return Err(OpenError::of_driver(FormatError::invalid(why)));
    }
    let format = header.extensions.backing_format().map_err(refused)?;
    let image = image_path(file);
    let (below, path) = match FileName::of_backing(name) {
        FileName::Json(json) => {
            let definition = coblk_qapi::json::parse(json).map_err(OpenError::of_driver)?;
            check_definition(&definition).map_err(OpenError::of_driver)?;
            let node = NodeOptions::from_value(definition);
            (NodeRef::from(node.map_err(OpenError::of_driver)?), None)
        }
        FileName::Path(name) => {
            let path = resolve(name, image.as_deref()).map_err(OpenError::of_driver)?;
            if options.ancestors.contains(&path) || image.as_ref() == Some(&path) {
                let path = path.display().to_string();
                return Err(OpenError::of_driver(NameError::Loop(path)));
            }
            (co_file_node(opening, &path), Some(path))
        }
        FileName::Protocol(name) => match opening.file_name(&name) {
            Some(Ok(node)) => (NodeRef::from(node), None),
            Some(Err(why)) => return Err(OpenError::of_driver(NameError::Wrong(why))),
            None => return Err(OpenError::of_driver(NameError::Protocol(name))),
        },
    };
    let probed = match format {
        Some(_) => None,
        None => Some(co_probe(opening, &below)?),
    };
    let mut ancestors = options.ancestors.clone();
    ancestors.extend(image);
    let format = format.or(probed).unwrap_or("raw");
    node_of_format(format, below, path.is_some(), options, ancestors).map(|it| Some(Box::new(it)))
}

/// A node of a format above `below`. Definitions in JSON may have the format already.
fn node_of_format(
    format: &str,
    below: NodeRef,
    is_path: bool,
    options: &Qcow2Options,
    ancestors: Vec<PathBuf>,
) -> Result<NodeRef, OpenError> {
    if let NodeRef::Options(node) = &below
        && (node.driver.name() == format || is_path && ["file", "host_device"].contains(&format))
    {
        return Ok(below);
    }
    let config: DriverConfig = match format {
        "raw" => RawOptions::new(below).into(),
        "qcow2" => {
            let named_files = options.named_files;
            Qcow2Options { named_files, ancestors, ..Qcow2Options::new(below) }.into()
        }
        other => {
            let why = format!("the backing file has the format '{other}', which has no driver");
            return Err(OpenError::of_driver(FormatError::unsupported(why)));
        }
    };
    Ok(NodeOptions::new(config).into())
}

/// Finds the format of a backing file without one: raw, or qcow2 if that names no file itself. A guest can
/// write the header of any format to a raw disk, so nothing that it names is believed.
fn co_probe(opening: &Opening<'_, '_>, below: &NodeRef) -> Result<&'static str, OpenError> {
    let (co, unsure) = (opening.co(), |why: String| {
        let why = format!("the image names no format for its backing file, and {why}");
        OpenError::of_driver(FormatError::invalid(why))
    });
    let probe = opening.co_child("backing.probe", ChildRole::COW, below)?;
    let mut bytes = [0; 512];
    probe.co_read_at(co, 0, &mut bytes)?;
    match probe_format(&bytes) {
        None => return Ok("raw"),
        Some("qcow2") => {}
        Some(other) => return Err(unsure(format!("it looks like '{other}'"))),
    }
    let (header, _) = tables::co_header(co, &probe).map_err(refused)?;
    let has_data_file = header.incompatible.contains(Incompatible::DATA_FILE);
    match header.backing.is_some() || has_data_file {
        true => Err(unsure("it looks like a qcow2 image that names a file".to_owned())),
        false => Ok("qcow2"),
    }
}
