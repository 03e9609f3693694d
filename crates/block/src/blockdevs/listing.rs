//! [`Blockdevs::options`]: options that would open the nodes again as they are.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
/// driver: its choice may have been changed. And which children its list has, as these come and go.
pub(super) fn describe_edges(node: &BlockNode, options: &mut NodeOptions) {
    for edge in node.edges() {
        let child = edge.node().map(|child| NodeRef::from(child.name()));
        options.driver.set_slot(edge.info().name(), &NodeRefOrNull(child));
    }
    if let Some(list) = node.list() {
        let children = list.load();
        let names = children.iter().map(|child| NodeRef::from(child.node().name()));
        options.driver.set_list(&names.collect::<Vec<_>>());
    }
}

struct Known {
    /// The names of its children, by those of their options. Nodes of jobs in between are left out.
    children: BTreeMap<String, String>,
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
            describe_edges(&node, &mut options);
            options.active = (!node.is_active()).then_some(false);
            let child = |(option, edge): (Cow<'_, str>, Arc<Edge>)| {
                let below = names.below_hidden(edge.node()?).name().to_owned();
                Some((option.into_owned(), below))
            };
            let children = node.edges_by_option().into_iter().filter_map(child).collect();
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
            for below in known.children.values() {
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
        let Known { children, options, .. } = self.known.get(name)?;
        let (children, mut options) = (children.clone(), options.clone());
        let mut found = BTreeMap::new();
        for (option, _) in options.driver.children() {
            let Some(below) = children.get(&option) else { continue };
            let child = match self.described_in.get(below).is_some_and(|parent| parent == name) {
                true => self.describe(below).map(NodeRef::from),
                false => {
                    self.add_home(below);
                    Some(NodeRef::Name(below.clone()))
                }
            };
            found.extend(child.map(|child| (option, child)));
        }
        options.driver.set_children(&found);
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
