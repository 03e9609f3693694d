//! `create`: makes an image. `convert` makes its target in the same way.

use std::ffi::{OsStr, OsString};

use coblk::block::CreateError;
use coblk::drivers::RbdOptions;
use serde_json::{Map, Value, json};

use super::option_list::{CreateOptions, create_options, is_format};
use super::options::Objects;
use super::{Tool, option_help};
use crate::failure::Failure;
use crate::image::{ImageSpec, path_of};
use crate::output::say;
use crate::size;

/// Make a new image
#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The format; raw without this
    #[arg(short = 'f', long, value_name = "FORMAT", default_value = "raw")]
    format: String,
    /// Options of the format, such as cluster_size=2M,lazy_refcounts=on; help: all of them are told
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The backing file
    #[arg(short = 'b', long, value_name = "FILENAME")]
    backing: Option<OsString>,
    /// The format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not open the backing file
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
    /// The image; what is there is lost
    filename: Option<OsString>,
    /// Its size in bytes, or with a unit; that of the backing file without this
    size: Option<String>,
}

impl Create {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        if option_help::is_asked(&self.options) {
            return option_help::show_create(tool, &self.format, self.filename.as_deref());
        }
        let Some(filename) = &self.filename else {
            return Err(Failure::usage("Expecting image file name"));
        };
        let bytes = self.size.as_deref().map(|text| size::parse("image size", text)).transpose()?;
        let options = create_options(&self.options)?;
        if bytes.is_some() && options.contains_key("size") {
            let name = filename.display();
            return Err(Failure::new(format!(
                "{name}: The image size must be specified only once"
            )));
        }
        let new = NewImage {
            format: &self.format,
            name: filename,
            bytes,
            backing: self.backing.as_ref(),
            backing_format: self.backing_format.as_deref(),
            options,
        };
        let new = new.completed(tool, self.backing_unsafe)?;
        say(self.quiet, &new.line())?;
        new.co_make(tool)
    }
}

/// An image that is to be made.
pub(crate) struct NewImage<'a> {
    pub(crate) format: &'a str,
    pub(crate) name: &'a OsStr,
    /// Its length.
    pub(crate) bytes: Option<u64>,
    pub(crate) backing: Option<&'a OsString>,
    pub(crate) backing_format: Option<&'a str>,
    pub(crate) options: CreateOptions,
}

/// An image of which all is known.
pub(crate) struct Complete<'a> {
    format: &'a str,
    name: &'a OsStr,
    bytes: u64,
    options: CreateOptions,
}

/// Lengths of images are whole sectors.
const SECTOR_BYTES: u64 = 512;
/// The option that names a file for the data, which is made, too.
const DATA_FILE: &str = "data-file";
/// Options that are on or off.
const SWITCHES: [&str; 4] = ["lazy_refcounts", "extended_l2", "data_file_raw", "nocow"];
/// Options that are numbers of bytes.
const SIZES: [&str; 3] = ["size", "cluster_size", "extent_size_hint"];
/// Options that are numbers.
const NUMBERS: [&str; 1] = ["refcount_bits"];
/// The same, of the encryption.
const ENCRYPTION_NUMBERS: [&str; 2] = ["iter-time", "keyslot"];

impl<'a> NewImage<'a> {
    /// Finds what follows from the backing file: it must be there, and is as long as the image unless that
    /// has a length of its own. An `unsafe` one is not opened.
    ///
    /// # Errors
    /// If the backing file has no format, or cannot be opened; if there is no length.
    pub(crate) fn completed(
        self,
        tool: &Tool<'_, '_>,
        is_unsafe: bool,
    ) -> Result<Complete<'a>, Failure> {
        let failed = |why: String| Failure::new(format!("{}: {why}", self.name.display()));
        if !tool.images.blockdevs().drivers().names().contains(&self.format) {
            return Err(Failure::new(format!("Unknown file format '{}'", self.format)));
        }
        let mut options = self.options;
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                options.insert(name.to_owned(), value);
            }
        };
        set("backing_file", self.backing.map(|name| json!(name.display().to_string())));
        set("backing_fmt", self.backing_format.map(|format| json!(format)));
        let text = |name: &str| options.get(name).and_then(Value::as_str).map(str::to_owned);
        let own = text("size").map(|text| size::parse("image size", &text)).transpose()?;
        let mut bytes = self.bytes.or(own);
        let backing = text("backing_file").filter(|name| !name.is_empty());
        if let Some(backing) = backing {
            if self.format == "raw" {
                let format = self.format;
                return Err(failed(format!(
                    "Backing file not supported for file format '{format}'"
                )));
            }
            let Some(format) = text("backing_fmt") else {
                return Err(failed("Backing file specified without backing format".to_owned()));
            };
            if !is_format(&tool.images.blockdevs().drivers().names(), &format) {
                return Err(failed(format!("Unknown backing file format '{format}'")));
            }
            if !is_unsafe || bytes.is_none() {
                let opened = co_length(tool, self.name, &backing, format)?;
                bytes = bytes.or(Some(opened));
            }
        }
        let Some(bytes) = bytes else {
            return Err(failed("Image creation needs a size parameter".to_owned()));
        };
        options.remove("size");
        Ok(Complete { format: self.format, name: self.name, bytes, options })
    }

    /// Makes the image, whose backing file is there.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn co_create(self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        self.completed(tool, false)?.co_make(tool)
    }
}

