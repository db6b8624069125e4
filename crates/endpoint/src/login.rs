//! A user's way into its XMPP server: TCP, STARTTLS, SASL, and a bound resource or a resumed session.
//!
//! Its bytes are read in the same way as those of the component's link (see [`xml`](fingerpost_wire::xml)): a
//! stranger can make the server write unusual XML here too, which must not end the connection.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fingerpost_carry::{iq::random_id, outbound::Outbound, reader::StanzaReader};
use fingerpost_secure::redact::Secret;
use fingerpost_wire::{
    ns,
    print::Print,
    stanza::{Condition, Stanza},
    xml::{self, Received, Rules},
};
use jid::{BareJid, FullJid};
use minidom::Element;
use rustls::{
    ClientConfig, RootCertStore,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use self::{check::ServerCheck, named::NamedServers};
use super::{
    dial::dial,
    discovery::{Target, servers},
    driver::{Driver, StreamState},
    error::{Detail, Error, condition},
    fast::{FastStore, FastToken},
    managed::Management,
    path::{self, Watched},
    sasl::{Channel, Exchange, LoginOffer, token_mechanism},
    sasl2::{self, Inline, Name, Success, Wish},
};

/// The error below another, or a text in its place.
type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// The time from TCP to the bound resource.
const LOGIN: Duration = Duration::from_secs(30);
/// The silence after which the server is asked for a sign of life; after as much again it counts as gone.
const SILENCE: Duration = Duration::from_secs(30);
/// How much longer a large stanza to ourselves may take than a small one to the server that was sent after it.
const OVERTAKEN: Duration = Duration::from_millis(250);
/// The time to set up TLS with one of several servers.
const TARGET: Duration = Duration::from_secs(8);
/// The protocol of TLS from the first byte (XEP-0368, section 4).
const ALPN: &[u8] = b"xmpp-client";
/// The most stanzas that may come before the stream is ready for them.
const EARLY: usize = 64;

/// The most stanzas that wait to be sent; [`ARRIVED`] bounds those that wait to be handled.
pub(super) const QUEUE: usize = 64;
/// See [`QUEUE`].
pub(super) const ARRIVED: usize = 256;

/// Failures of SASL (RFC 6120, section 6.5) that the next attempt would meet again.
const FINAL: [&str; 6] = [
    "account-disabled",
    "credentials-expired",
    "encryption-required",
    "invalid-authzid",
    "mechanism-too-weak",
    "not-authorized",
];

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// The namespace of XEP-0440.
const SASL_CB: &str = "urn:xmpp:sasl-cb:0";

/// How to treat the XMPP server's certificate.
#[derive(Clone, Debug, Default)]
pub struct ServerTrust {
    /// The authorities to trust, PEM, instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// The SHA-256 fingerprint of the only certificate to trust, whatever its names, dates and issuer.
    pub certificate: Option<Print>,
    /// Accept any certificate: for tests on this machine only.
    pub insecure: bool,
}

/// A user's login: the account, and its server.
///
/// ```
/// use fingerpost_endpoint::Login;
///
/// let login = Login::new("alice@example.org".parse()?, "her password");
/// assert_eq!(login.server, None); // what the records of example.org say
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// The user; or a domain, whose server makes an address for this session (SASL ANONYMOUS, RFC 4505).
    pub jid: BareJid,
    /// The user's password.
    pub password: Secret,
    /// `host:port`; overrides the DNS records of the JID's domain (RFC 6120, section 3.2.1, and XEP-0368).
    pub server: Option<String>,
    /// How to treat the server's certificate.
    pub trust: ServerTrust,
    /// The silence after which the server is asked for a sign of life; after as much again the connection is lost.
    pub keepalive: Duration,
    /// Where a token for the next login is stored (XEP-0484); without it no token is requested.
    pub fast: Option<Arc<dyn FastStore>>,
    /// The resource to ask for, instead of a random one. It is not requested by Bind 2 (XEP-0386), where the server makes
    /// the name. The server may still assign another one.
    pub resource: Option<String>,
}

impl Login {
    /// Creates a user at the server of its domain, which must have a certificate that the system trusts.
    pub fn new(jid: BareJid, password: impl Into<String>) -> Self {
        Self {
            jid,
            password: Secret::new(password),
            server: None,
            trust: ServerTrust::default(),
            keepalive: SILENCE,
            fast: None,
            resource: None,
        }
    }
}

