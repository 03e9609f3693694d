//! The numbers in the format of OpenMetrics, which Prometheus reads.

use std::fmt;

use coblk::block::accounting::{KindStatistics, LatencyHistogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::sample::{ExportSample, LoopSample, Sample};

type Labels = Vec<(&'static str, String)>;
type NoExemplar = Exemplar<Labels, u64>;
/// Name, unit, help and number of a metric.
type Metric<T, N> = (&'static str, Option<Unit>, &'static str, fn(&T) -> N);

const COUNTERS: [Metric<KindStatistics, u64>; 5] = [
    ("coblk_export_operations", None, "Requests that succeeded.", |it| it.operations),
    ("coblk_export", Some(Unit::Bytes), "Bytes of requests that succeeded.", |it| it.bytes),
    ("coblk_export_failed", None, "Requests that failed on their way.", |it| it.failed),
    ("coblk_export_invalid", None, "Requests that could not be, such as past the end.", |it| {
        it.invalid
    }),
    ("coblk_export_merged", None, "Requests that were merged into others.", |it| it.merged),
];

const EXPORT_GAUGES: [Metric<ExportSample, u64>; 4] = [
    ("coblk_export_in_flight", None, "Requests that are on their way.", |it| it.in_flight),
    (
        "coblk_export_held",
        None,
        "Requests that an error holds until the export is resumed.",
        |it| it.held,
    ),
    ("coblk_export_stopped", None, "Whether an error has stopped the export.", |it| {
        it.is_stopped().into()
    }),
    ("coblk_export_in_use", None, "Whether the export has clients.", |it| it.in_use.into()),
];

const LOOP_GAUGES: [Metric<LoopSample, u64>; 5] = [
    ("coblk_loop_workers", None, "Threads for calls that block.", |it| it.threads as u64),
    ("coblk_loop_workers_idle", None, "Threads for calls that block, without work.", |it| {
        it.idle_threads as u64
    }),
    ("coblk_loop_jobs_queued", None, "Calls that no thread has begun.", |it| it.queued_jobs as u64),
    ("coblk_loop_coroutines", None, "Coroutines that have not ended.", |it| it.coroutines as u64),
    ("coblk_loop_ring", None, "Whether there is an io_uring.", |it| it.has_ring.into()),
];

const LOOP_COUNTERS: [Metric<LoopSample, u64>; 2] = [
    ("coblk_loop_waits_active", None, "Waits that ended while the loop looked for work.", |it| {
        it.waits.active
    }),
    ("coblk_loop_waits_slept", None, "Waits in which the loop slept.", |it| it.waits.slept),
];

/// The whole page.
pub(crate) fn encode(sample: Sample) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(sample));
    let mut text = String::new();
    // A string takes everything.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_process(&mut encoder)?;
        for (name, unit, help, number) in &LOOP_GAUGES {
            let mut family = gauge(&mut encoder, name, unit.as_ref(), help)?;
            for sample in &self.loops {
                let labels: Labels = vec![("loop", sample.name.clone())];
                family.encode_family(&labels)?.encode_gauge(&number(sample))?;
            }
        }
        self.encode_waits(&mut encoder)?;
        for (name, unit, help, number) in &EXPORT_GAUGES {
            let mut family = gauge(&mut encoder, name, unit.as_ref(), help)?;
            for export in &self.exports {
                family.encode_family(&export.labels())?.encode_gauge(&number(export))?;
            }
        }
        for metric in &COUNTERS {
            self.encode_counter(&mut encoder, metric)?;
        }
        self.encode_latencies(&mut encoder)
    }
}

impl Sample {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Which program this is.";
        let mut info = encoder.encode_descriptor("coblk_build", help, None, MetricType::Info)?;
        info.encode_info(&vec![("version", env!("CARGO_PKG_VERSION"))])?;
        let help = "When it was started, since the epoch.";
        let unit = Some(&Unit::Seconds);
        gauge(encoder, "process_start_time", unit, help)?.encode_gauge(&self.start_seconds())?;
        let help = "The length of a node.";
        let mut sizes = gauge(encoder, "coblk_node_size", Some(&Unit::Bytes), help)?;
        for (name, driver, bytes) in &self.nodes {
            let labels: Labels = vec![("node", name.clone()), ("driver", (*driver).to_owned())];
            sizes.encode_family(&labels)?.encode_gauge(bytes)?;
        }
        if let Some(connections) = self.nbd_connections {
            let help = "Clients of the NBD server.";
            let mut clients = gauge(encoder, "coblk_nbd_connections", None, help)?;
            clients.encode_gauge(&(connections as u64))?;
        }
        Ok(())
    }

    fn encode_waits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(main) = self.loops.first() {
            let help = "What it costs to wake a thread, as measured.";
            let mut cost = gauge(encoder, "coblk_wake_cost", Some(&Unit::Seconds), help)?;
            cost.encode_gauge(&main.waits.wake_cost.as_secs_f64())?;
        }
        let labels = |sample: &LoopSample| -> Labels { vec![("loop", sample.name.clone())] };
        for (name, unit, help, number) in &LOOP_COUNTERS {
            let kind = MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for sample in &self.loops {
                let labels = labels(sample);
                let mut counter = family.encode_family(&labels)?;
                counter.encode_counter(&number(sample), None::<&NoExemplar>)?;
            }
        }
        let (help, kind) = ("Time that the loop looked for work in vain.", MetricType::Counter);
        let (name, unit) = ("coblk_loop_waits_in_vain", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for sample in &self.loops {
            let labels = labels(sample);
            let mut counter = family.encode_family(&labels)?;
            let seconds = sample.waits.in_vain.as_secs_f64();
            counter.encode_counter(&seconds, None::<&NoExemplar>)?;
        }
        Ok(())
    }

    fn encode_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, unit, help, number): &Metric<KindStatistics, u64>,
    ) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for export in &self.exports {
            for (kind, statistics, _) in &export.kinds {
                let labels = export.labels_of(kind.name());
                let mut counter = family.encode_family(&labels)?;
                counter.encode_counter(&number(statistics), None::<&NoExemplar>)?;
            }
        }
        Ok(())
    }

    fn encode_latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How long requests took, those that failed included.";
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
        let mut family = encoder.encode_descriptor("coblk_export_latency", help, unit, kind)?;
        for export in &self.exports {
            for (kind, statistics, latencies) in &export.kinds {
                let Some(latencies) = latencies else { continue };
                let labels = export.labels_of(kind.name());
                let mut histogram = family.encode_family(&labels)?;
                let (sum, count) = (seconds(statistics.total_time_ns), latencies.bins.iter().sum());
                histogram.encode_histogram::<Labels>(sum, count, &buckets(latencies), None)?;
            }
        }
        Ok(())
    }
}

impl ExportSample {
    fn labels(&self) -> Labels {
        vec![
            ("export", self.info.id.clone()),
            ("type", self.info.kind.to_owned()),
            ("node", self.info.node_name.clone()),
        ]
    }

    fn labels_of(&self, operation: &str) -> Labels {
        let mut labels = self.labels();
        labels.push(("operation", operation.to_owned()));
        labels
    }
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    unit: Option<&'a Unit>,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)
}

/// The upper end of each bin, which belongs to it, and how many are in there.
fn buckets(latencies: &LatencyHistogram) -> Vec<(f64, u64)> {
    let ends = latencies.boundaries_ns.iter().map(|boundary_ns| seconds(boundary_ns - 1));
    ends.chain([f64::INFINITY]).zip(latencies.bins.iter().copied()).collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
