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

use std::borrow::Cow;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, PoolShare};

use super::Blockdevs;
use super::list_change::{self, ListChange};
use super::listing::describe_edges;
use crate::driver::role::ChildRole;
use crate::graph::change::ChangeLock;
use crate::graph::gate::WAIT_LIMIT;
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::{BlockNode, NodeState};
use crate::graph::{self, Child, Edge, GraphError, Left, Operation, Turn, Turned};
use crate::io as request_path;
use crate::io::known::answers_may_have_changed;
use crate::options::{DriverConfig, NodeOptions, NodeRef, NodeRefOrNull, OptionsError};
use crate::registry::{BlockdevError, Entry, Inherited, OpenError, Reopen, Reopening};

/// One node and what it is to be.
struct Step {
    node: Arc<BlockNode>,
    options: Arc<NodeOptions>,
    own: Inherited,
    /// Its children afterwards, by the names of their options.
    children: Vec<(Cow<'static, str>, Arc<BlockNode>)>,
    /// Their roles for the driver.
    roles: Vec<ChildRole>,
    /// Edges to those of them that are others than now.
    turns: Vec<Turn>,
    /// Nodes that come to the end of its list.
    added: Vec<Arc<BlockNode>>,
    /// Children that its list loses.
    removed: Vec<Arc<Child>>,
}

impl Step {
    fn new(node: Arc<BlockNode>, options: Arc<NodeOptions>, own: Inherited) -> Step {
        let (children, roles, turns, added, removed) = Default::default();
        Step { node, options, own, children, roles, turns, added, removed }
    }

    /// Whether other children come to the node, or some go.
    fn changes_edges(&self) -> bool {
        !(self.turns.is_empty() && self.added.is_empty() && self.removed.is_empty())
    }

    fn add_child(&mut self, option: &str, role: ChildRole, child: Arc<BlockNode>) {
        self.children.push((option.to_owned().into(), child));
        self.roles.push(role);
    }
}

impl Blockdevs {
    /// Gives nodes in use other options, all or none of them. Each is found by its `node-name`.
    /// Options that are not mentioned go back to their defaults.
    ///
    /// What can change: `read-only`, `auto-read-only`, `cache`, `discard`, `detect-zeroes` of all nodes,
    /// and what their drivers [say](crate::Driver::CHANGEABLE). A child that is described is reopened as
    /// well, if it was made for its node; one that is named stays, or another node takes its place. A
    /// [slot](crate::options::NodeRefOrNull) takes the node that is named, and null empties it; one that
    /// has a child must be mentioned. A [list](crate::ChildList) has the children that the option has, in
    /// that order: others, more, or fewer. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// Which option cannot change, or which user does not agree. Nothing has changed then.
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
        let options = options.into_iter().map(|options| self.drivers().resolve(options));
        let options = options.collect::<Result<Vec<_>, _>>()?;
        // A disk that does not answer is found out before others wait for this change.
        for node in options.iter().filter_map(|it| self.node(it.node_name.as_deref()?)) {
            check_active(&node)?;
            co_flush_in_time(co, node)?;
        }
        let turned = self.co_reopen_locked(co, &ChangeLock::co_take(co)?, options)?;
        // Their last I/O waits for drains.
        turned.iter().for_each(|node| co_close_if_unused(co, node));
        turned.iter().for_each(|node| co_settle_homes(co, node));
        Ok(())
    }

    /// Returns the nodes whose edges have turned, and those to which these have led.
    pub(super) fn co_reopen_locked(
        &self,
        co: &Co<'_>,
        _change: &ChangeLock,
        options: Vec<NodeOptions>,
    ) -> Result<Vec<Arc<BlockNode>>, BlockdevError> {
        let mut steps = Vec::new();
        for options in options {
            let node = self.named(&options)?;
            self.plan(&mut steps, node, Some(Arc::new(options)), Inherited::default())?;
        }
        let turned = steps.iter().flat_map(|step| &step.turns).filter_map(|it| it.1.as_ref());
        let added = steps.iter().flat_map(|step| &step.added);
        let nodes = steps.iter().map(|step| &step.node).chain(turned).chain(added);
        let drained = nodes.map(|node| graph::co_drain_for_change(co, node));
        let _drained = drained.collect::<Result<Vec<_>, _>>()?;
        let prepared = steps.iter().map(|step| self.prepare(co, step));
        let mut prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        let left = co_flush_left(co, &steps);
        prepared.iter_mut().for_each(Prepared::swap);
        // Edges may go only after the lock.
        let mut turned = Turned::default();
        let checked = prepared.iter().try_for_each(Prepared::check);
        if let Err(error) = checked.and_then(|()| turn(co, &steps, &mut turned)) {
            prepared.iter_mut().rev().for_each(Prepared::swap);
            return Err(error);
        }
        for step in &steps {
            // In a statement of its own: the lock must be free while contexts are waited for.
            let backends = graph::lock().backends_above(&step.node);
            graph::co_look_at_node(co, backends);
            step.node.tell_length();
            // Flushes may have done nothing up to now.
            graph::lock().owe_flush_above(&step.node);
            self.note(step);
        }
        for (left, parent, is_replaced) in left {
            left.tell(parent, is_replaced);
        }
        let parents = steps.iter().filter(|step| step.changes_edges());
        let parents = parents.map(|step| Arc::clone(&step.node));
        Ok(parents.chain(turned.old_nodes()).collect())
    }

