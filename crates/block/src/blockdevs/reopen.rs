//! `blockdev-reopen`: other options for nodes that are in use.
//!
//! All of it happens while the nodes are drained, in this order:
//!
//! ```text
//! plan      which nodes, with which options; which edges turn. What cannot change is refused
//! prepare   the drivers get ready, and change nothing: the images are opened once more
//! swap      the drivers and the nodes become what they are to be
//! turn      edges turn, and all users must agree
//!           if they do not: swap once more, and everything is as it was
//! ```

use std::any::Any;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, PoolShare};

use super::open::Inherited;
use super::{Blockdevs, Entry};
use crate::driver::BlockLimits;
use crate::driver::role::ChildRole;
use crate::drivers::{File, Raw};
use crate::filter::throttle::{Throttle, ThrottleReopen};
use crate::format::RawReopen;
use crate::graph::gate::WAIT_LIMIT;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::{BlockNode, NodeState};
use crate::graph::{self, GraphError, Operation, Turn, Turned};
use crate::io as request_path;
use crate::options::{BlockdevError, DriverOptions, NodeOptions, NodeRef, OptionsError};
use crate::protocol::FileReopen;

/// One node and what it is to be.
struct Step {
    node: Arc<BlockNode>,
    options: Arc<NodeOptions>,
    own: Inherited,
    /// Its children afterwards.
    children: Vec<(ChildRole, Arc<BlockNode>)>,
    /// Edges to those of them that are others than now.
    turns: Vec<Turn>,
}

