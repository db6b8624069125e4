//! The check of a server's certificate: by the one that the user has pinned, or by authorities.

use std::sync::{Arc, Mutex, PoisonError};

use fingerpost_wire::print::{HashKind, Print};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Checks a server's certificate and remembers the fingerprint of a refused one, for the user to compare.
#[derive(Debug)]
pub(super) struct ServerCheck {
    authorities: Arc<dyn ServerCertVerifier>,
    /// If set, the server must show exactly this certificate, whatever its names, dates and issuer.
    pinned: Option<Print>,
    refused: Mutex<Option<Print>>,
}

impl ServerCheck {
    pub(super) fn new(authorities: Arc<dyn ServerCertVerifier>, pinned: Option<Print>) -> Self {
        Self { authorities, pinned, refused: Mutex::default() }
    }

    /// Returns the SHA-256 fingerprint of the certificate that was refused, if one was.
    pub(super) fn refused(&self) -> Option<Print> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Print::of_certificate(HashKind::Sha256, end_entity);
        let checked = match &self.pinned {
            Some(pinned) if shown.as_ref().is_some_and(|shown| shown.same_bytes(pinned)) => {
                Ok(ServerCertVerified::assertion())
            }
            Some(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            None => self.authorities.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
        };
        if checked.is_err() {
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        }
        checked
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs;

    use super::{super::named::NamedServers, *};

    fn server(name: &str) -> CertificateDer<'static> {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_the_pinned_certificate_is_accepted_and_a_refused_one_is_told() {
        let (pinned, named) = (server("a.test"), server("b.test"));
        let print = |shown: &CertificateDer<'_>| Print::of_certificate(HashKind::Sha256, shown);
        let check = |with_pin: bool, shown: &CertificateDer<'_>| {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let named = NamedServers::new(vec![named.clone()], provider).unwrap();
            let pin = if with_pin { print(&pinned) } else { None };
            let check = ServerCheck::new(Arc::new(named), pin);
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_778_000_000));
            let name = ServerName::try_from("b.test").unwrap();
            let verified = check.verify_server_cert(shown, &[], &name, &[], now);
            assert_eq!(verified.is_ok(), check.refused().is_none());
            (verified.is_ok(), check.refused())
        };
        assert_eq!(check(true, &pinned), (true, None), "whatever its name");
        assert_eq!(check(true, &named), (false, print(&named)), "no authority counts beside a pin");
        assert_eq!(check(false, &named), (true, None));
        assert_eq!(check(false, &pinned), (false, print(&pinned)));
    }
}
