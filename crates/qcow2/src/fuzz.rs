//! What the fuzzer calls: every parser of the pure core, with the same bytes.

use crate::layout::{
    BitmapTableEntry, CompressedCluster, CompressionType, EntryRules, FeatureName, Geometry,
    Header, L2Entry, Purpose, RefcountWidth, Snapshot, block_offset, inflate, l1_offset,
    parse_directory,
};

/// Reads bytes as everything that an image has. Must return, whatever they are.
///
/// # Panics
/// If what was read is written as something else.
pub fn fuzz_parsers(bytes: &[u8]) {
    let mut cluster = bytes.to_vec();
    if let Ok(len) = Header::cluster_bytes(bytes) {
        // An image that ends within cluster 0.
        cluster.resize(len as usize, 0);
    }
    if let Ok(header) = Header::parse(&cluster) {
        fuzz_header(&header);
    }
    FeatureName::parse_table(bytes);
    #[cfg(feature = "encryption")]
    if let Ok(header) = coblk_crypto::luks::LuksHeader::parse(bytes) {
        assert_eq!(header.encode()[..], bytes[..header.encode().len()]);
    }
    if let Ok((snapshot, _)) = Snapshot::parse(bytes) {
        let mut again = Vec::new();
        snapshot.encode(0, &mut again);
        assert!(Snapshot::parse(&again).is_ok());
    }
    for (bits, is_extended) in [(9, false), (16, true), (21, false)] {
        if let Ok(geometry) = Geometry::new(bits, is_extended) {
            fuzz_entries(bytes, geometry);
            let _ = parse_directory(bytes, 1, geometry, 1 << 30);
        }
    }
    for order in 0..=6 {
        if let Ok(width) = RefcountWidth::new(order) {
            let mut block = bytes.to_vec();
            let value = width.get(&block, 3);
            assert!(width.set(&mut block, 3, value).is_ok() && block == bytes);
        }
    }
    for kind in [CompressionType::Deflate, CompressionType::Zstd] {
        inflate(kind, bytes, &mut [0; 4096]);
    }
}

fn fuzz_header(header: &Header) {
    for purpose in [Purpose::Read, Purpose::Write, Purpose::Check] {
        let _ = header.check(purpose);
    }
    // What fits is read again as it was. Its extensions may have another order.
    if let Ok(again) = header.encode() {
        let again = Header::parse(&again).expect("a header that was written");
        let again = again.encode().expect("a header that fits");
        assert!(header.encode().is_ok_and(|first| first == again));
    }
}

fn fuzz_entries(bytes: &[u8], geometry: Geometry) {
    for pair in bytes.as_chunks::<16>().0 {
        let [word, bitmap] = [0, 8]
            .map(|at| pair[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
        let _ = l1_offset(word, geometry);
        block_offset(word);
        BitmapTableEntry::parse(word, geometry);
        CompressedCluster::parse(word, geometry);
        for (is_v2, has_data_file) in [(false, false), (true, false), (false, true)] {
            let rules = EntryRules { geometry, is_v2, has_data_file };
            let entry = L2Entry { word, bitmap };
            let _ = (rules.check(entry, 0), rules.kind(entry, 5));
        }
    }
}
