//! Random changes of a graph while requests run, against a model of its edges. After each step the graph
//! must be what the model says, and what it keeps must be what is found again from nothing. The drivers
//! see to it that no child changes under a request.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::drivers::Raw;
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, DrainedSection, FrozenChain, GraphError, WriteFlags,
};

use crate::movable::{self, Copies, Overlay};
use crate::tagged::Tagged;

const DISKS: usize = 4;
const OVERLAYS: std::ops::Range<usize> = 4..8;
const LISTS: std::ops::Range<usize> = 8..10;
const FILTER: usize = 10;
const NODES: usize = 11;

/// An edge: a node, by its number, and a name.
type Edge = (usize, String);

/// What the graph should be.
#[derive(Default)]
struct Model {
    edges: BTreeMap<Edge, usize>,
    frozen: BTreeSet<Edge>,
}

impl Model {
    fn child(&self, node: usize, label: &str) -> Option<usize> {
        self.edges.get(&(node, label.to_owned())).copied()
    }

    /// A node, and all below it.
    fn below(&self, node: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([node]);
        for (_, child) in self.edges.iter().filter(|((parent, _), _)| *parent == node) {
            found.extend(self.below(*child));
        }
        found
    }

    /// Whether an edge of `node` may lead to `new`.
    fn may_set(&self, node: usize, label: &str, new: Option<usize>) -> bool {
        let is_frozen = self.frozen.contains(&(node, label.to_owned()));
        let changes = self.child(node, label) != new;
        !(changes && is_frozen) && new.is_none_or(|new| !self.below(new).contains(&node))
    }

    fn set(&mut self, node: usize, label: &str, new: Option<usize>) {
        match new {
            Some(new) => self.edges.insert((node, label.to_owned()), new),
            None => self.edges.remove(&(node, label.to_owned())),
        };
    }

    /// The edges that a replace turns.
    fn turning(&self, old: usize, new: usize) -> Vec<Edge> {
        let below = self.below(new);
        let turn = self
            .edges
            .iter()
            .filter(|((parent, _), child)| **child == old && !below.contains(parent));
        turn.map(|(edge, _)| edge.clone()).collect()
    }

    fn labels(&self, node: usize) -> Vec<String> {
        let own = self.edges.keys().filter(|(parent, _)| *parent == node);
        let mut labels: Vec<String> = own.map(|(_, label)| label.clone()).collect();
        labels.sort_by_key(|label| (label.len(), label.clone()));
        labels
    }

    /// The edges from a node down its chain; `None` if they do not lead to `base`.
    fn way_down(&self, top: usize, base: Option<usize>) -> Option<Vec<Edge>> {
        let (mut node, mut way) = (top, Vec::new());
        while base != Some(node) {
            let Some(label) = self.labels(node).into_iter().next() else {
                return base.is_none().then_some(way);
            };
            way.push((node, label.clone()));
            node = self.child(node, &label)?;
        }
        Some(way)
    }
}

