//! The method `openpgp`: the TLS key is certified by an OpenPGP key (profile `openpgp-spki`).
//!
//! TLS 1.3 has no OpenPGP certificates (RFC 5081 and 6091 are not part of it). So a self-signed X.509 certificate, made
//! for one session, carries the OpenPGP certificate and that key's detached signature over the TLS key:
//!
//! ```text
//! FingerpostOpenPgp ::= SEQUENCE {      -- content of the extension 2.25.5934100245778452984
//!     version      INTEGER (0),
//!     certificate  OCTET STRING,        -- OpenPGP packets
//!     signature    OCTET STRING         -- a detached binary signature
//! }
//! ```
//!
//! The signed bytes are `"fingerpost:openpgp-spki:0" ‖ 0x00 ‖ SubjectPublicKeyInfo (DER)`. The handshake shows possession
//! of the TLS key, the signature shows its owner, and the fingerprint names the promised OpenPGP key. Spec: docs/PROTOCOL.md.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use fingerpost_wire::print::{Method, Print};
use jid::BareJid;
use pgp::{
    composed::{
        ArmorOptions, Deserializable, DetachedSignature, KeyType, SecretKeyParamsBuilder,
        SignedPublicKey, SignedSecretKey, SubpacketConfig,
    },
    crypto::hash::HashAlgorithm,
    packet::{SignatureType, Subpacket, SubpacketData},
    ser::Serialize,
    types::{Duration as PgpDuration, KeyDetails, KeyVersion, Password, SigningKey, Timestamp},
};
use rand_core::OsRng;
use rcgen::CustomExtension;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use x509_parser::{
    asn1_rs::{FromDer, OctetString, Sequence, ToDer},
    prelude::X509Certificate,
};
use zeroize::Zeroizing;

pub use crate::openpgp_error::OpenPgpError;
use crate::{
    fault::Fault,
    identity::{Identity, IdentityError, write_new},
    material::{Material, has_several_blocks},
    material_error::MaterialError,
    openpgp_certificate::{Certificate, SKEW, Signer, may_sign},
};

/// The profile's name in the method's element.
pub const PROFILE: &str = "openpgp-spki";
/// The extension's OID. Arcs below 2.25 need no registration (ITU-T X.667); the last one is random.
const OID: [u64; 3] = [2, 25, 5_934_100_245_778_452_984];
const OID_TEXT: &str = "2.25.5934100245778452984";
const DOMAIN: &[u8] = b"fingerpost:openpgp-spki:0\0";
/// The file of a user's OpenPGP key, in the directory of its account.
pub const FILE: &str = "openpgp.asc";
/// The validity of a certified TLS key, which is made for one session.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An OpenPGP secret key, perhaps locked by a passphrase.
pub struct OpenPgpKey {
    secret: SignedSecretKey,
    material: Material,
}

impl std::fmt::Debug for OpenPgpKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPgpKey").field("print", &self.print()).finish_non_exhaustive()
    }
}

/// An OpenPGP key that vouches for TLS keys, and the passphrase that unlocks it.
pub struct Certifier {
    key: OpenPgpKey,
    passphrase: Zeroizing<String>,
}

impl std::fmt::Debug for Certifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certifier").field("print", &self.print()).finish_non_exhaustive()
    }
}

impl Certifier {
    /// Returns the fingerprint.
    pub fn print(&self) -> &Print {
        self.key.print()
    }

    /// Returns an identity for TLS: a new key, and a certificate in which the OpenPGP key vouches for it, valid for a
    /// day.
    ///
    /// # Errors
    /// [`OpenPgpError`]
    pub fn certify(&self) -> Result<Identity, OpenPgpError> {
        Identity::make(None, |spki| {
            let message = signed(spki);
            let signature = self.key.sign_for(&message, &self.passphrase, Some(LIFETIME))?;
            let content = write_extension(self.key.certificate(), &signature)?;
            Ok(Some(CustomExtension::from_oid_content(&OID, content)))
        })
    }
}

impl OpenPgpKey {
    /// Creates an Ed25519 key whose user id is `xmpp:` and the JID (XEP-0373, 2): of version 6 (RFC 9580), or of
    /// version 4 in the form that GnuPG accepts too.
    ///
    /// # Errors
    /// [`OpenPgpError::Key`]
    pub fn generate(jid: &BareJid, version_6: bool) -> Result<Self, OpenPgpError> {
        let (version, key_type) = if version_6 {
            (KeyVersion::V6, KeyType::Ed25519)
        } else {
            (KeyVersion::V4, KeyType::Ed25519Legacy)
        };
        let params = SecretKeyParamsBuilder::default()
            .version(version)
            .key_type(key_type)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id(format!("xmpp:{jid}"))
            .build()
            .map_err(|_| OpenPgpError::NotASecretKey("one cannot be made"))?;
        Self::new(params.generate(OsRng)?)
    }

