//! Reads of formats that only say where bytes are ([`ReadMap`]).
//!
//! A request of one piece, which is a hit in the format's tables, is read at once, within the driver's
//! call. Of several pieces each is looked for first, down the chain of backing files; then as many as
//! there may be are read by coroutines of their own, to buffers of their own, and the rest by the request
//! itself. What was seen first is a hint: each piece is read within a call of its driver, which finds its
//! place again.
//!
//! Backing files are asked by a loop, not by calls that call each other: a chain of any height needs the
//! stack of one layer. A node whose driver is no [`ReadMap`], or whose requests do more than that (a lock
//! on their range, padding, events), is sent a request, and a filter among them passes it on by a call.

use std::cell::{LazyCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::sync::TaskPool;
use coblk_aio::{AlignedBuffer, Co, IoVectorMut};

use super::edge::{Edge, EdgeRef};
use crate::driver::flags::ReadFlags;
use crate::driver::map::{Place, ReadMap};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// Most pieces of a request that are read at once.
const MAX_READS: usize = 8;
/// Longest piece that is read by a coroutine of its own: it goes through a buffer. In bytes.
const MAX_COPY_BYTES: usize = 128 << 10;

/// The largest alignment that a driver may ask of memory that it uses in place, in bytes.
const BUFFER_ALIGNMENT: usize = 4096;

/// Fills `target` from `offset` bytes on with what `map` finds, as a part of the `co_preadv` of the driver
/// that `map` is of. `edges` are all of the driver's edges; the one with the role
/// [`COW`](ChildRole::COW) leads to the backing file.
///
/// Reads of the children have no flags: those of the request are the driver's business.
///
/// # Errors
/// Those of `map` and of reading; EIO if `map` names an edge that is not in `edges`, or finds
/// nothing.
#[inline]
pub fn co_read_mapped<M: ReadMap>(
    co: &Co<'_>,
    map: &M,
    edges: &[EdgeRef<'_>],
    offset: u64,
    target: &mut IoVectorMut<'_>,
) -> io::Result<()> {
    let bytes = target.len() as u64;
    if bytes == 0 {
        return Ok(());
    }
    let mut is_done = false;
    map.co_map(co, offset..offset + bytes, &mut |piece| {
        if piece.bytes < bytes || piece.place == Place::Backing {
            return Ok(());
        }
        is_done = true;
        Layer { map, edges: Edges::Of(edges) }.co_read(co, piece.place, target)
    })?;
    if is_done {
        return Ok(());
    }
    co_read_pieces(co, Layer { map, edges: Edges::Of(edges) }, edges, offset, target)
}

/// A node that is read by its map.
#[derive(Clone, Copy)]
struct Layer<'a> {
    map: &'a dyn ReadMap,
    edges: Edges<'a>,
}

/// The edges of a layer: those that its driver has given, or those of its node.
#[derive(Clone, Copy)]
enum Edges<'a> {
    Of(&'a [EdgeRef<'a>]),
    Node(&'a BlockNode),
}

impl<'a> Edges<'a> {
    #[inline]
    fn find(self, is_it: impl Fn(&Edge) -> bool) -> Option<&'a Edge> {
        match self {
            Edges::Of(edges) => edges.iter().map(|it| it.0).find(|it| is_it(it)),
            Edges::Node(node) => node.edges().iter().map(|it| &**it).find(|it| is_it(it)),
        }
    }
}

/// Where the bytes of a piece are read.
enum Source<'a> {
    /// At a place of a layer.
    Place(Layer<'a>, Place),
    /// In a node that is sent a request, from this offset on.
    Node(&'a BlockNode, u64),
}

impl Source<'_> {
    /// Reads what is there, within the call of the driver that has found it.
    fn co_read(self, co: &Co<'_>, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        match self {
            Source::Place(layer, place) => layer.co_read(co, place, target),
            Source::Node(node, offset) => {
                request_path::co_preadv(&node.path, co, offset, target, ReadFlags::empty())
            }
        }
    }
}

impl<'a> Layer<'a> {
    /// A node, if all that its requests do is to read by its map.
    fn of(node: &'a BlockNode) -> Option<Layer<'a>> {
        let map = node.driver().read_map().filter(|_| node.path.reads_are_plain())?;
        Some(Layer { map, edges: Edges::Node(node) })
    }

    #[inline]
    fn co_read(self, co: &Co<'_>, place: Place, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        match place {
            Place::Stored { child, offset } => {
                let edge = self.edges.find(|edge| edge.info().id() == child).ok_or_else(broken)?;
                edge.co_preadv_blocks(co, offset, target, ReadFlags::empty())
            }
            Place::Zero | Place::Backing => {
                target.fill_from(0, 0);
                Ok(())
            }
        }
    }

