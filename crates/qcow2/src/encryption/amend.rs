//! Changes keys of LUKS: puts one into a slot, takes one out.
//!
//! The order of writes: the material of a new key is durable before the header says that the slot has one,
//! and a key is overwritten after the header says, durably, that it is gone. So a crash leaves the slots of
//! before, or those of after. Only a slot that is overwritten by force has neither key then.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, PoolShare};
use coblk_block::{Child, ObjectFinder, Secret, WriteFlags};
use coblk_crypto::luks::{LuksHeader, SLOTS};

use super::luks::Luks;
use super::{EncryptAmendOptions, KeyState, password};
use crate::layout::FormatError;
use crate::source::ImageError;

/// What is given to a change.
pub(super) struct Place<'a> {
    pub(super) file: &'a Child,
    pub(super) objects: &'a ObjectFinder,
    /// The id of the secret that the image was opened with.
    pub(super) opened_by: Option<&'a str>,
}

impl Luks {
    /// Changes keys, one change at a time.
    ///
    /// # Errors
    /// EINVAL if the change makes no sense, or the last key would go and `force` is not set: nothing has
    /// changed then. Those of the file: the slot has its key or not.
    pub(super) fn co_amend(
        &self,
        co: &Co<'_>,
        place: &Place<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> Result<(), ImageError> {
        let _turn = self.changing.lock(co);
        // As it is in the file, whatever else has changed it.
        self.co_read_anew(co, place.file)?;
        match change.state {
            KeyState::Active => self.co_add(co, place, change, force),
            KeyState::Inactive => self.co_remove(co, place, change, force),
        }
    }

    fn co_add(
        &self,
        co: &Co<'_>,
        place: &Place<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> Result<(), ImageError> {
        let Some(new) = &change.new_secret else {
            return invalid("'new-secret' is required to activate a key slot");
        };
        let mut header = self.header().clone();
        let is_active = |slot: usize| header.slots()[slot].is_active;
        let slot = match change.slot()? {
            Some(slot) if is_active(slot) && !force => {
                let why = "is active, and is not overwritten: it has to be erased first";
                return invalid(format!("key slot {slot} {why}"));
            }
            Some(slot) => slot,
            None => match (0..SLOTS).find(|slot| !is_active(*slot)) {
                Some(slot) => slot,
                None => return invalid("all key slots are in use"),
            },
        };
        let Some(old) = change.old_secret.as_deref().or(place.opened_by) else {
            return invalid("'old-secret' is required: the image was opened without a key");
        };
        let [old, new] = [(old, find(place, old)?), (new, find(place, new)?)];
        let old = password(old.0, &old.1)?;
        let new = password(new.0, &new.1)?;
        let (_, key) = self.co_unlock(co, place.file, old.as_bytes())?;
        let cost = super::new::cost(change.iter_time);
        let material = PoolShare::once(co, || {
            let iterations = cost.iterations(header.hash(), header.spec().key_bytes())?;
            header.set_key(slot, &key, new.as_bytes(), iterations)
        });
        let material = material.map_err(FormatError::from)?;
        self.co_write_material(co, place.file, &header, slot, &material)?;
        self.co_write_header(co, place.file, header)?;
        Ok(())
    }

    fn co_remove(
        &self,
        co: &Co<'_>,
        place: &Place<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> Result<(), ImageError> {
        for (option, is_given) in
            [("new-secret", change.new_secret.is_some()), ("iter-time", change.iter_time.is_some())]
        {
            if is_given {
                return invalid(format!("'{option}' must not be given when key slots are erased"));
            }
        }
        let mut header = self.header().clone();
        let slots = self.co_to_remove(co, place, change, force)?;
        if !force && header.active_slots().all(|slot| slots.contains(&slot)) {
            let why = "no key would be left, and all data would be lost: use force to do that";
            return invalid(why);
        }
        let noise = slots.iter().map(|slot| header.clear_key(*slot).map(|noise| (*slot, noise)));
        let noise = noise.collect::<Result<Vec<_>, _>>().map_err(FormatError::from)?;
        self.co_write_header(co, place.file, header.clone())?;
        for (slot, noise) in noise {
            self.co_write_material(co, place.file, &header, slot, &noise)?;
        }
        Ok(())
    }

    /// The slots that are to be erased.
    fn co_to_remove(
        &self,
        co: &Co<'_>,
        place: &Place<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> Result<Vec<usize>, ImageError> {
        let asked = change.slot()?;
        let mut slots: Vec<usize> = asked.map_or((0..SLOTS).collect(), |slot| vec![slot]);
        match (&change.old_secret, asked) {
            (Some(old), _) => {
                let secret = find(place, old)?;
                let password = password(old, &secret)?;
                let mut found = Vec::new();
                for slot in slots {
                    let key = self.co_unlock_slot(co, place.file, slot, password.as_bytes())?;
                    found.extend(key.map(|_| slot));
                }
                slots = found;
                if slots.is_empty() {
                    return invalid("the password of 'old-secret' is that of no such key slot");
                }
            }
            (None, Some(slot)) if !self.header().slots()[slot].is_active && !force => {
                return invalid(format!("key slot {slot} is inactive already"));
            }
            (None, Some(_)) => {}
            (None, None) => return invalid("'keyslot' or 'old-secret' is required to erase a key"),
        }
        Ok(slots)
    }

    /// Writes the material of a slot, durably.
    fn co_write_material(
        &self,
        co: &Co<'_>,
        file: &Child,
        header: &LuksHeader,
        slot: usize,
        bytes: &[u8],
    ) -> io::Result<()> {
        let offset = self.place.offset + header.material(slot).start;
        file.co_pwritev(co, offset, &IoVector::from(bytes), WriteFlags::empty())?;
        file.co_flush(co)
    }

    /// Writes the header, durably.
    fn co_write_header(&self, co: &Co<'_>, file: &Child, header: LuksHeader) -> io::Result<()> {
        let bytes = header.encode();
        file.co_pwritev(co, self.place.offset, &IoVector::from(&bytes[..]), WriteFlags::empty())?;
        file.co_flush(co)?;
        *self.header() = header;
        Ok(())
    }
}

fn find(place: &Place<'_>, id: &str) -> Result<Arc<Secret>, ImageError> {
    let found = place.objects.find::<Secret>(id);
    found.map_err(|error| FormatError::invalid(error.to_string()).into())
}

fn invalid<T>(why: impl Into<Cow<'static, str>>) -> Result<T, ImageError> {
    Err(FormatError::invalid(why).into())
}