    /// Reads a secret key: packets or armour, such as `gpg --export-secret-keys` writes.
    ///
    /// # Errors
    /// [`OpenPgpError::NotASecretKey`], or the error of peers about its public part.
    pub fn parse(bytes: &[u8]) -> Result<Self, OpenPgpError> {
        // The library's message repeats what it has read.
        let bad = |_| OpenPgpError::NotASecretKey("its packets cannot be read");
        if has_several_blocks(bytes) {
            return Err(OpenPgpError::Several);
        }
        let (mut all, _) = SignedSecretKey::from_reader_many(bytes).map_err(bad)?;
        let secret = all.next().transpose().map_err(bad)?;
        let secret = secret.ok_or(OpenPgpError::NotASecretKey("it is empty"))?;
        if all.next().is_some() {
            return Err(OpenPgpError::Several);
        }
        Self::new(secret)
    }

    fn new(secret: SignedSecretKey) -> Result<Self, OpenPgpError> {
        let certificate = published(&secret).to_bytes()?;
        let material = Material::parse(Method::OpenPgp, &certificate)?;
        if material.revocation.is_some() {
            return Err(MaterialError::Revoked.into());
        }
        Ok(Self { secret, material })
    }

    /// Reads the key in a directory; `None` if it has none.
    ///
    /// # Errors
    /// [`OpenPgpError`]
    pub fn load(dir: &Path) -> Result<Option<Self>, OpenPgpError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&Zeroizing::new(bytes)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenPgpError::Io(path.display().to_string(), error)),
        }
    }

    /// Writes it to a new file of mode 0600 in an existing directory; a locked key stays locked.
    ///
    /// # Errors
    /// [`OpenPgpError::Identity`]; also if the file exists.
    pub fn store(&self, dir: &Path) -> Result<(), OpenPgpError> {
        let armoured = Zeroizing::new(self.secret.to_armored_bytes(ArmorOptions::default())?);
        Ok(write_new(&dir.join(FILE), &armoured)?)
    }

    /// Returns the OpenPGP certificate, which peers and registries may know.
    pub fn certificate(&self) -> &[u8] {
        &self.material.bytes
    }

    /// Returns the fingerprint.
    pub fn print(&self) -> &Print {
        self.material.prints.first().expect("an OpenPGP certificate has a fingerprint")
    }

    /// Returns whether a passphrase is needed to sign.
    pub fn is_locked(&self) -> bool {
        match self.signing_subkey() {
            Some(subkey) => subkey.key.secret_params().is_encrypted(),
            None => self.secret.primary_key.secret_params().is_encrypted(),
        }
    }

    /// Returns a detached signature over `message`, by the newest signing subkey or, without one, the primary key.
    ///
    /// # Errors
    /// [`OpenPgpError::Passphrase`], [`OpenPgpError::Expired`], [`OpenPgpError::Key`].
    pub fn sign(&self, message: &[u8], passphrase: &str) -> Result<Vec<u8>, OpenPgpError> {
        self.sign_for(message, passphrase, None)
    }

    /// Unlocks it to vouch for TLS keys.
    ///
    /// # Errors
    /// [`OpenPgpError::Passphrase`], [`OpenPgpError::Expired`], [`OpenPgpError::Key`].
    pub fn unlock(self, passphrase: Zeroizing<String>) -> Result<Certifier, OpenPgpError> {
        self.sign(b"", &passphrase)?;
        Ok(Certifier { key: self, passphrase })
    }

    fn sign_for(
        &self,
        message: &[u8],
        passphrase: &str,
        lifetime: Option<Duration>,
    ) -> Result<Vec<u8>, OpenPgpError> {
        if self.material.expires.is_some_and(|end| SystemTime::from(end) <= SystemTime::now()) {
            return Err(OpenPgpError::Expired);
        }
        let password = Password::from(passphrase);
        let signature = match self.signing_subkey() {
            Some(subkey) => detached(&subkey.key, &password, message, lifetime),
            None => detached(&self.secret.primary_key, &password, message, lifetime),
        };
        // A failure with a locked key is nearly always due to its passphrase.
        signature.map_err(|error| if self.is_locked() { OpenPgpError::Passphrase } else { error })
    }

    fn signing_subkey(&self) -> Option<&pgp::composed::SignedSecretSubKey> {
        let now = UnixTime::now();
        let primary = self.secret.primary_key.public_key();
        self.secret
            .secret_subkeys
            .iter()
            .filter(|subkey| may_sign(&subkey.signed_public_key(), primary, now.as_secs()).is_ok())
            .max_by_key(|subkey| subkey.key.created_at())
    }
}

