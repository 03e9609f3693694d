//! Options of a throttled node, and how it is opened by them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Membership, Throttle, ThrottleGroup};
use crate::driver::role::ChildRole;
use crate::options::{DriverConfig, DriverOptions, NodeRef};
use crate::registry::{Driver, NamedObject, OpenError, Opening, Reopen, Reopening};

/// Options of `throttle`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ThrottleNodeOptions {
    /// `file`: the child.
    pub file: NodeRef,
    /// `throttle-group`: the limits, by the name they were made known by.
    pub throttle_group: String,
}

impl ThrottleNodeOptions {
    /// For a child with the limits of this group.
    pub fn new(file: impl Into<NodeRef>, throttle_group: impl Into<String>) -> ThrottleNodeOptions {
        ThrottleNodeOptions { file: file.into(), throttle_group: throttle_group.into() }
    }
}

impl DriverOptions for ThrottleNodeOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl From<ThrottleNodeOptions> for DriverConfig {
    fn from(options: ThrottleNodeOptions) -> DriverConfig {
        DriverConfig::new("throttle", options)
    }
}

impl NamedObject for ThrottleGroup {
    const KIND: &'static str = "throttle group";

    fn is_in_use(&self) -> bool {
        self.has_members()
    }
}

impl Driver for Throttle {
    const NAMES: &'static [&'static str] = &["throttle"];
    const CHANGEABLE: &'static [&'static str] = &["throttle-group"];
    type Options = ThrottleNodeOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &ThrottleNodeOptions,
    ) -> Result<Throttle, OpenError> {
        // It is a member before the child is opened, which takes time: the group is in use meanwhile.
        let membership = Membership::new(&*opening.object(&options.throttle_group)?);
        let file = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        Ok(Throttle::on(file, membership))
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &ThrottleNodeOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let group = reopening.object::<ThrottleGroup>(&options.throttle_group)?;
        let mut membership = Membership::new(&group);
        // The node is drained until it is a member.
        membership.set_released(true);
        Ok(Box::new(move || membership = self.membership.swap(Arc::clone(&membership))))
    }
}
