//! Negotiation: fixed newstyle, `NBD_OPT_GO`, nothing else.

use std::io::{self, Read, Write};

use super::broken;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// Fixed newstyle, and no padding, on either side.
const FLAGS: u16 = 0b11;
/// Longest answer to an option that is listened to.
const LONGEST: u32 = 64 << 10;

/// Goes to the export `name`; its size in bytes.
///
/// # Errors
/// If the server refuses, or is none.
pub fn go(stream: &mut (impl Read + Write), name: &str) -> io::Result<u64> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if u64_at(&hello, 0) != MAGIC || u64_at(&hello, 8) != OPTION_MAGIC || hello[17] & 1 == 0 {
        return Err(broken("no greeting of fixed newstyle"));
    }
    let mut bytes = u32::from(FLAGS & u16::from(hello[17])).to_be_bytes().to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(OPT_GO.to_be_bytes());
    bytes.extend((name.len() as u32 + 6).to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    // It asks for no further information.
    bytes.extend([0, 0]);
    stream.write_all(&bytes)?;
    let mut size_bytes = None;
    loop {
        let (kind, data) = answer(stream)?;
        match kind {
            REP_INFO if data.len() >= 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                size_bytes = Some(u64_at(&data, 2));
            }
            REP_INFO => {}
            REP_ACK => return size_bytes.ok_or_else(|| broken("no size")),
            _ => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(broken(format!("{kind:#x} to export '{name}': {text}")));
            }
        }
    }
}

/// One answer to the option: its kind and its data.
fn answer(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let len = u32_at(&header, 16);
    if u64_at(&header, 0) != OPTION_REPLY_MAGIC || u32_at(&header, 8) != OPT_GO || len > LONGEST {
        return Err(broken("something else than an answer"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((u32_at(&header, 12), data))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server says is fixed; what the client says is kept.
    struct Script {
        says: io::Cursor<Vec<u8>>,
        hears: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.says.read(into)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hears.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn script(answers: &[(u32, &[u8])]) -> Script {
        let mut says = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        for (kind, data) in answers {
            says.extend(OPTION_REPLY_MAGIC.to_be_bytes());
            says.extend(OPT_GO.to_be_bytes());
            says.extend(kind.to_be_bytes());
            says.extend((data.len() as u32).to_be_bytes());
            says.extend(*data);
        }
        Script { says: io::Cursor::new(says), hears: Vec::new() }
    }

    #[test]
    fn learns_the_size() {
        let export = [0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1];
        let mut script = script(&[(REP_INFO, &[0, 3, 0, 0]), (REP_INFO, &export), (REP_ACK, &[])]);
        assert_eq!(go(&mut script, "d").unwrap(), 4096);
        assert_eq!(script.hears[..4], [0, 0, 0, 3]);
        assert_eq!(script.hears[4..], *b"IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x01d\0\0");
    }

    #[test]
    fn a_refusal_is_quoted() {
        let error = go(&mut script(&[(0x8000_0006, b"no such export")]), "x").unwrap_err();
        assert!(error.to_string().contains("export 'x': no such export"), "{error}");
        assert!(go(&mut script(&[(REP_ACK, &[])]), "").is_err());
        assert!(go(&mut script(&[]), "").is_err());
        let mut other = Script { says: io::Cursor::new(vec![b'x'; 64]), hears: Vec::new() };
        assert!(go(&mut other, "").unwrap_err().to_string().contains("greeting"));
        let mut long = script(&[(REP_ACK, &[])]);
        let end = long.says.get_ref().len();
        long.says.get_mut()[end - 4..].copy_from_slice(&[0xff; 4]);
        assert!(go(&mut long, "").is_err());
    }
}
