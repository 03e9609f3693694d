//! Where a header goes in a cluster that has another one: its sector 0 decides between the two.

use std::ops::Range;

use super::{Extensions, FormatError, Header, SECTOR_BYTES, be32, be64, put_backing};

impl Header {
    /// Writes cluster 0 over that of another header, in steps that are each a whole image of the cluster. All
    /// sectors of a step but the first can be written while the cluster before it counts: what its header
    /// leads to stays there. The write of sector 0 switches to the step.
    ///
    /// There is one step, or two if the names of features have to be out of the way first.
    ///
    /// # Errors
    /// ENOSPC if it does not fit beside the other one, or not at all; EINVAL as of [`encode`](Self::encode).
    pub fn encode_over(&self, cluster: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
        self.encode()?;
        if let Some(only) = self.place_over(cluster)? {
            return Ok(vec![only]);
        }
        let mut bare = Header::parse(cluster)?;
        bare.extensions.remove_feature_names();
        if let Some(first) = bare.place_over(cluster)?
            && let Some(second) = self.place_over(&first)?
        {
            return Ok(vec![first, second]);
        }
        Err(FormatError::no_space("the header does not fit into its cluster beside the old one"))
    }

    /// One step of [`encode_over`](Self::encode_over), if there is one.
    fn place_over(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>, FormatError> {
        let mut head = self.encode_head();
        let Some(backing) = &self.backing else { return Ok(written(cluster, &head, None)) };
        // Where it is by custom, or behind what the old header has.
        let places = std::iter::once(0).chain(used(cluster).map(|it| it.end));
        for end in places {
            let at = end.max(head.len());
            put_backing(&mut head, at, backing)?;
            if let Some(new) = written(cluster, &head, Some((at, backing))) {
                return Ok(Some(new));
            }
        }
        Ok(None)
    }
}

/// The extensions and the backing name of the header in a cluster, as ranges of bytes.
fn used(cluster: &[u8]) -> [Range<usize>; 2] {
    let word = |at: usize| be64(cluster, at).map_or(0, |it| it as usize);
    let name = word(8)..word(8).saturating_add(be32(cluster, 16).unwrap_or(0) as usize);
    let start = super::header_bytes(cluster).ok().and_then(Result::ok).unwrap_or(0);
    let end = if name.start == 0 { cluster.len() } else { name.start };
    let area = cluster.get(start..end).unwrap_or_default();
    [0..start + Extensions::length_in(area), name]
}

/// A cluster with another head and backing name, unless that changes what its header leads to outside of
/// sector 0.
fn written(cluster: &[u8], head: &[u8], name: Option<(usize, &Vec<u8>)>) -> Option<Vec<u8>> {
    let mut new = cluster.to_vec();
    new.get_mut(..head.len())?.copy_from_slice(head);
    if let Some((at, name)) = name {
        new.get_mut(at..at.checked_add(name.len())?)?.copy_from_slice(name);
    }
    let stays = |range: Range<usize>| {
        let range = range.start.max(SECTOR_BYTES)..range.end.min(cluster.len());
        range.is_empty() || new[range.clone()] == cluster[range]
    };
    used(cluster).into_iter().all(stays).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::super::FeatureName;
    use super::*;

    /// A header with some of what moves the rest of it.
    fn random_header(random: &mut fastrand::Rng, cluster_bits: u32) -> Header {
        let mut header = Header::new(random.u32(2..4), cluster_bits, 1 << 20);
        (header.refcount_table_clusters, header.l1_entries) = (1, 1 << 20);
        let names = FeatureName::default_table();
        if random.bool() && header.version == 3 && cluster_bits > 10 {
            header.extensions.set_feature_names(names);
        }
        if random.bool() {
            let format = ["raw", "qcow2", "ten-letter"][random.usize(..3)];
            header.extensions.set_backing_format(Some(format));
        }
        if random.u32(..4) == 0 {
            header.extensions.set_data_file(Some(&vec![b'd'; random.usize(1..200)]));
        }
        let most = if random.bool() { 40 } else { 1024 };
        let length = random.usize(1..most);
        header.backing = random.bool().then(|| vec![random.lowercase() as u8; length]);
        header
    }

    /// What a header says, whatever the order of its extensions.
    fn meaning(cluster: &[u8], is_named: bool) -> Header {
        let mut header = Header::parse(cluster).unwrap();
        if !is_named {
            header.extensions.remove_feature_names();
        }
        let mut natural = header.encode_head();
        natural.resize(1 << header.cluster_bits, 0);
        let backing = header.backing.take();
        Header { backing, ..Header::parse(&natural).unwrap() }
    }

    #[test]
    fn q21_each_sector_of_a_step_can_be_written_before_the_first_one() {
        let mut random = fastrand::Rng::with_seed(21);
        let [mut one, mut two, mut none] = [0; 3];
        for _ in 0..800 {
            let bits = [9, 10, 11, 12, 16][random.usize(..5)];
            let Ok(mut cluster) = random_header(&mut random, bits).encode() else { continue };
            for _ in 0..4 {
                let new = random_header(&mut random, bits);
                let Ok(natural) = new.encode() else { continue };
                let steps = match new.encode_over(&cluster) {
                    Ok(steps) => steps,
                    Err(error) => {
                        assert_eq!(error.errno(), libc::ENOSPC);
                        none += 1;
                        continue;
                    }
                };
                match steps.len() {
                    1 => one += 1,
                    _ => two += 1,
                }
                let last = steps.len() - 1;
                for (index, step) in steps.into_iter().enumerate() {
                    // Any sectors of it but the first.
                    let old = meaning(&cluster, true);
                    for sector in Header::changed_sectors(&cluster, &step) {
                        if sector.start > 0 && random.bool() {
                            cluster[sector.clone()].copy_from_slice(&step[sector]);
                        }
                        assert!(meaning(&cluster, true) == old);
                    }
                    let unnamed = meaning(&cluster, false);
                    cluster = step;
                    if index < last {
                        assert!(meaning(&cluster, true) == unnamed);
                    }
                }
                assert!(meaning(&cluster, true) == meaning(&natural, true));
            }
        }
        println!("{one} changes of one step, {two} of two, {none} without place");
        assert!(one > 1000 && two > 10 && none < (one + two) / 3, "{one}, {two}, {none}");
    }
}
