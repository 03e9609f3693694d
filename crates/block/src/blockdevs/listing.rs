//! [`Blockdevs::options`]: what would open the nodes again as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Blockdevs, Entry};
use crate::graph::node::BlockNode;
use crate::options::{NodeOptions, NodeRef};

impl Blockdevs {
    /// The options of all nodes as they are now: opened one after the other they make the same nodes. A
    /// node that was opened for another one is described in that one's options.
    pub fn options(&self) -> Vec<NodeOptions> {
        let mut listing = Listing::new(self);
        let owned: Vec<String> = listing.owned().map(str::to_owned).collect();
        owned.iter().for_each(|name| listing.add(name));
        listing.found
    }
}

struct Known {
    node: Arc<BlockNode>,
    /// With what has changed since it was opened, but for children.
    options: NodeOptions,
    is_owned: bool,
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
        for (name, entry) in &blockdevs.names().nodes {
            let (options, is_owned) = match entry {
                Entry::Owned(_, options) => (options, true),
                Entry::Child(_, options) => (options, false),
                Entry::Reserved => continue,
            };
            let Some(node) = entry.node() else { continue };
            let mut options = NodeOptions::clone(options);
            options.active = (!node.is_active()).then_some(false);
            known.insert(name.clone(), Known { node, options, is_owned });
        }
        let (described_in, begun, found) = Default::default();
        let mut listing = Listing { known, described_in, begun, found };
        // One that its parent refers to by its name, since a reopen, has no other place than that.
        listing.place_children(|child| matches!(child, NodeRef::Options(_)));
        listing.place_children(|_| true);
        listing
    }

    fn owned(&self) -> impl Iterator<Item = &str> {
        self.known.iter().filter(|(_, known)| known.is_owned).map(|(name, _)| name.as_str())
    }

    fn place_children(&mut self, is_place: impl Fn(&NodeRef) -> bool) {
        for (name, known) in &self.known {
            for (edge, _, child) in known.options.driver.children() {
                let Some(below) = known.child(edge) else { continue };
                let is_child = self.known.get(&below).is_some_and(|known| !known.is_owned);
                if is_child && is_place(child) {
                    self.described_in.entry(below).or_insert_with(|| name.clone());
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
        let edges = options.driver.children();
        let below: Vec<(&str, Option<String>)> =
            edges.iter().map(|(edge, _, _)| (*edge, known.child(edge))).collect();
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
                options.driver.set_child(edge, child);
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
        let edge = self.node.edges().iter().find(|edge| edge.info().name() == name);
        Some(edge?.node()?.name().to_owned())
    }
}
