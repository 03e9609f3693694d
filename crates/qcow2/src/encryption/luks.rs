//! [`Luks`]: the header of LUKS within an image.

use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::sync::CoMutex;
use coblk_aio::{Co, PoolShare};
use coblk_crypto::luks::{LuksHeader, MasterKey, SLOTS};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::layout::{FormatError, Header, LuksExtension};
use crate::source::{ImageError, Source};

/// The header of LUKS, and where in the file it is.
pub(super) struct Luks {
    pub(super) place: LuksExtension,
    header: Mutex<LuksHeader>,
    /// Held while keys are changed.
    pub(super) changing: CoMutex<()>,
}

impl Luks {
    /// Reads it.
    pub(super) fn co_open(
        co: &Co<'_>,
        file: &dyn Source,
        header: &Header,
    ) -> Result<Luks, ImageError> {
        let place = header.extensions.luks(header.geometry()?)?;
        let missing = || FormatError::invalid("the image has no encryption header");
        let place = place.ok_or_else(missing)?;
        let header = Mutex::new(co_read_header(co, file, place)?);
        Ok(Luks { place, header, changing: CoMutex::new(()) })
    }

    pub(super) fn header(&self) -> MutexGuard<'_, LuksHeader> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads it once more.
    pub(super) fn co_read_anew(&self, co: &Co<'_>, file: &dyn Source) -> Result<(), ImageError> {
        let header = co_read_header(co, file, self.place)?;
        *self.header() = header;
        Ok(())
    }

    /// Tries a password on all slots, and returns the first one that it is right for with the key.
    ///
    /// # Errors
    /// EINVAL if it is not right for any; ECANCELED if the result is not wanted any more.
    pub(super) fn co_unlock(
        &self,
        co: &Co<'_>,
        file: &dyn Source,
        password: &[u8],
    ) -> Result<(usize, MasterKey), ImageError> {
        for slot in 0..SLOTS {
            if let Some(key) = self.co_unlock_slot(co, file, slot, password)? {
                return Ok((slot, key));
            }
        }
        Err(FormatError::invalid("Invalid password, cannot unlock any keyslot").into())
    }

    /// Tries a password on a slot.
    pub(super) fn co_unlock_slot(
        &self,
        co: &Co<'_>,
        file: &dyn Source,
        slot: usize,
        password: &[u8],
    ) -> Result<Option<MasterKey>, ImageError> {
        let header = self.header().clone();
        if !header.slots()[slot].is_active {
            return Ok(None);
        }
        // A slot takes seconds.
        if !co.is_wanted() {
            return Err(std::io::Error::from_raw_os_error(libc::ECANCELED).into());
        }
        let range = header.material(slot);
        let mut material = Zeroizing::new(vec![0; (range.end - range.start) as usize]);
        file.co_read_at(co, self.place.offset + range.start, &mut material)?;
        let key = PoolShare::once(co, || header.unlock(slot, &mut material, password));
        Ok(key.map_err(FormatError::from)?)
    }

    /// QAPI's `QCryptoBlockInfoLUKS`, with its format.
    pub(super) fn info(&self) -> Value {
        let header = self.header();
        let spec = header.spec();
        let slots = header.slots().iter().enumerate().map(|(index, slot)| {
            let mut info = Map::new();
            info.insert("active".to_owned(), json!(slot.is_active));
            if slot.is_active {
                info.insert("iters".to_owned(), json!(slot.iterations));
                info.insert("stripes".to_owned(), json!(coblk_crypto::luks::STRIPES));
            }
            info.insert("key-offset".to_owned(), json!(header.material(index).start));
            Value::Object(info)
        });
        let slots: Vec<Value> = slots.collect();
        let mut info = json!({
            "format": "luks",
            "detached-header": false,
            "cipher-alg": spec.algorithm.name(),
            "cipher-mode": spec.mode.name(),
            "ivgen-alg": spec.iv.name(),
            "hash-alg": header.hash().name(),
            "payload-offset": header.payload_offset(),
            "master-key-iters": header.key_iterations(),
            "uuid": header.uuid(),
            "slots": slots,
        });
        if let Some(hash) = spec.iv.hash() {
            info["ivgen-hash-alg"] = json!(hash.name());
        }
        info
    }
}

/// Reads a header, and checks that all of it is where the image says.
fn co_read_header(
    co: &Co<'_>,
    file: &dyn Source,
    place: LuksExtension,
) -> Result<LuksHeader, ImageError> {
    let mut bytes = [0; LuksHeader::BYTES];
    file.co_read_at(co, place.offset, &mut bytes)?;
    let header = LuksHeader::parse(&bytes).map_err(FormatError::from)?;
    if header.payload_offset() > place.bytes {
        let why = "the key slots of the encryption header lie behind its end";
        return Err(FormatError::invalid(why).into());
    }
    Ok(header)
}
