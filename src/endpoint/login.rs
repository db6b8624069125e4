//! A user's connection: TCP, STARTTLS, SASL and resource binding, then stanzas as elements.
//!
//! Its bytes are read as those of the component's link are (see [`xmpp::xml`](crate::xmpp::xml)): anybody can have the
//! server write unusual XML here too, and none of it may end the connection.

use std::{collections::VecDeque, io, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jid::{BareJid, FullJid};
use minidom::Element;
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    dial::dial,
    error::Error,
    path::{self, Watched},
    sasl::{Channel, Exchange, Offer},
};
use crate::{
    redact::Secret,
    xmpp::{
        ns,
        size::{self, Instead},
        stanza::{Stanza, refuse_oversized},
        xml::{self, Came, Received, Rules, StanzaReader},
    },
};

/// From TCP to the bound resource.
const LOGIN: Duration = Duration::from_secs(30);
/// After so much silence the server is asked for a sign of life, and after as much again it counts as gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Something must be written within this time.
const WRITE: Duration = Duration::from_secs(30);
/// How long a large stanza to ourselves may take longer than a small one to the server that was sent after it.
const OVERTAKEN: Duration = Duration::from_millis(250);
/// With so many bytes on their way no more stanzas are taken.
const FULL: usize = 256 << 10;
/// How long the closing of the stream may take.
const CLOSE: Duration = Duration::from_secs(5);

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// XEP-0440.
const SASL_CB: &str = "urn:xmpp:sasl-cb:0";

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
    let was_narrow = path::is_narrow();
    let mut begun = begin(login).await;
    if begun.is_err() && path::is_narrow() && !was_narrow {
        // Only large packets are lost on the way.
        begun = begin(login).await;
    }
    let (stream, jid) = begun?;
    let (outbound, queue) = mpsc::channel(64);
    let (sender, inbound) = mpsc::channel(256);
    let own = jid.clone();
    let task = tokio::spawn(Driver::new(stream, own).run(queue, sender));
    Ok(Connection { jid, outbound, inbound, task })
}

async fn begin(login: &Login) -> Result<(ServerStream, FullJid), Error> {
    timeout(LOGIN, negotiate(login))
        .await
        .map_err(|_| Error::login("the XMPP server did not answer in time"))?
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::login(format!("the connection to the XMPP server failed: {error}"))
}

/// One XML stream with the server, from its header on.
struct Stream<S> {
    reader: StanzaReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Exchanges headers and takes the server's features.
    async fn open(io: S, domain: &str) -> Result<(Self, Element), Error> {
        let (read, writer) = split(io);
        let mut stream = Self { reader: StanzaReader::with_rules(read, Rules::CLIENT), writer };
        let header = format!(
            "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{}' to='{}' version='1.0'>",
            ns::CLIENT,
            ns::STREAM,
            domain.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
        );
        stream.write(header.as_bytes()).await?;
        let features = stream.next().await?;
        Ok((stream, features))
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).await.map_err(broken)?;
        self.writer.flush().await.map_err(broken)
    }

    async fn send(&mut self, element: &Element) -> Result<(), Error> {
        let mut bytes = Vec::new();
        xml::write_within(element, ns::CLIENT, &mut bytes).map_err(broken)?;
        self.write(&bytes).await
    }

    /// The next first-level element, as it is: one that is not known must not end a login.
    async fn next(&mut self) -> Result<Element, Error> {
        loop {
            match self.reader.read().await.map_err(broken)? {
                Received::Element(element) if element.is("error", ns::STREAM) => {
                    let condition =
                        element.children().find(|child| child.has_ns(ns::STREAM_ERRORS));
                    return Err(broken(condition.map_or("stream error", Element::name)));
                }
                Received::Element(element) => return Ok(element),
                Received::Header(_) | Received::Oversized(_) | Received::Dropped => {}
                Received::Footer => return Err(broken("the server closed the stream")),
            }
        }
    }

    /// The connection beneath. What came behind the last element came too early, and is not ours to read.
    fn into_io(self) -> Result<S, Error> {
        let Self { reader, writer } = self;
        match reader.into_io() {
            Some(read) => Ok(read.unsplit(writer)),
            None => Err(broken("the server sent more than it may at this point")),
        }
    }
}

type ServerStream = Stream<TlsStream<Watched>>;

