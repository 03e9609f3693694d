//! `query-blockstats`, and the latency histograms in it.

use coblk::BlockNode;
use coblk::block::accounting::{
    BlockStats, KindStatistics, LatencyBoundaries, LatencyHistogram, Statistics,
};
use coblk::export::ExportInfo;
use coblk::qmp::{ErrorClass, QmpError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Commands;
use crate::daemon::Daemon;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Query {
    #[serde(default)]
    query_nodes: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HistogramSet {
    /// An export.
    id: String,
    boundaries: Option<Vec<u64>>,
    boundaries_read: Option<Vec<u64>>,
    boundaries_write: Option<Vec<u64>>,
    /// Of requests that no export has.
    #[serde(rename = "boundaries-zap")]
    _boundaries_zap: Option<Vec<u64>>,
    boundaries_flush: Option<Vec<u64>>,
}

/// Where bins meet, at most: they are looked through for every request.
const MAX_BOUNDARIES: usize = 1000;

pub(super) fn add(commands: &mut Commands) {
    commands.add("query-blockstats", |daemon, _, query: Query| {
        if query.query_nodes {
            return Ok(daemon.blockdevs().nodes().iter().map(|node| of_node(node)).collect());
        }
        Ok(daemon.exports().iter().map(of_export).collect::<Vec<_>>())
    });
    commands.add_qmp("block-latency-histogram-set", |daemon, _, set: HistogramSet| {
        set_histogram(daemon, set)
    });
}

/// What an export has counted, on all contexts that serve it.
fn statistics(export: &ExportInfo) -> Vec<Statistics> {
    export.device.backends().into_iter().map(|backend| backend.statistics).collect()
}

fn set_histogram(daemon: &Daemon, set: HistogramSet) -> Result<(), QmpError> {
    let HistogramSet { id, boundaries: all, boundaries_read: read, .. } = set;
    let (write, flush) = (set.boundaries_write, set.boundaries_flush);
    let exports = daemon.exports();
    let Some(export) = exports.iter().find(|export| export.id == id) else {
        let text = format!("Device '{id}' not found");
        return Err(QmpError::new(ErrorClass::DeviceNotFound, text));
    };
    let lists = [&all, &read, &write, &flush];
    if lists.into_iter().flatten().any(|list| list.len() > MAX_BOUNDARIES) {
        return Err(QmpError::generic(format!("More than {MAX_BOUNDARIES} boundaries")));
    }
    if lists.into_iter().flatten().any(Vec::is_empty) {
        return Err(QmpError::generic("A list of boundaries is empty"));
    }
    let boundaries = LatencyBoundaries { all, read, write, flush };
    // The boundaries are good for all of them or for none.
    for statistics in statistics(export) {
        statistics.set_latency_boundaries(&boundaries).map_err(|_| {
            let text =
                format!("Device '{id}' set latency histogram failed: boundaries must ascend");
            QmpError::generic(text)
        })?;
    }
    Ok(())
}

fn of_export(export: &ExportInfo) -> Value {
    let node = export.device.node();
    let highest = node.as_ref().map_or(0, |node| node.describe().highest_write);
    let mut info = Map::new();
    info.insert("device".to_owned(), export.id.clone().into());
    info.insert("node-name".to_owned(), export.node_name.clone().into());
    info.insert("stats".to_owned(), stats(&statistics(export), highest));
    if let Some(parent) = node.as_ref().and_then(|node| below(node)) {
        info.insert("parent".to_owned(), parent);
    }
    info.into()
}

/// What the users of a node do there.
fn of_node(node: &BlockNode) -> Value {
    let all: Vec<Statistics> = node.backends().into_iter().map(|it| it.statistics).collect();
    let mut info = Map::new();
    info.insert("node-name".to_owned(), node.name().into());
    info.insert("stats".to_owned(), stats(&all, node.describe().highest_write));
    if let Some(parent) = below(node) {
        info.insert("parent".to_owned(), parent);
    }
    info.into()
}

/// What QAPI calls the parent is the node below.
fn below(node: &BlockNode) -> Option<Value> {
    let children = node.children();
    children.iter().find(|(name, _)| *name == "file").map(|(_, node)| of_node(node))
}

/// QAPI's `BlockDeviceStats`, of all together. Times are 0 unless latencies are wanted: requests
/// do not look at the clock then.
fn stats(all: &[Statistics], highest_write: u64) -> Value {
    let all: Vec<BlockStats> = all.iter().map(Statistics::snapshot).collect();
    let mut members = Map::new();
    let mut put = |name: String, value: Value| _ = members.insert(name, value);
    type Pick = fn(&BlockStats) -> &KindStatistics;
    let kinds: [(&str, Pick); 4] = [
        ("rd", |stats| &stats.read),
        ("wr", |stats| &stats.write),
        ("flush", |stats| &stats.flush),
        ("unmap", |stats| &stats.unmap),
    ];
    for (kind, pick) in kinds {
        let sum = |what: fn(&KindStatistics) -> u64| -> Value {
            all.iter().map(|stats| what(pick(stats))).sum::<u64>().into()
        };
        put(format!("{kind}_operations"), sum(|it| it.operations));
        put(format!("{kind}_total_time_ns"), sum(|it| it.total_time_ns));
        put(format!("failed_{kind}_operations"), sum(|it| it.failed));
        put(format!("invalid_{kind}_operations"), sum(|it| it.invalid));
        if kind != "flush" {
            put(format!("{kind}_bytes"), sum(|it| it.bytes));
            put(format!("{kind}_merged"), sum(|it| it.merged));
        }
    }
    zones(&mut put);
    put("wr_highest_offset".to_owned(), highest_write.into());
    if let Some(idle) = all.iter().map(|stats| stats.idle_time).min() {
        put("idle_time_ns".to_owned(), u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX).into());
    }
    put("account_failed".to_owned(), all.iter().any(|stats| stats.account_failed).into());
    put("account_invalid".to_owned(), all.iter().any(|stats| stats.account_invalid).into());
    // The daemon has no intervals.
    put("timed_stats".to_owned(), json!([]));
    type PickBins = fn(&BlockStats) -> &Option<LatencyHistogram>;
    let histograms: [(&str, PickBins); 3] = [
        ("rd_latency_histogram", |stats| &stats.read_latencies),
        ("wr_latency_histogram", |stats| &stats.write_latencies),
        ("flush_latency_histogram", |stats| &stats.flush_latencies),
    ];
    for (name, pick) in histograms {
        if let Some(histogram) = all.iter().filter_map(|stats| pick(stats).clone()).reduce(sum) {
            let LatencyHistogram { boundaries_ns, bins } = histogram;
            put(name.to_owned(), json!({"boundaries": boundaries_ns, "bins": bins}));
        }
    }
    members.into()
}

/// QAPI wants numbers of zoned devices' requests, which there are none of.
fn zones(put: &mut impl FnMut(String, Value)) {
    for name in [
        "zone_append_bytes",
        "zone_append_merged",
        "zone_append_operations",
        "zone_append_total_time_ns",
        "failed_zone_append_operations",
        "invalid_zone_append_operations",
    ] {
        put(name.to_owned(), 0.into());
    }
}

/// The contexts of one export have the same boundaries, but for a moment while they are being set.
fn sum(mut one: LatencyHistogram, other: LatencyHistogram) -> LatencyHistogram {
    if one.boundaries_ns == other.boundaries_ns {
        one.bins.iter_mut().zip(other.bins).for_each(|(bin, more)| *bin += more);
    }
    one
}