    fn named(&self, options: &NodeOptions) -> Result<Arc<BlockNode>, BlockdevError> {
        let missing = || OptionsError::missing("node-name");
        self.known_node(options.node_name.as_deref().ok_or_else(missing)?)
    }

    /// Adds the step of a node, after those of its children. Without options it keeps those that it has,
    /// and its children.
    fn plan(
        &self,
        steps: &mut Vec<Step>,
        node: Arc<BlockNode>,
        given: Option<Arc<NodeOptions>>,
        inherited: Inherited,
    ) -> Result<(), BlockdevError> {
        let fixed = |option: &str| {
            let node = node.name().to_owned();
            BlockdevError::Fixed { node, option: option.to_owned() }
        };
        graph::lock().check_operation(&node, Operation::Reopen)?;
        check_active(&node)?;
        if given.as_ref().is_some_and(|options| options.active == Some(false)) {
            return Err(fixed("active"));
        }
        let missing = || BlockdevError::NoOptions(node.name().to_owned());
        let (now, _) = self.entry(&node).ok_or_else(missing)?;
        let is_given = given.is_some();
        let mut options = given.unwrap_or_else(|| {
            let mut options = NodeOptions::clone(&now);
            describe_edges(&node, &mut options);
            Arc::new(options)
        });
        // A name is for life, also if the description of a child leaves it out; one that was made up is
        // none of its options.
        Arc::make_mut(&mut options).node_name.clone_from(&now.node_name);
        let changeable = self.drivers().factory(options.driver.name())?.changeable();
        if let Some(option) = now.driver.other_that_differs(&options.driver, changeable) {
            return Err(fixed(&option));
        }
        let own = Inherited::of(&options, inherited);
        own.check(node.name())?;
        let has_others = options.bitmaps != now.bitmaps;
        if has_others || own.force_share != node.is_force_share() {
            return Err(fixed(if has_others { "x-coblk-bitmaps" } else { "force-share" }));
        }
        let edges = node.edges();
        if let Some(name) = child_without_edge(edges, &now.driver, &options.driver) {
            return Err(fixed(&name));
        }
        let mut step = Step::new(node.clone(), options, own);
        for edge in edges {
            let driver = is_given.then_some(&step.options.driver);
            let wanted = driver.map_or(Ok(None), |driver| wanted(&node, edge, driver))?;
            self.plan_child(steps, &mut step, (edge.info().name(), edge), wanted)?;
        }
        let list = is_given.then(|| step.options.driver.list()).flatten();
        self.plan_list(steps, &mut step, list)?;
        if steps.iter().any(|step| Arc::ptr_eq(&step.node, &node)) {
            return Err(BlockdevError::Twice(node.name().to_owned()));
        }
        steps.push(step);
        Ok(())
    }

    /// Adds what becomes of an edge to the step of its parent, and the child's own step before that.
    /// The edge stays as it is if no option tells of it.
    fn plan_child(
        &self,
        steps: &mut Vec<Step>,
        parent: &mut Step,
        (option, edge): (&str, &Edge),
        wanted: Option<NodeRefOrNull>,
    ) -> Result<(), BlockdevError> {
        let fixed = || {
            let (node, option) = (parent.node.name().to_owned(), option.to_owned());
            BlockdevError::Fixed { node, option }
        };
        let (child, role) = (edge.node(), edge.info().role());
        let inherited = parent.own.for_child(role);
        // A job's filter in between stays there.
        let named = child.clone().map(|child| self.names().below_hidden(child));
        let hidden = child.as_ref().and_then(|child| self.hidden(child));
        let own = named.as_ref().and_then(|child| self.entry(child));
        let own = own.filter(|(_, of)| of.as_deref() == Some(parent.node.name()));
        let own = named.clone().filter(|_| own.is_some());
        let mut next = child.clone();
        match (wanted, own) {
            (Some(NodeRefOrNull(None)), _) => {
                hidden.map_or(Ok(()), Err)?;
                next = None;
                if child.is_some() {
                    check_slot(&parent.node, edge)?;
                    parent.turns.push((edge.user(), None));
                }
            }
            (Some(NodeRefOrNull(Some(NodeRef::Name(other)))), _)
                if named.is_none_or(|named| named.name() != other) =>
            {
                hidden.map_or(Ok(()), Err)?;
                // A log is where it was begun.
                let other = self.known_node(&other)?;
                if role.is_own_storage() {
                    return Err(fixed());
                }
                parent.turns.push((edge.user(), Some(other.clone())));
                next = Some(other);
            }
            (Some(NodeRefOrNull(Some(NodeRef::Options(new)))), Some(child))
                if new.node_name.as_deref().is_none_or(|name| name == child.name()) =>
            {
                self.plan(steps, child, Some(new), inherited)?;
            }
            (Some(NodeRefOrNull(Some(NodeRef::Options(_)))), _) => return Err(fixed()),
            // What it has from its parent may be something else now.
            (_, Some(child)) => self.plan(steps, child, None, inherited)?,
            (_, None) => {}
        }
        if let Some(next) = next {
            parent.add_child(option, role, next);
        }
        Ok(())
    }

