//! Public key material: certificates to prints.
//!
//! Material comes as DER or PEM (X.509), as packets or armour (OpenPGP). A private key is recognized by its shape and
//! refused before any other check. Errors never repeat the input.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use fingerpost_wire::print::{HashKind, Method, Print};
use time::OffsetDateTime;
use x509_parser::{prelude::FromDer, prelude::X509Certificate};

use super::{
    der::{der_header, der_length},
    material_error::{MATERIAL_MAX, MaterialError},
    openpgp_certificate::{Certificate, dearmored},
    x509,
};

/// The longest accepted text around material: tools print more around a certificate than the certificate itself.
pub const TEXT_MAX: usize = 4 * MATERIAL_MAX;

/// Parsed material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// Its method.
    pub method: Method,
    /// The certificate: DER, or OpenPGP packets.
    pub bytes: Vec<u8>,
    /// Its prints: SHA-1, SHA-256, SHA-256 of the SPKI; for openpgp the fingerprint of the primary key.
    pub prints: Vec<Print>,
    /// The end of its validity; `None` if it has none (RFC 5280, 4.1.2.5).
    pub expires: Option<OffsetDateTime>,
    /// Why it revokes itself, if it does; only an OpenPGP certificate can.
    pub revocation: Option<String>,
}

impl Material {
    /// Reads a certificate: DER or PEM for x509, packets or armour for openpgp.
    ///
    /// # Errors
    /// [`MaterialError`] says what is wrong with it, without its content.
    ///
    /// # Security
    /// Private keys are refused under any method, and also beside a certificate in one PEM file.
    pub fn parse(method: Method, bytes: &[u8]) -> Result<Self, MaterialError> {
        if bytes.len() > TEXT_MAX {
            return Err(MaterialError::TooLarge);
        }
        if is_private(bytes) {
            return Err(MaterialError::PrivateKey);
        }
        let bytes = &*as_utf8(bytes);
        if bytes.len() > MATERIAL_MAX && !is_pem(bytes) {
            return Err(MaterialError::TooLarge);
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(MaterialError::Empty);
        }
        if is_private(bytes) {
            return Err(MaterialError::PrivateKey);
        }
        if is_pem(bytes) && has_several_blocks(bytes) {
            return Err(MaterialError::Several);
        }
        match method {
            Method::X509 => {}
            Method::OpenPgp => return Self::of_openpgp(bytes),
            Method::Srp => return Err(MaterialError::Srp),
        }
        if is_pem(bytes) {
            Self::of_der(pem_certificate(bytes)?)
        } else {
            Self::of_der(bytes.to_vec())
        }
    }

    /// Returns an OpenPGP certificate, version 4 or 6 (RFC 9580, 10.1). Other keys' signatures on it do not matter.
    fn of_openpgp(bytes: &[u8]) -> Result<Self, MaterialError> {
        let bytes = match is_pem(bytes) {
            true => dearmored(&trimmed(bytes))?,
            false => bytes.to_vec(),
        };
        if bytes.len() > MATERIAL_MAX {
            return Err(MaterialError::TooLarge);
        }
        if is_private(&bytes) {
            return Err(MaterialError::PrivateKey);
        }
        Self::of_certificate(&Certificate::read(&bytes)?, bytes)
    }

    fn of_certificate(certificate: &Certificate, bytes: Vec<u8>) -> Result<Self, MaterialError> {
        Ok(Self {
            method: Method::OpenPgp,
            prints: vec![certificate.print()?],
            expires: certificate.expires,
            revocation: certificate.revocation.clone(),
            bytes,
        })
    }

    /// Returns the material of a key after `sent` came, if `stored` is known: for openpgp, both merged. `None` if
    /// nothing is new.
    ///
    /// # Errors
    /// [`MaterialError`] if they are not of one key, or are too large together.
    pub fn merged(stored: &[u8], sent: &[u8]) -> Result<Option<Self>, MaterialError> {
        if stored == sent {
            return Ok(None);
        }
        let known = Certificate::read(stored)?;
        let (_, before) = Certificate::read(stored)?.merge(Certificate::read(stored)?)?;
        let new = Certificate::read(sent)?;
        let revokes = new.revocation.is_some();
        let (certificate, bytes) = match known.merge(new) {
            // A revocation is never refused for lack of room.
            Err(MaterialError::MergedTooLarge) if revokes => {
                (Certificate::read(sent)?, sent.to_vec())
            }
            merged => merged?,
        };
        if bytes == before {
            return Ok(None);
        }
        Ok(Some(Self::of_certificate(&certificate, bytes)?))
    }

