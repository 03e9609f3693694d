//! What a server replies to options, as a client reads it.

use super::fields::Fields;
use super::*;

/// Length of a header in bytes.
pub const HEADER_LEN: usize = 20;
/// The longest reply: a name and a description, with their lengths.
pub const MAX_LEN: u32 = 2 * (MAX_STRING as u32 + 8);

/// The header of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub kind: u32,
    /// Length of what follows, in bytes.
    pub len: u32,
}

impl OptionReply {
    /// Reads one to `option`.
    ///
    /// # Errors
    /// If it is not one, answers another option, or has more than any has.
    pub fn parse(bytes: &[u8], option: u32) -> io::Result<OptionReply> {
        let mut fields = Fields(bytes);
        let header = (fields.u64(), fields.u32(), fields.u32(), fields.u32());
        let (Some(OPTION_REPLY_MAGIC), Some(of), Some(kind), Some(len)) = header else {
            return Err(broken("the server's reply to an option is none"));
        };
        if of != option {
            return Err(broken("the server replies to an option that was not sent"));
        }
        if len > MAX_LEN {
            return Err(broken("the server's reply to an option is too long"));
        }
        Ok(OptionReply { kind, len })
    }

    pub fn is_error(self) -> bool {
        self.kind & (1 << 31) != 0
    }
}

/// A kind of information about an export, and its data.
pub fn information(data: &[u8]) -> io::Result<(u16, &[u8])> {
    let mut fields = Fields(data);
    let kind = fields.u16().ok_or_else(|| broken("information of the server without its kind"))?;
    Ok((kind, fields.0))
}

/// Length in bytes and transmission flags.
pub fn export(data: &[u8]) -> io::Result<(u64, u16)> {
    let mut fields = Fields(data);
    match (fields.u64(), fields.u16(), fields.0) {
        (Some(size), Some(flags), []) => Ok((size, flags)),
        _ => Err(broken("the server describes its export in other than 10 bytes")),
    }
}

/// Smallest, preferred and longest request in bytes.
pub fn block_sizes(data: &[u8]) -> io::Result<[u32; 3]> {
    let mut fields = Fields(data);
    match (fields.u32(), fields.u32(), fields.u32(), fields.0) {
        (Some(min), Some(preferred), Some(max), []) => Ok([min, preferred, max]),
        _ => Err(broken("the server's block sizes are other than 12 bytes")),
    }
}

/// Number and name of a metadata context.
pub fn context(data: &[u8]) -> io::Result<(u32, &[u8])> {
    let mut fields = Fields(data);
    let id = fields.u32().ok_or_else(|| broken("a metadata context without its number"))?;
    Ok((id, fields.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_its_magic_its_option_and_a_bounded_length() {
        let header = |magic: u64, option: u32, len: u32| {
            let numbers = [option.to_be_bytes(), 1u32.to_be_bytes(), len.to_be_bytes()];
            [&magic.to_be_bytes()[..], numbers.as_flattened()].concat()
        };
        let good = header(OPTION_REPLY_MAGIC, 7, MAX_LEN);
        assert_eq!(OptionReply::parse(&good, 7).unwrap(), OptionReply { kind: 1, len: MAX_LEN });
        assert!(OptionReply::parse(&good, 6).is_err());
        assert!(OptionReply::parse(&good[..19], 7).is_err());
        assert!(OptionReply::parse(&header(OPTION_REPLY_MAGIC, 7, MAX_LEN + 1), 7).is_err());
        assert!(OptionReply::parse(&header(OPTION_REPLY_MAGIC ^ 1, 7, 0), 7).is_err());
    }

    #[test]
    fn information_has_its_length_to_the_byte() {
        assert_eq!(export(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 5]).unwrap(), (256, 5));
        assert!(export(&[0; 9]).is_err() && export(&[0; 11]).is_err());
        assert_eq!(block_sizes(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]).unwrap(), [1, 2, 3]);
        assert!(block_sizes(&[0; 11]).is_err() && block_sizes(&[0; 13]).is_err());
        assert!(information(&[0]).is_err() && context(&[0; 3]).is_err());
    }
}