/// A logged-in connection: the result of [`login`], or one of a program that already speaks XMPP and passes on the IQ
/// stanzas for this endpoint.
#[derive(Debug)]
pub struct Connection {
    /// The address that the server has assigned.
    pub jid: FullJid,
    /// Stanzas to send.
    pub outbound: Outbound,
    /// Received stanzas, with both addresses filled in; ends with the connection.
    pub inbound: mpsc::Receiver<Stanza>,
    /// Ends when everything is written and the stream is closed.
    pub task: tokio::task::JoinHandle<()>,
}

/// Logs in, within 30 seconds.
///
/// # Errors
/// [`Error::Login`], which says what failed.
pub async fn login(login: &Login) -> Result<Connection, Error> {
    let random = resource();
    let name = match &login.resource {
        Some(resource) => Name { tag: None, resource },
        None => Name { tag: Some(&random), resource: &random },
    };
    let Begun { stream, start, .. } = begin(login, name, None, false).await?;
    let Start::Bound { jid, early, .. } = start else {
        return Err(Error::login("the XMPP server resumed a session that was not asked for"));
    };
    let (outbound, mut queue) = mpsc::channel(QUEUE);
    let (sender, inbound) = mpsc::channel(ARRIVED);
    let (own, silence) = (jid.clone(), login.keepalive);
    let task = tokio::spawn(async move {
        let mut state = StreamState::new(own, None);
        let mut driver = Driver::new(stream.reader, stream.writer, &mut state, silence);
        driver.take_early(early);
        let end = driver.run(&mut queue, &sender, &CancellationToken::new()).await;
        tracing::debug!(?end, "the connection to the XMPP server ended");
    });
    Ok(Connection { jid, outbound, inbound, task })
}

/// Why the session with the server could not begin.
#[derive(Debug)]
pub(super) struct LoginFailure {
    pub(super) error: Error,
    /// Whether the server refused, rather than the network failed.
    pub(super) by_server: bool,
    /// Whether another attempt would be useless.
    pub(super) is_final: bool,
    /// Whether the server refused a token; the password may still work.
    pub(super) of_token: bool,
}

impl From<Error> for LoginFailure {
    fn from(error: Error) -> Self {
        Self { error, by_server: false, is_final: false, of_token: false }
    }
}

impl From<LoginFailure> for Error {
    fn from(failure: LoginFailure) -> Self {
        failure.error
    }
}

/// The beginning of a session on a stream.
pub(super) struct Begun<S> {
    pub(super) stream: Stream<S>,
    pub(super) start: Start,
    /// Our own address on the connection, if known.
    pub(super) local: Option<IpAddr>,
}

/// How a session began.
pub(super) enum Start {
    /// It was resumed; the server's `<resumed/>`.
    Resumed(Element),
    /// It is new: the address, its stream management, and the stanzas that came before that.
    Bound { jid: FullJid, management: Option<Management>, early: Vec<Element> },
}

/// Creates a name for a resource.
pub(super) fn resource() -> String {
    format!("xtls-{:08x}", rand::random::<u32>())
}

fn broken(error: impl Into<BoxedError>) -> Error {
    let error = error.into();
    Error::login(Detail::new(format!("the connection to the XMPP server failed: {error}"), error))
}