struct Scene {
    seed: u64,
    ctx: AioContext,
    random: fastrand::Rng,
    nodes: Vec<Arc<BlockNode>>,
    model: Model,
    frozen: Vec<(FrozenChain, Vec<Edge>)>,
    drains: Vec<DrainedSection>,
    /// With permissions, and where they are.
    backends: Vec<(BlockBackend, usize)>,
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<usize>>,
    requests: Rc<Cell<u64>>,
    /// How often an operation was done, or refused for a reason.
    outcomes: BTreeMap<String, u64>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let options = SimulationOptions::new(seed);
        let ctx = AioContext::test_builder().simulated(options).build().unwrap();
        let mut nodes: Vec<Arc<BlockNode>> =
            (0..4).map(|tag| Tagged::new(tag).node(&format!("disk{tag}"))).collect();
        for number in OVERLAYS {
            let file = Tagged::new(9).node("file");
            nodes.push(Overlay::node(&format!("overlay{number}"), &file, None));
        }
        for number in LISTS {
            nodes.push(Copies::node(&format!("copies{number}"), 0, &[&nodes[0]]));
        }
        nodes.push(BlockNode::new("filter", Raw::new(nodes[1].clone())));
        let mut model = Model::default();
        LISTS.for_each(|list| model.set(list, "children.0", Some(0)));
        model.set(FILTER, "file", Some(1));
        let (frozen, drains, backends) = (Vec::new(), Vec::new(), Vec::new());
        let (stop, running, requests, outcomes) = Default::default();
        let random = fastrand::Rng::with_seed(seed);
        Scene {
            seed,
            ctx,
            random,
            nodes,
            model,
            frozen,
            drains,
            backends,
            stop,
            running,
            requests,
            outcomes,
        }
    }

    /// Begins requests to a node that ask for no permissions.
    fn load(&mut self, node: usize) {
        let backend = BlockBackend::new(&self.ctx, "load", self.nodes[node].clone());
        let mut random = self.random.fork();
        let (stop, requests) = (Rc::clone(&self.stop), Rc::clone(&self.requests));
        let running = Rc::clone(&self.running);
        running.set(running.get() + 1);
        self.ctx.spawn("load", move |co| {
            while !stop.get() {
                // A list may be empty, and has no length then.
                let _ = co_request(co, &backend, &mut random);
                requests.set(requests.get() + 1);
                // Jobs of a simulated context end when nothing else is to be done.
                co.sleep(Duration::from_micros(random.u64(0..20)));
            }
            running.set(running.get() - 1);
        });
    }

    fn node(&mut self) -> usize {
        self.random.usize(0..NODES)
    }

    fn any(&mut self, of: std::ops::Range<usize>) -> usize {
        self.random.usize(of)
    }

    /// Compares what was done with what the model allows. Users may always disagree.
    fn judge<T>(&mut self, result: &Result<T, GraphError>, allowed: bool, what: &str) -> bool {
        let seed = self.seed;
        let outcome = result.as_ref().map_or_else(|error| format!("{error:?}"), |_| String::new());
        let outcome = outcome.split(['{', '(']).next().unwrap_or_default().trim();
        let operation = what.split(' ').next().unwrap_or_default();
        *self.outcomes.entry(format!("{operation} {outcome}")).or_default() += 1;
        match result {
            Ok(_) => assert!(allowed, "seed {seed}: {what} is done"),
            Err(GraphError::Permission(_) | GraphError::Writer { .. }) => {}
            Err(error) => assert!(!allowed, "seed {seed}: {what}: {error}"),
        }
        result.is_ok()
    }

    fn set(&mut self, node: usize, label: &str, new: Option<usize>) {
        let (owner, child) = (&self.nodes[node], new.map(|new| &self.nodes[new]));
        let (now, what) = (self.model.child(node, label), format!("set {node} {label} {new:?}"));
        let (result, allowed) = match (self.random.bool(), child) {
            (true, Some(child)) => {
                (self.ctx.run(|co| owner.co_attach(co, label, child)), now.is_none())
            }
            (true, None) => (self.ctx.run(|co| owner.co_detach(co, label)), now.is_some()),
            (false, child) => (self.ctx.run(|co| owner.co_set_child(co, label, child)), true),
        };
        if self.judge(&result, allowed && self.model.may_set(node, label, new), &what) {
            self.model.set(node, label, new);
        }
    }

    fn add(&mut self, list: usize, new: usize) {
        // The ways through lists of lists multiply.
        if self.model.labels(list).len() == 3 {
            return;
        }
        let (owner, child) = (&self.nodes[list], &self.nodes[new]);
        let result = self.ctx.run(|co| owner.co_add_child(co, child));
        let allowed = !self.model.below(new).contains(&list);
        if self.judge(&result, allowed, "add") {
            self.model.set(list, &result.unwrap(), Some(new));
        }
    }

    fn remove(&mut self, list: usize) {
        let labels = self.model.labels(list);
        let Some(label) = self.random.choice(labels) else { return };
        let owner = &self.nodes[list];
        let result = self.ctx.run(|co| owner.co_remove_child(co, &label));
        if self.judge(&result, self.model.may_set(list, &label, None), "remove") {
            self.model.set(list, &label, None);
        }
    }

    fn replace(&mut self, old: usize, new: usize) {
        let (from, to) = (&self.nodes[old], &self.nodes[new]);
        let is_above = old != new && self.model.below(new).contains(&old);
        let (result, mut allowed) = match self.random.bool() {
            true => (self.ctx.run(|co| from.co_replace(co, to)), true),
            false => (self.ctx.run(|co| from.co_insert_above(co, to)), is_above),
        };
        let edges = self.model.turning(old, new);
        allowed &= old == new || edges.iter().all(|edge| !self.model.frozen.contains(edge));
        if self.judge(&result, allowed, &format!("replace {old} by {new}")) {
            edges.iter().for_each(|(node, label)| self.model.set(*node, label, Some(new)));
            let moved = self.backends.iter_mut().filter(|(_, node)| *node == old);
            moved.for_each(|(_, node)| *node = new);
        }
    }

    fn freeze(&mut self, top: usize, base: Option<usize>) {
        let (from, to) = (&self.nodes[top], base.map(|base| &self.nodes[base]));
        let result = self.ctx.run(|co| from.co_freeze_chain(co, to, "a job needs it"));
        let way = self.model.way_down(top, base);
        let frozen = &self.model.frozen;
        let allowed = way.as_ref().is_some_and(|way| way.iter().all(|edge| !frozen.contains(edge)));
        if self.judge(&result, allowed, &format!("freeze {top} to {base:?}")) {
            let way = way.unwrap();
            self.model.frozen.extend(way.clone());
            self.frozen.push((result.unwrap(), way));
        }
    }

    fn thaw(&mut self) {
        if !self.frozen.is_empty() {
            let (chain, way) = self.frozen.swap_remove(self.random.usize(0..self.frozen.len()));
            drop(chain);
            way.iter().for_each(|edge| _ = self.model.frozen.remove(edge));
        }
    }

    fn open(&mut self, node: usize) {
        let options = BackendOptions::new("drive").read_only(self.random.bool());
        let options = options.share_rw(self.random.u32(0..6) == 0);
        if let Ok(backend) = options.open(&self.ctx, self.nodes[node].clone()) {
            self.backends.push((backend, node));
        }
    }

    fn step(&mut self) {
        let (one, other) = (self.node(), self.node());
        let (overlay, list) = (self.any(OVERLAYS), self.any(LISTS));
        let some = self.random.bool().then_some(other);
        match self.random.u32(0..19) {
            0..3 => self.set(overlay, "backing", some),
            3 => self.set(overlay, "backing", Some(other)),
            4 => self.set(FILTER, "file", Some(other)),
            5 | 6 => self.add(list, other),
            7 => self.remove(list),
            8 | 9 => self.replace(one, other),
            10 => self.freeze(one, some),
            11 => self.thaw(),
            12..16 => self.open(one),
            16 if self.backends.is_empty() => {}
            16 => drop(self.backends.swap_remove(self.random.usize(0..self.backends.len()))),
            17 => self.drains.push(self.nodes[one].drain(&self.ctx)),
            _ if self.drains.is_empty() => {}
            _ => drop(self.drains.swap_remove(self.random.usize(0..self.drains.len()))),
        }
    }

    fn check(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let own = self.model.edges.iter().filter(|((parent, _), _)| *parent == number);
            let own: BTreeSet<(String, String)> = own
                .map(|((_, label), child)| (label.clone(), self.nodes[*child].name().to_owned()))
                .collect();
            let children = node.children().into_iter().filter(|(_, child)| child.name() != "file");
            let children: BTreeSet<_> = children
                .map(|(label, child)| (label.into_owned(), child.name().to_owned()))
                .collect();
            assert_eq!(children, own, "seed {}, node {number}", self.seed);
            assert_eq!(node.graph_faults(), [""; 0], "seed {}, node {number}", self.seed);
            let listed = if LISTS.contains(&number) { own.len() } else { 0 };
            assert_eq!(movable::listed(node), listed, "seed {}, node {number}", self.seed);
        }
        for (backend, node) in &self.backends {
            let is_there = Arc::ptr_eq(&backend.node().unwrap(), &self.nodes[*node]);
            assert!(is_there, "seed {}, a backend of node {node}", self.seed);
        }
    }
}

