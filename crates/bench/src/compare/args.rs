//! What the command line asks of `compare`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use coblk::AioContext;
use coblk::aio::AioContextBuilder;

use crate::fio;
use crate::image::Image;
use crate::measure::Plan;
use crate::progress::Progress;

/// What `compare`, `compare nbd` and `compare vhost-user` take.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// Measure only rows whose name contains this; may be given again.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// The image. Writes change what is in it. Made, of --size, if there is none; without this, a
    /// temporary one is.
    #[arg(long, value_name = "PATH")]
    pub filename: Option<PathBuf>,
    /// Size of an image that is made.
    #[arg(long, value_parser = fio::size)]
    pub size: Option<u64>,
    /// Requests each side makes in a round.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Draw the ratios and a latency curve, as SVG, into this directory.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

impl CommonArgs {
    /// The image, which is made if there is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn image(&self, plan: &Plan) -> io::Result<Image> {
        let size_bytes = self.size.unwrap_or(if plan.quick { 8 << 20 } else { 1 << 30 });
        let progress = Progress::new(usize::try_from(size_bytes >> 20).unwrap_or(usize::MAX));
        progress.now("MiB of the image are made");
        Image::open_or_make(self.filename.as_deref(), size_bytes, || progress.step())
    }
}

/// Those works whose name contains one of `only`, or all without any.
///
/// # Errors
/// If there are none.
pub fn wanted<W>(
    works: Vec<W>,
    only: &[String],
    name: impl Fn(&W) -> String,
) -> io::Result<Vec<W>> {
    let asked = |work: &W| only.iter().any(|part| name(work).contains(part.as_str()));
    let works: Vec<W> = works.into_iter().filter(|work| only.is_empty() || asked(work)).collect();
    if works.is_empty() {
        let parts = only.join("', '");
        return Err(io::Error::other(format!("no work is called '{parts}'; see the list command")));
    }
    Ok(works)
}

/// Arguments of `compare` itself.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// How long our loop may look for work before it sleeps, in microseconds, in place of as long as pays.
    /// QEMU's in qemu-img does not.
    #[arg(long, value_name = "US")]
    pub poll_max: Option<u32>,
}

impl CompareArgs {
    /// A context that looks for work as long as was said.
    pub fn context(&self) -> AioContextBuilder {
        let builder = AioContext::test_builder().name("bench");
        match self.poll_max {
            Some(us) => builder.poll_max(Duration::from_micros(u64::from(us))),
            None => builder,
        }
    }
}