/// One XML stream with the server, from its header on.
pub(super) struct Stream<S> {
    pub(super) reader: StanzaReader<ReadHalf<S>>,
    pub(super) writer: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Exchanges headers and takes the server's features.
    ///
    /// `from` is our own address; it is sent only inside TLS.
    async fn open(
        io: S,
        domain: &str,
        from: Option<&BareJid>,
    ) -> Result<(Self, Element), LoginFailure> {
        let (read, writer) = split(io);
        let mut stream = Self { reader: StanzaReader::with_rules(read, Rules::CLIENT), writer };
        let from =
            from.map_or(String::new(), |jid| format!(" from='{}'", xml::escaped(jid.as_str())));
        let header = format!(
            "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{}' to='{}'{from} version='1.0'>",
            ns::CLIENT,
            ns::STREAM,
            xml::escaped(domain)
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

    /// Returns the next first-level element, unchecked: an unknown one must not end a login.
    pub(super) async fn next(&mut self) -> Result<Element, LoginFailure> {
        let by_server =
            |error| LoginFailure { by_server: true, ..LoginFailure::from(broken(error)) };
        loop {
            match self.reader.read().await.map_err(broken)? {
                Received::Element(element) if element.is("error", ns::STREAM) => {
                    let (condition, _) = xml::stream_error(&element);
                    return Err(by_server(condition.unwrap_or("stream error")));
                }
                Received::Element(element) => return Ok(element),
                Received::Header(_) | Received::Oversized(_) | Received::Dropped => {}
                Received::Footer => return Err(by_server("the server closed the stream")),
            }
        }
    }

    /// Returns the connection below. Fails if the server has sent anything after the last element, which is too early.
    fn into_io(self) -> Result<S, Error> {
        let Self { reader, writer } = self;
        match reader.into_io() {
            Some(read) => Ok(read.unsplit(writer)),
            None => Err(broken("the server sent more than it may at this point")),
        }
    }
}

/// Logs in and begins a session. Resumes that of `resumed` if possible; otherwise starts one with this name, and with
/// stream management if `managed` is set and the server supports it.
///
/// # Errors
/// [`LoginFailure`], after 30 seconds at the latest.
pub(super) async fn begin(
    login: &Login,
    name: Name<'_>,
    resumed: Option<&Management>,
    managed: bool,
) -> Result<Begun<TlsStream<Watched>>, LoginFailure> {
    let wish = Wish { name, resumed, managed, agent: None, by_token: false, token_for: None };
    let was_narrow = path::loses_large_packets();
    let begun = begin_within(login, wish).await;
    if begun.is_err() && path::loses_large_packets() && !was_narrow {
        // Only large packets get lost on the way.
        return begin_within(login, wish).await;
    }
    begun
}

async fn begin_within(
    login: &Login,
    wish: Wish<'_>,
) -> Result<Begun<TlsStream<Watched>>, LoginFailure> {
    let begun = async {
        let kept = login.fast.as_ref().and_then(|fast| fast.load());
        let (agent, token) = kept.map_or((None, None), |(agent, token)| (Some(agent), token));
        let wish = Wish { agent: agent.as_deref(), ..wish };
        match negotiate(login, &wish, token.as_ref()).await {
            // The server has chosen the mechanism for this stream by now.
            Err(failure) if failure.of_token => negotiate(login, &wish, None).await,
            done => done,
        }
    };
    let late = || Error::login("the XMPP server did not answer in time");
    timeout(LOGIN, begun).await.unwrap_or_else(|_| Err(late().into()))
}

async fn negotiate(
    login: &Login,
    wish: &Wish<'_>,
    token: Option<&FastToken>,
) -> Result<Begun<TlsStream<Watched>>, LoginFailure> {
    let domain = login.jid.domain().as_str().to_owned();
    // The resolver and certificates know a name by its A-labels (RFC 5890).
    let ascii = idna::domain_to_ascii(&domain)
        .map_err(|_| Error::login(format!("{domain} is not a valid domain name")))?;
    let tls = secure(login, &domain, &ascii).await?;
    let (socket, connection) = tls.get_ref();
    let local = socket.local();
    tracing::debug!(version = ?connection.protocol_version(), "TLS with the server established");
    let channel = Channel::of(connection);
    let from = Some(&login.jid).filter(|jid| jid.node().is_some());
    let (mut stream, features) = Stream::open(tls, &domain, from).await?;
    let offer = offer(&features);
    if let Some(inline) = Inline::read(&features) {
        let offer = inline.offer(offer.bindings);
        let success =
            authenticate_at_once(&mut stream, login, (&inline, offer), &channel, wish, token)
                .await?;
        let start = start_at_once(&mut stream, success, wish, !path::loses_large_packets()).await?;
        return Ok(Begun { stream, start, local });
    }
    authenticate(&mut stream, login, offer, &channel).await?;
    let (mut stream, features) = Stream::open(stream.into_io()?, &domain, from).await?;
    let start = start(&mut stream, &features, wish, !path::loses_large_packets()).await?;
    Ok(Begun { stream, start, local })
}

/// Runs SASL2 up to the server's success (XEP-0388).
async fn authenticate_at_once<S>(
    stream: &mut Stream<S>,
    login: &Login,
    (inline, offer): (&Inline, LoginOffer),
    channel: &Channel,
    wish: &Wish<'_>,
    token: Option<&FastToken>,
) -> Result<Success, LoginFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |why: BoxedError| failed(login, why);
    let username = login.jid.node().map(|node| node.as_str());
    // Without an identifier, a token has nothing to belong to.
    let best = wish.agent.and_then(|_| token_mechanism(&inline.fast, channel));
    let by_token = token
        .filter(|token| wish.agent.is_some() && inline.fast.contains(&token.mechanism))
        .and_then(|token| Exchange::by_token(token, channel, username?));
    let is_token = by_token.is_some();
    let mut exchange = match by_token {
        Some(exchange) => exchange,
        None => exchange_of(login, offer, channel)?,
    };
    let token_for = best.filter(|_| !is_token && username.is_some());
    let wish = Wish { by_token: is_token, token_for, ..*wish };
    let mechanism = exchange.mechanism().to_owned();
    tracing::debug!(mechanism, "logging in, in one step");
    let request = sasl2::authenticate(inline, &wish, &mechanism, &exchange.initial());
    stream.send(&request).await?;
    loop {
        let element = stream.next().await?;
        match element.name() {
            "challenge" => {
                let data = decoded(&element.text()).ok_or_else(|| failed(NOT_BASE64.into()))?;
                let response = exchange.respond(&data).map_err(|error| failed(error.into()))?;
                stream.send(&sasl2::response(&response)).await?;
            }
            "success" => {
                let mut success = Success::read(&element);
                let data = decoded(&success.additional).ok_or_else(|| failed(NOT_BASE64.into()))?;
                exchange.finish(&data).map_err(|error| failed(error.into()))?;
                let mechanism = if is_token { Some(mechanism.as_str()) } else { token_for };
                if let (Some(fast), Some(mechanism), Some((token, expiry))) =
                    (&login.fast, mechanism, success.token.take())
                {
                    let mechanism = mechanism.to_owned();
                    fast.store(&FastToken { mechanism, token, expiry });
                }
                return Ok(success);
            }
            "failure" => {
                let failure = refused(login, &element);
                if !is_token {
                    return Err(failure);
                }
                if failure.is_final
                    && let (Some(fast), Some(token)) = (&login.fast, token)
                {
                    fast.forget(token);
                }
                return Err(LoginFailure { of_token: true, ..failure });
            }
            "continue" => {
                return Err(failed(
                    "the server asks for a second step, which xtls does not support".into(),
                ));
            }
            _ => return Err(failed("the server sent an unexpected element".into())),
        }
    }
}

/// Begins a session after SASL2, with the elements that came with the success, and the rest as usual.
async fn start_at_once<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    success: Success,
    wish: &Wish<'_>,
    tries_path: bool,
) -> Result<Start, LoginFailure> {
    if let Some(resumed) = success.resumed.filter(|_| wish.resumed.is_some()) {
        return Ok(Start::Resumed(resumed));
    }
    let Some(jid) = success.bound else {
        let features = stream.next().await?;
        return start(stream, &features, wish, tries_path).await;
    };
    let mut management = success.enabled.as_ref().filter(|_| wish.managed).map(Management::new);
    let mut early = Vec::new();
    if wish.managed && management.is_none() {
        // The features contain it, if the server supports it.
        let features = loop {
            let element = stream.next().await?;
            if element.is("features", ns::STREAM) {
                break element;
            }
            keep(&mut early, element)?;
        };
        if tries_path {
            try_path(stream, &jid, &mut early).await?;
        }
        if features.has_child("sm", ns::SM) {
            management = enable(stream, &mut early).await?;
        }
    }
    Ok(Start::Bound { jid, management, early })
}