    fn of_der(der: Vec<u8>) -> Result<Self, MaterialError> {
        if der.len() > MATERIAL_MAX {
            return Err(MaterialError::TooLarge);
        }
        if is_private(&der) {
            return Err(MaterialError::PrivateKey);
        }
        let (rest, certificate) = X509Certificate::from_der(&der).map_err(|error| {
            MaterialError::Der(match error {
                x509_parser::nom::Err::Incomplete(_) => "it ends too early",
                _ => "it has another structure",
            })
        })?;
        if !rest.is_empty() {
            return Err(MaterialError::Trailing(rest.len()));
        }
        let until = certificate.validity().not_after.to_datetime();
        let expires = (until.year() < 9999).then_some(until);
        let prints = [HashKind::Sha1, HashKind::Sha256, HashKind::SpkiSha256]
            .into_iter()
            .filter_map(|hash| Print::of_certificate(hash, &der))
            .collect();
        Ok(Self { method: Method::X509, prints, expires, revocation: None, bytes: der })
    }
}

/// Returns the remark on a certificate that can be registered but is of little use: no session can use it, and why. An
/// expired certificate gets no remark: an OpenPGP key can be prolonged, and a peer that knows an X.509 certificate's
/// print ignores its dates.
pub fn remark(method: Method, bytes: &[u8], now: OffsetDateTime) -> Option<String> {
    match method {
        Method::X509 => x509::check(bytes)
            .err()
            .map(|why| format!("No session of xtls can come about with this certificate: {why}.")),
        Method::OpenPgp => {
            let certificate = Certificate::read(bytes).ok()?;
            match certificate.check(now) {
                Err(fault) => {
                    Some(format!("No session can come about with this OpenPGP key: {fault}."))
                }
                Ok(()) if certificate.is_weak() => Some(WEAK.to_owned()),
                Ok(()) => None,
            }
        }
        Method::Srp => None,
    }
}

const WEAK: &str = "The self-signatures of this OpenPGP key use SHA-1 or MD5, which can be forged: renew them, for example \
                    with `gpg --cert-digest-algo SHA256 --quick-set-expire`. Subkeys that are bound so cannot sign for \
                    sessions.";

/// Returns whether this is text with PEM or armour in it rather than DER or packets.
///
/// Explanatory text may come first (RFC 7468, 2 and 5.2), such as `openssl x509 -text` and `openssl pkcs12` write.
pub fn is_pem(bytes: &[u8]) -> bool {
    let binary = match bytes {
        // The first bytes of a certificate, and of a packet.
        [0x30, 0x80..=0xff, ..] => true,
        bytes if bytes.starts_with(UTF8_MARK) => false,
        [0x80..=0xff, ..] => true,
        _ => false,
    };
    !binary && lines(bytes).any(begins)
}

/// Returns whether there is more than one block of PEM or armour; readers of armour would take the first for the whole.
pub(crate) fn has_several_blocks(bytes: &[u8]) -> bool {
    lines(bytes).filter(|line| begins(line)).nth(1).is_some()
}

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the text as UTF-8 without a byte order mark: editors put one before it, and PowerShell writes UTF-16.
fn as_utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        Cow::Owned(String::from_utf16_lossy(&units).into_bytes())
    };
    match bytes {
        // Neither a packet nor DER begins with two of these bytes.
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => Cow::Borrowed(bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes)),
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes);
    bytes.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii)
}

fn begins(line: &[u8]) -> bool {
    line.starts_with(b"-----BEGIN ")
}

/// Returns the block in a text, without the text around it and the space beside its lines.
fn trimmed(bytes: &[u8]) -> Vec<u8> {
    // An empty line has a meaning in armour, so CR LF must not become one.
    let mut text = Vec::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        match (byte, bytes.get(at + 1)) {
            (b'\r', Some(b'\n')) => {}
            (b'\r', _) => text.push(b'\n'),
            (byte, _) => text.push(byte),
        }
    }
    let mut block = Vec::with_capacity(text.len());
    for line in lines(&text).skip_while(|line| !begins(line)) {
        block.extend_from_slice(line);
        block.push(b'\n');
        if line.starts_with(b"-----END ") {
            break;
        }
    }
    block
}

