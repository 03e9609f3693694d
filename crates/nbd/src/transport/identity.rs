//! The name of the subject of a certificate, as the lists of clients that are let in have it.
//!
//! QEMU compares what gnutls writes: the parts in the order of the certificate, the usual ones by names, others
//! by their numbers with the bytes of the value. Lists that were written for QEMU hold here.

use std::fmt::Write;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

/// Names of parts, by their object identifiers.
const NAMES: [(&str, &str); 23] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// `None` if it cannot be read.
pub(super) fn distinguished_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut name = String::new();
    for (index, together) in certificate.subject().iter_rdn().enumerate() {
        for (inner, part) in together.iter().enumerate() {
            match (index, inner) {
                (0, 0) => {}
                (_, 0) => name.push(','),
                _ => name.push('+'),
            }
            add(&mut name, part);
        }
    }
    Some(name)
}

fn add(name: &mut String, part: &AttributeTypeAndValue<'_>) {
    let number = part.attr_type().to_id_string();
    let known = NAMES.iter().find(|(id, _)| *id == number).map(|(_, name)| *name);
    match (known, part.as_str()) {
        (Some(known), Ok(text)) => {
            name.push_str(known);
            name.push('=');
            add_escaped(name, text);
        }
        _ => {
            name.push_str(known.unwrap_or(&number));
            name.push_str("=#");
            let value = part.attr_value();
            let (tag, data) = (value.tag().0, value.data);
            let head = match data.len() {
                short @ ..0x80 => vec![tag as u8, short as u8],
                long => {
                    let bytes = long.to_be_bytes();
                    let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
                    [&[tag as u8, 0x80 | bytes.len() as u8], bytes].concat()
                }
            };
            // Writing to a text does not fail.
            head.iter().chain(data).for_each(|byte| _ = write!(name, "{byte:02x}"));
        }
    }
}

fn add_escaped(name: &mut String, text: &str) {
    let last = text.chars().count().saturating_sub(1);
    for (index, letter) in text.chars().enumerate() {
        let is_special = match letter {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => index == 0,
            ' ' => index == 0 || index == last,
            _ => false,
        };
        if is_special {
            name.push('\\');
        }
        match letter {
            '\0' => name.push_str("\\00"),
            letter => name.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_mean_something_are_escaped() {
        let escaped = |text: &str| {
            let mut name = String::new();
            add_escaped(&mut name, text);
            name
        };
        // As qemu-nbd 10.0 has reported them.
        for (text, expected) in [
            ("#a\\b;c<d>e=f, g  ", "\\#a\\\\b\\;c\\<d\\>e=f\\, g \\ "),
            (" x", "\\ x"),
            ("\u{fc}\u{20ac}", "\u{fc}\u{20ac}"),
            ("lap#top.example", "lap#top.example"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }
}
