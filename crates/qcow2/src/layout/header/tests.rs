//! Headers, good and bad.

use super::*;

/// A header of version 3 of a disk of 1 GiB.
fn header() -> Header {
    Header {
        version: 3,
        cluster_bits: 16,
        size: 1 << 30,
        crypt_method: 0,
        l1_entries: 2,
        l1_offset: 0x30000,
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: Incompatible::empty(),
        compatible: Compatible::empty(),
        autoclear: Autoclear::empty(),
        refcount_order: 4,
        compression_type: 0,
        extensions: Extensions::default(),
        backing: None,
        header_bytes: 112,
        tail: vec![0; 7],
    }
}

fn with(change: impl FnOnce(&mut Header)) -> Header {
    let mut header = header();
    change(&mut header);
    header
}

/// Cluster 0 with other bytes at some offset.
fn cluster(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut cluster = header().encode().unwrap();
    cluster[at..at + bytes.len()].copy_from_slice(bytes);
    cluster
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, FormatError>, errno: i32, why: &str) {
    let error = result.expect_err("an image that is refused");
    assert_eq!(error.errno(), errno, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

fn check(header: &Header) -> Result<(), FormatError> {
    header.check(Purpose::Read)
}

#[test]
fn q1_magic_and_version_decide() {
    refused(Header::parse(&cluster(0, b"QFI\xfa")), libc::EINVAL, "not in qcow2 format");
    refused(Header::parse(b""), libc::EINVAL, "not in qcow2 format");
    refused(Header::parse(b"QFI\xfb\0\0"), libc::EINVAL, "too short");
    for version in [0, 1, 4, u32::MAX] {
        let bytes = cluster(4, &version.to_be_bytes());
        let why = format!("unsupported qcow2 version {version}");
        refused(Header::parse(&bytes), libc::ENOTSUP, &why);
        assert_eq!(Header::probe(&bytes), version >= 2);
    }
    assert!(Header::probe(&cluster(0, b"")));
    assert!(!Header::probe(b"QFI\xfb"));
}

#[test]
fn q2_q4_fields_are_read_where_they_are_written() {
    let full = with(|it| {
        it.size = 0x1234_5678_9abc;
        it.crypt_method = 2;
        it.snapshots = 7;
        it.snapshots_offset = 0x70000;
        it.incompatible = Incompatible::COMPRESSION;
        it.compatible = Compatible::LAZY_REFCOUNTS;
        it.autoclear = Autoclear::BITMAPS;
        it.refcount_order = 6;
        it.compression_type = 1;
        it.backing = Some(b"base.qcow2".to_vec());
        it.extensions.set_backing_format(Some("qcow2"));
    });
    let bytes = full.encode().unwrap();
    assert_eq!(bytes.len(), 65536);
    assert_eq!(Header::parse(&bytes).unwrap(), full);
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!([word(16), word(20), word(32), word(36)], [10, 16, 2, 2]);
    assert_eq!([word(56), word(60), word(96), word(100)], [1, 7, 6, 112]);
    assert_eq!((bytes[79], bytes[87], bytes[95], bytes[104]), (8, 1, 1, 1));
}

#[test]
fn q5_version_2_has_no_features_and_16_bits() {
    let v2 = with(|it| (it.version, it.header_bytes, it.tail) = (2, 72, Vec::new()));
    let mut bytes = v2.encode().unwrap();
    let read = Header::parse(&bytes).unwrap();
    assert_eq!(read, v2);
    // What follows at once are extensions, whatever features would say there.
    bytes[72..80].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
    let read = Header::parse(&bytes).unwrap();
    assert_eq!((read.incompatible, read.refcount_order), (Incompatible::empty(), 4));
    assert_eq!(read.extensions.iter().next().unwrap().kind, 0x1122_3344);
    // A field behind a short header counts as 0.
    let mut bytes = cluster(100, &104_u32.to_be_bytes());
    bytes[104..112].fill(0);
    assert_eq!(Header::parse(&bytes).unwrap().compression_type, 0);
}

#[test]
fn q6_a_header_is_104_bytes_to_a_cluster_long_and_keeps_unknown_fields() {
    for (length, why) in [(0, "too short"), (103, "too short"), (65537, "exceeds cluster size")] {
        let bytes = cluster(100, &(length as u32).to_be_bytes());
        refused(Header::parse(&bytes), libc::EINVAL, why);
    }
    for length in [104, 105, 111, 112, 117, 4096] {
        let mut bytes = vec![0; 65536];
        bytes[..112].copy_from_slice(&cluster(100, &(length as u32).to_be_bytes())[..112]);
        bytes[105.min(length)..length].fill(0xab);
        let mut read = Header::parse(&bytes).unwrap();
        read.size += 512;
        let again = read.encode().unwrap();
        assert_eq!(again[32..length], bytes[32..length], "{length}");
        assert_eq!(Header::parse(&again).unwrap(), read);
    }
    // A cluster 0 that is all header.
    let bytes = cluster(100, &65536_u32.to_be_bytes());
    let read = Header::parse(&bytes).unwrap();
    assert_eq!(read.tail.len(), 65536 - 105);
    refused(read.encode(), libc::ENOSPC, "does not fit");
}

#[test]
fn q7_other_clusters_are_refused() {
    refused(Header::parse(&cluster(20, &[0, 0, 0, 22])), libc::ENOTSUP, "cluster size 2^22");
    refused(Header::parse(&cluster(20, &[0, 0, 0, 8])), libc::ENOTSUP, "cluster size 2^8");
    refused(
        check(&with(|it| {
            it.incompatible = Incompatible::EXTENDED_L2;
            it.cluster_bits = 13;
        })),
        libc::EINVAL,
        "16 KiB",
    );
}

#[test]
fn q8_a_disk_is_whole_sectors_and_not_too_large() {
    let odd = with(|it| it.size = (1 << 30) - 1);
    assert_eq!(odd.disk_bytes(), (1 << 30) - 512);
    assert_eq!(Header::parse(&odd.encode().unwrap()).unwrap().size, (1 << 30) - 1);
    let huge = with(|it| (it.cluster_bits, it.size) = (9, 1 << 50));
    refused(check(&huge), libc::EFBIG, "too large");
}

#[test]
fn q9_an_l1_table_covers_the_disk_within_32_mib() {
    refused(check(&with(|it| it.l1_entries = 1)), libc::EINVAL, "L1 table is too small");
    assert!(check(&with(|it| it.l1_entries = 4_194_304)).is_ok());
    refused(check(&with(|it| it.l1_entries = 4_194_305)), libc::EFBIG, "too large");
    refused(check(&with(|it| it.l1_offset = 0x30200)), libc::EINVAL, "offset invalid");
    refused(check(&with(|it| it.l1_offset = 1 << 63)), libc::EINVAL, "offset");
}

#[test]
fn q10_a_refcount_table_is_there_and_bounded() {
    let none = with(|it| it.refcount_table_clusters = 0);
    refused(check(&none), libc::EINVAL, "reference count table");
    assert!(none.check(Purpose::Check).is_ok());
    refused(check(&with(|it| it.refcount_table_clusters = 129)), libc::EFBIG, "too large");
    refused(check(&with(|it| it.refcount_table_clusters = u32::MAX)), libc::EFBIG, "too large");
    assert!(check(&with(|it| it.refcount_table_clusters = 128)).is_ok());
    refused(check(&with(|it| it.refcount_table_offset = 1)), libc::EINVAL, "offset invalid");
    refused(check(&with(|it| it.refcount_order = 7)), libc::EINVAL, "64 bits");
}

#[test]
fn q11_too_many_snapshots_are_for_a_check_alone() {
    let many = with(|it| it.snapshots = 65_537);
    refused(check(&many), libc::EFBIG, "snapshot table too large");
    assert!(many.check(Purpose::Check).is_ok());
    assert!(check(&with(|it| it.snapshots = 65_536)).is_ok());
    let unaligned = with(|it| (it.snapshots, it.snapshots_offset) = (1, 512));
    refused(check(&unaligned), libc::EINVAL, "offset invalid");
    assert!(unaligned.check(Purpose::Check).is_ok());
}

#[test]
fn q12_a_backing_name_is_in_cluster_0_and_1023_bytes_at_most() {
    let named = |offset: u64, len: u32| {
        let mut bytes = cluster(8, &offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        Header::parse(&bytes)
    };
    assert_eq!(named(0, 5000).unwrap().backing, None);
    assert_eq!(named(65536 - 4, 4).unwrap().backing, Some(vec![0; 4]));
    refused(named(65536 - 4, 5), libc::EINVAL, "too long");
    refused(named(65537, 0), libc::EINVAL, "invalid backing file offset");
    refused(named(u64::MAX, 0), libc::EINVAL, "invalid backing file offset");
    refused(named(200, 1024), libc::EINVAL, "too long");
    assert!(named(200, 1023).is_ok());
    refused(with(|it| it.backing = Some(vec![b'x'; 1024])).encode(), libc::EINVAL, "too long");
}

#[test]
fn q14_unknown_incompatible_features_are_named() {
    let unknown = with(|it| it.incompatible = Incompatible::from_bits_retain(1 << 17 | 1));
    refused(
        check(&unknown),
        libc::ENOTSUP,
        "unsupported qcow2 feature(s): unknown incompatible feature: 20000",
    );
}

#[test]
fn q15_a_corrupt_image_is_not_written() {
    let corrupt = with(|it| it.incompatible = Incompatible::CORRUPT);
    refused(corrupt.check(Purpose::Write), libc::EACCES, "corrupt");
    assert!(corrupt.check(Purpose::Read).is_ok());
    assert!(corrupt.check(Purpose::Check).is_ok());
}

#[test]
fn q18_q22_a_rewrite_keeps_what_it_does_not_mean_to_change() {
    let mut full = with(|it| {
        it.compatible = Compatible::from_bits_retain(1 << 33);
        it.autoclear = Autoclear::from_bits_retain(1 << 44);
        it.incompatible = Incompatible::COMPRESSION;
        it.compression_type = 1;
        it.header_bytes = 120;
        it.tail = (0..15).collect();
        it.backing = Some(b"base".to_vec());
        it.extensions =
            Extensions::parse(&[0, 0, 0, 9, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    });
    let old = full.encode().unwrap();
    full.size += 65536;
    let new = full.encode().unwrap();
    let differ: Vec<usize> = (0..old.len()).filter(|at| old[*at] != new[*at]).collect();
    assert_eq!(differ, [29]);
    let read = Header::parse(&new).unwrap();
    assert_eq!(read, full);
}

#[test]
fn q19_flags_that_contradict_each_other_are_refused() {
    refused(check(&with(|it| it.autoclear = Autoclear::RAW_DATA_FILE)), libc::EINVAL, "raw");
    refused(check(&with(|it| it.compression_type = 1)), libc::EINVAL, "compression");
    let bit = with(|it| it.incompatible = Incompatible::COMPRESSION);
    refused(check(&bit), libc::EINVAL, "compression");
    let other = with(|it| {
        it.incompatible = Incompatible::COMPRESSION;
        it.compression_type = 2;
    });
    refused(check(&other), libc::ENOTSUP, "unknown compression type 2");
}

#[test]
fn q21_only_sectors_that_differ_are_written() {
    let old = header().encode().unwrap();
    assert!(Header::changed_sectors(&old, &old).is_empty());
    let mut new = old.clone();
    new[511] = 1;
    new[1024] = 1;
    assert_eq!(Header::changed_sectors(&old, &new), [0..512, 1024..1536]);
    assert_eq!(Header::changed_sectors(&old[..512], &old[..1000]).first(), Some(&(512..1000)));
}

#[test]
fn q28_luks_and_its_header_come_together() {
    refused(check(&with(|it| it.crypt_method = 2)), libc::EINVAL, "encryption");
    refused(
        check(&with(|it| it.crypt_method = 3)),
        libc::EINVAL,
        "unsupported encryption method 3",
    );
    assert!(check(&with(|it| it.crypt_method = 1)).is_ok());
}

#[test]
fn q31_what_does_not_fit_into_cluster_0_is_refused() {
    let small = |names: usize| {
        with(|it| {
            (it.cluster_bits, it.l1_entries) = (9, 32768);
            it.extensions.set_data_file(Some(&vec![b'x'; names]));
        })
    };
    // 112 bytes of header, 8 of the extension, 8 of the end.
    assert_eq!(small(384).encode().unwrap().len(), 512);
    refused(small(385).encode(), libc::ENOSPC, "does not fit");
}

#[test]
fn q204_no_bytes_make_a_parser_panic() {
    let mut random = fastrand::Rng::with_seed(204);
    let good = with(|it| it.backing = Some(b"base".to_vec())).encode().unwrap();
    for _ in 0..3000 {
        let mut bytes = good[..good.len().min(random.usize(..4096))].to_vec();
        for _ in 0..random.usize(1..6) {
            if let Some(byte) = bytes.get_mut(random.usize(..130)) {
                *byte = random.u8(..);
            }
        }
        crate::fuzz_parsers(&bytes);
    }
}
