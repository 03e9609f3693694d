//! `check`: whether the tables of an image agree.

use std::ffi::OsString;

use clap::ValueEnum;
use coblk::aio::Wanted;
use coblk::block::{CheckReport, Repair};
use coblk::qcow2::check::{self, CheckOptions};
use serde_json::{Map, Value, json};

use super::Tool;
use super::options::{Named, cache};
use crate::failure::{Failure, words};
use crate::image::{Cache, Image, ImageSpec};
use crate::output::{OutputFormat, print, print_json};
use crate::progress::Progress;

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
    /// Show progress
    #[arg(short, long)]
    progress: bool,
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
        // The tables alone: an image whose tables are damaged may be one that cannot be opened.
        let (format, file) = tool.images.co_open_file(tool.co, &spec)?;
        if format != "qcow2" {
            let why = "This image format does not support checks";
            return Err(Failure::new(why).with_code(NOT_SUPPORTED));
        }
        let progress = Progress::new(self.progress && !self.quiet);
        progress.show();
        let checked = co_check(tool, &file, repair, &progress);
        progress.end(checked.is_ok());
        let check::Check { report, findings, .. } = checked?;
        // A repair is done when it is durable, and the file closed.
        tool.images.co_close(tool.co, file)?;
        for finding in findings {
            eprintln!("{finding}");
        }
        match self.output {
            OutputFormat::Json => print_json(&to_json(&spec, &format, &report))?,
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => print(&human(&report))?,
        }
        match report {
            CheckReport { check_errors: 1.., .. } => Err(Failure::new("Check failed")),
            CheckReport { corruptions: 1.., .. } => Err(Failure::silent(2)),
            CheckReport { leaks: 1.., .. } => Err(Failure::silent(3)),
            _ => Ok(()),
        }
    }
}

/// Checks, and repairs, until a signal comes.
fn co_check(
    tool: &Tool<'_, '_>,
    file: &Image,
    repair: Repair,
    progress: &Progress,
) -> Result<check::Check, Failure> {
    let wanted = Wanted::new();
    let tell = |done, all| {
        progress.set(done, all);
        progress.show();
        if tool.interrupt.is_told() {
            wanted.give_up();
        }
    };
    let mut options = CheckOptions::new(repair);
    options.progress = &tell;
    let checked =
        tool.co.while_wanted(&wanted, || check::co_check_with(tool.co, &file.backend, &options));
    checked.map_err(|error| Failure::new(format!("Check failed: {}", words(&error.into()))))
}

fn to_json(spec: &ImageSpec, format: &str, report: &CheckReport) -> Value {
    let mut members = Map::new();
    members.insert("filename".to_owned(), json!(spec.label()));
    members.insert("format".to_owned(), json!(format));
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
