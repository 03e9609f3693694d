//! The command line, in fio's words, and what follows from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser, ValueEnum};
use coblk::drivers;

/// Most requests in flight: three descriptors each, and a queue has at most 32768.
const MAX_IODEPTH: i64 = 8192;
const MAX_BLOCK_BYTES: u64 = 16 << 20;
const SECTOR_BYTES: u64 = 512;
/// Size of an image that is made, unless told otherwise.
pub const DEFAULT_SIZE_BYTES: u64 = 256 << 20;

/// Drives a disk image through guest driver, virtqueue, virtio-blk device, block backend and file
/// driver, checks every block that is read, and says how fast it was.
#[derive(Debug, Parser)]
#[command(
    name = "virtio_blk",
    version,
    after_help = "Exit status: 0 if all went well, 1 if a request failed or a block was not what \
                  was written, 2 if the options make no sense."
)]
pub struct Options {
    /// The image. Made if it does not exist, and kept. Without one, a temporary image is used
    pub image: Option<PathBuf>,

    /// What to do [default: randrw; on an image that exists, unless --overwrite: randread]
    #[arg(long, value_enum)]
    rw: Option<Workload>,

    /// Share of reads in a mix, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 70)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,

    /// Bytes in a block: a multiple of 512; k, m and g are powers of 1024
    #[arg(long, value_name = "BYTES", default_value = "4k", value_parser = parse_block_bytes)]
    pub bs: u64,

    /// Requests in flight
    #[arg(long, value_name = "REQUESTS", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MAX_IODEPTH))]
    pub iodepth: u16,

    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub runtime: Duration,

    /// Bytes to use, from the start of the image [default: 256m; of an image that exists: all]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub size: Option<u64>,

    /// What does the I/O
    #[arg(long, value_enum, default_value_t = Engine::Threads)]
    pub engine: Engine,

    /// Bypass the page cache (O_DIRECT)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true")]
    #[arg(action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub direct: bool,

    /// Stamp every block that is written, check every block that is read, and at the end read
    /// back all that was written; on unless --verify=0
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", hide_default_value = true)]
    #[arg(action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub verify: bool,

    /// Allow an image that exists to be written to: its contents are lost
    #[arg(long)]
    pub overwrite: bool,

    /// Do not write all of a new image before the run
    #[arg(long)]
    pub sparse: bool,

    /// Send every read to the engine: do not try the page cache in place first
    #[arg(long)]
    pub no_in_place: bool,

    /// Where the sequence of random offsets starts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Kinds of workload, under fio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential reads and writes
    Rw,
    /// Random reads and writes
    Randrw,
}

impl Workload {
    /// Whether it writes at all.
    pub fn writes(self) -> bool {
        !matches!(self, Workload::Read | Workload::Randread)
    }

    /// Whether offsets are random.
    pub fn is_random(self) -> bool {
        matches!(self, Workload::Randread | Workload::Randwrite | Workload::Randrw)
    }
}

/// What does the I/O of the file driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// System calls on worker threads
    Threads,
    /// The loop's io_uring
    #[value(name = "io_uring")]
    IoUring,
}

impl From<Engine> for drivers::Engine {
    fn from(engine: Engine) -> drivers::Engine {
        match engine {
            Engine::Threads => drivers::Engine::Threads,
            Engine::IoUring => drivers::Engine::IoUring,
        }
    }
}

impl Options {
    /// What to do with an image that is there already, or not.
    ///
    /// # Errors
    /// If it would destroy an image without having been told that this is all right.
    pub fn workload(&self, exists: bool) -> Result<Workload, String> {
        let keep = exists && !self.overwrite;
        match self.rw {
            None if keep => Ok(Workload::Randread),
            None => Ok(Workload::Randrw),
            Some(rw) if keep && rw.writes() => Err(format!(
                "the image exists, and --rw {} would destroy its contents; to allow that add \
                 --overwrite, to leave it as it is use --rw read or --rw randread",
                crate::name(rw)
            )),
            Some(rw) => Ok(rw),
        }
    }

    /// How likely the next request is a read, in percent.
    pub fn read_percent(&self, workload: Workload) -> u8 {
        match workload {
            Workload::Read | Workload::Randread => 100,
            Workload::Write | Workload::Randwrite => 0,
            Workload::Rw | Workload::Randrw => self.rwmixread,
        }
    }
}

/// `4096`, `4k`, `256m`, `1g`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.to_ascii_lowercase();
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        _ => (&text[..], 0),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    if bytes == 0 { Err("must be more than 0".to_owned()) } else { Ok(bytes) }
}

fn parse_block_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err("not a multiple of 512".to_owned());
    }
    if bytes > MAX_BLOCK_BYTES { Err("more than 16m".to_owned()) } else { Ok(bytes) }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "not a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}
