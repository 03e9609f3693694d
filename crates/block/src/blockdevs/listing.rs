//! [`Blockdevs::options`]: options that would open the nodes again as they are.

use std::collections::{BTreeMap, BTreeSet};

use super::Blockdevs;
use crate::graph::Edge;
use crate::graph::node::BlockNode;
use crate::options::{NodeOptions, NodeRef, NodeRefOrNull};
use crate::registry::Entry;

impl Blockdevs {
    /// Returns the options of all nodes as they are now: opened one after the other they make the
    /// same nodes. A node that was opened for another node is described in that node's options.
    pub fn options(&self) -> Vec<NodeOptions> {
        let mut listing = Listing::new(self);
        let owned: Vec<String> = listing.owned().map(str::to_owned).collect();
        owned.iter().for_each(|name| listing.add(name));
        listing.found
    }
}

/// Says which child each slot of a node has, or that it has none, also where options leave it to the
/// driver: its choice may have been changed.
pub(super) fn describe_slots(node: &BlockNode, options: &mut NodeOptions) {
    for edge in node.edges() {
        let child = edge.node().map(|child| NodeRef::from(child.name()));
        options.driver.set_slot(edge.info().name(), &NodeRefOrNull(child));
    }
}

struct Known {
    /// The names of its children, by those of the edges. Nodes of jobs in between are left out.
    children: Vec<(String, String)>,
    /// With what has changed since it was opened, but for children.
    options: NodeOptions,
    /// The node that it was opened for. `None` if it was opened by itself.
    parent: Option<String>,
}

struct Listing {
    known: BTreeMap<String, Known>,
    /// Which node a child is described in.
    described_in: BTreeMap<String, String>,
    /// Those that are listed, or about to be.
    begun: BTreeSet<String>,
    found: Vec<NodeOptions>,
}

impl Listing {
    fn new(blockdevs: &Blockdevs) -> Listing {
        let mut known = BTreeMap::new();
        let names = blockdevs.names();
        for (name, entry) in &names.nodes {
            let (options, parent) = match entry {
                Entry::Owned(_, Some(options)) => (options, None),
                Entry::Child(_, options, parent) => (options, Some(parent.clone())),
                // What was made in code is not for options to make again.
                Entry::Owned(_, None) | Entry::Hidden(..) | Entry::Reserved => continue,
            };
            let Some(node) = entry.node() else { continue };
            let mut options = NodeOptions::clone(options);
            describe_slots(&node, &mut options);
            options.active = (!node.is_active()).then_some(false);
            let child = |edge: &Edge| {
                let below = names.below_hidden(edge.node()?).name().to_owned();
                Some((edge.info().name().to_owned(), below))
            };
            let children = node.edges().iter().filter_map(|edge| child(edge)).collect();
            known.insert(name.clone(), Known { children, options, parent });
        }
        drop(names);
        let (described_in, begun, found) = Default::default();
        let mut listing = Listing { known, described_in, begun, found };
        listing.place_children(|parent, child| child.parent.as_deref() == Some(parent));
        // One that was opened for a node that has another child by now has no other place than the
        // options of those that refer to it.
        listing.place_children(|_, _| true);
        listing
    }

    fn owned(&self) -> impl Iterator<Item = &str> {
        self.known.iter().filter(|(_, known)| known.parent.is_none()).map(|(name, _)| name.as_str())
    }

    fn place_children(&mut self, is_place: impl Fn(&str, &Known) -> bool) {
        for (name, known) in &self.known {
            for (_, below) in &known.children {
                let child = self.known.get(below).filter(|child| child.parent.is_some());
                if child.is_some_and(|child| is_place(name, child)) {
                    self.described_in.entry(below.clone()).or_insert_with(|| name.clone());
                }
            }
        }
    }

    /// Adds a node, after those that it refers to by name.
    fn add(&mut self, name: &str) {
        if self.begun.insert(name.to_owned())
            && let Some(options) = self.describe(name)
        {
            self.found.push(options);
        }
    }

    /// Recurses as deep as options may be nested.
    fn describe(&mut self, name: &str) -> Option<NodeOptions> {
        let known = self.known.get(name)?;
        let mut options = known.options.clone();
        let edges = options.driver.children().into_iter();
        let below: Vec<(String, Option<String>)> = edges
            .map(|(edge, _)| {
                let below = known.child(&edge);
                (edge, below)
            })
            .collect();
        for (edge, below) in below {
            let Some(below) = below else { continue };
            let child = match self.described_in.get(&below).is_some_and(|parent| parent == name) {
                true => self.describe(&below).map(NodeRef::from),
                false => {
                    self.add_home(&below);
                    Some(NodeRef::Name(below))
                }
            };
            if let Some(child) = child {
                options.driver.set_child(&edge, &child);
            }
        }
        Some(options)
    }

    /// Adds the node whose options describe `name`.
    fn add_home(&mut self, name: &str) {
        let mut home = name.to_owned();
        while let Some(parent) = self.described_in.get(&home) {
            home = parent.clone();
        }
        self.add(&home);
    }
}

impl Known {
    /// The name of the child that this edge leads to.
    fn child(&self, name: &str) -> Option<String> {
        let child = self.children.iter().find(|(edge, _)| edge == name);
        child.map(|(_, below)| below.clone())
    }
}