    /// Adds what becomes of the children of a list, which keep their places, to the step of their parent:
    /// all as they are if no option tells of it.
    fn plan_list(
        &self,
        steps: &mut Vec<Step>,
        parent: &mut Step,
        wanted: Option<(String, Vec<NodeRef>)>,
    ) -> Result<(), BlockdevError> {
        let list = parent.node.list();
        let wanted = list_change::wanted(&parent.node, list.as_deref(), wanted)?;
        let Some(list) = list else { return Ok(()) };
        let (children, role) = (list.load().to_vec(), list.role());
        let option = |place: usize| format!("{}.{place}", list.name());
        let fixed = |parent: &Step, place| {
            let (node, option) = (parent.node.name().to_owned(), option(place));
            BlockdevError::Fixed { node, option }
        };
        for (place, child) in children.iter().enumerate() {
            let then = wanted.as_ref().map(|wanted| wanted.get(place).cloned());
            if let Some(None) = then {
                self.hidden(&child.node()).map_or(Ok(()), Err)?;
                if role.is_own_storage() {
                    return Err(fixed(parent, place));
                }
                parent.removed.push(Arc::clone(child));
                continue;
            }
            let then = then.flatten().map(NodeRefOrNull::from);
            self.plan_child(steps, parent, (&option(place), &child.shared_edge()), then)?;
        }
        for (place, new) in wanted.iter().flatten().enumerate().skip(children.len()) {
            // As of a slot: a new child is opened first.
            let NodeRef::Name(new) = new else { return Err(fixed(parent, place)) };
            let new = self.known_node(new)?;
            parent.add_child(&option(place), role, Arc::clone(&new));
            parent.added.push(new);
        }
        Ok(())
    }

    /// The options of a node as it is, and the name of the node that it was opened for, if it was. Nodes
    /// that were made in code have none.
    pub(super) fn entry(
        &self,
        node: &Arc<BlockNode>,
    ) -> Option<(Arc<NodeOptions>, Option<String>)> {
        let names = self.names();
        let entry = names.nodes.get(node.name())?;
        if !entry.node().is_some_and(|known| Arc::ptr_eq(&known, node)) {
            return None;
        }
        match entry {
            Entry::Owned(_, options) => Some((Arc::clone(options.as_ref()?), None)),
            Entry::Child(_, options, parent) => Some((Arc::clone(options), Some(parent.clone()))),
            Entry::Hidden(..) | Entry::Reserved => None,
        }
    }

    fn prepare<'a>(&self, co: &Co<'_>, step: &'a Step) -> Result<Prepared<'a>, BlockdevError> {
        let (node, own) = (&*step.node, step.own);
        co_flush(co, node)?;
        let config = &step.options.driver;
        let factory = self.drivers().factory(config.name())?;
        let cx = Reopening::new(&self.registry, co, node.name(), own, &step.children);
        let missing = || BlockdevError::NoOptions(node.name().to_owned());
        let options = config.typed().ok_or_else(missing)?;
        let driver = factory.co_prepare_reopen(node.driver(), &cx, &**options);
        let driver = driver.map_err(|error| BlockdevError::of_node(node.name(), error))?;
        Ok(Prepared { node, driver, state: own.node_state() })
    }

    /// Notes the node's options for the next reopen.
    fn note(&self, step: &Step) {
        match self.names().nodes.get_mut(step.node.name()) {
            Some(Entry::Owned(_, Some(options)) | Entry::Child(_, options, _)) => {
                *options = Arc::clone(&step.options);
            }
            Some(Entry::Owned(_, None) | Entry::Hidden(..) | Entry::Reserved) | None => {}
        }
    }
}

