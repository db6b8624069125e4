//! TLS over a negotiated byte stream: the responder is the server, and both show certificates.

use std::{io, sync::Arc};

use fingerpost_wire::print::Print;
use rustls::{
    ClientConfig, CommonState, ServerConfig, client::Resumption, crypto::aws_lc_rs,
    pki_types::ServerName, version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
pub use tokio_rustls::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    fault::Fault,
    identity::Identity,
    verify::{Expected, PinnedVerifier},
};

/// The name in the ClientHello. Names have no meaning here, and this one tells an observer nothing.
const SERVER_NAME: &str = "xtls.invalid";

/// The results of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// The protocol version.
    pub version: String,
    /// The key exchange group.
    pub key_exchange: String,
    /// The print of the key that the peer has shown and holds: the SHA-256 print of its certificate, or for the method
    /// openpgp the fingerprint of its OpenPGP key.
    pub peer: Print,
}

/// Why the stream could not be secured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate is not the offered one, or cannot be used.
    #[error(transparent)]
    Unverified(Fault),
    /// The peer did not prove a key: it showed no certificate, does not support TLS 1.3, or its signature is wrong.
    #[error("the peer's key could not be verified: {0}")]
    Unproven(String),
    /// The peer does not accept our certificate, with its reason if it gives one.
    #[error("the peer does not accept our certificate{0}")]
    Refused(&'static str),
    /// Any other failure.
    #[error("TLS failed: {0}")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        use rustls::{AlertDescription as Alert, Error as Tls, PeerIncompatible};
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
        match tls {
            Some(Tls::NoCertificatesPresented) => {
                Self::Unproven("it has shown no certificate".to_owned())
            }
            Some(Tls::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon)) => {
                Self::Unproven("it accepts no signature algorithm of our key".to_owned())
            }
            Some(Tls::PeerIncompatible(_)) => {
                Self::Unproven("it does not speak TLS 1.3 as needed here".to_owned())
            }
            // OpenSSL also sends this if it lacks a key for TLS 1.3.
            Some(Tls::AlertReceived(Alert::ProtocolVersion)) => Self::Unproven(
                "it does not speak TLS 1.3, or its key has no signature algorithm there".to_owned(),
            ),
            Some(Tls::AlertReceived(Alert::HandshakeFailure)) => Self::Unproven(
                "it found nothing in common, such as a signature algorithm for the keys of both sides"
                    .to_owned(),
            ),
            Some(Tls::AlertReceived(alert)) => Self::Refused(match alert {
                Alert::CertificateExpired => {
                    ": it has expired there, or one of the two clocks is wrong"
                }
                Alert::CertificateRevoked => ": it was revoked",
                Alert::UnsupportedCertificate => ": its form or kind of key is not accepted there",
                _ => "",
            }),
            Some(
                tls @ (Tls::InvalidCertificate(_)
                | Tls::PeerMisbehaved(_)
                | Tls::DecryptError
                | Tls::InvalidMessage(_)
                | Tls::InappropriateMessage { .. }
                | Tls::InappropriateHandshakeMessage { .. }),
            ) => Self::Unproven(tls.to_string()),
            _ => Self::Failed(error),
        }
    }
}

/// The name of an application protocol (ALPN, RFC 7301). The handshake authenticates it: a third party cannot add,
/// remove or change it.
pub type Protocol = &'static [u8];

/// Sets up TLS as the initiator (client), with these expectations of the peer.
///
/// # Errors
/// [`TlsError`]; no application byte has been sent then.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    identity: &Identity,
    expected: impl Into<Expected>,
) -> Result<(TlsStream<S>, Secured), TlsError> {
    connect_for(stream, identity, expected, None).await
}

/// Does what [`connect`] does, and offers an application protocol. A peer that does not know it ignores the offer.
///
/// # Errors
/// [`TlsError`]; no application byte has been sent then.
pub async fn connect_for<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    identity: &Identity,
    expected: impl Into<Expected>,
    protocol: Option<Protocol>,
) -> Result<(TlsStream<S>, Secured), TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let expected = expected.into();
    let verifier = Arc::new(PinnedVerifier::new(expected.clone(), Arc::clone(&provider)));
    let found = Arc::clone(&verifier);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key())
        .map_err(io::Error::other)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a constant");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connecting.map_err(|error| because(&found, error))?;
    let secured = secured(stream.get_ref().1, &expected)?;
    Ok((TlsStream::Client(stream), secured))
}

/// Sets up TLS as the responder (server), with these expectations of the peer.
///
/// # Errors
/// [`TlsError`]; no application byte has been sent then.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    identity: &Identity,
    expected: impl Into<Expected>,
) -> Result<(TlsStream<S>, Secured), TlsError> {
    accept_for(stream, identity, expected, None).await
}

