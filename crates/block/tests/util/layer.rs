//! A format for tests with an optional backing file that options name, or leave out, or refuse.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::options::{DriverOptions, NodeRef, NodeRefOrNull};
use coblk_block::{
    BlockDriver, Blockdevs, Child, ChildRole, ChildSlot, Driver, EdgeId, EdgeInfo, NewChild,
    OpenError, Opening, ReadFlags, Reopen, Reopening, WriteFlags,
};
use serde::{Deserialize, Serialize};

use super::bench::Bench;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerOptions {
    file: NodeRef,
    backing: Option<NodeRefOrNull>,
    /// The node that its header names as its backing file.
    header: Option<String>,
    /// The byte that is read where there is no backing file.
    fill: Option<u8>,
}

impl DriverOptions for LayerOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        visit("backing", &mut self.backing);
    }
}

/// Reads as its backing file. A child that changes during a request fails the test.
pub struct Layer {
    file: Child,
    backing: ChildSlot,
    fill: AtomicU8,
}

impl Driver for Layer {
    const NAMES: &'static [&'static str] = &["layer"];
    const CHANGEABLE: &'static [&'static str] = &["fill"];
    type Options = LayerOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &LayerOptions) -> Result<Layer, OpenError> {
        let header = options.header.as_deref().map(NodeRef::from);
        let backing = match &options.backing {
            None => header.as_ref(),
            Some(backing) => backing.node(),
        };
        Ok(Layer {
            file: opening.co_child("file", ChildRole::IMAGE, &options.file)?,
            backing: opening.co_slot("backing", ChildRole::COW, backing)?,
            fill: options.fill.unwrap_or_default().into(),
        })
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &LayerOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        if options.backing.is_none() && options.header.is_some() {
            return Err(OpenError::option("backing", "its header names one"));
        }
        let wanted = options.backing.as_ref().and_then(NodeRefOrNull::node);
        assert_eq!(reopening.child("backing").is_some(), wanted.is_some(), "as it will be");
        let mut fill = options.fill.unwrap_or_default();
        Ok(Box::new(move || fill = self.fill.swap(fill, Ordering::SeqCst)))
    }
}

impl BlockDriver for Layer {
    fn format_name(&self) -> &'static str {
        "layer"
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id(), self.backing.id()]
    }

    fn check_child(&self, _: &EdgeInfo, new: Option<NewChild<'_>>) -> Result<(), String> {
        match new {
            Some(new) if new.node == "unwanted" => Err("it does not want that".to_owned()),
            _ => Ok(()),
        }
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let before = self.backing_name();
        co.yield_now();
        match self.backing.get() {
            Some(backing) => backing.co_preadv(co, offset, target, flags)?,
            None => target.fill_from(0, self.fill.load(Ordering::SeqCst)),
        }
        co.yield_now();
        assert_eq!(before, self.backing_name(), "changed during a request");
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.file.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
}

impl Layer {
    fn backing_name(&self) -> Option<String> {
        self.backing.node().map(|node| node.name().to_owned())
    }
}

/// With that driver beside those of the crate.
pub fn bench() -> Bench {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Layer>();
    Bench { blockdevs: Arc::new(Blockdevs::new(drivers)), ..Bench::new() }
}
