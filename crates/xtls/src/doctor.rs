//! The command `doctor`: checks everything between this user and a sent file, with a cure for each fault.

use std::{
    io,
    time::{Duration, Instant},
};

use fingerpost_endpoint::{Endpoint, Error, RequestKind};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{dst_addr::DstAddr, ns, print::Method, xml};
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    account::Account,
    args::Common,
    discover, files,
    output::{Output, XtlsError},
    registry::{self, OwnKey},
};

/// How long a proxy may take to answer.
const PROXY: Duration = Duration::from_secs(10);
/// The most addresses of a proxy that are tried.
const HOSTS: usize = 8;
/// How long, and how many bytes at most, the measurement of the speed takes.
const MEASURE: (Duration, u64) = (Duration::from_secs(3), 32 << 20);
/// Bytes written at once.
const CHUNK: usize = 64 * 1024;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Failed,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// The results so far.
#[derive(Debug)]
struct Report {
    output: Output,
    failed: bool,
}

impl Report {
    fn add(&mut self, check: &str, state: State, text: &str, cure: Option<&str>) {
        self.failed |= state == State::Failed;
        let state = state.as_str();
        let hint = cure.map(|cure| format!("\n{:9}cure: {cure}", "")).unwrap_or_default();
        self.output.data(
            &json!({"check": check, "state": state, "text": text, "cure": cure}),
            &format!("{state:8} {check}: {text}{hint}"),
        );
    }

    fn ok(&mut self, check: &str, text: &str) {
        self.add(check, State::Ok, text, None);
    }

    fn failed(&mut self, check: &str, error: &XtlsError) {
        self.add(check, State::Failed, &error.text, error.hint.as_deref());
    }

    /// Returns the result of all checks.
    ///
    /// # Errors
    /// Exit status 1, without another message, if a check has failed.
    fn finish(self) -> Result<(), XtlsError> {
        if self.failed { Err(XtlsError::silent()) } else { Ok(()) }
    }
}

/// Runs all checks that make sense after those before them.
pub(super) async fn doctor(common: &Common, output: Output) -> Result<(), XtlsError> {
    let mut report = Report { output, failed: false };
    let account = match Account::load(common.account.as_ref()) {
        Ok(account) => account,
        Err(error) => {
            report.failed("account", &error.hint("run `xtls setup JID`"));
            return report.finish();
        }
    };
    report.ok("account", account.jid.as_str());
    let own = match own_key(common, &account) {
        Ok(own) => {
            if let Some(own) = &own {
                report.ok("key", &own.print().to_string());
            }
            own
        }
        Err(error) => {
            let hint = error.hint.clone().unwrap_or_else(|| "run `xtls setup JID`".to_owned());
            report.failed("key", &error.hint(hint));
            None
        }
    };
    let Some(endpoint) = server(&mut report, common, &account).await? else {
        return report.finish();
    };
    if let Some(component) = component(&mut report, common, &account, &endpoint).await {
        if let Some(own) = &own {
            registration(&mut report, &endpoint, &component, own).await;
        }
        if let Some(host) = proxy(&mut report, &endpoint, &component).await {
            speed(&mut report, &endpoint, &component, &host).await;
        }
    }
    endpoint.close().await;
    report.finish()
}

/// Returns the user's key for the method; `None` if the method has none.
fn own_key(common: &Common, account: &Account) -> Result<Option<OwnKey>, XtlsError> {
    match common.method {
        Method::Srp => Ok(None),
        method => OwnKey::load(method, account).map(Some),
    }
}