/// A child that options describe, now or then, for which the driver has no edge, or that is gone then
/// without being in a slot.
fn child_without_edge(
    edges: &[Arc<Edge>],
    now: &DriverConfig,
    then: &DriverConfig,
) -> Option<String> {
    let wanted = then.children();
    let names = wanted.iter().map(|(name, _)| name.clone());
    let names: Vec<_> = names.chain(then.slots().into_iter().map(|(name, _)| name)).collect();
    let known =
        |name: &String| edges.iter().any(|edge| edge.info().name() == name) && names.contains(name);
    // Those of a list come and go.
    let list = now.list().or_else(|| then.list()).map(|(name, _)| format!("{name}."));
    let is_listed = |name: &String| list.as_ref().is_some_and(|list| name.starts_with(list));
    let all = now.children().into_iter().chain(wanted).map(|(name, _)| name);
    all.into_iter().find(|name| !is_listed(name) && !known(name))
}

/// What options say of an edge, if they tell of it.
fn wanted(
    node: &BlockNode,
    edge: &Edge,
    options: &DriverConfig,
) -> Result<Option<NodeRefOrNull>, BlockdevError> {
    let name = edge.info().name();
    let slot = options.slots().into_iter().find(|(slot, _)| slot == name);
    match slot {
        Some((option, None)) if edge.node().is_some() => {
            Err(BlockdevError::SlotMissing { node: node.name().to_owned(), option })
        }
        Some((_, slot)) => Ok(slot),
        None => {
            let child = options.children().into_iter().find(|(child, _)| child == name);
            Ok(child.map(|(_, child)| child.into()))
        }
    }
}

/// That an edge may lead nowhere.
fn check_slot(node: &BlockNode, edge: &Edge) -> Result<(), GraphError> {
    match edge.is_slot() {
        true => Ok(()),
        false => {
            let (node, edge) = (node.name().to_owned(), edge.info().label());
            Err(GraphError::NoSlot { node, edge })
        }
    }
}

/// Flushes the children that edges are to turn away from. Each has its parent, and whether another child
/// takes its place.
fn co_flush_left<'a>(co: &Co<'_>, steps: &'a [Step]) -> Vec<(Left, &'a BlockNode, bool)> {
    let mut left = Vec::new();
    for step in steps {
        for (user, new) in &step.turns {
            let edges = step.node.all_edges();
            let edge = edges.iter().find(|edge| edge.user() == *user);
            let child = edge.and_then(|edge| edge.node());
            let flushed = child.map(|child| Left::co_flush(co, child));
            left.extend(flushed.map(|flushed| (flushed, &*step.node, new.is_some())));
        }
        let removed = step.removed.iter();
        left.extend(removed.map(|it| (Left::co_flush(co, it.node()), &*step.node, false)));
    }
    left
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
        for (role, (_, child)) in step.roles.iter().zip(&step.children) {
            step.own.for_child(*role).check_writable(step.node.name(), child)?;
        }
        let edges = step.node.all_edges();
        for (user, new) in &step.turns {
            let edge = edges.iter().find(|edge| edge.user() == *user);
            edge.map_or(Ok(()), |edge| graph::ask_driver(&step.node, edge.info(), new.as_ref()))?;
        }
    }
    let begin = |step: &Step| ListChange::begin(&step.node, &step.added, &step.removed);
    let lists = steps.iter().map(begin).collect::<Result<Vec<_>, _>>()?;
    let turns = steps.iter().flat_map(|step| step.turns.iter().cloned());
    let turns: Vec<_> = turns.chain(lists.iter().flat_map(ListChange::turns)).collect();
    let nodes: Vec<_> = steps.iter().map(|step| step.node.id()).collect();
    PoolShare::once(co, || graph::lock_permits().turn(&turns, &nodes, false, turned))?;
    lists.into_iter().for_each(ListChange::end);
    // Limits may be those of children.
    let parents = steps.iter().filter(|step| step.changes_edges());
    parents.for_each(|step| step.node.look_at_limits());
    Ok(())
}

/// A node that is ready to change to what it is to be, and back.
struct Prepared<'a> {
    node: &'a BlockNode,
    driver: Box<dyn Reopen + 'a>,
    state: NodeState,
}

impl Prepared<'_> {
    fn swap(&mut self) {
        self.driver.swap();
        answers_may_have_changed();
        let limits = self.node.driver().limits();
        if limits.are_possible() {
            self.node.path.swap_limits(limits);
        }
        self.state = self.node.swap_state(self.state);
    }

    /// That the driver has become what a driver can be.
    fn check(&self) -> Result<(), BlockdevError> {
        let checked = OpenError::check_limits(self.node.driver());
        checked.map_err(|error| BlockdevError::of_node(self.node.name(), error))
    }
}