fn detached(
    key: &impl SigningKey,
    password: &Password,
    message: &[u8],
    lifetime: Option<Duration>,
) -> Result<Vec<u8>, OpenPgpError> {
    let mut hashed = vec![
        Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint()))?,
        Subpacket::critical(SubpacketData::SignatureCreationTime(Timestamp::now()))?,
    ];
    if let Some(seconds) = lifetime.and_then(|time| u32::try_from(time.as_secs()).ok()) {
        let expires = SubpacketData::SignatureExpirationTime(PgpDuration::from_secs(seconds));
        hashed.push(Subpacket::critical(expires)?);
    }
    let mut unhashed = Vec::new();
    if key.version() == KeyVersion::V4 {
        unhashed.push(Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id()))?);
    }
    let signature = DetachedSignature::sign_binary_data_with_subpackets(
        OsRng,
        key,
        password,
        key.hash_alg(),
        message,
        SubpacketConfig::UserDefined { hashed, unhashed },
    )?;
    Ok(signature.to_bytes()?)
}

/// Returns the public part, without pictures and without others' signatures, which would reveal its owner's
/// acquaintances.
fn published(secret: &SignedSecretKey) -> SignedPublicKey {
    let mut certificate = secret.to_public_key();
    let key = certificate.primary_key.clone();
    certificate.details.user_attributes.clear();
    for user in &mut certificate.details.users {
        let id = user.id.clone();
        user.signatures
            .retain(|s| s.verify_certification(&key, pgp::types::Tag::UserId, &id).is_ok());
    }
    certificate.details.users.retain(|user| !user.signatures.is_empty());
    certificate
}

/// Returns the bytes that an OpenPGP key signs to vouch for a TLS key.
fn signed(spki: &[u8]) -> Vec<u8> {
    [DOMAIN, spki].concat()
}

fn write_extension(certificate: &[u8], signature: &[u8]) -> Result<Vec<u8>, OpenPgpError> {
    let write = || {
        let content = [
            0u8.to_der_vec()?,
            OctetString::new(certificate).to_der_vec()?,
            OctetString::new(signature).to_der_vec()?,
        ];
        Sequence::new(content.concat().into()).to_der_vec()
    };
    write().map_err(|_| {
        OpenPgpError::Identity(IdentityError::Make(rcgen::Error::CouldNotParseCertificate))
    })
}

/// The OpenPGP certificate and the signature in an X.509 certificate's extension.
struct Extension<'a> {
    certificate: &'a [u8],
    signature: &'a [u8],
    spki: &'a [u8],
}

impl<'a> Extension<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, x509) = X509Certificate::from_der(der).ok()?;
        let spki = x509.tbs_certificate.subject_pki.raw;
        let mut found =
            x509.extensions().iter().filter(|found| found.oid.to_id_string() == OID_TEXT);
        let value = found.next()?.value;
        if found.next().is_some() {
            return None;
        }
        let (after, content) = Sequence::from_der_and_then(value, |inside| {
            let (rest, version) = u8::from_der(inside)?;
            let (rest, certificate) = <&[u8]>::from_der(rest)?;
            let (rest, signature) = <&[u8]>::from_der(rest)?;
            Ok((rest, (version, certificate, signature)))
        })
        .ok()?;
        let (version, certificate, signature) = content;
        (after.is_empty() && version == 0).then_some(Self { certificate, signature, spki })
    }
}

/// Returns the fingerprint of the OpenPGP key that vouches for a TLS certificate's key, if one of `pins` does at this
/// time.
///
/// # Errors
/// The [`Fault`]: another key, an expired or revoked one, a signature over another TLS key, or one from another time.
///
/// # Security
/// The handshake shows that the peer holds the TLS key.
pub fn vouched(der: &[u8], pins: &[Print], now: UnixTime) -> Result<Print, Fault> {
    judge(der, pins, &[], now)
}

