//! The place of TLS where the feature `tls` is off: credentials of which there are none.

/// Credentials for TLS. Without the feature `tls` there are none.
#[derive(Clone, Debug)]
pub enum TlsCredentials {}

impl TlsCredentials {
    pub(crate) fn are_required(&self) -> bool {
        match *self {}
    }
}

/// Credentials of a client for TLS. Without the feature `tls` there are none.
#[derive(Clone, Debug)]
pub enum TlsClientCredentials {}

impl coblk_block::NamedObject for TlsClientCredentials {
    const KIND: &'static str = "TLS client credentials";

    fn is_in_use(&self) -> bool {
        match *self {}
    }
}
