//! Filters that are inserted and removed.

use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, TurnedUsers};

use super::action::{Action, ActionError, FindNode, Preparing};

/// Turns users that an action has turned back.
fn co_turn_back(co: &Co<'_>, turned: &mut Option<TurnedUsers>) {
    let Some(turned) = turned.take() else { return };
    let (from, to) = (turned.from().name().to_owned(), turned.to().name().to_owned());
    if let Err(error) = turned.co_turn_back(co) {
        tracing::error!(from, to, %error, "users stay where a transaction has turned them");
    }
}

/// Inserts a filter above a node: all users of the node turn to it.
pub struct InsertFilter {
    node: Box<dyn FindNode>,
    filter: Box<dyn FindNode>,
    turned: Option<TurnedUsers>,
}

impl InsertFilter {
    /// Inserts `filter`, which leads to the node, above it.
    pub fn new(node: impl FindNode + 'static, filter: impl FindNode + 'static) -> InsertFilter {
        InsertFilter { node: Box::new(node), filter: Box::new(filter), turned: None }
    }
}

impl Action for InsertFilter {
    fn name(&self) -> &'static str {
        "x-coblk-filter-insert"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        [&self.node, &self.filter].into_iter().flat_map(|it| it.find()).collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let (node, filter) = (self.node.find()?, self.filter.find()?);
        self.turned = Some(node.co_insert_filter(co, &filter)?);
        Ok(())
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        co_turn_back(co, &mut self.turned);
    }
}

/// Removes a filter: all its users turn to the node below.
pub struct RemoveFilter {
    filter: Box<dyn FindNode>,
    turned: Option<TurnedUsers>,
}

impl RemoveFilter {
    /// Removes this one.
    pub fn new(filter: impl FindNode + 'static) -> RemoveFilter {
        RemoveFilter { filter: Box::new(filter), turned: None }
    }
}

impl Action for RemoveFilter {
    fn name(&self) -> &'static str {
        "x-coblk-filter-remove"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.filter.find().into_iter().collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        self.turned = Some(self.filter.find()?.co_remove_filter(co)?);
        Ok(())
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        co_turn_back(co, &mut self.turned);
    }
}