impl Blockdevs {
    /// Gives nodes that are in use other options, all or none of them. Each is found by its
    /// `node-name`. Options that are not mentioned go back to their defaults.
    ///
    /// What can change: `read-only`, `auto-read-only`, `cache`, `discard`,
    /// `detect-zeroes` of all nodes; `aio` of
    /// images; `offset` and `size` of `raw`; `throttle-group`. A child that is described is reopened
    /// as well, if it was made for its node; one that is named stays, or another node takes its
    /// place. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// What cannot be changed, or who does not agree. Nothing has changed then.
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_reopen`](Self::co_reopen).
    pub fn reopen(&self, ctx: &AioContext, options: Vec<NodeOptions>) -> Result<(), BlockdevError> {
        ctx.run(|co| self.co_reopen(co, options))
    }

    /// [`reopen`](Self::reopen), from a coroutine, but not from a request's own callback: the nodes
    /// are drained. All contexts with backends concerned must be polling.
    ///
    /// # Errors
    /// As of [`reopen`](Self::reopen).
    pub fn co_reopen(&self, co: &Co<'_>, options: Vec<NodeOptions>) -> Result<(), BlockdevError> {
        // A disk that does not answer is found out before others wait for this change.
        for node in options.iter().filter_map(|it| self.node(it.node_name.as_deref()?)) {
            check_active(&node)?;
            co_flush_in_time(co, node)?;
        }
        let fallen = self.co_reopen_all(co, options)?;
        // Their last I/O waits for drains.
        fallen.iter().for_each(|node| co_close_if_unused(co, node));
        Ok(())
    }

    /// Returns the nodes that edges have led to.
    fn co_reopen_all(
        &self,
        co: &Co<'_>,
        options: Vec<NodeOptions>,
    ) -> Result<Vec<Arc<BlockNode>>, BlockdevError> {
        let _change = graph::lock_changes(co)?;
        let mut steps = Vec::new();
        for options in options {
            let node = self.named(&options)?;
            self.plan(&mut steps, node, Arc::new(options), Inherited::default())?;
        }
        let new_children =
            steps.iter().flat_map(|step| &step.turns).filter_map(|(_, node)| node.as_ref());
        let nodes = steps.iter().map(|step| &step.node).chain(new_children);
        let drained = nodes.map(|node| graph::co_drain_for_change(co, node));
        let _drained = drained.collect::<Result<Vec<_>, _>>()?;
        let prepared = steps.iter().map(|step| self.prepare(co, step));
        let mut prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        prepared.iter_mut().for_each(Prepared::swap);
        // Edges may go only after the lock.
        let mut turned = Turned::default();
        if let Err(error) = turn(co, &steps, &mut turned) {
            prepared.iter_mut().rev().for_each(Prepared::swap);
            return Err(error);
        }
        for step in &steps {
            graph::co_look_at_node(co, graph::lock().backends_above(&step.node));
            step.node.tell_length();
            // Flushes may have done nothing up to now.
            graph::lock().owe_flush_above(&step.node);
            self.note(step);
        }
        Ok(turned.old_nodes())
    }

    fn named(&self, options: &NodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let missing = || OptionsError::missing("node-name");
        self.known_node(options.node_name.as_deref().ok_or_else(missing)?)
    }

    /// Adds the step of a node, after those of its children.
    fn plan(
        &self,
        steps: &mut Vec<Step>,
        node: Arc<BlockNode>,
        options: Arc<NodeOptions>,
        inherited: Inherited,
    ) -> Result<(), BlockdevError> {
        let fixed = |option: &str| {
            let node = node.name().to_owned();
            BlockdevError::Fixed { node, option: option.to_owned() }
        };
        graph::lock().check_operation(&node, Operation::Reopen)?;
        check_active(&node)?;
        if options.active == Some(false) {
            return Err(fixed("active"));
        }
        let (now, _) = self.entry(&node)?;
        if let Some(option) = now.driver.fixed_option_that_differs(&options.driver) {
            return Err(fixed(option));
        }
        let own = Inherited::of(&options, inherited);
        own.check(node.name())?;
        if own.force_share != node.is_force_share() {
            return Err(fixed("force-share"));
        }
        let (mut children, mut turns) = (Vec::new(), Vec::new());
        for (name, role, wanted) in options.driver.children() {
            let edge = node.edges().iter().find(|edge| edge.info().name() == name);
            let edge = edge.ok_or_else(|| fixed(name))?;
            let child = edge.node().ok_or_else(|| fixed(name))?;
            let inherited = own.for_child(role);
            let (child_options, is_own) = self.entry(&child)?;
            let mut next = child.clone();
            match wanted {
                NodeRef::Name(other) if other != child.name() => {
                    // A log is where it was begun.
                    next = self.known_node(other)?;
                    if role.is_own_storage() {
                        return Err(fixed(name));
                    }
                    turns.push((edge.user(), Some(next.clone())));
                }
                // What it has from its parent may be something else now.
                NodeRef::Name(_) if is_own => self.plan(steps, child, child_options, inherited)?,
                NodeRef::Name(_) => {}
                NodeRef::Options(new) => {
                    let named = new.node_name.as_deref();
                    if !is_own || named.is_some_and(|name| name != child.name()) {
                        return Err(fixed(name));
                    }
                    self.plan(steps, child, Arc::clone(new), inherited)?;
                }
            }
            children.push((role, next));
        }
        if steps.iter().any(|step| Arc::ptr_eq(&step.node, &node)) {
            return Err(BlockdevError::Twice(node.name().to_owned()));
        }
        steps.push(Step { node, options, own, children, turns });
        Ok(())
    }

    /// The options of a node as it is, and whether it was made for another one.
    fn entry(&self, node: &BlockNode) -> Result<(Arc<NodeOptions>, bool), BlockdevError> {
        match self.names().nodes.get(node.name()) {
            Some(Entry::Owned(_, options)) => Ok((Arc::clone(options), false)),
            Some(Entry::Child(_, options)) => Ok((Arc::clone(options), true)),
            Some(Entry::Reserved) | None => Err(BlockdevError::NoSuchNode(node.name().to_owned())),
        }
    }

    fn prepare<'a>(&self, co: &Co<'_>, step: &'a Step) -> Result<Prepared<'a>, BlockdevError> {
        let (node, own) = (&*step.node, step.own);
        let name = || node.name().to_owned();
        co_flush(co, node)?;
        let driver: &dyn Any = node.driver();
        let driver = if let Some(file) = driver.downcast_ref::<File>() {
            let reopen = own.open_file(&step.options.driver, |it| file.co_prepare_reopen(co, it));
            let refused = |source| BlockdevError::File { node: name(), source };
            DriverReopen::File(reopen.map_err(refused)?)
        } else if let Some(raw) = driver.downcast_ref::<Raw>()
            && let DriverOptions::Raw(options) = &step.options.driver
            && let [(_, child)] = &step.children[..]
        {
            let refused = |source| BlockdevError::Driver { node: name(), source: Box::new(source) };
            DriverReopen::Raw(
                raw.prepare_reopen(child, options.offset, options.size).map_err(refused)?,
            )
        } else if let Some(throttle) = driver.downcast_ref::<Throttle>()
            && let DriverOptions::Throttle(options) = &step.options.driver
        {
            let group = self.known_group(&options.throttle_group)?;
            DriverReopen::Throttle(throttle.prepare_reopen(&group))
        } else {
            DriverReopen::Same
        };
        let limits = match &driver {
            DriverReopen::File(file) => file.limits(),
            _ => node.limits(),
        };
        Ok(Prepared { node, driver, limits, state: own.node_state() })
    }

    /// What the node is now, for the next time.
    fn note(&self, step: &Step) {
        match self.names().nodes.get_mut(step.node.name()) {
            Some(Entry::Owned(_, options) | Entry::Child(_, options)) => {
                *options = Arc::clone(&step.options);
            }
            Some(Entry::Reserved) | None => {}
        }
    }
}

/// That the storage of a node is this process's.
fn check_active(node: &BlockNode) -> Result<(), BlockdevError> {
    match node.is_active() {
        true => Ok(()),
        false => Err(BlockdevError::Inactive(node.name().to_owned())),
    }
}

/// A node that may become read-only has nothing left to be flushed.
fn co_flush(co: &Co<'_>, node: &BlockNode) -> Result<(), BlockdevError> {
    if node.is_read_only() {
        return Ok(());
    }
    let failed = |source| BlockdevError::Io { node: node.name().to_owned(), source };
    let _own = node.enter_own();
    request_path::co_flush(&node.path, co).map_err(failed)
}

/// [`co_flush`], no longer than a change waits.
pub(super) fn co_flush_in_time(co: &Co<'_>, node: Arc<BlockNode>) -> Result<(), BlockdevError> {
    if graph::has_no_limit(co) {
        return co_flush(co, &node);
    }
    let name = node.name().to_owned();
    let flushed = co.timeout(WAIT_LIMIT, "flush before reopen", move |co| co_flush(co, &node));
    flushed.unwrap_or_else(|_| Err(GraphError::RequestsInTheWay(name).into()))
}

/// Turns the edges, if all users agree to that and to what the nodes have become.
fn turn(co: &Co<'_>, steps: &[Step], turned: &mut Turned) -> Result<(), BlockdevError> {
    for step in steps {
        for (role, child) in &step.children {
            step.own.for_child(*role).check_writable(step.node.name(), child)?;
        }
    }
    let turns: Vec<_> = steps.iter().flat_map(|step| step.turns.iter().cloned()).collect();
    let nodes: Vec<_> = steps.iter().map(|step| step.node.id()).collect();
    Ok(PoolShare::once(co, || graph::lock_permits().turn(&turns, &nodes, false, turned))?)
}

/// A node that is ready to change to what it is to be, and back.
struct Prepared<'a> {
    node: &'a BlockNode,
    driver: DriverReopen<'a>,
    limits: BlockLimits,
    state: NodeState,
}

enum DriverReopen<'a> {
    File(FileReopen<'a>),
    Raw(RawReopen<'a>),
    Throttle(ThrottleReopen<'a>),
    /// It is told nothing.
    Same,
}

impl Prepared<'_> {
    fn swap(&mut self) {
        match &mut self.driver {
            DriverReopen::File(file) => file.swap(),
            DriverReopen::Raw(raw) => raw.swap(),
            DriverReopen::Throttle(throttle) => throttle.swap(),
            DriverReopen::Same => {}
        }
        self.limits = self.node.path.swap_limits(self.limits);
        self.state = self.node.swap_state(self.state);
    }
}