/// Connects to the first server of the domain with which TLS can be set up.
async fn secure(
    login: &Login,
    domain: &str,
    ascii: &str,
) -> Result<TlsStream<Watched>, LoginFailure> {
    let targets = match &login.server {
        Some(address) => vec![Target { address: address.clone(), is_direct: false }],
        None => servers(ascii).await?,
    };
    let only = targets.len() == 1;
    let mut failed: Vec<String> = Vec::new();
    let mut distrusted = None;
    for target in targets {
        let attempt = secure_at(login, &target, domain, ascii);
        if only {
            return attempt.await;
        }
        // A server that does not answer must not use up the time of the others.
        match timeout(TARGET, attempt).await {
            Ok(Ok(tls)) => return Ok(tls),
            Ok(Err(failure)) => {
                failed.push(failure.error.to_string());
                if let Error::Certificate { shown, .. } = failure.error {
                    distrusted.get_or_insert(shown);
                }
            }
            Err(_) => failed.push(format!("{} did not answer in time", target.address)),
        }
    }
    let text = failed.join("; ");
    let error = match distrusted {
        Some(shown) => Error::Certificate { why: text.into(), shown },
        None => Error::login(text),
    };
    Err(error.into())
}

async fn secure_at(
    login: &Login,
    target: &Target,
    domain: &str,
    ascii: &str,
) -> Result<TlsStream<Watched>, LoginFailure> {
    let Target { address, is_direct } = target;
    let tcp = dial(address)
        .await
        .map_err(|error| Detail::new(format!("cannot connect to {address}: {error}"), error))
        .map_err(Error::login)?;
    tcp.set_nodelay(true).map_err(broken)?;
    let tcp = Watched::new(tcp);
    let (mut config, check) = tls_config(&login.trust)?;
    let tcp = if *is_direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
        tcp
    } else {
        start_tls(tcp, domain).await?
    };
    // The certificate is for the domain, not for the host in its records (RFC 6120, section 13.7.2).
    let name = ServerName::try_from(ascii.to_owned()).map_err(broken)?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    Ok(connected.map_err(|error| match check.and_then(|check| check.refused()) {
        Some(print) => distrusted(domain, &print, login.trust.certificate.as_ref(), error),
        None => {
            Error::login(Detail::new(format!("TLS with the XMPP server failed: {error}"), error))
        }
    })?)
}

