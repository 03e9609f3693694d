//! `x-coblk-check`: a check of the image of a node.

use coblk::block::{CheckReport, Repair};
use serde::{Deserialize, Serialize};

use super::Commands;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    node_name: String,
    /// Nothing without.
    repair: Option<Mended>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mended {
    None,
    Leaks,
    All,
}

/// The figures of QAPI's `ImageCheck`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Figures {
    check_errors: u64,
    corruptions: u64,
    leaks: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_end_offset: Option<u64>,
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("x-coblk-check", |daemon, co, Arguments { node_name, repair }| {
        let repair = match repair {
            None | Some(Mended::None) => Repair::None,
            Some(Mended::Leaks) => Repair::Leaks,
            Some(Mended::All) => Repair::All,
        };
        daemon.check(co, &node_name, repair).map(|report| figures(&report))
    });
}

fn figures(report: &CheckReport) -> Figures {
    Figures {
        check_errors: report.check_errors,
        corruptions: report.corruptions,
        leaks: report.leaks,
        corruptions_fixed: report.corruptions_fixed,
        leaks_fixed: report.leaks_fixed,
        total_clusters: report.total_clusters,
        allocated_clusters: report.allocated_clusters,
        fragmented_clusters: report.fragmented_clusters,
        compressed_clusters: report.compressed_clusters,
        image_end_offset: report.image_end_offset,
    }
}
