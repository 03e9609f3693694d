//! Refcounts that are mended where they are: the blocks are sound, and no cluster in use has none. Clusters behind the
//! end of the file have none afterwards.

use super::Repairer;
use super::patch::co_write_changes;
use crate::source::ImageError;

impl Repairer<'_, '_> {
    /// Lowers refcounts to the references; raises those that are too low if `raises`. Durable on return.
    pub(super) fn co_mend_refcounts(&mut self, raises: bool) -> Result<(), ImageError> {
        // Where entries lead behind the end, wrong as that is, these refcounts keep what they lead to from being
        // allocated.
        let clears_behind = self.checker.plan.first_behind == u64::MAX;
        let mut is_changed = false;
        for (clusters, offset) in self.checker.blocks() {
            self.co_go_on()?;
            let Some(offset) = offset else { continue };
            let width = self.checker.refcounts.width;
            let Ok(block) = self.checker.refcounts.co_block(self.co, self.file, offset) else {
                // The check has counted that.
                continue;
            };
            let (old, mut new) = (block.to_vec(), block.to_vec());
            let (first, end) = (clusters.start, (clusters.end - clusters.start) as usize);
            for cluster in clusters {
                let index = (cluster - first) as usize;
                let (refcount, wanted) = (width.get(&old, index), self.checker.wanted(cluster));
                if refcount > wanted {
                    self.fixed.leaks += 1;
                    if wanted == 0 {
                        self.fixed.free(cluster);
                    }
                } else if refcount < wanted && raises {
                    self.fixed.corruptions += 1;
                } else {
                    continue;
                }
                width.set(&mut new, index, wanted)?;
            }
            if clears_behind {
                width.clear(&mut new, end..usize::MAX);
            }
            is_changed |= co_write_changes(self.co, self.file, offset, (&old, &new))?;
        }
        if clears_behind {
            is_changed |= self.co_clear_behind()?;
        }
        if is_changed {
            self.file.co_flush(self.co)?;
        }
        Ok(())
    }

    /// Clears blocks that count nothing but clusters behind the end of the file. They are no leaks yet, as no space is
    /// lost to them; they come to be some when the file grows over them. Returns whether there were any.
    fn co_clear_behind(&mut self) -> Result<bool, ImageError> {
        let mut is_changed = false;
        for offset in self.checker.blocks_behind() {
            self.co_go_on()?;
            let Ok(block) = self.checker.refcounts.co_block(self.co, self.file, offset) else {
                continue;
            };
            let old = block.to_vec();
            let new = vec![0; old.len()];
            is_changed |= co_write_changes(self.co, self.file, offset, (&old, &new))?;
        }
        Ok(is_changed)
    }
}