/// Returns the same, using a `known` state of the OpenPGP certificate too: a peer may show an older state, in which a
/// subkey is not revoked yet.
///
/// # Errors
/// The [`Fault`].
pub fn still_vouched(
    der: &[u8],
    print: &Print,
    known: &[&[u8]],
    now: UnixTime,
) -> Result<(), Fault> {
    judge(der, std::slice::from_ref(print), known, now).map(drop)
}

fn judge(der: &[u8], pins: &[Print], known: &[&[u8]], now: UnixTime) -> Result<Print, Fault> {
    let extension = Extension::read(der).ok_or(Fault::NotOpenPgp)?;
    let material =
        Material::parse(Method::OpenPgp, extension.certificate).map_err(Fault::Material)?;
    let print = material.prints.first().ok_or(Fault::Print)?;
    if !pins.iter().any(|pin| pin == print) {
        return Err(Fault::Print);
    }
    let mut certificate = Certificate::read(&material.bytes).map_err(Fault::Material)?;
    for known in known {
        let known = Certificate::read(known).and_then(|known| certificate.with(known));
        certificate = known.map_err(Fault::Material)?;
    }
    if certificate.revocation.is_some() {
        return Err(Fault::Revoked);
    }
    let time = moment(now.as_secs());
    certificate.check(time).map_err(|fault| Fault::Material(MaterialError::OpenPgp(fault)))?;
    if let Some(end) = certificate.expires.filter(|end| *end <= time) {
        return Err(Fault::Expired(end));
    }
    let signature =
        DetachedSignature::from_bytes(extension.signature).map_err(|_| Fault::Signature)?;
    let message = signed(extension.spki);
    // The signer is checked first: the time of a signature that anyone can make proves nothing.
    match certificate.signer(&signature, &message, now.as_secs()) {
        Signer::Nobody => return Err(Fault::Signature),
        Signer::Subkey(fault) => {
            check_time(&signature, now)?;
            return Err(Fault::Subkey(fault));
        }
        Signer::Allowed => check_time(&signature, now)?,
    }
    Ok(print.clone())
}

/// Returns the fingerprint that a TLS certificate claims. Use it only after [`vouched`] has accepted the certificate.
pub(super) fn claimed(der: &[u8]) -> Option<Print> {
    let material = Material::parse(Method::OpenPgp, Extension::read(der)?.certificate).ok()?;
    material.prints.into_iter().next()
}

/// Checks that a signature is of the right kind, by a hash that cannot be forged, made before now and not expired.
fn check_time(signature: &DetachedSignature, now: UnixTime) -> Result<(), Fault> {
    use HashAlgorithm::{Sha3_256, Sha3_512, Sha256, Sha384, Sha512};
    let signature = &signature.signature;
    if signature.typ() != Some(SignatureType::Binary) {
        return Err(Fault::Signature);
    }
    let hash = signature.hash_alg().ok_or(Fault::Signature)?;
    if ![Sha256, Sha384, Sha512, Sha3_256, Sha3_512].contains(&hash) {
        return Err(Fault::Hash);
    }
    let created = u64::from(signature.created().ok_or(Fault::Signature)?.as_secs());
    let lifetime =
        signature.signature_expiration_time().map_or(0, |time| u64::from(time.as_secs()));
    let alive = lifetime == 0 || now.as_secs() < created + lifetime;
    if !alive || created > now.as_secs() + SKEW {
        return Err(Fault::Clock { signed: moment(created), now: moment(now.as_secs()) });
    }
    Ok(())
}

