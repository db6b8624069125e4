//! The verifier: the peer's certificate must have the offered print, and the peer must hold its key.
//!
//! No authority is involved: a chain, a name or a date in the certificate has no meaning here.

use std::sync::{Arc, OnceLock};

use fingerpost_wire::print::{HashKind, Print};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{fault::Fault, openpgp};
use crate::x509;

/// The requirements on the peer's certificate, by the method of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// `x509`: a certificate with one of these prints.
    Certificate(Vec<Print>),
    /// `openpgp`: a certificate whose key is vouched for by an OpenPGP key with one of these fingerprints.
    OpenPgp(Vec<Print>),
    /// `srp`: any certificate.
    ///
    /// # Security
    /// The peer is unknown until a proof that is bound to the channel shows who it is.
    Anyone,
}

impl From<Vec<Print>> for Expected {
    fn from(pins: Vec<Print>) -> Self {
        Self::Certificate(pins)
    }
}

impl Expected {
    /// Returns the print of the key that the peer has shown by this method: its certificate's, or its OpenPGP key's.
    pub(super) fn shown(&self, certificate: &[u8]) -> Option<Print> {
        match self {
            Self::Certificate(_) | Self::Anyone => {
                Print::of_certificate(HashKind::Sha256, certificate)
            }
            Self::OpenPgp(_) => openpgp::claimed(certificate),
        }
    }
}

/// Accepts exactly the expected certificates.
///
/// # Security
/// A print must come from the peer's offer; the handshake then shows that the party at the other end holds that key.
/// Hints and the trust store decide whether the offer itself is the right user's.
#[derive(Debug)]
pub struct PinnedVerifier {
    expected: Expected,
    provider: Arc<CryptoProvider>,
    fault: OnceLock<Fault>,
}

impl PinnedVerifier {
    /// Creates a verifier; with an empty list of prints it accepts nobody.
    pub fn new(expected: Expected, provider: Arc<CryptoProvider>) -> Self {
        Self { expected, provider, fault: OnceLock::new() }
    }

    /// Returns why the certificate was not accepted, if it was not: an alert cannot say it.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        self.judge(certificate, now).map_err(|fault| {
            let error = fault.to_rustls();
            let _ = self.fault.set(fault);
            error
        })
    }

    fn judge(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Fault> {
        match &self.expected {
            Expected::Certificate(pins) => {
                let pinned = pins.iter().any(|pin| {
                    [pin.hash(), HashKind::SpkiSha256]
                        .into_iter()
                        .filter_map(|hash| Print::of_certificate(hash, certificate))
                        .any(|print| print.same_bytes(pin))
                });
                if !pinned {
                    return Err(Fault::Print);
                }
            }
            Expected::OpenPgp(pins) => {
                openpgp::vouched(certificate, pins, now)?;
            }
            Expected::Anyone => {}
        }
        x509::check(certificate).map_err(Fault::Unusable)
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PinnedVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