/// Returns the error for a server's certificate that is not trusted.
fn distrusted(domain: &str, shown: &Print, pinned: Option<&Print>, error: std::io::Error) -> Error {
    let why = match pinned {
        Some(pinned) => format!("only that with the SHA-256 fingerprint {pinned} is"),
        None => error.to_string(),
    };
    let text = format!(
        "the certificate of the XMPP server of {domain}, with the SHA-256 fingerprint {shown}, is not trusted: {why}"
    );
    Error::Certificate { why: Detail::new(text, error), shown: shown.clone() }
}

/// Prepares a connection for TLS with STARTTLS (RFC 6120, section 5).
async fn start_tls(tcp: Watched, domain: &str) -> Result<Watched, LoginFailure> {
    let (mut plain, features) = Stream::open(tcp, domain, None).await?;
    if !features.has_child("starttls", ns::STARTTLS) {
        return Err(Error::login("the XMPP server offers no STARTTLS: not logging in").into());
    }
    plain.send(&Element::bare("starttls", ns::STARTTLS)).await?;
    if !plain.next().await?.is("proceed", ns::STARTTLS) {
        return Err(Error::login("the XMPP server refused STARTTLS").into());
    }
    Ok(plain.into_io()?)
}

/// Resumes a session, or binds a resource.
pub(super) async fn start<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    features: &Element,
    wish: &Wish<'_>,
    tries_path: bool,
) -> Result<Start, LoginFailure> {
    let has_management = features.has_child("sm", ns::SM);
    if has_management && let Some(request) = wish.resumed.and_then(Management::resume) {
        stream.send(&request).await?;
        loop {
            let element = stream.next().await?;
            match element.name() {
                "resumed" if element.has_ns(ns::SM) => return Ok(Start::Resumed(element)),
                "failed" if element.has_ns(ns::SM) => break,
                _ => {}
            }
        }
    }
    let mut early = Vec::new();
    let jid = match bind(stream, wish.name.resource, &mut early).await? {
        Some(jid) => jid,
        // The server still has the lost session, and prefers it.
        None => bind(stream, &self::resource(), &mut early)
            .await?
            .ok_or_else(|| Error::login("the XMPP server refused to bind a resource"))?,
    };
    if tries_path {
        // This comes before stanzas are counted.
        try_path(stream, &jid, &mut early).await?;
    }
    let mut management = None;
    if wish.managed && has_management {
        management = enable(stream, &mut early).await?;
    }
    Ok(Start::Bound { jid, management, early })
}