async fn negotiate(login: &Login) -> Result<(ServerStream, FullJid), Error> {
    let domain = login.jid.domain().as_str().to_owned();
    // The resolver and certificates know a name by its A-labels (RFC 5890).
    let ascii = idna::domain_to_ascii(&domain)
        .map_err(|_| Error::login(format!("{domain} is not a valid domain name")))?;
    let address = login.server.clone().unwrap_or_else(|| format!("{ascii}:5222"));
    let tcp = dial(&address)
        .await
        .map_err(|error| Error::login(format!("cannot connect to {address}: {error}")))?;
    tcp.set_nodelay(true).map_err(broken)?;
    let (mut plain, features) = Stream::open(Watched::new(tcp), &domain).await?;
    if !features.has_child("starttls", ns::STARTTLS) {
        return Err(Error::login("the XMPP server offers no STARTTLS: not logging in"));
    }
    plain.send(&Element::bare("starttls", ns::STARTTLS)).await?;
    if !plain.next().await?.is("proceed", ns::STARTTLS) {
        return Err(Error::login("the XMPP server refused STARTTLS"));
    }
    let config = Arc::new(tls_config(&login.trust)?);
    let name = ServerName::try_from(ascii).map_err(broken)?;
    let tls = TlsConnector::from(config)
        .connect(name, plain.into_io()?)
        .await
        .map_err(|error| {
            Error::login(format!(
                "TLS with the XMPP server failed: {error} (if the server has its own authority, name it with --ca-file)"
            ))
        })?;
    let channel = Channel::of(tls.get_ref().1);
    let (mut secured, features) = Stream::open(tls, &domain).await?;
    authenticate(&mut secured, login, offer(&features), &channel).await?;
    let (mut stream, _features) = Stream::open(secured.into_io()?, &domain).await?;
    let bound = bind(&mut stream).await?;
    if !path::is_narrow() {
        try_path(&mut stream, &bound).await?;
    }
    Ok((stream, bound))
}