fn co_request(
    co: &Co<'_>,
    backend: &BlockBackend,
    random: &mut fastrand::Rng,
) -> std::io::Result<()> {
    let mut bytes = [0; 512];
    match random.u32(0..4) {
        0 => backend.co_flush(co),
        1 => backend.co_pwritev(co, 0, &IoVector::from(&bytes[..]), WriteFlags::empty()),
        _ => backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut bytes[..])),
    }
}

#[test]
fn random_changes_leave_the_graph_as_the_model_has_it() {
    let (mut requests, mut outcomes) = (0, BTreeMap::<String, u64>::new());
    for seed in 0..60 {
        let mut scene = Scene::new(seed);
        for node in [4, 5, 8, 9, FILTER, DISKS - 1] {
            scene.load(node);
        }
        for _ in 0..60 {
            scene.step();
            scene.check();
            (0..scene.random.usize(0..4)).for_each(|_| _ = scene.ctx.try_poll());
        }
        scene.stop.set(true);
        scene.drains.clear();
        let running = Rc::clone(&scene.running);
        scene.ctx.run_until(|| running.get() == 0);
        while !scene.frozen.is_empty() {
            scene.thaw();
        }
        scene.backends.clear();
        scene.check();
        requests += scene.requests.get();
        for (outcome, count) in scene.outcomes {
            *outcomes.entry(outcome).or_default() += count;
        }
    }
    assert!(requests > 1000, "{requests} requests");
    // What is to be tested has come about.
    let done =
        ["set", "add", "remove", "replace", "freeze"].map(|operation| format!("{operation} "));
    let refused =
        ["set Cycle", "set Frozen", "set Permission", "replace Frozen", "freeze NotInChain"];
    for outcome in done.iter().map(String::as_str).chain(refused) {
        let count = outcomes.get(outcome).copied().unwrap_or_default();
        assert!(count > 0, "{outcome}: {count} times, of {outcomes:?}");
    }
}