/// The length of a backing file, whose name is relative to the image.
fn co_length(
    tool: &Tool<'_, '_>,
    image: &OsStr,
    backing: &str,
    format: String,
) -> Result<u64, Failure> {
    let name = super::full_name(&image.display().to_string(), backing);
    let spec = ImageSpec { format: Some(format), ..ImageSpec::new(name) };
    let image = tool.images.co_open(tool.co, &spec)?;
    let bytes = image.node.length();
    tool.images.co_close(tool.co, image)?;
    Ok(bytes)
}

impl Complete<'_> {
    /// The line that tells what is made.
    fn line(&self) -> String {
        let mut line = format!(
            "Formatting '{}', fmt={} size={}",
            self.name.display(),
            self.format,
            self.bytes
        );
        self.options.iter().for_each(|(name, value)| tell_option(&mut line, name, value));
        line
    }

    /// Makes the image.
    ///
    /// # Errors
    /// Why not.
    fn co_make(mut self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let whole = self.bytes.checked_next_multiple_of(SECTOR_BYTES);
        self.bytes = whole.unwrap_or(self.bytes);
        if let Some(location) = self.name.to_str().and_then(RbdOptions::from_filename) {
            let location = location.map_err(|why| Failure::new(format!("Could not open {why}")))?;
            return self.co_make_in_cluster(tool, &location);
        }
        let path = path_of(self.name)?;
        let name = self.name.display().to_string();
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{name}: {error}"));
        let Some(text) = path.to_str() else { return Err(failed(&"the name is not UTF-8")) };
        if self.format == "raw" && is_device(path) {
            return self.co_check_device(tool, path);
        }
        let is_raw = self.format == "raw";
        let mut own = typed(self.options)?;
        let mut file = Map::new();
        file.insert("driver".to_owned(), json!("file"));
        file.insert("filename".to_owned(), json!(text));
        file.insert("size".to_owned(), json!(if is_raw { self.bytes } else { 0 }));
        if is_raw {
            file.append(&mut own);
        } else if let Some(nocow) = own.remove("nocow") {
            file.insert("nocow".to_owned(), nocow);
        }
        if is_raw {
            return co_create(tool, file).map_err(|error| failed(&error));
        }
        own.insert("driver".to_owned(), json!(self.format));
        own.insert("size".to_owned(), json!(self.bytes));
        // What cannot be made is known before the file that is there is lost.
        let drivers = tool.images.blockdevs().drivers();
        drivers.co_measure(tool.co, own.clone(), None).map_err(|error| failed(&error))?;
        let protocol = if is_device(path) { "host_device" } else { "file" };
        own.insert("file".to_owned(), json!({"driver": protocol, "filename": text}));
        if protocol == "file" {
            co_create(tool, file).map_err(|error| failed(&error))?;
        }
        let made = co_make_format(tool, own);
        made.map_err(|error| {
            if protocol == "file" {
                // An empty file would pass for a raw image.
                let _ = std::fs::remove_file(path);
            }
            failed(&error)
        })
    }

    /// Makes an image of a Ceph cluster, and the image of a format in it.
    fn co_make_in_cluster(self, tool: &Tool<'_, '_>, location: &RbdOptions) -> Result<(), Failure> {
        let name = self.name.display().to_string();
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{name}: {error}"));
        let Ok(Value::Object(mut node)) = serde_json::to_value(location) else {
            return Err(failed(&"its options cannot be written"));
        };
        node.retain(|_, value| !value.is_null());
        let is_raw = self.format == "raw";
        let mut own = typed(self.options)?;
        let mut file = Map::new();
        if is_raw {
            file.append(&mut own);
        }
        file.insert("driver".to_owned(), json!("rbd"));
        file.insert("location".to_owned(), json!(node));
        file.insert("size".to_owned(), json!(if is_raw { self.bytes } else { 0 }));
        co_create(tool, file).map_err(|error| failed(&error))?;
        if is_raw {
            return Ok(());
        }
        node.insert("driver".to_owned(), json!("rbd"));
        own.insert("driver".to_owned(), json!(self.format));
        own.insert("size".to_owned(), json!(self.bytes));
        own.insert("file".to_owned(), json!(node));
        co_create(tool, own).map_err(|error| failed(&error))
    }

    /// A device has the length it has.
    fn co_check_device(&self, tool: &Tool<'_, '_>, path: &std::path::Path) -> Result<(), Failure> {
        let spec = ImageSpec { format: Some("raw".to_owned()), ..ImageSpec::new(path.as_os_str()) };
        let device = tool.images.co_open(tool.co, &spec)?;
        let there = device.node.length();
        tool.images.co_close(tool.co, device)?;
        match there < self.bytes {
            true => {
                Err(Failure::new(format!("{}: Device is too small: {there} bytes", path.display())))
            }
            false => Ok(()),
        }
    }
}

