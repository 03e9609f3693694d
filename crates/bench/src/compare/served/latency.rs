//! Latencies over the queue depth, for the curve.

use std::io;

use super::works::{CURVE_DEPTHS, Device, Work};
use super::{ServedArgs, Stage};
use crate::image::Image;
use crate::measure::Plan;
use crate::peers::programs::{Program, Protocol};
use crate::plot::Stroke;
use crate::plot::curve::Curve;
use crate::progress::Progress;
use crate::report::Report;
use crate::workload::ReadWrite;

/// Reads at each depth by every server: from the image, or from a null device if there is none. A
/// row for each depth goes to the report.
pub fn measure(
    protocol: Protocol,
    image: Option<&Image>,
    arguments: &ServedArgs,
    ours: &Program,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<Vec<Curve>> {
    let plan = Plan { rounds: 1, ..*plan };
    let device = if image.is_some() { Device::Cached } else { Device::Null };
    let mut curves = vec![Curve::new("coblk".to_owned(), 0, Stroke::Solid)];
    let progress = Progress::new(CURVE_DEPTHS.len());
    for depth in CURVE_DEPTHS {
        let work = Work { depth, ..Work::plain(protocol, device, ReadWrite::RandRead) };
        progress.now(&format!("latency {}", work.name()));
        let stage = Stage { work: &work, image, arguments, rate_lap: plan.rate_lap };
        let mut row = stage.measure(ours, &plan, &progress)?;
        // Depth over rate is the mean latency (Little's law).
        let mean_ns = |rate: f64| depth as f64 / rate * 1e9;
        curves[0].push(depth as u64, mean_ns(row.ours.unwrap_or(f64::NAN)));
        for peer in &row.peers {
            let index = curves.iter().position(|curve| curve.name() == peer.name);
            let index = index.unwrap_or_else(|| {
                curves.push(Curve::new(peer.name.clone(), curves.len(), Stroke::Dashed));
                curves.len() - 1
            });
            curves[index].push(depth as u64, mean_ns(peer.value));
        }
        row.work = format!("latency {}", row.work);
        row.more.extend(row.ours.map(|rate| ("mean_ns", mean_ns(rate))));
        report.add(row)?;
        progress.step();
    }
    Ok(curves)
}