/// Enables stream management; `None` if the server does not.
async fn enable<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    early: &mut Vec<Element>,
) -> Result<Option<Management>, LoginFailure> {
    stream.send(&Management::enable()).await?;
    loop {
        let element = stream.next().await?;
        match element.name() {
            "enabled" if element.has_ns(ns::SM) => return Ok(Some(Management::new(&element))),
            "failed" if element.has_ns(ns::SM) => return Ok(None),
            _ => keep(early, element)?,
        }
    }
}

/// Sends ourselves a stanza that is larger than a packet. So a path that loses large packets shows now, in both
/// directions, and not in the middle of a transfer. If the server does not deliver the stanza, it answers the ping
/// after it.
async fn try_path<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    own: &FullJid,
    early: &mut Vec<Element>,
) -> Result<(), LoginFailure> {
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
        // Some servers let the ping overtake it.
        let next = match until {
            Some(until) => match timeout_at(until, stream.next()).await {
                Ok(next) => next?,
                Err(_) => return Ok(()),
            },
            None => stream.next().await?,
        };
        match IDS.iter().position(|id| next.attr("id") == Some(id)) {
            Some(which) => came[which] = true,
            None => keep(early, next)?,
        }
        if came[1] {
            until.get_or_insert_with(|| Instant::now() + OVERTAKEN);
        }
    }
    Ok(())
}

/// Keeps a stanza for later.
fn keep(early: &mut Vec<Element>, element: Element) -> Result<(), LoginFailure> {
    if early.len() >= EARLY {
        return Err(broken("the server sent more than it may at this point").into());
    }
    early.push(element);
    Ok(())
}

/// Returns the authentication offer in the stream features.
fn offer(features: &Element) -> LoginOffer {
    let texts = |parent: &Element| {
        parent.children().filter(|child| child.is("mechanism", SASL)).map(Element::text).collect()
    };
    let types = |parent: &Element| {
        let types = parent.children().filter(|child| child.is("channel-binding", SASL_CB));
        types.filter_map(|child| child.attr("type")).map(str::to_owned).collect()
    };
    LoginOffer {
        mechanisms: features.get_child("mechanisms", SASL).map(texts).unwrap_or_default(),
        bindings: features.get_child("sasl-channel-binding", SASL_CB).map(types),
    }
}

/// Runs SASL (RFC 6120, section 6.4) up to the server's success.
async fn authenticate<S>(
    stream: &mut Stream<S>,
    login: &Login,
    offer: LoginOffer,
    channel: &Channel,
) -> Result<(), LoginFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |why: BoxedError| failed(login, why);
    let mut exchange = exchange_of(login, offer, channel)?;
    tracing::debug!(mechanism = exchange.mechanism(), "logging in");
    let mut auth = sasl_element("auth", &exchange.initial());
    xml::set(&mut auth, "mechanism", exchange.mechanism());
    stream.send(&auth).await?;
    loop {
        let element = stream.next().await?;
        let data = || decoded(&element.text()).ok_or_else(|| failed(NOT_BASE64.into()));
        match element.name() {
            "challenge" => {
                let response = exchange.respond(&data()?).map_err(|error| failed(error.into()))?;
                stream.send(&sasl_element("response", &response)).await?;
            }
            "success" => return exchange.finish(&data()?).map_err(|error| failed(error.into())),
            "failure" => return Err(refused(login, &element)),
            _ => return Err(failed("the server sent an unexpected element".into())),
        }
    }
}

const NOT_BASE64: &str = "the server's message is not base64";

fn failed(login: &Login, why: impl Into<BoxedError>) -> LoginFailure {
    let why = why.into();
    Error::login(Detail::new(format!("login as {} failed: {why}", login.jid), why)).into()
}

/// Returns the authentication of a user by password, or of nobody.
fn exchange_of(
    login: &Login,
    offer: LoginOffer,
    channel: &Channel,
) -> Result<Exchange, LoginFailure> {
    let exchange = match login.jid.node() {
        None => Exchange::anonymous(&offer),
        Some(username) => {
            let nonce: [u8; 18] = rand::random();
            Exchange::new(offer, channel, username.as_str(), login.password.clone(), &nonce)
        }
    };
    exchange.map_err(|error| failed(login, error))
}