/// Makes the image of a format in its file, and the file for its data before that.
fn co_make_format(tool: &Tool<'_, '_>, mut own: Map<String, Value>) -> Result<(), CreateError> {
    if let Some(Value::String(path)) = own.get(DATA_FILE) {
        let node = json!({"driver": "file", "filename": path});
        let mut file = node.as_object().cloned().unwrap_or_default();
        file.insert("size".to_owned(), json!(0));
        co_create(tool, file)?;
        own.insert(DATA_FILE.to_owned(), node);
    }
    co_create(tool, own)
}

/// Tells an option as it would be read again.
fn tell_option(line: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                tell_option(line, &format!("{name}.{member}"), value);
            }
        }
        Value::String(text) => line.push_str(&format!(" {name}={}", text.replace(',', ",,"))),
        value => line.push_str(&format!(" {name}={value}")),
    }
}

/// Makes an image, whose options may name objects of the command line.
fn co_create(tool: &Tool<'_, '_>, options: Map<String, Value>) -> Result<(), CreateError> {
    let nodes = tool.images.blockdevs();
    nodes.co_create(tool.co, nodes.drivers().creation(options)?)
}

/// Whether a path is that of a device.
pub(crate) fn is_device(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = path.metadata().map(|it| it.file_type());
    kind.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device())
}

/// Options in the types and by the names that drivers know.
pub(super) fn typed(options: CreateOptions) -> Result<Map<String, Value>, Failure> {
    let mut typed = Map::new();
    for (name, value) in options {
        let text = value.as_str().unwrap_or_default();
        let invalid = || Failure::new(format!("Invalid parameter '{text}' for option '{name}'"));
        let value = match &*name {
            "encrypt" => encryption(value)?,
            _ if !value.is_string() => value,
            name if SWITCHES.contains(&name) => match text {
                "on" | "yes" | "true" | "y" => json!(true),
                "off" | "no" | "false" | "n" => json!(false),
                _ => return Err(invalid()),
            },
            name if SIZES.contains(&name) => json!(size::parse(name, text)?),
            name if NUMBERS.contains(&name) => json!(text.parse::<u64>().map_err(|_| invalid())?),
            "compat" => json!(match text {
                "0.10" | "v2" => "v2",
                "1.1" | "v3" => "v3",
                _ => return Err(invalid()),
            }),
            _ => value,
        };
        let name = if name == "compat" { "version".to_owned() } else { name.replace('_', "-") };
        typed.insert(name, value);
    }
    Ok(typed)
}

/// Options of the encryption, with their numbers as such.
fn encryption(mut options: Value) -> Result<Value, Failure> {
    for (name, value) in options.as_object_mut().into_iter().flatten() {
        if let (true, Some(text)) = (ENCRYPTION_NUMBERS.contains(&name.as_str()), value.as_str()) {
            let invalid =
                |_| Failure::new(format!("Invalid parameter '{text}' for option 'encrypt.{name}'"));
            *value = json!(text.parse::<u64>().map_err(invalid)?);
        }
    }
    Ok(options)
}
