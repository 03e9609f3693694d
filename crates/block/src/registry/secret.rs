//! [`Secret`]: an object that has a password, or a key.

use std::fmt;

use zeroize::Zeroizing;

use super::NamedObject;

/// What only some may know, such as the password of an encrypted image. Options name it by its id, and do not
/// have it themselves. It is overwritten when it is dropped, and no message shows it.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Secret {
        Secret(bytes.into())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// It as a password: a text without a zero. `None` if it is something else.
    pub fn text(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok().filter(|text| !text.contains('\0'))
    }
}

impl NamedObject for Secret {
    const KIND: &'static str = "secret";

    /// A node reads it once, when it is opened.
    fn is_in_use(&self) -> bool {
        false
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_text_and_is_not_shown() {
        let secret = Secret::new("correct horse".as_bytes().to_vec());
        assert_eq!((secret.text(), secret.bytes().len()), (Some("correct horse"), 13));
        assert!(!format!("{secret:?}").contains("horse"));
        assert_eq!(Secret::new(vec![0xff]).text(), None);
        assert_eq!(Secret::new(b"a\0b".to_vec()).text(), None);
    }
}