/// Logs in; `None` if that fails.
async fn server(
    report: &mut Report,
    common: &Common,
    account: &Account,
) -> Result<Option<Endpoint>, XtlsError> {
    let login = account.login(common)?;
    let since = Instant::now();
    match fingerpost_endpoint::login(&login).await {
        Ok(connection) => {
            let seconds = since.elapsed().as_secs_f64();
            report.ok("server", &format!("logged in as {} in {seconds:.1} s", connection.jid));
            if login.trust.insecure {
                let text = "not checked, because of --insecure-tls";
                let cure = "use --ca-file or `xtls login JID --trust-certificate SHA256`";
                report.add("certificate", State::Warning, text, Some(cure));
            } else {
                let by = match (&login.trust.certificate, &login.trust.ca_file) {
                    (Some(_), _) => "it is the pinned one".to_owned(),
                    (None, Some(file)) => format!("trusted by {}", files::shown_path(file)),
                    (None, None) => "trusted by this machine's authorities".to_owned(),
                };
                report.ok("certificate", &by);
            }
            // No session is set up here, so any identity will do.
            let mut builder = Endpoint::builder(Identity::generate(&account.jid)?);
            if let Some(component) = common.via.as_ref().or(account.via.as_ref()) {
                builder = builder.component(component.clone());
            }
            Ok(Some(builder.over(connection).0))
        }
        Err(error) => {
            let check =
                if matches!(error, Error::Certificate { .. }) { "certificate" } else { "server" };
            report.failed(check, &error.into());
            Ok(None)
        }
    }
}

/// Returns the component, if it answers.
async fn component(
    report: &mut Report,
    common: &Common,
    account: &Account,
    endpoint: &Endpoint,
) -> Option<BareJid> {
    let Some(component) = common.via.as_ref().or(account.via.as_ref()).cloned() else {
        let found = discover::components(endpoint).await;
        let (text, cure) = if found.is_empty() {
            (
                "your XMPP server lists none".to_owned(),
                "name it at `xtls login JID --via COMPONENT`",
            )
        } else {
            let names = discover::names(&found);
            (format!("none is stored; your XMPP server lists {names}"), "run `xtls setup JID`")
        };
        report.add("component", State::Failed, &text, Some(cure));
        return None;
    };
    let since = Instant::now();
    match endpoint.check_component().await {
        Ok(()) => {
            let millis = since.elapsed().as_millis();
            report.ok("component", &format!("{component} answers within {millis} ms"));
            Some(component)
        }
        Err(error) => {
            report.failed("component", &error.into());
            None
        }
    }
}

/// Checks the user's key in the registry.
async fn registration(report: &mut Report, endpoint: &Endpoint, component: &BareJid, own: &OwnKey) {
    let register = "run `xtls setup JID`, or `xtls register` and `xtls prove`";
    let replace = "make another key: docs/XTLS.md, \"Replace or revoke a key\"";
    let found = match registry::registered(endpoint, component, own).await {
        Ok(found) => found,
        Err(error) => return report.failed("registration", &error),
    };
    let (state, text, cure) = match &found {
        None => (State::Failed, "the key is not registered".to_owned(), Some(register)),
        Some(key) if key.attr("state") == Some("revoked") => {
            (State::Failed, "the key is revoked".to_owned(), Some(replace))
        }
        Some(key) if key.attr("expired") == Some("true") => {
            (State::Failed, "the key has expired".to_owned(), Some(replace))
        }
        Some(key) if key.attr("state") != Some("active") => {
            (State::Failed, "the key was replaced by another one".to_owned(), Some(replace))
        }
        Some(key) if key.attr("assurance") == Some("asserted") => (
            State::Warning,
            "the key is registered, but not proven".to_owned(),
            Some("run `xtls prove`"),
        ),
        Some(key) => {
            let assurance = key.attr("assurance").unwrap_or_default();
            (State::Ok, format!("the key is registered, and {assurance}"), None)
        }
    };
    report.add("registration", state, &text, cure);
}