    fn backing(self) -> Option<Arc<BlockNode>> {
        self.edges.find(|edge| edge.info().role().contains(ChildRole::COW))?.node()
    }

    /// Finds the first bytes of a range in the layer and its backing files, and gives their number and their
    /// source to `take`, within the call of the driver that has found them. Returns the number.
    fn co_find(
        self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(u64, Source<'_>) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut bytes = bytes;
        let mut node: Option<Arc<BlockNode>> = None;
        loop {
            let layer = match &node {
                None => self,
                Some(node) => match Layer::of(node) {
                    Some(layer) => layer,
                    None => {
                        take(bytes, Source::Node(node, offset))?;
                        return Ok(bytes);
                    }
                },
            };
            let mut found = None;
            layer.map.co_map(co, offset..offset + bytes, &mut |piece| {
                let there = piece.bytes.min(bytes);
                found = Some((there, piece.place)).filter(|_| there > 0);
                match piece.place {
                    _ if there == 0 => Err(broken()),
                    Place::Backing => Ok(()),
                    place => take(there, Source::Place(layer, place)),
                }
            })?;
            let (there, place) = found.ok_or_else(broken)?;
            bytes = there;
            if place != Place::Backing {
                return Ok(bytes);
            }
            let backing = layer.backing().filter(|backing| offset < backing.length());
            let Some(backing) = backing else {
                take(bytes, Source::Place(layer, Place::Zero))?;
                return Ok(bytes);
            };
            bytes = bytes.min(backing.length() - offset);
            node = Some(backing);
        }
    }
}

/// A driver has not said what it must.
#[cold]
fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// A piece that was read to a buffer, and where in the request it is.
type Copied = (usize, AlignedBuffer);

#[inline(never)]
fn co_read_pieces(
    co: &Co<'_>,
    layer: Layer<'_>,
    edges: &[EdgeRef<'_>],
    offset: u64,
    target: &mut IoVectorMut<'_>,
) -> io::Result<()> {
    let owner = LazyCell::new(|| owner(edges));
    let (pool, copies) = (TaskPool::new(MAX_READS - 1), Rc::default());
    let read_all = |target: &mut IoVectorMut<'_>| {
        let mut done = 0;
        while done < target.len() && !pool.has_failed() {
            let (at, left) = (offset + done as u64, target.len() - done);
            let mut by_task = None;
            let there = layer.co_find(co, at, left as u64, |there, source| {
                let there = there as usize;
                let waits = !matches!(source, Source::Place(_, Place::Zero));
                let has_room = pool.busy() < MAX_READS - 1 && there <= MAX_COPY_BYTES;
                if waits && there < left && has_room && has_stack(co) {
                    by_task = owner.clone();
                }
                match by_task {
                    Some(_) => Ok(()),
                    None => source.co_read(co, &mut target.slice(done, there)),
                }
            })? as usize;
            if let Some(node) = by_task {
                let copies = Rc::clone(&copies);
                pool.start(co, "read piece", move |co| {
                    read_by_task(co, &node, at, there, done, &copies)
                });
            }
            done += there;
        }
        Ok(())
    };
    // They are a part of the request, also if it fails.
    let result = read_all(target);
    pool.wait_all(co).and(result)?;
    for (at, buffer) in copies.take() {
        target.copy_from(at, &buffer);
    }
    Ok(())
}

fn has_stack(co: &Co<'_>) -> bool {
    co.context().ensure_stack().is_ok()
}

/// The node whose driver has these edges, if it is made already and shows its map.
fn owner(edges: &[EdgeRef<'_>]) -> Option<Arc<BlockNode>> {
    let owner = edges.first()?.0.owner()?;
    owner.driver().read_map().is_some().then_some(owner)
}

/// Reads a piece of a request to a buffer. It is found again, and may be several by now. The node is
/// counted, as the request that waits for this may be unwound before.
fn read_by_task(
    co: &Co<'_>,
    node: &BlockNode,
    offset: u64,
    bytes: usize,
    place: usize,
    copies: &RefCell<Vec<Copied>>,
) -> io::Result<()> {
    let _own = node.enter_own();
    let map = node.driver().read_map().ok_or_else(broken)?;
    let layer = Layer { map, edges: Edges::Node(node) };
    let mut buffer = AlignedBuffer::new(bytes, BUFFER_ALIGNMENT)?;
    let mut done = 0;
    while done < bytes {
        let (at, left) = (offset + done as u64, (bytes - done) as u64);
        let there = layer.co_find(co, at, left, |there, source| {
            let part = &mut buffer[done..done + there as usize];
            source.co_read(co, &mut IoVectorMut::from(part))
        })?;
        done += there as usize;
    }
    copies.borrow_mut().push((place, buffer));
    Ok(())
}
