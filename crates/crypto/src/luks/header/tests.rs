use super::super::{Cost, LuksOptions, MAX_WORK, NewLuks};
use super::*;
use crate::{CipherAlgorithm, CipherMode, IvGenerator};

const PASSWORD: &[u8] = b"correct horse";

fn new(spec: CipherSpec, hash: Hash) -> NewLuks {
    let options = LuksOptions { spec, hash, cost: Cost::Iterations(1000) };
    NewLuks::new(&options, PASSWORD).unwrap()
}

fn usual() -> NewLuks {
    new(LuksOptions::default().spec, Hash::Sha256)
}

/// The cipher that a password unlocks, by any slot.
fn unlock(
    bytes: &[u8],
    password: &[u8],
) -> Result<Option<(usize, crate::SectorCipher)>, CryptoError> {
    let header = LuksHeader::parse(bytes)?;
    for slot in 0..SLOTS {
        let range = header.material(slot);
        let mut material = bytes[range.start as usize..range.end as usize].to_vec();
        if let Some(key) = header.unlock(slot, &mut material, password)? {
            return Ok(Some((slot, header.cipher(&key))));
        }
    }
    Ok(None)
}

#[test]
fn q28_a_new_header_is_unlocked_by_its_password_alone() {
    let specs = [
        (CipherAlgorithm::Aes128, CipherMode::Xts, IvGenerator::Plain),
        (CipherAlgorithm::Aes192, CipherMode::Cbc, IvGenerator::Plain64),
        (CipherAlgorithm::Aes192, CipherMode::Xts, IvGenerator::Plain64),
        (CipherAlgorithm::Aes256, CipherMode::Cbc, IvGenerator::Essiv(Hash::Sha256)),
        (CipherAlgorithm::Aes256, CipherMode::Xts, IvGenerator::Plain64),
    ];
    for (algorithm, mode, iv) in specs {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let new = new(CipherSpec::new(algorithm, mode, iv).unwrap(), hash);
            assert_eq!(new.bytes.len() as u64, LuksHeader::bytes_of(new.header.spec()));
            assert_eq!(new.bytes[..LuksHeader::BYTES], new.header.encode());
            let (slot, cipher) = unlock(&new.bytes, PASSWORD).unwrap().unwrap();
            assert_eq!(slot, 0);
            let mut sector = [3; 512];
            new.cipher.encrypt(9, &mut sector);
            cipher.decrypt(9, &mut sector);
            assert_eq!(sector, [3; 512]);
            assert!(unlock(&new.bytes, b"another").unwrap().is_none());
            assert!(unlock(&new.bytes, b"").unwrap().is_none());
        }
    }
}

#[test]
fn q81_a_header_is_as_long_as_that_of_qemu() {
    assert_eq!(LuksHeader::bytes_of(LuksOptions::default().spec), 2_068_480);
    let header = usual().header;
    assert_eq!(header.payload_offset(), 2_068_480);
    assert_eq!(header.material(0), 4096..4096 + 256_000);
    assert_eq!(header.material(1).start, 4096 + 258_048);
    assert_eq!(header.uuid().len(), 36);
    assert_eq!(header.uuid().as_bytes()[14], b'4');
}

#[test]
fn q150_keys_are_added_and_taken_out() {
    let NewLuks { mut header, mut bytes, .. } = usual();
    let key = {
        let range = header.material(0);
        let mut material = bytes[range.start as usize..range.end as usize].to_vec();
        header.unlock(0, &mut material, PASSWORD).unwrap().unwrap()
    };
    let mut put = |header: &LuksHeader, slot: usize, material: &[u8]| {
        let range = header.material(slot);
        bytes[range.start as usize..range.end as usize].copy_from_slice(material);
        bytes[..LuksHeader::BYTES].copy_from_slice(&header.encode());
        bytes.clone()
    };
    let material = header.set_key(6, &key, b"second", 1500).unwrap();
    let both = put(&header, 6, &material);
    assert_eq!(unlock(&both, b"second").unwrap().unwrap().0, 6);
    assert_eq!(unlock(&both, PASSWORD).unwrap().unwrap().0, 0);
    assert_eq!(LuksHeader::parse(&both).unwrap().active_slots().collect::<Vec<_>>(), [0, 6]);
    let noise = header.clear_key(0).unwrap();
    let one = put(&header, 0, &noise);
    assert!(unlock(&one, PASSWORD).unwrap().is_none());
    assert_eq!(unlock(&one, b"second").unwrap().unwrap().0, 6);
    let slot = LuksHeader::parse(&one).unwrap().slots()[0];
    assert_eq!((slot.is_active, slot.iterations, slot.salt), (false, 0, [0; 32]));
}