/// Base64 as lax as in RFC 7468, 3: padding may be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns the single certificate in a PEM text (RFC 7468, 5).
fn pem_certificate(bytes: &[u8]) -> Result<Vec<u8>, MaterialError> {
    let block = trimmed(bytes);
    let mut lines = lines(&block).filter(|line| !line.is_empty());
    let label = |line: &'_ [u8], word: &str| {
        let text = std::str::from_utf8(line).ok()?;
        Some(text.strip_prefix(word)?.strip_suffix("-----")?.trim().to_owned())
    };
    let name = lines.next().and_then(|line| label(line, "-----BEGIN "));
    // The second and third are older names (RFC 7468, 5.1), the last one is OpenSSL's.
    let names = ["CERTIFICATE", "X509 CERTIFICATE", "X.509 CERTIFICATE", "TRUSTED CERTIFICATE"];
    let name = name.filter(|name| names.contains(&name.as_str())).ok_or(MaterialError::Label)?;
    let mut text = Vec::new();
    let mut ended = false;
    for line in lines {
        if let Some(end) = label(line, "-----END ") {
            ended = end == name;
            break;
        }
        text.extend(line.iter().copied().filter(|byte| !byte.is_ascii_whitespace()));
    }
    let broken = MaterialError::Pem("a block is not complete or not base64");
    if !ended {
        return Err(broken);
    }
    let mut der = BASE64.decode(text).map_err(|_| broken)?;
    if name == "TRUSTED CERTIFICATE" {
        // After the certificate comes the purpose for which OpenSSL trusts it.
        let rest = der_header(&der).map_or(0, |(_, _, rest)| rest.len());
        der.truncate(der.len() - rest);
    }
    Ok(der)
}