/// Sends ourselves a stanza that is larger than a packet, so that a path which loses large packets shows now, in both
/// directions, and not in the middle of something. A server that does not pass it on answers the ping after it.
async fn try_path<S>(stream: &mut Stream<S>, own: &FullJid) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const IDS: [&str; 2] = ["path-large", "path-small"];
    let mut large =
        xml::element("iq", ns::CLIENT, &[("type", "result"), ("to", own.as_str()), ("id", IDS[0])]);
    let mut padding = Element::bare("padding", ns::KEYS);
    padding.append_text("a".repeat(path::LARGER_THAN_A_PACKET));
    large.append_child(padding);
    let server = own.domain().as_str();
    let mut small =
        xml::element("iq", ns::CLIENT, &[("type", "get"), ("to", server), ("id", IDS[1])]);
    small.append_child(Element::bare("ping", ns::PING));
    stream.send(&large).await?;
    stream.send(&small).await?;
    let mut came = [false; 2];
    let mut until = None;
    while came != [true; 2] {
        // Some servers let the ping overtake.
        let next = match until {
            Some(until) => match timeout_at(until, stream.next()).await {
                Ok(next) => next?,
                Err(_) => return Ok(()),
            },
            None => stream.next().await?,
        };
        for (came, id) in came.iter_mut().zip(IDS) {
            *came |= next.attr("id") == Some(id);
        }
        if came[1] {
            until.get_or_insert_with(|| Instant::now() + OVERTAKEN);
        }
    }
    Ok(())
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
async fn authenticate<S>(
    stream: &mut Stream<S>,
    login: &Login,
    offer: Offer,
    channel: &Channel,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
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
    stream.send(&auth).await?;
    loop {
        let element = stream.next().await?;
        let data = || {
            let text: String = element.text().split_ascii_whitespace().collect();
            // A single equals sign stands for no bytes (RFC 6120, section 6.4.2).
            let text = if text == "=" { String::new() } else { text };
            BASE64.decode(text).map_err(|_| failed(&"the server's message is not base64"))
        };
        match element.name() {
            "challenge" => {
                let response = exchange.respond(&data()?).map_err(|error| failed(&error))?;
                stream.send(&sasl_element("response", &response)).await?;
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

async fn bind<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut Stream<S>) -> Result<FullJid, Error> {
    const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
    let mut iq = xml::element("iq", ns::CLIENT, &[("type", "set"), ("id", "bind")]);
    let mut bind = Element::bare("bind", BIND);
    let mut resource = Element::bare("resource", BIND);
    resource.append_text(format!("xtls-{:08x}", rand::random::<u32>()));
    bind.append_child(resource);
    iq.append_child(bind);
    stream.send(&iq).await?;
    loop {
        let element = stream.next().await?;
        if element.name() == "iq" && element.attr("id") == Some("bind") {
            return element
                .get_child("bind", BIND)
                .and_then(|bind| bind.get_child("jid", BIND))
                .and_then(|jid| FullJid::new(&jid.text()).ok())
                .ok_or_else(|| Error::login("the XMPP server refused to bind a resource"));
        }
    }
}

/// Writes a stanza, or the error that is sent in place of an answer which cannot be. Gives what comes back in place of a
/// stanza that cannot be written, or that the server would end the connection for.
fn write_fitting(element: &Element, out: &mut Vec<u8>) -> Option<Element> {
    let before = out.len();
    let written = xml::write_within(element, ns::CLIENT, out);
    let size = out.len() - before;
    let instead = match written {
        Ok(()) if size <= size::CLIENT => return None,
        Ok(()) => size::instead(element, size, size::CLIENT),
        Err(error) => size::instead_of_unwritable(element, &error),
    };
    out.truncate(before);
    match instead {
        Instead::Return(answer) => return Some(answer),
        Instead::Send(answer) => {
            if xml::write_within(&answer, ns::CLIENT, out).is_err() {
                out.truncate(before);
            }
        }
        Instead::Nothing => {}
    }
    None
}

/// Carries stanzas both ways until either side is done.
struct Driver<S> {
    reader: StanzaReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    own: FullJid,
    /// What is to be written.
    pending: Vec<u8>,
    is_unflushed: bool,
    /// What came and has no place yet.
    arrived: VecDeque<Stanza>,
    /// The server has closed the stream.
    is_over: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn new(stream: Stream<S>, own: FullJid) -> Self {
        Self {
            reader: stream.reader,
            writer: stream.writer,
            own,
            pending: Vec::new(),
            is_unflushed: false,
            arrived: VecDeque::new(),
            is_over: false,
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Element>, inbound: mpsc::Sender<Stanza>) {
        match self.carry(&mut queue, &inbound).await {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "the connection to the XMPP server ended");
                return;
            }
        }
        while let Ok(element) = queue.try_recv() {
            self.send(&element);
        }
        self.pending.extend_from_slice(b"</stream:stream>");
        let _ = timeout(CLOSE, async {
            self.writer.write_all(&self.pending).await?;
            self.writer.shutdown().await
        })
        .await;
    }

    /// Ends well if we close the stream, or the server does.
    async fn carry(
        &mut self,
        queue: &mut mpsc::Receiver<Element>,
        inbound: &mpsc::Sender<Stanza>,
    ) -> io::Result<()> {
        let (mut heard, mut is_asked) = (Instant::now(), false);
        let (mut progress, mut was_idle) = (Instant::now(), true);
        loop {
            self.take_in()?;
            if self.is_over && self.arrived.is_empty() {
                return Ok(());
            }
            let is_idle = self.pending.is_empty() && !self.is_unflushed;
            // What is written after a pause has its time from now on.
            if is_idle || was_idle {
                progress = Instant::now();
            }
            was_idle = is_idle;
            let silent = heard + if is_asked { SILENCE * 2 } else { SILENCE };
            let deadline = if is_idle { silent } else { silent.min(progress + WRITE) };
            tokio::select! {
                written = forward(&mut self.writer, &self.pending), if !is_idle => {
                    let count = written?;
                    self.is_unflushed = count > 0;
                    self.pending.drain(..count);
                    progress = Instant::now();
                }
                permit = inbound.reserve(), if !self.arrived.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(stanza) = self.arrived.pop_front() {
                        permit.send(stanza);
                    }
                }
                // What is read may have to be answered: not while the server takes no answers.
                filled = self.reader.fill(),
                    if self.arrived.is_empty() && !self.is_over && self.pending.len() < 2 * FULL =>
                {
                    filled?;
                    (heard, is_asked) = (Instant::now(), false);
                }
                element = queue.recv(), if self.pending.len() < FULL => match element {
                    Some(element) => self.send(&element),
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => {
                    let now = Instant::now();
                    if !is_idle && now >= progress + WRITE {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    if !self.arrived.is_empty() {
                        // While stanzas wait to be taken nothing is read, and silence says nothing.
                        heard = now;
                    } else if now >= silent {
                        if is_asked {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                        is_asked = true;
                        self.ask();
                    }
                }
            }
        }
    }

    /// Handles what was read, until a stanza waits to be taken.
    fn take_in(&mut self) -> io::Result<()> {
        while self.arrived.is_empty() && !self.is_over {
            let received = match self.reader.next()? {
                None => return Ok(()),
                Some(Came::Plain(stanza)) => Received::Element(stanza.to_element()),
                Some(Came::Whole(received)) => received,
            };
            match received {
                Received::Header(_) | Received::Dropped => {}
                Received::Footer => self.is_over = true,
                Received::Element(element) => self.take(element),
                Received::Oversized(mut head) => {
                    self.address(&mut head);
                    if let Some(refusal) = refuse_oversized(head) {
                        self.send(&refusal);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, mut element: Element) {
        if element.is("error", ns::STREAM) {
            let condition = element.children().next().map_or("an error", Element::name);
            tracing::warn!(condition, "the XMPP server ends the stream");
            return;
        }
        self.address(&mut element);
        match Stanza::parse(element) {
            Ok(stanza) => self.arrived.push_back(stanza),
            Err(unreadable) => {
                if let Some(refusal) = unreadable.refuse_address() {
                    self.send(&refusal);
                }
            }
        }
    }

    /// Fills in what a server may leave out: our own addresses.
    fn address(&self, element: &mut Element) {
        if element.attr("from").is_none() {
            xml::set(element, "from", self.own.to_bare().as_str());
        }
        if element.attr("to").is_none() {
            xml::set(element, "to", self.own.as_str());
        }
    }

    fn send(&mut self, element: &Element) {
        if let Some(mut answer) = write_fitting(element, &mut self.pending) {
            self.address(&mut answer);
            self.take(answer);
        }
    }

    /// Asks the server for a sign of life.
    fn ask(&mut self) {
        let domain = self.own.domain().as_str();
        let attributes = [("type", "get"), ("id", "alive"), ("to", domain)];
        let mut iq = xml::element("iq", ns::CLIENT, &attributes);
        iq.append_child(Element::bare("ping", ns::PING));
        self.send(&iq);
    }
}

/// Writes some of `bytes`, or without any pushes on what was written.
pub(crate) async fn forward(
    write: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> io::Result<usize> {
    if bytes.is_empty() {
        return write.flush().await.map(|()| 0);
    }
    match write.write(bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
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
    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::*;

    const HEADER: &str = "<stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";

    /// A driver that is logged in, and the server's end of its connection.
    fn driven() -> (DuplexStream, mpsc::Receiver<Stanza>, JoinHandle<()>, mpsc::Sender<Element>) {
        let (ours, server) = duplex(1 << 16);
        let (read, writer) = split(ours);
        let reader = StanzaReader::with_rules(read, Rules::CLIENT);
        let own = FullJid::new("bob@example.test/xtls").unwrap();
        let driver = Driver::new(Stream { reader, writer }, own);
        let (outbound, queue) = mpsc::channel(4);
        let (sender, inbound) = mpsc::channel(4);
        (server, inbound, tokio::spawn(driver.run(queue, sender)), outbound)
    }

    async fn read(server: &mut DuplexStream) -> String {
        let mut buffer = vec![0; 4096];
        let count = server.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_asked_for_a_sign_of_life_and_lives_on() {
        let (mut server, _inbound, task, _outbound) = driven();
        server.write_all(HEADER.as_bytes()).await.unwrap();
        // Its answers fit into the queue, which nobody empties.
        for _ in 0..3 {
            let asked = read(&mut server).await;
            assert!(asked.contains("id='alive'"), "{asked}");
            server.write_all(b"<iq type='result' id='alive'/>").await.unwrap();
        }
        assert!(!task.is_finished());
        // Then nothing more comes back.
        let begin = Instant::now();
        let asked = read(&mut server).await;
        assert!(asked.contains("id='alive'"), "{asked}");
        task.await.unwrap();
        assert!(begin.elapsed() >= SILENCE * 2, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_address_cannot_be_read_is_answered() {
        let (mut server, _inbound, _task, _outbound) = driven();
        server.write_all(HEADER.as_bytes()).await.unwrap();
        let request = "<iq type='get' id='1' from='eve@example.test/\u{1f4f1}' to='bob@example.test/xtls'><a xmlns='u'/></iq>";
        server.write_all(request.as_bytes()).await.unwrap();
        let answer = read(&mut server).await;
        assert!(answer.contains("jid-malformed") && answer.contains("id='1'"), "{answer}");
        assert!(answer.contains("to='eve@example.test/\u{1f4f1}'"), "{answer}");
    }

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
            let mut out = Vec::new();
            assert_eq!(write_fitting(&build(name, type_, 49_000), &mut out), None);
            assert!(out.len() > 49_000);
            out.clear();
            let back = write_fitting(&build(name, type_, 50_000), &mut out);
            assert_eq!(back.is_some(), type_ != "result", "{name} {type_}");
            let written = String::from_utf8(out).unwrap();
            let text = back.as_ref().map_or(written, String::from);
            assert!(text.contains("type='error'"), "{name} {type_}: {text}");
            assert!(text.contains("at most 250000 are sent"), "{text}");
        }
    }
}