#[test]
fn q209_a_header_cannot_ask_for_more_work_than_there_may_be() {
    let mut new = usual();
    let with = |bytes: &mut Vec<u8>, at: usize, value: u32| put32(bytes, at, value);
    with(&mut new.bytes, SLOTS_AT + 4, u32::MAX);
    let error = unlock(&new.bytes, PASSWORD).unwrap_err();
    assert!(error.to_string().contains("rounds of a hash"), "{error}");
    with(&mut new.bytes, SLOTS_AT + 4, 1000);
    with(&mut new.bytes, ITERATIONS_AT, u32::MAX);
    assert!(unlock(&new.bytes, PASSWORD).is_err());
    // What is made can be unlocked.
    let too_much = (MAX_WORK / 2) as u32;
    assert!(Cost::Iterations(too_much).iterations(Hash::Sha256, 64).is_err());
    assert!(Cost::Iterations(too_much / 2).iterations(Hash::Sha256, 64).is_ok());
    assert_eq!(Cost::Iterations(1).iterations(Hash::Sha256, 64), Ok(1000));
}

#[test]
fn q209_headers_that_contradict_themselves_are_refused() {
    let good = usual().bytes[..LuksHeader::BYTES].to_vec();
    assert!(LuksHeader::parse(&good[..591]).unwrap_err().to_string().contains("cut"));
    let refused = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        LuksHeader::parse(&bad).unwrap_err().to_string()
    };
    let slot = |index: usize, field: usize| SLOTS_AT + index * SLOT_BYTES + field;
    for (at, bytes, why) in [
        (0, &b"LUKT"[..], "not in LUKS format"),
        (6, &[0, 2], "LUKS version 2"),
        (CIPHER_AT, &[b'a'; 32], "cipher name is no terminated text"),
        (MODE_AT, &[0xff, 0], "cipher mode is no terminated text"),
        (HASH_AT, &[b'a'; 32], "hash is no terminated text"),
        (UUID_AT, &[b'a'; 40], "UUID is no terminated text"),
        (HASH_AT, b"md4\0", "hash 'md4'"),
        (KEY_BYTES_AT, &[0, 0, 0, 65], "keys of 65 bytes"),
        (PAYLOAD_AT, &[0, 0, 0, 1], "payload is overlapping with the header"),
        (PAYLOAD_AT, &[0, 0, 2, 0], "keyslot 1 is overlapping with the encrypted payload"),
        (ITERATIONS_AT, &[0; 4], "LUKS key iteration count is zero"),
        (slot(3, 0), &[0; 4], "keyslot 3 is neither active nor inactive"),
        (slot(0, 4), &[0; 4], "keyslot 0 has an iteration count of zero"),
        (slot(7, 40), &[0, 0, 0, 1], "keyslot 7 is overlapping with the LUKS header"),
        (slot(7, 40), &[0xff; 4], "keyslot 7 is overlapping with the encrypted payload"),
        (slot(7, 40), &[0, 0, 0, 9], "keyslot 7 is overlapping with keyslot 0"),
        (slot(2, 44), &[0xff; 4], "keyslot 2 is corrupted"),
    ] {
        let error = refused(at, bytes);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn q209_no_bytes_make_it_panic() {
    let good = usual().bytes;
    let mut random = fastrand::Rng::with_seed(17);
    for _ in 0..20_000 {
        let mut bad = good[..LuksHeader::BYTES].to_vec();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..bad.len());
            bad[at] = random.u8(..);
        }
        if let Ok(header) = LuksHeader::parse(&bad) {
            assert_eq!(header.encode()[..], bad);
            assert!((0..SLOTS).all(|slot| header.material(slot).end <= header.payload_offset()));
        }
    }
}

#[test]
fn what_is_not_known_stays() {
    let NewLuks { header, .. } = usual();
    let mut bytes = header.encode();
    bytes[CIPHER_AT + 31] = 0;
    bytes[CIPHER_AT + 20] = 0xaa;
    let mut header = LuksHeader::parse(&bytes).unwrap();
    header.clear_key(3).unwrap();
    assert_eq!(header.encode(), bytes);
}
