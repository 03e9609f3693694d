//! `check`: whether the tables of an image agree.

use std::ffi::OsString;
use std::io;

use clap::ValueEnum;
use coblk::block::{CheckReport, Repair};
use serde_json::{Map, Value, json};

use super::Tool;
use super::options::{Named, cache};
use crate::failure::{Failure, words};
use crate::image::{Cache, Image, ImageSpec};
use crate::output::{OutputFormat, print, print_json};

/// The exit code for a format that has no check.
const NOT_SUPPORTED: u8 = 63;

/// Check whether the tables of an image agree, and repair them
#[derive(clap::Args, Debug)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Lines for human readers, or JSON
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Repair leaks, or all that is wrong
    #[arg(short = 'r', long, value_enum, value_name = "WHAT")]
    repair: Option<What>,
    /// How the image is cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 'T', long, value_name = "MODE")]
    cache: Option<String>,
    /// The image
    filename: OsString,
}

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Space that is counted as used, and is not.
    Leaks,
    /// Leaks and corruptions.
    All,
}

impl Check {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let repair = match self.repair {
            None => Repair::None,
            Some(What::Leaks) => Repair::Leaks,
            Some(What::All) => Repair::All,
        };
        let spec = ImageSpec {
            cache: cache("source", self.cache.as_deref(), Cache::WRITEBACK)?,
            is_writable: repair != Repair::None,
            ..self.named.spec(&self.filename)
        };
        let image = tool.images.co_open(tool.co, &spec)?;
        let report = match co_check(tool, &image, repair) {
            Ok(report) => report,
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {
                let (text, format) = ("This image format does not support checks", image.format());
                let text = if repair == Repair::None || format == "raw" {
                    text
                } else {
                    "Repairs are not supported"
                };
                return Err(Failure::new(text).with_code(NOT_SUPPORTED));
            }
            Err(error) => return Err(Failure::new(format!("Check failed: {}", words(&error)))),
        };
        match self.output {
            OutputFormat::Json => print_json(&to_json(&image, &report))?,
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => print(&human(&report))?,
        }
        match report {
            CheckReport { check_errors: 1.., .. } => Err(Failure::silent(1)),
            CheckReport { corruptions: 1.., .. } => Err(Failure::silent(2)),
            CheckReport { leaks: 1.., .. } => Err(Failure::silent(3)),
            _ => Ok(()),
        }
    }
}

fn co_check(tool: &Tool<'_, '_>, image: &Image, repair: Repair) -> io::Result<CheckReport> {
    image.node.co_image(tool.co).and_then(|image| image.co_check(tool.co, repair))
}

fn to_json(image: &Image, report: &CheckReport) -> Value {
    let mut members = Map::new();
    members.insert("filename".to_owned(), json!(image.spec.label()));
    members.insert("format".to_owned(), json!(image.format()));
    members.insert("check-errors".to_owned(), json!(report.check_errors));
    let counts = [
        ("image-end-offset", report.image_end_offset.unwrap_or(0)),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    members.extend(counts.map(|(name, count)| ((*name).to_owned(), json!(count))));
    Value::Object(members)
}

fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    if report.leaks_fixed + report.corruptions_fixed > 0 {
        text.push_str(&format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...\n",
            report.leaks_fixed, report.corruptions_fixed
        ));
    }
    let CheckReport { corruptions, leaks, check_errors, .. } = report;
    if corruptions + leaks + check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if *corruptions > 0 {
        text.push_str(&format!(
            "\n{corruptions} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n"
        ));
    }
    if *leaks > 0 {
        text.push_str(&format!(
            "\n{leaks} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n"
        ));
    }
    if *check_errors > 0 {
        text.push_str(&format!(
            "\n{check_errors} internal errors have occurred during the check.\n"
        ));
    }
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    if total > 0 && allocated > 0 {
        let of = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        text.push_str(&format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            of(allocated, total),
            of(report.fragmented_clusters, allocated),
            of(report.compressed_clusters, allocated),
        ));
    }
    if let Some(end) = report.image_end_offset.filter(|end| *end > 0) {
        text.push_str(&format!("Image end offset: {end}\n"));
    }
    text
}
