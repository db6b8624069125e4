//! A user's connection: TCP, STARTTLS, SASL and resource binding, then stanzas as elements.

use std::{borrow::Cow, io, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures::{SinkExt, StreamExt};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncBufRead, AsyncWrite, BufStream},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_xmpp::xmlstream::{ReadError, StreamHeader, Timeouts, XmlStream, initiate_stream};

use super::{
    dial::dial,
    error::Error,
    sasl::{Channel, Exchange, Offer},
};
use crate::{
    redact::Secret,
    xmpp::{
        ns,
        size::{self, Instead},
        stanza::Stanza,
        text::replace_not_carried,
        xml,
    },
};

/// From TCP to the bound resource.
const LOGIN: Duration = Duration::from_secs(30);
/// After so much silence the server is asked for a sign of life, and after as much again it counts as gone.
const SILENCE: Duration = Duration::from_secs(30);

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// XEP-0440.
const SASL_CB: &str = "urn:xmpp:sasl-cb:0";

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
    // The resolver and certificates know a name by its A-labels (RFC 5890).
    let ascii = idna::domain_to_ascii(&domain)
        .map_err(|_| Error::login(format!("{domain} is not a valid domain name")))?;
    let address = login.server.clone().unwrap_or_else(|| format!("{ascii}:5222"));
    let tcp = dial(&address)
        .await
        .map_err(|error| Error::login(format!("cannot connect to {address}: {error}")))?;
    tcp.set_nodelay(true).map_err(broken)?;
    let timeouts = Timeouts { read_timeout: SILENCE, response_timeout: SILENCE };
    let header = || StreamHeader { to: Some(Cow::Borrowed(domain.as_str())), from: None, id: None };
    let mut plain = initiate_stream(BufStream::new(tcp), ns::CLIENT, header(), timeouts)
        .await
        .map_err(broken)?
        .skip_features::<Element>();
    if !next(&mut plain).await?.has_child("starttls", ns::STARTTLS) {
        return Err(Error::login("the XMPP server offers no STARTTLS: not logging in"));
    }
    plain.send(&Element::bare("starttls", ns::STARTTLS)).await.map_err(broken)?;
    if !next(&mut plain).await?.is("proceed", ns::STARTTLS) {
        return Err(Error::login("the XMPP server refused STARTTLS"));
    }
    let config = Arc::new(tls_config(&login.trust)?);
    let name = ServerName::try_from(ascii).map_err(broken)?;
    let tls = TlsConnector::from(config)
        .connect(name, plain.into_inner().into_inner())
        .await
        .map_err(|error| {
            Error::login(format!(
                "TLS with the XMPP server failed: {error} (if the server has its own authority, name it with --ca-file)"
            ))
        })?;
    let channel = Channel::of(tls.get_ref().1);
    let mut secured = initiate_stream(BufStream::new(tls), ns::CLIENT, header(), timeouts)
        .await
        .map_err(broken)?
        .skip_features::<Element>();
    let offer = offer(&next(&mut secured).await?);
    authenticate(&mut secured, login, offer, &channel).await?;
    let mut stream = secured
        .initiate_reset()
        .send_header(header())
        .await
        .map_err(broken)?
        .skip_features::<Element>();
    let bound = bind(&mut stream).await?;
    Ok((stream, bound))
}

/// The next first-level element, as it is: an element that is not known must not end a login.
async fn next<Io>(stream: &mut XmlStream<Io, Element>) -> Result<Element, Error>
where
    Io: AsyncBufRead + AsyncWrite + Unpin,
{
    loop {
        match stream.next().await {
            Some(Ok(element)) if element.is("error", ns::STREAM) => {
                let condition = element.children().find(|child| child.has_ns(ns::STREAM_ERRORS));
                return Err(broken(condition.map_or("stream error", Element::name)));
            }
            Some(Ok(element)) => return Ok(element),
            // The whole login has its own deadline.
            Some(Err(ReadError::SoftTimeout)) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(broken("closed")),
        }
    }
}

/// What the stream features say about authentication.
fn offer(features: &Element) -> Offer {
    let texts = |parent: &Element| {
        parent.children().filter(|child| child.is("mechanism", SASL)).map(Element::text).collect()
    };
    let types = |parent: &Element| {
        let types = parent.children().filter(|child| child.is("channel-binding", SASL_CB));
        types.filter_map(|child| child.attr("type")).map(str::to_owned).collect()
    };
    Offer {
        mechanisms: features.get_child("mechanisms", SASL).map(texts).unwrap_or_default(),
        bindings: features.get_child("sasl-channel-binding", SASL_CB).map(types),
    }
}