/// Returns whether these bytes have the shape of a private key, whole or not.
///
/// PEM, armour and the formats of SSH programs have a line with dashes and `PRIVATE KEY`; PuTTY's have their first
/// words. DER of a private key begins with a sequence of a one-byte version (PKCS#8, RSA, DSA, SEC1 and PKCS#12), or of
/// an algorithm and the encrypted octets (encrypted PKCS#8); a certificate begins with two sequences. OpenPGP has the
/// tag of a secret-key packet. Words alone prove nothing: `openssl x509 -text` writes "Private Key Usage Period".
fn is_private(bytes: &[u8]) -> bool {
    let has = |line: &[u8], mark: &[u8]| {
        line.windows(mark.len()).any(|window| window.eq_ignore_ascii_case(mark))
    };
    if lines(bytes).any(|line| {
        (has(line, b"PRIVATE KEY") && has(line, b"--")) || has(line, b"PuTTY-User-Key-File")
    }) {
        return true;
    }
    match bytes {
        // Secret-key packets, old format (tag 5 with any length type) and new.
        [0x94..=0x97 | 0xc5, ..] => return true,
        [0x30, ..] => {}
        _ => return false,
    }
    let Some((_, inner, _)) = der_header(bytes) else { return false };
    match der_header(inner) {
        Some((0x02, version, _)) => version.len() <= 1 || der_length(inner) == Some(1),
        Some((0x30, algorithm, rest)) => {
            algorithm.first() == Some(&0x06) && rest.first() == Some(&0x04)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use proptest::prelude::*;

    use super::*;

    /// Returns a certificate and its private key, DER and PEM.
    fn made() -> (Vec<u8>, String, Vec<u8>, String) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["laptop.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        let certificate = params.self_signed(&pair).unwrap();
        (certificate.der().to_vec(), certificate.pem(), pair.serialize_der(), pair.serialize_pem())
    }

    #[test]
    fn der_and_pem_give_the_same_three_prints_and_the_end_of_validity() {
        let (der, pem, ..) = made();
        let material = Material::parse(Method::X509, &der).unwrap();
        assert_eq!(Material::parse(Method::X509, pem.as_bytes()), Ok(material.clone()));
        assert_eq!(material.bytes, der);
        let kinds: Vec<_> = material.prints.iter().map(Print::hash).collect();
        assert_eq!(kinds, [HashKind::Sha1, HashKind::Sha256, HashKind::SpkiSha256]);
        assert_eq!(material.expires, Some(time::macros::datetime!(2030-01-02 0:00 UTC)));
    }

    #[test]
    fn private_keys_are_refused_in_every_shape() {
        let (_, pem, pkcs8, private_pem) = made();
        let wrap = |tag: u8, content: &[u8]| {
            let mut der = vec![tag, 0x82];
            der.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            der.extend(content);
            der
        };
        let sec1 = wrap(0x30, &[&[2, 1, 1], wrap(4, &[7; 32]).as_slice()].concat());
        let rsa = wrap(0x30, &[&[2, 1, 0], wrap(2, &[7; 256]).as_slice()].concat());
        let encrypted = wrap(0x30, &[wrap(0x30, &[6, 1, 42]), wrap(4, &[7; 99])].concat());
        let both = format!("{pem}{private_pem}");
        let openssh =
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
        let pgp =
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nAAAA\n-----END PGP PRIVATE KEY BLOCK-----\n";
        let disguised = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            BASE64_STANDARD.encode(&pkcs8)
        );
        for bytes in [
            pkcs8.as_slice(),
            &pkcs8[..40],
            &sec1,
            &rsa,
            &encrypted,
            both.as_bytes(),
            openssh.as_bytes(),
            pgp.as_bytes(),
            disguised.as_bytes(),
        ] {
            assert_eq!(Material::parse(Method::X509, bytes), Err(MaterialError::PrivateKey));
        }
        let refused = Material::parse(Method::OpenPgp, pgp.as_bytes());
        assert_eq!(refused, Err(MaterialError::PrivateKey));
    }

    #[test]
    fn the_error_says_what_is_wrong() {
        let (der, pem, ..) = made();
        let parse = |bytes: &[u8]| Material::parse(Method::X509, bytes).unwrap_err();
        assert_eq!(parse(&[0; MATERIAL_MAX + 1]), MaterialError::TooLarge);
        assert_eq!(parse(b" \n"), MaterialError::Empty);
        assert_eq!(parse(format!("{pem}{pem}").as_bytes()), MaterialError::Several);
        assert_eq!(parse(&[der.as_slice(), b"xy"].concat()), MaterialError::Trailing(2));
        assert_eq!(
            parse(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            MaterialError::Label
        );
        assert!(matches!(parse(&pem.as_bytes()[..100]), MaterialError::Pem(_)));
        assert!(matches!(parse(&der[..100]), MaterialError::Der(_)));
        assert!(matches!(parse(b"hello"), MaterialError::Der(_)));
        let other = Material::parse(Method::OpenPgp, &der);
        if cfg!(feature = "openpgp") {
            assert!(matches!(other, Err(MaterialError::OpenPgp(_))));
        } else {
            assert_eq!(other, Err(MaterialError::WithoutOpenPgp));
        }
    }

    /// RFC 9580, A.3: a version 6 certificate.
    #[cfg(feature = "openpgp")]
    const V6: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----

xioGY4d/4xsAAAAg+U2nu0jWCmHlZ3BqZYfQMxmZu52JGggkLq2EVD34laPCsQYf
GwoAAABCBYJjh3/jAwsJBwUVCg4IDAIWAAKbAwIeCSIhBssYbE8GCaaX5NUt+mxy
KwwfHifBilZwj2Ul7Ce62azJBScJAgcCAAAAAK0oIBA+LX0ifsDm185Ecds2v8lw
gyU2kCcUmKfvBXbAf6rhRYWzuQOwEn7E/aLwIwRaLsdry0+VcallHhSu4RN6HWaE
QsiPlR4zxP/TP7mhfVEe7XWPxtnMUMtf15OyA51YBM4qBmOHf+MZAAAAIIaTJINn
+eUBXbki+PSAld2nhJh/LVmFsS+60WyvXkQ1wpsGGBsKAAAALAWCY4d/4wKbDCIh
BssYbE8GCaaX5NUt+mxyKwwfHifBilZwj2Ul7Ce62azJAAAAAAQBIKbpGG2dWTX8
j+VjFM21J0hqWlEg+bdiojWnKfA5AQpWUWtnNwDEM0g12vYxoWM8Y81W+bHBw805
I8kWVkXU6vFOi+HWvv/ira7ofJu16NnoUkhclkUrk0mXubZvyl4GBg==
-----END PGP PUBLIC KEY BLOCK-----
";

    #[cfg(feature = "openpgp")]
    #[test]
    fn an_openpgp_certificate_of_version_6_has_a_print_of_32_bytes() {
        let material = Material::parse(Method::OpenPgp, V6.as_bytes()).unwrap();
        let print =
            Print::parse("CB186C4F0609A697E4D52DFA6C722B0C1F1E27C18A56708F6525EC27BAD9ACC9", None);
        assert_eq!(material.prints, [print.unwrap()]);
        assert_eq!(material.expires, None);
        let binary = Material::parse(Method::OpenPgp, &material.bytes).unwrap();
        assert_eq!(binary, material);
        // A byte of the key has changed: no self-signature is valid.
        let mut broken = material.bytes.clone();
        broken[20] ^= 1;
        assert!(Material::parse(Method::OpenPgp, &broken).is_err());
        assert_eq!(
            Material::parse(Method::OpenPgp, &[material.bytes.clone(), material.bytes].concat()),
            Err(MaterialError::Several)
        );
    }

    proptest! {
        #[test]
        fn mangled_material_never_panics(
            at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
        ) {
            let (mut der, ..) = made();
            let at = at.index(der.len());
            der[at] = byte;
            let cut = cut.index(der.len());
            let _ = Material::parse(Method::X509, &der);
            let _ = Material::parse(Method::X509, &der[..cut]);
            let _ = Material::parse(Method::X509, &der[cut..]);
        }
    }
}
