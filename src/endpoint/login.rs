//! A user's connection: TCP, STARTTLS, SASL and resource binding, then stanzas as elements.

use std::{borrow::Cow, io, path::Path, sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{io::BufStream, net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_xmpp::xmlstream::{
    ReadError, StreamHeader, Timeouts, XmlStream, XmppStreamElement, initiate_stream,
};
use xmpp_parsers::starttls;

use super::error::Error;
use crate::{
    redact::Secret,
    xmpp::{ns, stanza::Stanza, xml},
};

/// From TCP to the bound resource.
const LOGIN: Duration = Duration::from_secs(30);
/// After so much silence the server is asked for a sign of life, and after as much again it counts as gone.
const SILENCE: Duration = Duration::from_secs(30);

type Stream = XmlStream<BufStream<TlsStream<TcpStream>>, Element>;

/// How to treat the XMPP server's certificate.
#[derive(Clone, Debug, Default)]
pub struct ServerTrust {
    /// The authorities to trust, PEM, instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Accept any certificate: for tests on one's own machine.
    pub insecure: bool,
}

/// Whom to log in as, and where.
///
/// ```
/// use fingerpost::endpoint::Login;
///
/// let login = Login::new("alice@example.org".parse()?, "her password");
/// assert_eq!(login.server, None); // the JID's domain, port 5222
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// The user.
    pub jid: BareJid,
    /// Its password.
    pub password: Secret,
    /// `host:port`, if not the JID's domain at port 5222.
    pub server: Option<String>,
    /// How to treat the server's certificate.
    pub trust: ServerTrust,
}

impl Login {
    /// A user at the server of its domain, which must have a certificate that the system trusts.
    pub fn new(jid: BareJid, password: impl Into<String>) -> Self {
        Self { jid, password: Secret::new(password), server: None, trust: ServerTrust::default() }
    }
}

/// A logged-in connection: made by [`login`], or by a program that speaks XMPP already and passes on the IQ stanzas
/// that are for this endpoint.
#[derive(Debug)]
pub struct Connection {
    /// The address the server has given us.
    pub jid: FullJid,
    /// Stanzas to send.
    pub outbound: mpsc::Sender<Element>,
    /// Stanzas that came, with both addresses filled in; ends with the connection.
    pub inbound: mpsc::Receiver<Stanza>,
    /// Ends when all is written and the stream is closed.
    pub task: tokio::task::JoinHandle<()>,
}

/// Logs in, within 30 seconds.
///
/// # Errors
/// [`Error::Login`], with what failed.
pub async fn login(login: &Login) -> Result<Connection, Error> {
    let (stream, jid) = timeout(LOGIN, negotiate(login))
        .await
        .map_err(|_| Error::login("the XMPP server did not answer in time"))??;
    let (outbound, queue) = mpsc::channel(64);
    let (sender, inbound) = mpsc::channel(256);
    let own = jid.clone();
    let task = tokio::spawn(async move { drive(stream, own, queue, sender).await });
    Ok(Connection { jid, outbound, inbound, task })
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::login(format!("the connection to the XMPP server failed: {error}"))
}

async fn negotiate(login: &Login) -> Result<(Stream, FullJid), Error> {
    let domain = login.jid.domain().as_str().to_owned();
    let address = login.server.clone().unwrap_or_else(|| format!("{domain}:5222"));
    let tcp = TcpStream::connect(&address)
        .await
        .map_err(|error| Error::login(format!("cannot connect to {address}: {error}")))?;
    tcp.set_nodelay(true).map_err(broken)?;
    let timeouts = Timeouts { read_timeout: SILENCE, response_timeout: SILENCE };
    let header = || StreamHeader { to: Some(Cow::Borrowed(domain.as_str())), from: None, id: None };
    let plain = initiate_stream(BufStream::new(tcp), ns::CLIENT, header(), timeouts)
        .await
        .map_err(broken)?;
    let (features, mut plain) = plain.recv_features::<XmppStreamElement>().await.map_err(broken)?;
    if !features.can_starttls() {
        return Err(Error::login("the XMPP server offers no STARTTLS: not logging in"));
    }
    plain
        .send(&XmppStreamElement::Starttls(starttls::Nonza::Request(starttls::Request)))
        .await
        .map_err(broken)?;
    match plain.next().await {
        Some(Ok(XmppStreamElement::Starttls(starttls::Nonza::Proceed(_)))) => {}
        _ => return Err(Error::login("the XMPP server refused STARTTLS")),
    }
    let config = Arc::new(tls_config(&login.trust)?);
    let name = ServerName::try_from(domain.clone()).map_err(broken)?;
    let tls = TlsConnector::from(config)
        .connect(name, plain.into_inner().into_inner())
        .await
        .map_err(|error| {
            Error::login(format!(
                "TLS with the XMPP server failed: {error} (if the server has its own authority, name it with --ca-file)"
            ))
        })?;
    let secured = initiate_stream(BufStream::new(tls), ns::CLIENT, header(), timeouts)
        .await
        .map_err(broken)?;
    let (features, secured) = secured.recv_features().await.map_err(broken)?;
    let username = login.jid.node().map(|node| node.as_str().to_owned());
    let credentials = sasl::common::Credentials::default()
        .with_username(username.ok_or_else(|| Error::login("the JID must be user@domain"))?)
        .with_password(login.password.expose_secret());
    let authenticated = tokio_xmpp::client_login(secured, features.sasl_mechanisms, credentials)
        .await
        .map_err(|error| Error::login(format!("login as {} failed: {error}", login.jid)))?;
    let pending = authenticated.send_header(header()).await.map_err(broken)?;
    let mut stream = pending.skip_features::<Element>();
    let bound = bind(&mut stream).await?;
    Ok((stream, bound))
}

async fn bind(stream: &mut Stream) -> Result<FullJid, Error> {
    const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
    let mut iq = xml::element("iq", ns::CLIENT, &[("type", "set"), ("id", "bind")]);
    let mut bind = Element::bare("bind", BIND);
    let mut resource = Element::bare("resource", BIND);
    resource.append_text(format!("xtls-{:08x}", rand::random::<u32>()));
    bind.append_child(resource);
    iq.append_child(bind);
    stream.send(&iq).await.map_err(broken)?;
    loop {
        match stream.next().await {
            Some(Ok(element)) if element.attr("id") == Some("bind") => {
                let jid = element
                    .get_child("bind", BIND)
                    .and_then(|bind| bind.get_child("jid", BIND))
                    .and_then(|jid| FullJid::new(&jid.text()).ok());
                return jid
                    .ok_or_else(|| Error::login("the XMPP server refused to bind a resource"));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(broken("closed")),
        }
    }
}

/// Carries stanzas both ways until either side is done.
async fn drive(
    mut stream: Stream,
    own: FullJid,
    mut queue: mpsc::Receiver<Element>,
    inbound: mpsc::Sender<Stanza>,
) {
    loop {
        tokio::select! {
            element = queue.recv() => {
                let Some(element) = element else { break };
                match timeout(LOGIN, stream.send(&element)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {}
                    _ => return,
                }
            }
            received = stream.next() => match received {
                Some(Ok(mut element)) => {
                    for name in ["from", "to"] {
                        if element.attr(name).is_none() {
                            let address = if name == "from" { own.to_bare().to_string() } else { own.to_string() };
                            xml::set(&mut element, name, &address);
                        }
                    }
                    if let Ok(stanza) = Stanza::parse(element)
                        && inbound.send(stanza).await.is_err()
                    {
                        break;
                    }
                }
                Some(Err(ReadError::SoftTimeout)) => {
                    let domain = Jid::from(own.to_bare());
                    let mut iq = xml::element("iq", ns::CLIENT, &[
                        ("type", "get"), ("id", "alive"), ("to", domain.domain().as_str()),
                    ]);
                    iq.append_child(Element::bare("ping", ns::PING));
                    if stream.send(&iq).await.is_err() {
                        return;
                    }
                }
                Some(Err(ReadError::ParseError(_))) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
    let _ = timeout(Duration::from_secs(5), async {
        while let Ok(element) = queue.try_recv() {
            if stream.send(&element).await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    })
    .await;
}

fn tls_config(trust: &ServerTrust) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(broken)?;
    if trust.insecure {
        let verifier = Arc::new(AnyServer(provider));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match &trust.ca_file {
        Some(file) => {
            for certificate in read_certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| Error::login(format!("{}: {error}", file.display())))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::login(format!("{}: {error}", file.display()));
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| bad(&error))?.collect();
    let certificates = certificates.map_err(|error| bad(&error))?;
    if certificates.is_empty() {
        return Err(bad(&"no PEM certificate is in it"));
    }
    Ok(certificates)
}

/// Takes any server for what it says it is: only behind `--insecure-tls`.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
