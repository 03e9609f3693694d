//! `measure`: how many bytes an image would have.

use std::ffi::OsString;

use serde_json::{Map, Value, json};

use super::create::typed;
use super::option_list::create_options;
use super::options::Named;
use super::{Tool, source_snapshot};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::size;

/// Say how many bytes a new image would have
#[derive(clap::Args, Debug)]
pub(crate) struct Measure {
    #[command(flatten)]
    pub(crate) named: Named,
    /// The format of the new image; raw without this
    #[arg(short = 'O', long = "target-format", value_name = "FORMAT", default_value = "raw")]
    target_format: String,
    /// Options of the new image, such as cluster_size=2M
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The length of the new image, which is empty
    #[arg(short = 's', long)]
    size: Option<String>,
    /// The new image has what this internal snapshot has
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Lines for human readers, or JSON
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// The new image has what this one has
    filename: Option<OsString>,
}

impl Measure {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let mut options = typed(create_options(&self.options)?)?;
        // How the file is made, which needs as much space either way.
        options.remove("nocow");
        options.insert("driver".to_owned(), json!(self.target_format));
        let measured = match (&self.filename, &self.size) {
            (Some(_), Some(_)) => {
                return Err(Failure::new("--size N cannot be used together with a filename."));
            }
            (None, None) if !options.contains_key("size") => {
                return Err(Failure::new("Either --size N or one filename must be specified."));
            }
            (None, _) if self.snapshot.is_some() => {
                return Err(Failure::new(
                    "A snapshot is that of an image: its filename is missing",
                ));
            }
            (None, size) => {
                if let Some(text) = size {
                    options.insert("size".to_owned(), json!(size::parse("image size", text)?));
                }
                let drivers = tool.images.blockdevs().drivers();
                drivers.co_measure(tool.co, options, None)
            }
            (Some(name), None) => return self.co_measure_image(tool, name, options),
        };
        self.show(measured.map_err(Failure::new)?)
    }

    fn co_measure_image(
        &self,
        tool: &Tool<'_, '_>,
        name: &OsString,
        options: Map<String, Value>,
    ) -> Result<(), Failure> {
        let spec = self.named.spec(name);
        let image = source_snapshot::co_open(tool, &spec, self.snapshot.as_deref())?;
        let drivers = tool.images.blockdevs().drivers();
        let measured = drivers.co_measure(tool.co, options, Some(&image.backend));
        self.show(measured.map_err(Failure::new)?)
    }

    fn show(&self, measured: coblk::block::Measure) -> Result<(), Failure> {
        let coblk::block::Measure { required, fully_allocated, bitmaps, .. } = measured;
        match self.output {
            OutputFormat::Human => {
                let mut text =
                    format!("required size: {required}\nfully allocated size: {fully_allocated}\n");
                if let Some(bytes) = bitmaps {
                    text.push_str(&format!("bitmaps size: {bytes}\n"));
                }
                Ok(print(&text)?)
            }
            OutputFormat::Json => {
                let mut value = json!({"required": required, "fully-allocated": fully_allocated});
                if let Some(bytes) = bitmaps {
                    value["bitmaps"] = json!(bytes);
                }
                Ok(print_json(&value)?)
            }
        }
    }
}