/// Returns the first address of the component's proxy that answers.
async fn proxy(
    report: &mut Report,
    endpoint: &Endpoint,
    component: &BareJid,
) -> Option<(String, u16)> {
    let in_band = "ask the component's operator; until then files travel in-band, which is slow";
    let query = Element::bare("query", ns::BYTESTREAMS);
    let asked = endpoint.request(RequestKind::Get, &Jid::from(component.clone()), query).await;
    let hosts: Vec<(String, u16)> = match &asked {
        Ok(answer) => answer
            .iter()
            .flat_map(Element::children)
            .filter(|child| child.is("streamhost", ns::BYTESTREAMS))
            .filter_map(|host| {
                Some((host.attr("host")?.to_owned(), host.attr("port")?.parse().ok()?))
            })
            .take(HOSTS)
            .collect(),
        Err(error) => {
            report.add("proxy", State::Warning, &error.to_string(), Some(in_band));
            return None;
        }
    };
    let mut tried = Vec::new();
    for (host, port) in hosts {
        match timeout(PROXY, greet(&host, port)).await.unwrap_or_else(|_| Err(late())) {
            Ok(_) => {
                report.ok("proxy", &format!("{host}:{port} answers"));
                return Some((host, port));
            }
            Err(error) => tried.push(format!("{host}:{port}: {error}")),
        }
    }
    let text = match tried.as_slice() {
        [] => "the component has no SOCKS5 proxy".to_owned(),
        tried => format!("cannot be reached: {}", tried.join("; ")),
    };
    report.add("proxy", State::Warning, &text, Some(in_band));
    None
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Connects to a proxy, up to its answer to the greeting (RFC 1928, section 3).
async fn greet(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    if answer == [5, 0] { Ok(stream) } else { Err(io::Error::other("it is not a SOCKS5 proxy")) }
}

/// Connects a side of a bytestream (XEP-0065, section 5.3.2).
async fn join((host, port): &(String, u16), hash: &str) -> io::Result<TcpStream> {
    let mut stream = greet(host, *port).await?;
    let mut request = vec![5, 1, 0, 3, u8::try_from(hash.len()).unwrap_or(u8::MAX)];
    request.extend_from_slice(hash.as_bytes());
    request.extend_from_slice(&[0, 0]);
    stream.write_all(&request).await?;
    let mut answer = vec![0; request.len()];
    stream.read_exact(&mut answer).await?;
    match answer[1] {
        0 => Ok(stream),
        code => Err(io::Error::other(format!("the proxy refused with the code {code}"))),
    }
}

/// Sends bytes to ourselves through the proxy.
async fn speed(
    report: &mut Report,
    endpoint: &Endpoint,
    component: &BareJid,
    host: &(String, u16),
) {
    let sid = format!("doctor-{:016x}", rand::random::<u64>());
    let own = endpoint.jid();
    let hash = DstAddr::compute(&sid, &own, &own).to_string();
    let measured = timeout(2 * PROXY, async {
        let (mut from, mut to) = (join(host, &hash).await?, join(host, &hash).await?);
        let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", &sid)]);
        let mut activate = Element::bare("activate", ns::BYTESTREAMS);
        activate.append_text(own.as_str());
        query.append_child(activate);
        let component = Jid::from(component.clone());
        endpoint.request(RequestKind::Set, &component, query).await.map_err(io::Error::other)?;
        let since = Instant::now();
        let sending = async {
            let chunk = vec![0; CHUNK];
            let mut sent = 0;
            while sent < MEASURE.1 && since.elapsed() < MEASURE.0 {
                from.write_all(&chunk).await?;
                sent += chunk.len() as u64;
            }
            from.shutdown().await
        };
        let receiving = async {
            let mut buffer = vec![0; CHUNK];
            let mut received = 0;
            loop {
                match to.read(&mut buffer).await? {
                    0 => return Ok::<u64, io::Error>(received),
                    n => received += n as u64,
                }
            }
        };
        let ((), received) = tokio::try_join!(sending, receiving)?;
        Ok::<_, io::Error>((received, since.elapsed().as_secs_f64()))
    });
    match measured.await.unwrap_or_else(|_| Err(late())) {
        Ok((bytes, seconds)) => {
            report.ok("speed", &format!("{} to the proxy and back", files::speed(bytes, seconds)));
        }
        Err(error) => {
            let text = format!("nothing came through the proxy: {error}");
            report.add("speed", State::Failed, &text, Some("ask the component's operator"));
        }
    }
}
