//! What options carry: every length inside is checked against the declared one, to the byte.

use super::MAX_STRING;
use super::fields::Fields;

/// Why an option was refused, in words for the client.
pub type Refusal = &'static str;

/// A name that is the whole of an option, or a part of one.
pub fn name(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > MAX_STRING {
        return Err("a string of more than 4096 bytes");
    }
    std::str::from_utf8(bytes).map_err(|_| "a string that is not UTF-8")
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub struct GoOption<'a> {
    pub name: &'a str,
    /// Kinds of information that the client asks for, two bytes each.
    infos: &'a [u8],
}

impl<'a> GoOption<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<GoOption<'a>, Refusal> {
        let mut fields = Fields(bytes);
        let name = counted_name(&mut fields)?;
        let count = fields.u16().ok_or("no count of information requests")?;
        let infos = fields.bytes(2 * usize::from(count)).ok_or("too few information requests")?;
        no_more(&fields)?;
        Ok(GoOption { name, infos })
    }

    pub fn wants(&self, info: u16) -> bool {
        self.infos.chunks_exact(2).any(|kind| kind == info.to_be_bytes())
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaOption<'a> {
    pub name: &'a str,
    /// How many queries there are.
    count: u32,
    /// Checked already.
    queries: &'a [u8],
}

impl<'a> MetaOption<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<MetaOption<'a>, Refusal> {
        let mut fields = Fields(bytes);
        let name = counted_name(&mut fields)?;
        let count = fields.u32().ok_or("no count of queries")?;
        let queries = fields.0;
        // Each query takes at least four bytes, so this ends with the data whatever the count.
        for _ in 0..count {
            counted_name(&mut fields)?;
        }
        no_more(&fields)?;
        Ok(MetaOption { name, count, queries })
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn queries(&self) -> impl Iterator<Item = &'a str> {
        let mut fields = Fields(self.queries);
        (0..self.count).map_while(move |_| counted_name(&mut fields).ok())
    }
}

fn counted_name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, Refusal> {
    let len = fields.u32().ok_or("no length of a string")?;
    if len as usize > MAX_STRING {
        return Err("a string of more than 4096 bytes");
    }
    name(fields.bytes(len as usize).ok_or("a string longer than the option")?)
}

fn no_more(fields: &Fields<'_>) -> Result<(), Refusal> {
    if fields.0.is_empty() { Ok(()) } else { Err("bytes after the end of the option's data") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn go(name: &[u8], infos: &[u16]) -> Vec<u8> {
        let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&(infos.len() as u16).to_be_bytes());
        infos.iter().for_each(|info| bytes.extend_from_slice(&info.to_be_bytes()));
        bytes
    }

    #[test]
    fn go_is_read_to_its_end() {
        let bytes = go(b"disk", &[3, 1]);
        let option = GoOption::parse(&bytes).unwrap();
        assert_eq!(option.name, "disk");
        assert!(option.wants(3) && option.wants(1) && !option.wants(2));
        for cut in 0..bytes.len() {
            assert!(GoOption::parse(&bytes[..cut]).is_err(), "cut to {cut}");
        }
        let trailing = [&bytes[..], b"IHAVEOPT"].concat();
        assert!(GoOption::parse(&trailing).is_err());
        assert!(GoOption::parse(&go(b"\xff\xfe", &[])).is_err());
        assert!(GoOption::parse(&go(&[b'x'; 4097], &[])).is_err());
        assert!(GoOption::parse(&go(&[b'x'; 4096], &[])).is_ok());
    }

    #[test]
    fn a_count_of_queries_cannot_lie() {
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        bytes.extend_from_slice(&[0; 64]);
        assert!(MetaOption::parse(&bytes).is_err());
        let bytes = b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:";
        let option = MetaOption::parse(bytes).unwrap();
        assert_eq!(option.queries().collect::<Vec<_>>(), ["base:"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzz_parsers(&bytes);
        }

        #[test]
        fn what_parses_is_what_was_written(
            name in "[a-z\u{e9}]{0,40}",
            infos in proptest::collection::vec(any::<u16>(), 0..20),
        ) {
            let bytes = go(name.as_bytes(), &infos);
            let option = GoOption::parse(&bytes).unwrap();
            prop_assert_eq!(option.name, &name);
            prop_assert!(infos.iter().all(|info| option.wants(*info)));
        }
    }
}
