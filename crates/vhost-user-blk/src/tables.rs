//! Messages that show memory, or take it back: more of [`Session`].

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use coblk_virtio_blk::PausedQueue;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};

use crate::memory::{Region, Shown};
use crate::session::Session;
use crate::vring::Vring;

impl Session {
    /// SET_MEM_TABLE. While pages may be missing, says where the memory lies in this process.
    pub(crate) fn show_all(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let pairs: Vec<_> = regions.iter().copied().zip(files).collect();
        let show = |shown: &mut Shown, socket| {
            shown.memory.clear();
            let add = |(region, file)| shown.memory.add(region, file, socket);
            let added: Vec<Arc<Region>> = pairs.into_iter().map(add).collect::<Result<_>>()?;
            shown.check_log().map(|()| added)
        };
        if self.is_listening() {
            let socket = self.socket.as_raw_fd();
            return self.change_missing(|shown| show(shown, socket)).map(Some);
        }
        self.change(|shown, socket| show(shown, socket).map(drop))?;
        Ok(None)
    }

    /// ADD_MEM_REG, likewise.
    pub(crate) fn show_region(
        &mut self,
        region: VhostUserMemoryRegion,
        file: File,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let show = |shown: &mut Shown, socket| {
            let added = shown.memory.add(region, file, socket)?;
            shown.check_log().map(|()| vec![added])
        };
        if self.is_listening() {
            let socket = self.socket.as_raw_fd();
            return Ok(self.change_missing(|shown| show(shown, socket))?.pop());
        }
        self.change(|shown, socket| show(shown, socket).map(drop))?;
        Ok(None)
    }

    /// REM_MEM_REG. With memory that waits to be acknowledged it is one more change.
    pub(crate) fn hide_region(&mut self, region: &VhostUserMemoryRegion) -> Result<()> {
        if self.is_unacknowledged() {
            return self
                .change_missing(|shown| shown.memory.remove(region).map(|()| Vec::new()))
                .map(drop);
        }
        self.change(|shown, _| shown.memory.remove(region))
    }

    /// Changes what the queues look at while none does. Those that ran go on afterwards; if they
    /// cannot, they go on as before, so that what they have taken can be answered.
    pub(crate) fn change(
        &mut self,
        change: impl FnOnce(&mut Shown, RawFd) -> Result<()>,
    ) -> Result<()> {
        let (paused, before) = (self.pause_all()?, self.shown.clone());
        let socket = self.socket.as_raw_fd();
        let changed = change(&mut self.shown, socket);
        self.settle(changed, paused, before)
    }

    pub(crate) fn pause_all(&mut self) -> Result<Vec<Option<PausedQueue>>> {
        self.vrings.iter_mut().map(Vring::pause).collect()
    }

    /// Has queues that were paused go on with what they look at now, or, if that fails, with what was `before`.
    pub(crate) fn settle(
        &mut self,
        changed: Result<()>,
        mut paused: Vec<Option<PausedQueue>>,
        before: Shown,
    ) -> Result<()> {
        let changed = changed.and_then(|()| self.go_on(&paused));
        if changed.is_err() {
            for (vring, paused) in self.vrings.iter_mut().zip(&mut paused) {
                if let Some(again) = vring.pause()? {
                    *paused = Some(again);
                }
            }
            self.shown = before;
            self.go_on(&paused)?;
        }
        changed
    }

    /// Starts queues that were paused, and those that have become complete.
    pub(crate) fn go_on(&mut self, paused: &[Option<PausedQueue>]) -> Result<()> {
        for (vring, paused) in self.vrings.iter_mut().zip(paused) {
            // The memory of one that did not run may be still to come.
            if paused.is_some() || vring.has_rings_in(&self.shown.memory) {
                vring.start(&self.shown, paused.clone())?;
            }
            if paused.is_some() && !vring.is_running() {
                return Err(Error::InvalidOperation("a queue that runs has lost its memory"));
            }
        }
        Ok(())
    }
}
