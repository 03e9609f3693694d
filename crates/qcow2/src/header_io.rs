//! Changes of the header: sectors of cluster 0 that differ, by one writer at a time.
//!
//! Fields that every image has lie in sector 0, so a change of them is one sector: a crash leaves the old
//! ones or the new ones. Of a longer change all but sector 0 goes to bytes that the old header does not lead
//! to, and is durable before sector 0 is written. All else in the cluster stays as it is in the file, known or
//! not.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::sync::CoMutex;
use coblk_aio::{Co, IoVector};
use coblk_block::{Child, WriteFlags};

use crate::image::Image;
use crate::layout::{Header, SECTOR_BYTES};

/// The header of an open image.
pub(crate) struct HeaderCell {
    header: Mutex<Arc<Header>>,
    /// Held by the one that writes cluster 0.
    cluster: CoMutex<Cluster>,
}

/// Cluster 0.
struct Cluster {
    /// As it is to be.
    wanted: Vec<u8>,
    /// As it is in the file; empty if that is not known.
    written: Vec<u8>,
}

impl HeaderCell {
    /// The header that `cluster` has.
    pub(crate) fn new(header: Header, cluster: Vec<u8>) -> HeaderCell {
        let cluster = Cluster { wanted: cluster.clone(), written: cluster };
        HeaderCell { header: Mutex::new(Arc::new(header)), cluster: CoMutex::new(cluster) }
    }

    fn get(&self) -> Arc<Header> {
        Arc::clone(&self.header.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, header: Header) {
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(header);
    }
}

/// Writes the sectors of cluster 0 that differ from what was `written`; they are durable when this returns.
pub(crate) fn co_write_cluster(
    co: &Co<'_>,
    file: &Child,
    written: &[u8],
    wanted: &[u8],
) -> io::Result<()> {
    let changed = Header::changed_sectors(written, wanted);
    // Sector 0 is the last: what it leads to is there by then.
    let (first, others): (Vec<_>, Vec<_>) =
        changed.into_iter().partition(|range| range.start < SECTOR_BYTES);
    for (index, ranges) in [others, first].into_iter().enumerate() {
        let is_last = index == 1;
        let is_written = !ranges.is_empty();
        for range in ranges {
            let source = IoVector::from(&wanted[range.clone()]);
            file.co_pwritev_growing(co, range.start as u64, &source, WriteFlags::empty())?;
        }
        if is_written || is_last {
            file.co_flush(co)?;
        }
    }
    Ok(())
}

impl Image {
    /// The header as it is now.
    pub(crate) fn header(&self) -> Arc<Header> {
        self.header.get()
    }

    /// Waits for a change of the header that is being written.
    pub(crate) fn co_await_header(&self, co: &Co<'_>) {
        drop(self.header.cluster.lock(co));
    }

    /// Changes the header, in the file and in memory. The change is durable when this returns.
    ///
    /// # Errors
    /// ENOSPC if it does not fit into cluster 0; those of writing: the header in memory is as before then, and
    /// the next change writes all of it.
    pub(crate) fn co_update_header(
        &self,
        co: &Co<'_>,
        change: impl FnOnce(&mut Header),
    ) -> io::Result<()> {
        let mut guard = self.header.cluster.lock(co);
        let cluster = &mut *guard;
        let old = self.header();
        let mut new = Header::clone(&old);
        change(&mut new);
        if new == *old && cluster.written == cluster.wanted {
            return Ok(());
        }
        let is_in_place = new.extensions == old.extensions
            && new.backing == old.backing
            && new.version == old.version;
        let steps = if is_in_place {
            let mut wanted = cluster.wanted.clone();
            new.write_fields(&mut wanted);
            vec![wanted]
        } else {
            new.encode_over(&cluster.wanted)?
        };
        if cluster.written.is_empty() {
            // The old header leads to nothing that was written since, wherever that has failed.
            let first = &cluster.wanted[..SECTOR_BYTES];
            co_write_cluster(co, &self.file, &[], first)?;
        }
        for wanted in steps {
            // Until all of it is written, what is there is not known.
            let written = std::mem::take(&mut cluster.written);
            let step = Header::parse(&wanted)?;
            co_write_cluster(co, &self.file, &written, &wanted)?;
            cluster.written.clone_from(&wanted);
            cluster.wanted = wanted;
            self.header.set(step);
        }
        self.header.set(new);
        Ok(())
    }

    /// Takes over the header of an image that another process has had, with its cluster 0.
    pub(crate) fn co_replace_header(&self, co: &Co<'_>, header: Header, cluster: Vec<u8>) {
        let mut guard = self.header.cluster.lock(co);
        *guard = Cluster { wanted: cluster.clone(), written: cluster };
        self.header.set(header);
    }
}
