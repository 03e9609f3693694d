//! Readers of an instant under guests that write at random, while copies fail at random, or take too long. A read that
//! succeeds has the bytes of the instant, and one that is refused was of bytes that are lost or given up.

mod util;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, BlockLimits, BlockNode, Blockdevs, ZeroFlags};
use coblk_jobs::{CopyBeforeWrite, SnapshotAccess};
use fastrand::Rng;
use util::disk::{Disk, OnDisk, Op, Verdict};
use util::until;

const CLUSTER: u64 = 64 << 10;
const LENGTH: u64 = 6 * CLUSTER + 512;
const GUESTS: u64 = 3;
const READERS: u64 = 2;
const STEPS: u32 = 40;

struct World {
    guest: BlockBackend,
    reader: BlockBackend,
    instant: Vec<u8>,
    /// Bytes that are copied, and given up, together.
    granule: u64,
    /// Granules that a reader has given up, or is about to.
    given_up: RefCell<Vec<u64>>,
    breaks: bool,
    running: Cell<u64>,
}

impl World {
    fn write(&self, co: &Co<'_>, rng: &mut Rng) {
        let at = rng.u64(..LENGTH);
        let most = if rng.bool() { 4096 } else { 2 * CLUSTER };
        let bytes = rng.u64(1..=most.min(LENGTH - at));
        let changed = match rng.u8(..8) {
            0 => self.guest.co_pwrite_zeroes(co, at, bytes, ZeroFlags::MAY_UNMAP),
            1 => self.guest.co_pdiscard(co, at, bytes),
            _ => self.guest.co_write(co, at, &vec![rng.u8(..); bytes as usize]),
        };
        if let Err(error) = changed {
            let errno = error.raw_os_error();
            assert!(!self.breaks || errno != Some(libc::ETIMEDOUT), "a guest's write has failed");
        }
    }

    fn is_given_up(&self, at: u64, bytes: u64) -> bool {
        let granules = at / self.granule..(at + bytes).div_ceil(self.granule);
        self.given_up.borrow().iter().any(|granule| granules.contains(granule))
    }

    fn read(&self, co: &Co<'_>, rng: &mut Rng) {
        let at = rng.u64(..LENGTH);
        let bytes = rng.u64(1..=LENGTH - at);
        if rng.u8(..30) == 0 {
            let whole = at.div_ceil(self.granule)..(at + bytes).div_ceil(self.granule);
            self.given_up.borrow_mut().extend(whole);
            let _ = self.reader.co_pdiscard(co, at, bytes);
            return;
        }
        let was_whole = !self.is_given_up(at, bytes);
        let mut data = vec![0; bytes as usize];
        let read: io::Result<()> = self.reader.co_read(co, at, &mut data);
        match read {
            Ok(()) if was_whole && !self.is_given_up(at, bytes) => {
                assert!(data == self.instant[at as usize..][..bytes as usize], "{at}+{bytes}");
            }
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                assert!(self.breaks || self.is_given_up(at, bytes), "{at}+{bytes} is refused");
            }
            // The disk's.
            Ok(()) | Err(_) => {}
        }
    }
}

fn open(ctx: &AioContext, blockdevs: &Blockdevs, text: &str) -> Arc<BlockNode> {
    let node = blockdevs.open(ctx, NodeOptions::from_keyval(text).unwrap()).unwrap();
    node.set_discard_enabled(true);
    node
}

fn world(ctx: &AioContext, rng: &mut Rng) -> Rc<World> {
    let mut drivers = coblk_block::drivers();
    drivers.add::<CopyBeforeWrite>();
    drivers.add::<SnapshotAccess>();
    let blockdevs = Blockdevs::new(drivers);
    let disk = |name: &str| {
        let disk = Disk::new(LENGTH, BlockLimits::default());
        blockdevs.adopt(BlockNode::new(name, OnDisk(Arc::clone(&disk)))).unwrap();
        disk
    };
    let (source, target) = (disk("source"), disk("target"));
    let instant: Vec<u8> = (0..LENGTH).map(|_| rng.u8(..)).collect();
    source.set(&instant);
    let is_broken = rng.bool();
    let mut own = rng.fork();
    target.judge(move |op| match op {
        Op::Write(..) | Op::Zeroes(..) if is_broken && own.u8(..20) == 0 => {
            Verdict::Fail(libc::EIO)
        }
        _ => Verdict::Go,
    });
    let mut own = rng.fork();
    source.judge(move |op| match op {
        Op::Read(..) if is_broken && own.u8(..40) == 0 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let breaks = rng.bool();
    // Of a target without clusters, granules are smaller than these.
    let (least, granule) = if rng.bool() { (CLUSTER, CLUSTER) } else { (0, 4096) };
    let policy = if breaks { "break-snapshot" } else { "break-guest-write" };
    let text = format!(
        "copy-before-write,node-name=cbw,file=source,target=target,\
         on-cbw-error={policy},cbw-timeout=1,min-cluster-size={least},x-coblk-hold={}",
        if breaks { [0, CLUSTER, 64 << 20][rng.usize(..3)] } else { 0 },
    );
    let filter = open(ctx, &blockdevs, &text);
    let access = open(ctx, &blockdevs, "snapshot-access,node-name=access,file=cbw");
    let backend = |name: &str, node| BackendOptions::new(name).share_rw(true).open(ctx, node);
    let (guest, reader) = (backend("guest", filter).unwrap(), backend("reader", access).unwrap());
    let (given_up, running) = (RefCell::default(), Cell::new(GUESTS + READERS));
    Rc::new(World { guest, reader, instant, granule, given_up, breaks, running })
}

fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let ctx = util::simulated(rng.u64(..));
    let world = world(&ctx, &mut rng);
    for number in 0..GUESTS + READERS {
        let (world, mut rng) = (Rc::clone(&world), rng.fork());
        ctx.spawn("client", move |co| {
            for _ in 0..STEPS {
                match number < GUESTS {
                    true => world.write(co, &mut rng),
                    false => world.read(co, &mut rng),
                }
                co.sleep(Duration::from_micros(rng.u64(..2_000)));
            }
            world.running.set(world.running.get() - 1);
        });
    }
    until(&ctx, || world.running.get() == 0);
}

#[test]
fn j77_j82_j142_reads_of_an_instant_have_its_bytes_or_are_refused() {
    for seed in 0..40 {
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "seed {seed}");
    }
}
