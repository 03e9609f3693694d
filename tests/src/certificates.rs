//! Certificates in the layout of QEMU's `tls-creds-x509`, which is also libnbd's.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertifiedIssuer, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber,
    SignatureAlgorithm, date_time_ymd,
};

/// What a certificate is like, other than its name.
pub struct Details {
    /// Of its key.
    pub algorithm: &'static SignatureAlgorithm,
    /// It is valid from the beginning of one to that of the other.
    pub years: (i32, i32),
    /// The parts of its subject, each by its number; empty for `CN=server` or `CN=client`.
    pub subject: Vec<(&'static [u64], &'static str)>,
}

impl Default for Details {
    fn default() -> Details {
        Details { algorithm: &PKCS_ECDSA_P256_SHA256, years: (2000, 3000), subject: Vec::new() }
    }
}

/// An authority, and where its files go.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    parent: PathBuf,
}

impl Authority {
    /// A new one. Directories are made below `parent`.
    pub fn new(parent: &Path) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority for tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Authority { issuer, parent: parent.to_owned() }
    }

    /// A directory of this name with what a server on this machine needs.
    pub fn server(&self, name: &str) -> PathBuf {
        self.server_like(name, &Details::default())
    }

    /// The same with a certificate like this.
    pub fn server_like(&self, name: &str, details: &Details) -> PathBuf {
        self.party(name, "server", ExtendedKeyUsagePurpose::ServerAuth, 1, details)
    }

    /// A directory of this name with what a client needs. Its certificate has this serial number.
    pub fn client(&self, name: &str, serial: u64) -> PathBuf {
        self.client_like(name, serial, &Details::default())
    }

    /// The same with a certificate like this.
    pub fn client_like(&self, name: &str, serial: u64, details: &Details) -> PathBuf {
        self.party(name, "client", ExtendedKeyUsagePurpose::ClientAuth, serial, details)
    }

    /// The private key, as PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A directory of this name for clients that have no certificate.
    pub fn anonymous(&self, name: &str) -> PathBuf {
        let dir = self.parent.join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), self.issuer.pem()).unwrap();
        dir
    }

    /// Puts the list of revoked certificates, with this one on it, into a directory.
    pub fn revoke(&self, dir: &Path, serial: u64) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap().pem().unwrap();
        std::fs::write(dir.join("ca-crl.pem"), list).unwrap();
    }

    fn party(
        &self,
        name: &str,
        role: &str,
        purpose: ExtendedKeyUsagePurpose,
        serial: u64,
        details: &Details,
    ) -> PathBuf {
        let dir = self.anonymous(name);
        let key = KeyPair::generate_for(details.algorithm).unwrap();
        let certificate = self.certificate(role, purpose, serial, details, &key);
        std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
        dir
    }

    fn certificate(
        &self,
        role: &str,
        purpose: ExtendedKeyUsagePurpose,
        serial: u64,
        details: &Details,
        key: &KeyPair,
    ) -> Certificate {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (number, value) in &details.subject {
            let kind = DnType::from_oid(number);
            let value = match kind {
                // A country is of these letters.
                DnType::CountryName => DnValue::PrintableString((*value).try_into().unwrap()),
                _ => DnValue::Utf8String((*value).to_owned()),
            };
            params.distinguished_name.push(kind, value);
        }
        if details.subject.is_empty() {
            params.distinguished_name.push(DnType::CommonName, role);
        }
        params.not_before = date_time_ymd(details.years.0, 1, 1);
        params.not_after = date_time_ymd(details.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).unwrap()
    }
}
