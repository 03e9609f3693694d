//! What a front end reads of the configuration space: [`ConfigRequest`].

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use coblk_virtio_blk::CONFIG_SPACE_BYTES;

use crate::messages::{GET_CONFIG, HEADER_BYTES, REPLY, VERSION, bytes_of, invalid, words};

/// Before the data: offset, bytes, flags.
const PREFIX_BYTES: usize = HEADER_BYTES;
/// Bytes of data, at most. The standard allows 256.
const MAX_DATA_BYTES: usize = 4096 - PREFIX_BYTES;
/// Where older front ends of rust-vmm see the space, as it lies in the registers of virtio-mmio.
const MMIO_OFFSET: u32 = 0x100;

/// A GET_CONFIG.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigRequest {
    offset: u32,
    size: u32,
    flags: u32,
}

impl ConfigRequest {
    /// Whether a body may have so many bytes.
    pub(crate) fn may_have(body_bytes: usize) -> bool {
        (PREFIX_BYTES..=PREFIX_BYTES + MAX_DATA_BYTES).contains(&body_bytes)
    }

    /// Reads a body. There is room in it for the answer.
    pub(crate) fn parse(body: &[u8]) -> io::Result<ConfigRequest> {
        let (prefix, room) =
            body.split_first_chunk().ok_or_else(|| invalid("a configuration without an offset"))?;
        let [offset, size, flags] = words(prefix);
        if room.len() != size as usize {
            return Err(invalid("a configuration of another size than its message"));
        }
        Ok(ConfigRequest { offset, size, flags })
    }

    /// Answers with a part of `space`. Bytes past the fields that the device knows are zeroes.
    pub(crate) fn answer(
        &self,
        mut connection: &UnixStream,
        space: &[u8; CONFIG_SPACE_BYTES],
    ) -> io::Result<()> {
        let mut message = bytes_of([GET_CONFIG, VERSION | REPLY, PREFIX_BYTES as u32 + self.size]);
        message.extend(bytes_of([self.offset, self.size, self.flags]));
        message.extend(self.part_of(space));
        connection.write_all(&message)
    }

    fn part_of(&self, space: &[u8]) -> Vec<u8> {
        let begin = offset_bytes(self.offset).min(space.len());
        let mut part = space[begin..].to_vec();
        part.resize(self.size as usize, 0);
        part
    }
}

/// What an offset in a message means in the configuration space. One that lies past the space can
/// only have been meant from somewhere else: from the registers of virtio-mmio, or at all; QEMU's
/// export answers any offset from the beginning.
pub(crate) fn offset_bytes(offset: u32) -> usize {
    let within = |offset: u32| Some(offset as usize).filter(|it| *it < CONFIG_SPACE_BYTES);
    within(offset).or_else(|| within(offset.checked_sub(MMIO_OFFSET)?)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offset_and_size_has_an_answer() {
        let space: Vec<u8> = (1..=CONFIG_SPACE_BYTES as u8).collect();
        let part = |offset, size| ConfigRequest { offset, size, flags: 0 }.part_of(&space);
        assert_eq!(part(0, 60), space);
        assert_eq!(part(8, 4), [9, 10, 11, 12]);
        assert_eq!(part(58, 4), [59, 60, 0, 0]);
        assert_eq!(part(0x100, 60), space, "from the registers of virtio-mmio");
        assert_eq!(part(0x120, 1), [33]);
        for elsewhere in [60, 0xff, 0x100 + 60, 0x1000, u32::MAX] {
            assert_eq!(part(elsewhere, 2), [1, 2]);
        }
        assert!(part(0, 0).is_empty() && part(u32::MAX, 0).is_empty());
        assert_eq!(part(0, 256).len(), 256);
    }

    #[test]
    fn a_body_is_as_long_as_it_says() {
        let body = bytes_of([0x100, 4, 1, 0]);
        let asked = ConfigRequest { offset: 0x100, size: 4, flags: 1 };
        assert_eq!(ConfigRequest::parse(&body).unwrap(), asked);
        assert!(ConfigRequest::parse(&body[..12]).is_err());
        assert!(ConfigRequest::parse(&body[..4]).is_err());
        assert!(!ConfigRequest::may_have(11) && !ConfigRequest::may_have(4097));
    }
}