fn moment(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds.min(u64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::SubkeyFault, x509::Unusable};

    fn key(version_6: bool) -> OpenPgpKey {
        OpenPgpKey::generate(&BareJid::new("alice@example.org").unwrap(), version_6).unwrap()
    }

    fn certifier(version_6: bool) -> Certifier {
        key(version_6).unlock(Zeroizing::default()).unwrap()
    }

    fn now() -> UnixTime {
        UnixTime::now()
    }

    fn later(time: Duration) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs()) + time)
    }

    #[test]
    fn keys_of_both_versions_vouch_for_a_tls_key_for_a_day() {
        for (version_6, length) in [(false, 20), (true, 32)] {
            let key = certifier(version_6);
            assert_eq!(key.print().as_bytes().len(), length);
            let identity = key.certify().unwrap();
            let pins = [key.print().clone()];
            assert_eq!(vouched(&identity.certificate, &pins, now()), Ok(pins[0].clone()));
            assert_eq!(claimed(&identity.certificate), Some(pins[0].clone()));
            let late = vouched(&identity.certificate, &pins, later(LIFETIME));
            assert!(matches!(late, Err(Fault::Clock { .. })), "{late:?}");
        }
    }

    /// Returns Alice's key with a signing subkey, as rPGP makes one.
    fn with_subkey() -> OpenPgpKey {
        let mut subkey = pgp::composed::SubkeyParamsBuilder::default();
        let subkey = subkey.key_type(KeyType::Ed25519Legacy).can_sign(true).build().unwrap();
        let params = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .primary_user_id("xmpp:alice@example.org".to_owned())
            .subkeys(vec![subkey])
            .build()
            .unwrap();
        OpenPgpKey::new(params.generate(OsRng).unwrap()).unwrap()
    }

    /// Returns the certificate after its owner has revoked the subkey, or the whole key.
    fn revoked(key: &OpenPgpKey, whole: bool) -> Vec<u8> {
        use pgp::packet::SignatureConfig;
        let primary = &key.secret.primary_key;
        let mut certificate = published(&key.secret);
        let typ =
            if whole { SignatureType::KeyRevocation } else { SignatureType::SubkeyRevocation };
        let mut config = SignatureConfig::from_key(OsRng, primary, typ).unwrap();
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::IssuerFingerprint(primary.fingerprint())).unwrap(),
            Subpacket::critical(SubpacketData::SignatureCreationTime(Timestamp::now())).unwrap(),
        ];
        if whole {
            let signature =
                config.sign_key(primary, &Password::empty(), primary.public_key()).unwrap();
            certificate.details.revocation_signatures.push(signature);
        } else {
            let subkey = &certificate.public_subkeys[0].key;
            let signature = config
                .sign_subkey_binding(primary, primary.public_key(), &Password::empty(), subkey)
                .unwrap();
            certificate.public_subkeys[0].signatures.push(signature);
        }
        certificate.to_bytes().unwrap()
    }

    #[test]
    fn an_older_state_of_a_certificate_is_judged_by_the_newer_one() {
        let key = with_subkey();
        let (subkey, whole) = (revoked(&key, false), revoked(&key, true));
        let certifier = key.unlock(Zeroizing::default()).unwrap();
        let (print, identity) = (certifier.print().clone(), certifier.certify().unwrap());
        let judged = |known: &[&[u8]]| still_vouched(&identity.certificate, &print, known, now());
        assert_eq!(judged(&[]), Ok(()));
        assert_eq!(judged(&[certifier.key.certificate()]), Ok(()));
        assert_eq!(judged(&[&subkey]), Err(Fault::Subkey(SubkeyFault::Revoked)));
        assert_eq!(judged(&[&whole]), Err(Fault::Revoked));
        // In any order, and beside an older state.
        for known in
            [[certifier.key.certificate(), &subkey], [&subkey, certifier.key.certificate()]]
        {
            assert_eq!(judged(&known), Err(Fault::Subkey(SubkeyFault::Revoked)));
        }
        // A primary key that signs itself is not affected.
        let other = certifier.key.certificate();
        let stranger = key_of_another();
        assert!(matches!(judged(&[other, &stranger]), Err(Fault::Material(_))));
    }

    fn key_of_another() -> Vec<u8> {
        key(false).certificate().to_vec()
    }

    /// One row for each cause: the sentence for the user names it, and accuses nobody.
    #[test]
    fn the_cause_is_kept_up_to_the_sentence_that_the_user_reads() {
        use crate::stream::TlsError;
        let day = Duration::from_secs(24 * 3600);
        let key = with_subkey();
        let revoked = revoked(&key, false);
        let certifier = key.unlock(Zeroizing::default()).unwrap();
        let identity = certifier.certify().unwrap();
        let pins = [certifier.print().clone()];
        let at = |seconds: u64| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let vouched_at = |time| vouched(&identity.certificate, &pins, time).unwrap_err();
        let (behind, ahead) = (at(now().as_secs() - day.as_secs()), later(day));
        let other = [Print::parse(&"AB".repeat(20), None).unwrap()];
        let plain = Identity::anonymous().unwrap();
        let rows = [
            ("clock", vouched_at(ahead), "one of the two clocks is wrong"),
            ("future", vouched_at(behind), "made in the future, at 2"),
            (
                "print",
                vouched(&identity.certificate, &other, now()).unwrap_err(),
                "does not match the print it offered",
            ),
            (
                "form",
                vouched(&plain.certificate, &pins, now()).unwrap_err(),
                "carries no OpenPGP key",
            ),
            (
                "subkey",
                still_vouched(&identity.certificate, &pins[0], &[&revoked], now()).unwrap_err(),
                "the subkey of the peer's OpenPGP key that signs here was revoked",
            ),
            ("expiry", Fault::Expired(OffsetDateTime::UNIX_EPOCH), "has expired, at 1970-01-01"),
            ("revoked", Fault::Revoked, "was revoked by its owner"),
            ("version", Fault::Unusable(Unusable::Version(1)), "of version 1"),
            ("extension", Fault::Unusable(Unusable::Extension("1.2.3".into())), "extension 1.2.3"),
            ("curve", Fault::Unusable(Unusable::Curve("secp256k1".into())), "curve secp256k1"),
            ("hash", Fault::Hash, "a hash that can be forged"),
            ("signature", Fault::Signature, "has not signed the TLS key"),
        ];
        for (cause, fault, sentence) in rows {
            let text = TlsError::Unverified(fault).to_string();
            assert!(text.contains(sentence), "{cause}: {text}");
            assert_eq!(cause == "print", text.contains("does not match"), "{cause}: {text}");
        }
    }

    #[test]
    fn another_key_than_the_pinned_one_vouches_for_nobody() {
        let (key, other) = (certifier(false), certifier(false));
        let identity = key.certify().unwrap();
        assert_eq!(
            vouched(&identity.certificate, &[other.print().clone()], now()),
            Err(Fault::Print)
        );
        assert_eq!(vouched(&identity.certificate, &[], now()), Err(Fault::Print));
        let plain = Identity::generate(&BareJid::new("alice@example.org").unwrap()).unwrap();
        assert_eq!(
            vouched(&plain.certificate, &[key.print().clone()], now()),
            Err(Fault::NotOpenPgp)
        );
    }

    #[test]
    fn a_signature_over_another_tls_key_vouches_for_nobody() {
        let key = certifier(false);
        let honest = key.certify().unwrap();
        let pins = [key.print().clone()];
        // A copy of the extension in a certificate with the thief's own key.
        let extension = Extension::read(&honest.certificate).unwrap();
        let content = write_extension(extension.certificate, extension.signature).unwrap();
        let stolen: Identity = Identity::make::<IdentityError>(None, |_| {
            Ok(Some(CustomExtension::from_oid_content(&OID, content)))
        })
        .unwrap();
        assert_eq!(claimed(&stolen.certificate), Some(pins[0].clone()));
        assert_eq!(vouched(&stolen.certificate, &pins, now()), Err(Fault::Signature));
        // Signed bytes without our domain separator.
        let undomained: Identity = Identity::make::<OpenPgpError>(None, |spki| {
            let content = write_extension(key.key.certificate(), &key.key.sign(spki, "")?)?;
            Ok(Some(CustomExtension::from_oid_content(&OID, content)))
        })
        .unwrap();
        assert_eq!(vouched(&undomained.certificate, &pins, now()), Err(Fault::Signature));
    }

    #[test]
    fn a_stored_key_is_read_back_and_not_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert!(OpenPgpKey::load(dir.path()).unwrap().is_none());
        let key = key(false);
        key.store(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = OpenPgpKey::load(dir.path()).unwrap().unwrap();
        assert_eq!(read.print(), key.print());
        assert!(!read.is_locked());
        assert!(key.store(dir.path()).is_err());
    }

    #[test]
    fn a_public_key_is_no_secret_key() {
        let refused = OpenPgpKey::parse(key(false).certificate());
        assert!(matches!(refused, Err(OpenPgpError::NotASecretKey(_))));
        assert!(matches!(OpenPgpKey::parse(b"hello"), Err(OpenPgpError::NotASecretKey(_))));
    }

    #[test]
    fn a_locked_key_needs_its_passphrase() {
        let mut secret = key(true).secret;
        secret.primary_key.set_password(OsRng, &Password::from("open sesame")).unwrap();
        let key = OpenPgpKey::new(secret).unwrap();
        assert!(key.is_locked());
        assert!(matches!(key.sign(b"", "wrong"), Err(OpenPgpError::Passphrase)));
        let pins = [key.print().clone()];
        let certifier = key.unlock(Zeroizing::new("open sesame".to_owned())).unwrap();
        let identity = certifier.certify().unwrap();
        assert_eq!(vouched(&identity.certificate, &pins, now()), Ok(pins[0].clone()));
        assert!(!format!("{certifier:?}").contains("sesame"));
    }
}