/// Does what [`accept`] does, and agrees to an application protocol if the peer offers it.
///
/// # Errors
/// [`TlsError`]; no application byte has been sent then. A peer that offers only other protocols is refused.
pub async fn accept_for<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    identity: &Identity,
    expected: impl Into<Expected>,
    protocol: Option<Protocol>,
) -> Result<(TlsStream<S>, Secured), TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let expected = expected.into();
    let verifier = Arc::new(PinnedVerifier::new(expected.clone(), Arc::clone(&provider)));
    let found = Arc::clone(&verifier);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key())
        .map_err(io::Error::other)?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    let accepting = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
    let stream = accepting.map_err(|error| because(&found, error))?;
    let secured = secured(stream.get_ref().1, &expected)?;
    Ok((TlsStream::Server(stream), secured))
}

/// Returns the verifier's fault, or, without one, the handshake's error.
fn because(verifier: &PinnedVerifier, error: io::Error) -> TlsError {
    match verifier.fault() {
        Some(fault) => TlsError::Unverified(fault.clone()),
        None => error.into(),
    }
}

/// Exports key material of a channel that only the two ends can compute (RFC 8446, 7.5; RFC 5705).
///
/// # Errors
/// [`TlsError::Failed`] before the handshake is done.
pub fn export<S, const N: usize>(
    stream: &TlsStream<S>,
    label: &[u8],
    context: &[u8],
) -> Result<[u8; N], TlsError> {
    let material = match stream {
        TlsStream::Client(stream) => {
            stream.get_ref().1.export_keying_material([0; N], label, Some(context))
        }
        TlsStream::Server(stream) => {
            stream.get_ref().1.export_keying_material([0; N], label, Some(context))
        }
    };
    material.map_err(|error| TlsError::Failed(io::Error::other(error)))
}

/// Returns the channel's `tls-exporter` value (RFC 9266).
///
/// # Errors
/// [`TlsError::Failed`] before the handshake is done.
pub fn binding<S>(stream: &TlsStream<S>) -> Result<[u8; 32], TlsError> {
    export(stream, b"EXPORTER-Channel-Binding", b"")
}

fn secured(connection: &CommonState, expected: &Expected) -> Result<Secured, TlsError> {
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let peer = certificate
        .and_then(|der| expected.shown(der))
        .ok_or(TlsError::Unverified(Fault::Print))?;
    let version = connection.protocol_version().and_then(|version| version.as_str());
    let group =
        connection.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    Ok(Secured {
        version: version.unwrap_or("TLSv1.3").replace("TLSv1_3", "TLSv1.3"),
        key_exchange: group.unwrap_or_default(),
        peer,
    })
}

#[cfg(test)]
mod tests {
    use jid::BareJid;
    use rustls::{SupportedProtocolVersion, version::TLS12};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use zeroize::Zeroizing;

    use super::*;

    fn identity() -> Identity {
        Identity::generate(&BareJid::new("a@example.org").unwrap()).unwrap()
    }

    #[tokio::test]
    async fn two_pinned_peers_speak_tls_1_3_with_a_hybrid_key_exchange() {
        let (alice, bob) = (identity(), identity());
        let (a, b) = duplex(1 << 16);
        let (client, server) = tokio::join!(
            connect(a, &alice, vec![bob.print()]),
            accept(b, &bob, vec![alice.print()])
        );
        let ((mut client, seen), (mut server, _)) = (client.unwrap(), server.unwrap());
        assert_eq!(seen.version, "TLSv1.3");
        assert_eq!(seen.key_exchange, "X25519MLKEM768");
        assert_eq!(seen.peer, bob.print());
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let mut got = [0; 5];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }

    #[tokio::test]
    async fn keys_of_every_algorithm_prove_themselves_in_both_roles_and_to_a_registry() {
        use crate::{identity::Algorithm, signature, x509};
        use fingerpost_wire::print::Method;
        let jid = BareJid::new("a@example.org").unwrap();
        let made = Algorithm::ALL.map(|of| Identity::generate_by(&jid, of).unwrap());
        for (one, other) in made.iter().flat_map(|one| made.iter().map(move |other| (one, other))) {
            let (a, b) = duplex(1 << 16);
            let (client, server) = tokio::join!(
                connect(a, one, vec![other.print()]),
                accept(b, other, vec![one.print()])
            );
            let (client, server) = (client.unwrap().1, server.unwrap().1);
            assert_eq!((client.peer, server.peer), (other.print(), one.print()));
        }
        for identity in &made {
            assert_eq!(x509::check(&identity.certificate), Ok(()));
            let signature = identity.sign(b"a challenge").unwrap();
            let now = time::OffsetDateTime::now_utc();
            let verify = |message: &[u8]| {
                signature::verify(Method::X509, &identity.certificate, message, &signature, now)
            };
            assert_eq!(verify(b"a challenge"), Ok(()));
            assert!(verify(b"another").is_err());
        }
    }

    #[tokio::test]
    async fn a_server_with_another_key_than_offered_is_refused_before_a_byte_is_sent() {
        let (alice, bob, mallory) = (identity(), identity(), identity());
        let (a, b) = duplex(1 << 16);
        let (client, server) = tokio::join!(
            connect(a, &alice, vec![bob.print()]),
            accept(b, &mallory, vec![alice.print()])
        );
        assert!(matches!(client, Err(TlsError::Unverified(Fault::Print))));
        assert!(matches!(server, Err(TlsError::Refused(""))));
    }

