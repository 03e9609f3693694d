//! Logs of writes read from their bytes, by the public description of dm-log-writes (the kernel's
//! `Documentation/admin-guide/device-mapper/log-writes.rst` and the structures of its target), without
//! anything of the filter that wrote them.

use std::path::Path;

/// What a power failure leaves of a log, and what may have been there besides.
pub struct WriteLog {
    entries: Vec<Entry>,
}

struct Entry {
    flags: u64,
    /// Where in the image, in bytes.
    at: usize,
    data: Vec<u8>,
}

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

fn word(bytes: &[u8], at: usize) -> Result<u64, String> {
    let word = bytes.get(at..at + 8).ok_or_else(|| format!("the log ends before byte {at}"))?;
    Ok(u64::from_le_bytes(word.try_into().expect("8 bytes")))
}

impl WriteLog {
    /// The entries that the superblock counts.
    ///
    /// # Errors
    /// Says what is wrong with the log.
    pub fn read(path: &Path) -> Result<WriteLog, String> {
        let bytes = &std::fs::read(path).map_err(|error| error.to_string())?[..];
        let (magic, version) = (word(bytes, 0)?, word(bytes, 8)?);
        if (magic, version) != (MAGIC, 1) {
            return Err(format!("no log: magic {magic:#x}, version {version}"));
        }
        let sector = (word(bytes, 24)? & 0xffff_ffff) as usize;
        let mut entries = Vec::new();
        let mut at = sector;
        for number in 0..word(bytes, 16)? {
            let [place, sectors, flags, _] = [0, 8, 16, 24].map(|field| word(bytes, at + field));
            let (place, sectors, flags) = (place? as usize, sectors? as usize, flags?);
            if flags & !(FLUSH | FUA | DISCARD | MARK) != 0 {
                return Err(format!("entry {number} has flags {flags:#x}"));
            }
            at += sector;
            let stored = if flags & DISCARD == 0 { sectors * sector } else { 0 };
            let data = bytes.get(at..at + stored);
            let data = data.ok_or_else(|| format!("the log ends within entry {number}"))?;
            entries.push(Entry { flags, at: place * sector, data: data.to_vec() });
            at += stored;
        }
        Ok(WriteLog { entries })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The numbers of entries up to and with each flush.
    pub fn flush_points(&self) -> Vec<usize> {
        let flushes = self.entries.iter().zip(1..).filter(|(entry, _)| entry.flags & FLUSH != 0);
        flushes.map(|(_, number)| number).collect()
    }

    /// An image of `bytes` bytes after a loss of power when `entries` were logged: what was flushed
    /// is there, what is durable by itself is there, and of the rest what `survives`.
    pub fn after_power_loss(
        &self,
        bytes: usize,
        entries: usize,
        mut survives: impl FnMut() -> bool,
    ) -> Vec<u8> {
        let logged = &self.entries[..entries];
        let flushed = logged.iter().rposition(|entry| entry.flags & FLUSH != 0);
        let mut image = vec![0; bytes];
        for (number, entry) in logged.iter().enumerate() {
            let durable = flushed.is_some_and(|last| number <= last) || entry.flags & FUA != 0;
            if durable || survives() {
                image[entry.at..entry.at + entry.data.len()].copy_from_slice(&entry.data);
            }
        }
        image
    }
}
