//! Latencies over the queue depth, for the curve.

use std::io;

use super::args::CompareArgs;
use super::works::Access;
use super::{BLOCK_BYTES, node};
use crate::engine::Engine;
use crate::image::Image;
use crate::jobs;
use crate::measure::Plan;
use crate::peers::qemu_img::{self, QemuImg};
use crate::plot::Stroke;
use crate::plot::curve::Curve;
use crate::progress::Progress;
use crate::report::{At, Report};
use crate::workload::{Job, Pattern, ReadWrite, Until, threads};

const DEPTHS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Requests at depth 1; deeper runs make more.
const OPS: u64 = 2000;

/// O_DIRECT reads at each depth, by each engine that runs here and by QEMU's. A row for each of
/// ours goes to the report.
pub fn measure(
    image: &Image,
    options: &CompareArgs,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<Vec<Curve>> {
    let mut curves = Vec::new();
    let engines: Vec<Engine> =
        Engine::ALL.into_iter().filter(|engine| engine.check().is_ok()).collect();
    let progress = Progress::new(engines.len() * DEPTHS.len());
    let path = image.path().to_str().unwrap_or_default();
    for (colour, engine) in engines.into_iter().enumerate() {
        let name = engine.name();
        let node = node(image.path(), Access::DirectRead, engine)?;
        let mut mean = Curve::new(format!("{name} mean"), colour, Stroke::Solid);
        let mut p99 = Curve::new(format!("{name} p99"), colour, Stroke::Dotted);
        let mut qemu = Curve::new(format!("qemu {name} mean"), colour, Stroke::Dashed);
        for depth in DEPTHS {
            progress.now(&format!("latency {name} QD{depth}"));
            let full = OPS * (depth as u64).min(16);
            let ops = options.common.count.unwrap_or(if plan.quick { full / 20 } else { full });
            let job = Job {
                pattern: Pattern { kind: ReadWrite::RandRead, read_percent: 100 },
                block_bytes: BLOCK_BYTES,
                latency: true,
                ..Job::sequential_reads(depth, u64::MAX)
            };
            let outcome = threads::run(&node, &job, 1, Until::Count(ops), depth as u64)?;
            mean.push(depth as u64, outcome.latency.mean());
            p99.push(depth as u64, outcome.latency.value_at_quantile(0.99) as f64);
            let work = format!("latency O_DIRECT {name} randread QD{depth}");
            let mut row = jobs::row(work, &outcome.lap, &outcome.latency);
            row.at = Some(At::Depth(depth));
            report.add(row)?;
            if qemu_img::is_installed() {
                // It does not say its latencies; depth over rate is their mean (Little's law).
                let lap = QemuImg::file(path, name, "none", depth, false).run(ops)?;
                qemu.push(depth as u64, lap.wall_ns / lap.ops as f64 * depth as f64);
            }
            progress.step();
        }
        curves.extend([mean, p99, qemu].into_iter().filter(|curve| !curve.is_empty()));
    }
    Ok(curves)
}
