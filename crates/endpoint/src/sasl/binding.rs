//! Channel bindings of a TLS connection: `tls-exporter` (RFC 9266) and `tls-server-end-point` (RFC 5929, section 4).

use aws_lc_rs::digest;
use x509_parser::{
    oid_registry,
    prelude::{FromDer, X509Certificate},
    signature_algorithm::SignatureAlgorithm,
};

const EXPORTER: &str = "tls-exporter";
const END_POINT: &str = "tls-server-end-point";
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The binding data of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Channel {
    exporter: Option<[u8; 32]>,
    end_point: Option<Vec<u8>>,
}

impl Channel {
    /// Reads both from a connection whose handshake is done.
    pub(crate) fn of(connection: &rustls::ClientConnection) -> Self {
        // Below TLS 1.3 the exporter is a binding only with the extended master secret (RFC 9266, section 4.2).
        let is_1_3 = connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let export = || connection.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).ok();
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        Self {
            exporter: is_1_3.then(export).flatten(),
            end_point: certificate.and_then(|certificate| end_point(certificate)),
        }
    }

    /// Returns the best type that the server also supports, with its data.
    pub(super) fn choose(&self, types: &[String]) -> Option<(&'static str, &[u8])> {
        let named = |name: &str| types.iter().any(|known| known == name);
        let exporter = self.exporter.as_ref().filter(|_| named(EXPORTER));
        let end_point = self.end_point.as_ref().filter(|_| named(END_POINT));
        exporter
            .map(|data| (EXPORTER, data.as_slice()))
            .or_else(|| end_point.map(|data| (END_POINT, data.as_slice())))
    }

    /// Returns the data that a token's mechanism is bound to; `None` if this connection does not have it (XEP-0484 and
    /// draft-schmaus-kitten-sasl-ht, section 4).
    pub(super) fn of_token(&self, mechanism: &str) -> Option<&[u8]> {
        match mechanism.rsplit('-').next() {
            Some("EXPR") => self.exporter.as_ref().map(<[u8; 32]>::as_slice),
            Some("ENDP") => self.end_point.as_deref(),
            Some("NONE") => Some(&[]),
            _ => None,
        }
    }

    /// Creates a channel for tests.
    #[cfg(test)]
    pub(super) fn new(exporter: Option<[u8; 32]>, end_point: Option<Vec<u8>>) -> Self {
        Self { exporter, end_point }
    }
}

/// Returns the certificate's hash, by the hash function of its own signature; MD5 and SHA-1 become SHA-256. `None` for
/// a signature without a hash function of its own, such as Ed25519: the type is not defined for it.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let sha = |bits| match bits {
        256 => Some(&digest::SHA256),
        384 => Some(&digest::SHA384),
        512 => Some(&digest::SHA512),
        _ => None,
    };
    let oid = &parsed.signature_algorithm.algorithm;
    let by_oid = [
        (oid_registry::OID_PKCS1_MD5WITHRSAENC, 256),
        (oid_registry::OID_PKCS1_SHA1WITHRSA, 256),
        (oid_registry::OID_PKCS1_SHA256WITHRSA, 256),
        (oid_registry::OID_PKCS1_SHA384WITHRSA, 384),
        (oid_registry::OID_PKCS1_SHA512WITHRSA, 512),
        (oid_registry::OID_SIG_ECDSA_WITH_SHA256, 256),
        (oid_registry::OID_SIG_ECDSA_WITH_SHA384, 384),
        (oid_registry::OID_SIG_ECDSA_WITH_SHA512, 512),
    ];
    let algorithm = match by_oid.iter().find(|(known, _)| known == oid) {
        Some((_, bits)) => sha(*bits),
        None => match SignatureAlgorithm::try_from(&parsed.signature_algorithm).ok()? {
            SignatureAlgorithm::RSASSA_PSS(parameters) => {
                let hash = parameters.hash_algorithm_oid();
                [
                    (oid_registry::OID_HASH_SHA1, 256),
                    (oid_registry::OID_NIST_HASH_SHA256, 256),
                    (oid_registry::OID_NIST_HASH_SHA384, 384),
                    (oid_registry::OID_NIST_HASH_SHA512, 512),
                ]
                .iter()
                .find(|(known, _)| known == hash)
                .and_then(|(_, bits)| sha(*bits))
            }
            _ => None,
        },
    }?;
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}