/// Runs SASL (RFC 6120, section 6.4) up to the server's success.
async fn authenticate<Io>(
    stream: &mut XmlStream<Io, Element>,
    login: &Login,
    offer: Offer,
    channel: &Channel,
) -> Result<(), Error>
where
    Io: AsyncBufRead + AsyncWrite + Unpin,
{
    let failed =
        |why: &dyn std::fmt::Display| Error::login(format!("login as {} failed: {why}", login.jid));
    let username = login.jid.node().map(|node| node.as_str().to_owned());
    let username = username.ok_or_else(|| Error::login("the JID must be user@domain"))?;
    let nonce: [u8; 18] = rand::random();
    let mut exchange = Exchange::new(offer, channel, &username, login.password.clone(), &nonce)
        .map_err(|error| failed(&error))?;
    let mut auth = sasl_element("auth", &exchange.initial());
    xml::set(&mut auth, "mechanism", exchange.mechanism());
    stream.send(&auth).await.map_err(broken)?;
    loop {
        let element = next(stream).await?;
        let data = || {
            let text: String = element.text().split_ascii_whitespace().collect();
            // A single equals sign stands for no bytes (RFC 6120, section 6.4.2).
            let text = if text == "=" { String::new() } else { text };
            BASE64.decode(text).map_err(|_| failed(&"the server's message is not base64"))
        };
        match element.name() {
            "challenge" => {
                let response = exchange.respond(&data()?).map_err(|error| failed(&error))?;
                stream.send(&sasl_element("response", &response)).await.map_err(broken)?;
            }
            "success" => return exchange.finish(&data()?).map_err(|error| failed(&error)),
            "failure" => {
                let is_text = |child: &&Element| child.name() == "text";
                let condition = element.children().find(|child| !is_text(child));
                let condition = condition.map_or("the server refused it", Element::name);
                let text: String =
                    element.children().find(is_text).map(Element::text).unwrap_or_default();
                let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
                let text = if text.is_empty() { text } else { format!(" ({text})") };
                return Err(failed(&format!("{condition}{text}")));
            }
            _ => return Err(failed(&"the server sent an unexpected element")),
        }
    }
}

fn sasl_element(name: &str, data: &[u8]) -> Element {
    let mut element = Element::bare(name, SASL);
    element.append_text(BASE64.encode(data));
    element
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

/// A stanza as it may be sent, and what comes back in place of one that the server would end the connection for.
fn fitting(mut element: Element) -> (Option<Element>, Option<Stanza>) {
    replace_not_carried(&mut element);
    let limit = size::CLIENT;
    match size::of(&element) {
        Ok(size) if size > limit => match size::instead(&element, size, limit) {
            Instead::Send(error) => (Some(error), None),
            Instead::Return(error) => (None, Stanza::parse(error).ok()),
            Instead::Nothing => (None, None),
        },
        _ => (Some(element), None),
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
                let (element, back) = fitting(element);
                if let Some(stanza) = back
                    && inbound.send(stanza).await.is_err()
                {
                    break;
                }
                let Some(element) = element else { continue };
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
            let (Some(element), _) = fitting(element) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The stanzas of both servers' clients may be 262,144 bytes long.
    #[test]
    fn no_stanza_is_longer_than_what_servers_accept_of_clients() {
        let build = |name: &str, type_: &str, length: usize| {
            let attributes = [("type", type_), ("from", "a@b.c/d"), ("to", "x.b.c"), ("id", "1")];
            let mut stanza = xml::element(name, ns::CLIENT, &attributes);
            stanza.append_text("&".repeat(length));
            stanza
        };
        for (name, type_) in [("iq", "get"), ("iq", "result"), ("message", "chat")] {
            assert_eq!(fitting(build(name, type_, 49_000)).1.map(|back| back.id), None);
            let (sent, back) = fitting(build(name, type_, 50_000));
            let error = sent.clone().or(back.clone().map(|back| back.element)).unwrap();
            assert_eq!(error.attr("type"), Some("error"), "{name} {type_}");
            assert_eq!(back.is_some(), type_ != "result", "{name} {type_}");
            let text = String::from(&error);
            assert!(text.contains("at most 250000 are sent"), "{text}");
        }
    }
}