    #[cfg(feature = "openpgp")]
    #[tokio::test]
    async fn openpgp_keys_vouch_for_both_ends_and_the_peer_is_known_by_its_fingerprint() {
        use crate::openpgp::{Certifier, OpenPgpKey};
        let jid = BareJid::new("a@example.org").unwrap();
        let [alice, bob] = [false, true].map(|version_6| {
            let key = OpenPgpKey::generate(&jid, version_6).unwrap();
            key.unlock(Zeroizing::default()).unwrap()
        });
        let pins = |key: &Certifier| Expected::OpenPgp(vec![key.print().clone()]);
        let (a, b) = duplex(1 << 16);
        let (own, other) = (alice.certify().unwrap(), bob.certify().unwrap());
        let (client, server) =
            tokio::join!(connect(a, &own, pins(&bob)), accept(b, &other, pins(&alice)));
        let ((client, of_bob), (server, of_alice)) = (client.unwrap(), server.unwrap());
        assert_eq!((of_bob.peer, of_alice.peer), (bob.print().clone(), alice.print().clone()));
        assert_eq!(binding(&client).unwrap(), binding(&server).unwrap());

        let (a, b) = duplex(1 << 16);
        let (client, server) =
            tokio::join!(connect(a, &own, pins(&alice)), accept(b, &other, pins(&alice)));
        assert!(matches!(client, Err(TlsError::Unverified(Fault::Print))));
        assert!(matches!(server, Err(TlsError::Refused(""))));
    }

    #[tokio::test]
    async fn two_channels_have_two_bindings() {
        let mut bindings = Vec::new();
        for _ in 0..2 {
            let (own, other) = (Identity::anonymous().unwrap(), Identity::anonymous().unwrap());
            let (a, b) = duplex(1 << 16);
            let (client, server) = tokio::join!(
                connect(a, &own, Expected::Anyone),
                accept(b, &other, Expected::Anyone)
            );
            let (client, server) = (client.unwrap().0, server.unwrap().0);
            assert_eq!(binding(&client).unwrap(), binding(&server).unwrap());
            bindings.push(binding(&client).unwrap());
        }
        assert_ne!(bindings[0], bindings[1]);
    }

    #[tokio::test]
    async fn a_client_with_another_key_than_offered_is_refused() {
        let (alice, bob, mallory) = (identity(), identity(), identity());
        let (a, b) = duplex(1 << 16);
        let (client, server) = tokio::join!(
            async {
                let (mut stream, _) = connect(a, &mallory, vec![bob.print()]).await?;
                let mut byte = [0];
                Ok::<_, TlsError>(stream.read_exact(&mut byte).await?)
            },
            accept(b, &bob, vec![alice.print()])
        );
        assert!(matches!(server, Err(TlsError::Unverified(Fault::Print))));
        assert!(matches!(client, Err(TlsError::Refused(""))));
    }

    /// Connects as another program, without a certificate.
    async fn stranger(stream: DuplexStream, version: &'static SupportedProtocolVersion) {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(PinnedVerifier::new(Expected::Anyone, Arc::clone(&provider)));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        if let Ok(mut tls) = TlsConnector::from(Arc::new(config)).connect(name, stream).await {
            let _ = tls.read(&mut [0]).await;
        }
    }

    #[tokio::test]
    async fn a_peer_without_a_certificate_or_without_tls_1_3_has_proved_no_key() {
        let (alice, bob) = (identity(), identity());
        for (version, expected) in
            [(&TLS13, "shown no certificate"), (&TLS12, "does not speak TLS 1.3")]
        {
            let (a, b) = duplex(1 << 16);
            let ((), server) =
                tokio::join!(stranger(a, version), accept(b, &bob, vec![alice.print()]));
            let Err(TlsError::Unproven(why)) = server else { panic!("{server:?}") };
            assert!(why.contains(expected), "{why}");
        }
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![bob.certificate.clone()], bob.key())
            .unwrap();
        let (a, b) = duplex(1 << 16);
        let (client, server) = tokio::join!(
            connect(a, &alice, vec![bob.print()]),
            TlsAcceptor::from(Arc::new(config)).accept(b)
        );
        assert!(matches!(client, Err(TlsError::Unproven(_))), "{client:?}");
        assert!(server.is_err());
    }

    #[tokio::test]
    async fn what_is_not_tls_has_proved_no_key() {
        let (alice, bob) = (identity(), identity());
        let (a, mut b) = duplex(1 << 16);
        b.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let client = connect(a, &alice, vec![bob.print()]).await;
        assert!(matches!(client, Err(TlsError::Unproven(_))), "{client:?}");
        // A connection that breaks is a different case.
        let (a, b) = duplex(1 << 16);
        drop(b);
        let client = connect(a, &alice, vec![bob.print()]).await;
        assert!(matches!(client, Err(TlsError::Failed(_))), "{client:?}");
    }
}