/// Returns the bytes of a message; `None` if it is not base64.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let text: String = text.split_ascii_whitespace().collect();
    // A single equals sign stands for zero bytes (RFC 6120, section 6.4.2).
    let text = if text == "=" { String::new() } else { text };
    BASE64.decode(text).ok()
}

/// Translates a `<failure/>` (RFC 6120, section 6.5; XEP-0388, section 2.6.5).
fn refused(login: &Login, element: &Element) -> LoginFailure {
    let is_text = |child: &&Element| child.name() == "text";
    let condition = element.children().find(|child| !is_text(child));
    let condition = condition.map_or("the server refused it", Element::name);
    let text: String = element.children().find(is_text).map(Element::text).unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    let text = if text.is_empty() { text } else { format!(" ({text})") };
    let is_final = FINAL.contains(&condition);
    LoginFailure { by_server: true, is_final, ..failed(login, format!("{condition}{text}")) }
}

fn sasl_element(name: &str, data: &[u8]) -> Element {
    let mut element = Element::bare(name, SASL);
    element.append_text(BASE64.encode(data));
    element
}

/// Binds a resource; `None` if the server has another session there and does not give it up.
async fn bind<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    name: &str,
    early: &mut Vec<Element>,
) -> Result<Option<FullJid>, LoginFailure> {
    const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
    let id = random_id();
    let mut iq = xml::element("iq", ns::CLIENT, &[("type", "set"), ("id", &id)]);
    let mut bind = Element::bare("bind", BIND);
    let mut resource = Element::bare("resource", BIND);
    resource.append_text(name);
    bind.append_child(resource);
    iq.append_child(bind);
    stream.send(&iq).await?;
    loop {
        let element = stream.next().await?;
        if element.name() != "iq" || element.attr("id") != Some(id.as_str()) {
            keep(early, element)?;
            continue;
        }
        if let Some(error) = element.get_child("error", ns::CLIENT) {
            if Condition::of(error) == Some(Condition::Conflict) {
                return Ok(None);
            }
            let refused =
                format!("the XMPP server refused to bind a resource: {}", condition(error));
            return Err(LoginFailure { by_server: true, ..Error::login(refused).into() });
        }
        let jid = element
            .get_child("bind", BIND)
            .and_then(|bind| bind.get_child("jid", BIND))
            .and_then(|jid| FullJid::new(&jid.text()).ok());
        let unread = || Error::login("the XMPP server did not say which resource it has bound");
        return Ok(Some(jid.ok_or_else(unread)?));
    }
}

/// Returns the configuration of TLS, with the check of the server's certificate if there is one.
fn tls_config(trust: &ServerTrust) -> Result<(ClientConfig, Option<Arc<ServerCheck>>), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(broken)?;
    let mut check = None;
    let verifier: Arc<dyn ServerCertVerifier> = if trust.insecure {
        Arc::new(AnyServer(provider))
    } else {
        let authorities: Arc<dyn ServerCertVerifier> = match (&trust.ca_file, &trust.certificate) {
            // Only signatures are left to check.
            (_, Some(_)) => Arc::new(AnyServer(provider)),
            (Some(file), None) => Arc::new(
                NamedServers::new(read_certificates(file)?, provider)
                    .map_err(|error| unusable(file, error))?,
            ),
            (None, None) => system_authorities(provider)?,
        };
        let checked = Arc::new(ServerCheck::new(authorities, trust.certificate.clone()));
        check = Some(Arc::clone(&checked));
        checked
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok((builder.with_no_client_auth(), check))
}

/// Returns the check by the authorities that this machine trusts.
fn system_authorities(provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        return Err(Error::login("this machine has no certificates of authorities"));
    }
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(built.map_err(broken)?)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates = certificates.map_err(|error| unusable(file, error))?;
    if certificates.is_empty() {
        return Err(unusable(file, "no PEM certificate is in it"));
    }
    Ok(certificates)
}

/// Returns the error of a file of certificates.
fn unusable(file: &Path, error: impl Into<BoxedError>) -> Error {
    let error = error.into();
    Error::login(Detail::new(format!("{}: {error}", file.display()), error))
}

/// Accepts any server's certificate: with `--insecure-tls`, or below the check of a pinned one.
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

mod check;
mod named;
#[cfg(test)]
mod tests;
