//! `fingerpost check --online`: logs in to the XMPP server as the component would, looks around as its users would, and
//! reports each fault with its cure.

use std::{
    collections::HashSet,
    io::{self, Write},
    time::Duration,
};

use fingerpost_wire::{
    ns, size,
    stanza::{Kind, RequestKind, Stanza, StanzaType},
    text::sentence,
    xml::{self, Received},
};
use jid::{BareJid, Jid};
use minidom::Element;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};

use super::{CommandFailure, SECRET_REFUSED, reach};
use crate::{
    config::Config,
    link::{
        self, Halves, LinkOptions, Unlinked,
        echo::{Echo, EchoOf, Route},
    },
    registry::store::{Store, records::Instance},
};

/// How long the server may take for a connection with its login, and for each answer.
const WAIT: Duration = Duration::from_secs(10);
/// How long a server may take to deliver the longest stanza; it may be slow.
const LONGEST: Duration = Duration::from_secs(15);
/// How often the longest stanza is sent if it does not come back.
const TRIES: usize = 3;
/// The end of the longest stanza, in bytes.
const TAIL: usize = 16;
/// The length and the number of the stanzas by which the server's pace is measured, and the longest time for them.
const PACE_STANZA: usize = 8 << 10;
const PACE_STANZAS: usize = 32;
const PACE_TIME: Duration = Duration::from_secs(5);
/// The bytes per second below which the server's pace is a fault: a few in-band streams would need more.
const SLOW: u64 = 500_000;
/// The precision of the measured limit of a server, in bytes.
const EXACTLY: usize = 1_000;
/// How long a server may take to listen, and the time between two tries.
const PATIENCE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(250);
/// The most services of the parent domain that are queried.
const SERVICES: usize = 20;

/// Logs in, looks, and reports each good thing as a line of `out`. `store` is the database if
/// several instances may share it.
///
/// # Errors
/// The first fault that prevents the service from working. A lesser fault is a line `warning: …`.
pub(crate) async fn run(
    config: &Config,
    store: Option<&Store>,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let component = &config.component;
    let options = LinkOptions {
        servers: component.server.clone(),
        jid: component.jid.clone(),
        secret: component.secret.clone(),
        max_stanza_bytes: component.max_stanza_bytes,
    };
    let (options, halves) = servers(config, options, out).await?;
    let mut asking = Asking { halves, jid: component.jid.clone(), number: 0 };
    if asking.is_alone().await? {
        writeln!(out, "stanzas for {} come back through the server", component.jid)?;
    } else {
        writeln!(
            out,
            "warning: the server gives stanzas for {} to another connection too: if fingerpost is running, that is the \
             reason and all is well; otherwise stop the other component, and give each component of ejabberd its own \
             listener",
            component.jid
        )?;
    }
    if let Some(store) = store {
        instances(config, store, out).await?;
    }
    let domain = component.jid.domain().as_str();
    if let Some((_, parent)) = domain.split_once('.').filter(|(_, parent)| parent.contains('.')) {
        services(&mut asking, config, parent, out).await?;
    }
    reach::look(config, out).await?;
    let probing = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mtu_probing").ok();
    path_mtu(config, probing.as_deref(), out)?;
    pace(&mut asking, out).await?;
    sizes(asking, &options, out).await?;
    Ok(())
}

/// Reports a server that limits how fast the component may send: all in-band streams share that.
async fn pace(asking: &mut Asking, out: &mut impl Write) -> io::Result<()> {
    if let Some(rate) = rate(PACE_STANZA, &asking.arrivals().await).filter(|rate| *rate < SLOW) {
        writeln!(
            out,
            "warning: the XMPP server takes about {} kB/s from this component, and all in-band streams share that: is the \
             network between slow, or does the server limit its components?",
            rate / 1000
        )?;
    }
    Ok(())
}

/// Returns the bytes per second of stanzas of one length that arrived at these times; `None` if fewer than two did.
fn rate(size: usize, arrivals: &[Instant]) -> Option<u64> {
    let [first, .., last] = arrivals else { return None };
    let micros = last.saturating_duration_since(*first).as_micros().max(1);
    u64::try_from((arrivals.len() - 1) as u128 * size as u128 * 1_000_000 / micros).ok()
}

/// Reports how many instances serve the component, according to the shared database, and their faults.
async fn instances(
    config: &Config,
    store: &Store,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let found = store.instances(&config.component.jid).await;
    let found = found.map_err(|error| CommandFailure::new(format!("the database: {error}")))?;
    let alive: Vec<_> = found.iter().filter(|instance| instance.is_alive()).collect();
    if alive.len() > 1 {
        writeln!(out, "{} instances of this component share the database", alive.len())?;
    }
    for (number, instance) in alive.iter().enumerate() {
        let same = |other: &&&Instance| other.advertise == instance.advertise;
        if !instance.advertise.is_empty() && alive[..number].iter().any(|other| same(&other)) {
            writeln!(
                out,
                "warning: two instances advertise {}, so SOCKS5 streams reach the wrong one: give each an address of its \
                 own in [socks5] advertise",
                instance.advertise
            )?;
        }
        if !instance.linked {
            writeln!(
                out,
                "warning: the instance that advertises {} has no link to its XMPP server",
                instance.advertise
            )?;
        }
    }
    Ok(())
}

/// Logs in to each server, because any of them may be the only one left. Returns the first that accepted the secret.
///
/// # Errors
/// The first one's failure, if none did.
async fn servers(
    config: &Config,
    options: LinkOptions,
    out: &mut impl Write,
) -> Result<(LinkOptions, Halves), CommandFailure> {
    let mut first = None;
    let mut failures = Vec::new();
    for server in &options.servers {
        let options = LinkOptions { servers: vec![server.clone()], ..options.clone() };
        let failure = match timeout(WAIT, handshake(&options)).await {
            Ok(Ok(halves)) => {
                writeln!(out, "the XMPP server at {server} accepted the secret")?;
                if first.is_none() {
                    first = Some((options, halves));
                } else {
                    Asking { halves, jid: options.jid, number: 0 }.close().await;
                }
                continue;
            }
            Ok(Err(error)) => explain(config, server, &error),
            Err(_) => {
                CommandFailure::new(format!("no answer from {server} in {} s", WAIT.as_secs()))
                    .with_hint("is that the server's component port, and not the one of clients?")
            }
        };
        failures.push(failure);
    }
    if first.is_some() {
        for failure in &failures {
            let hint = failure.hint.as_deref().unwrap_or_default();
            writeln!(out, "warning: {} ({hint})", sentence(&failure.text))?;
        }
    }
    let failure =
        || failures.into_iter().next().unwrap_or_else(|| CommandFailure::new("no server is set"));
    first.ok_or_else(failure)
}

/// Logs in; gives a server that is restarting a moment to listen.
async fn handshake(options: &LinkOptions) -> Result<Halves, Unlinked> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match link::visit(options, 0).await {
            Err(Unlinked::Io(error))
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && Instant::now() < patience =>
            {
                sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

/// Returns why there is no link, and the cure.
fn explain(config: &Config, server: &str, error: &Unlinked) -> CommandFailure {
    let jid = &config.component.jid;
    let attach = "`fingerpost attach prosody` (or ejabberd) prints the lines for the server; restart it after that";
    match error {
        Unlinked::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            CommandFailure::new(format!("nothing listens at {server}")).with_hint(format!(
                "is the server running, and does it have a component port there? {attach}"
            ))
        }
        Unlinked::Io(error) => CommandFailure::new(format!("no connection to {server}: {error}"))
            .with_hint("check [component] server: host:port of the server's component port"),
        Unlinked::Stream { condition, text } if condition == "not-authorized" => {
            CommandFailure::new(link::refused(jid, text))
                .with_code(SECRET_REFUSED)
                .with_hint(format!("{}; {attach}", link::refused_cure(jid, text)))
        }
        Unlinked::Stream { condition, .. } if condition == "host-unknown" => {
            CommandFailure::new(format!("the XMPP server knows of no component {jid}")).with_hint(attach)
        }
        Unlinked::Stream { condition, .. } if condition == "conflict" => CommandFailure::new(format!(
            "{jid} is connected already"
        ))
        .with_hint("is fingerpost running? Then all is well; otherwise stop the program that uses its address"),
        Unlinked::Closed | Unlinked::Eof { .. } => CommandFailure::new(format!(
            "{server} closed the connection"
        ))
        .with_hint(format!("is that the component port, and does the server know {jid}? {attach}")),
        other => CommandFailure::new(format!("no component link to {server}: {other}")),
    }
}

/// Checks that clients of the parent domain find the component, and whether they find another proxy too.
async fn services(
    asking: &mut Asking,
    config: &Config,
    parent: &str,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let jid = &config.component.jid;
    let Ok(host) = Jid::new(parent) else { return Ok(()) };
    let Some(items) = asking.ask(&host, Element::bare("query", ns::DISCO_ITEMS)).await? else {
        writeln!(
            out,
            "warning: {parent} does not list its services: is it a host of this server?"
        )?;
        return Ok(());
    };
    let services: Vec<Jid> = items
        .children()
        .filter(|item| item.is("item", ns::DISCO_ITEMS) && item.attr("node").is_none())
        .filter_map(|item| item.attr("jid").and_then(|jid| Jid::new(jid).ok()))
        .collect();
    if services.iter().any(|service| service.as_str() == jid.as_str()) {
        writeln!(out, "clients of {parent} find {jid} among its services")?;
    } else {
        writeln!(
            out,
            "warning: {jid} is not among the services of {parent}, so clients will not find the proxy; Prosody: \
             disco_items = {{ {{ \"{jid}\" }} }} for that host; ejabberd: extra_domains of mod_disco"
        )?;
    }
    if config.socks5.listen.is_empty() {
        return Ok(());
    }
    for service in services.iter().filter(|service| service.as_str() != jid.as_str()).take(SERVICES)
    {
        let about = asking.ask(service, Element::bare("query", ns::DISCO_INFO)).await?;
        let is_proxy = about.is_some_and(|about| {
            about.children().any(|identity| {
                identity.is("identity", ns::DISCO_INFO)
                    && identity.attr("category") == Some("proxy")
                    && identity.attr("type") == Some("bytestreams")
            })
        });
        if is_proxy {
            writeln!(
                out,
                "warning: {service} is a SOCKS5 proxy too, and clients take the one or the other; switch off the \
                 server's own (proxy65 in Prosody, mod_proxy65 in ejabberd)"
            )?;
        }
    }
    Ok(())
}

/// Checks that the kernel finds out by itself when a path takes smaller packets than its ends.
fn path_mtu(config: &Config, probing: Option<&str>, out: &mut impl Write) -> io::Result<()> {
    if config.socks5.listen.is_empty() || config.socks5.max_segment > 0 {
        return Ok(());
    }
    if probing.is_some_and(|probing| probing.trim() == "0") {
        writeln!(
            out,
            "note: net.ipv4.tcp_mtu_probing is 0: users behind a link that takes smaller packets, and whose routers do not say so, lose their streams; set it to 1 on this machine and on the XMPP server's"
        )?;
    }
    Ok(())
}

/// Checks that the server accepts stanzas of the configured length; if not, measures its limit.
async fn sizes(
    mut asking: Asking,
    options: &LinkOptions,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let max = options.max_stanza_bytes;
    let mut passed = None;
    // A server with two links of one address may deliver a stanza to either.
    for _ in 0..TRIES {
        passed = asking.passes(max).await;
        if passed.is_some() {
            break;
        }
    }
    match passed {
        Some(true) => {
            writeln!(out, "the XMPP server accepts stanzas of {max} bytes")?;
            asking.close().await;
        }
        None => {
            writeln!(
                out,
                "warning: a stanza of {max} bytes (component.max_stanza_bytes) did not come back from the XMPP server in \
                 {} s; is fingerpost running, or does the server limit how fast a component may send?",
                LONGEST.as_secs()
            )?;
            asking.close().await;
        }
        Some(false) => {
            let accepted = measure(options, max).await;
            writeln!(
                out,
                "warning: the XMPP server ends the link at a stanza of {max} bytes; it accepts {accepted}: set \
                 component.max_stanza_bytes = {accepted}, or raise the server's limit; Prosody: \
                 component_stanza_size_limit; ejabberd: max_stanza_size of the component's listener"
            )?;
        }
    }
    Ok(())
}

/// Returns the longest stanza that the server accepts, measured with links of their own: each longer one ends a link.
async fn measure(options: &LinkOptions, too_long: usize) -> usize {
    let (mut accepted, mut too_long) = (size::LEAST, too_long);
    let mut link: Option<Asking> = None;
    while too_long - accepted > EXACTLY {
        let mut asking = match link.take() {
            Some(asking) => asking,
            None => match timeout(WAIT, again(options)).await {
                Ok(Some(asking)) => asking,
                _ => break,
            },
        };
        let middle = accepted.midpoint(too_long);
        match asking.passes(middle).await {
            Some(true) => {
                accepted = middle;
                link = Some(asking);
            }
            Some(false) => too_long = middle,
            None => break,
        }
    }
    if let Some(asking) = link {
        asking.close().await;
    }
    accepted - accepted % EXACTLY
}

/// Logs in again as soon as the server has noticed that the last link is gone.
async fn again(options: &LinkOptions) -> Option<Asking> {
    loop {
        match link::visit(options, 0).await {
            Ok(halves) => return Some(Asking { halves, jid: options.jid.clone(), number: 0 }),
            Err(Unlinked::Stream { condition, .. }) if condition == "conflict" => {
                sleep(RETRY).await;
            }
            Err(_) => return None,
        }
    }
}

/// A link for a few requests.
struct Asking {
    halves: Halves,
    jid: BareJid,
    number: u32,
}

impl Asking {
    /// Returns the payload of the answer; `None` for an error or silence.
    async fn ask(&mut self, to: &Jid, payload: Element) -> Result<Option<Element>, CommandFailure> {
        self.number += 1;
        let id = format!("check-{}", self.number);
        let iq = RequestKind::Get.iq(self.jid.as_str(), to.as_str(), &id, payload);
        let (reader, writer) = &mut self.halves;
        let mut bytes = Vec::new();
        xml::write(&iq, &mut bytes)?;
        writer.write_all(&bytes).await?;
        let answer = async {
            loop {
                match reader.read().await? {
                    Received::Element(element) => {
                        if let Ok(stanza) = Stanza::parse(element)
                            && stanza.kind == Kind::Iq
                            && stanza.id == id
                            && stanza.from == *to
                        {
                            let answered = stanza.type_ == StanzaType::Result;
                            return Ok(answered.then(|| stanza.payload().cloned()).flatten());
                        }
                    }
                    Received::Footer => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    Received::Header(_) | Received::Oversized(_) | Received::Dropped => {}
                }
            }
        };
        match timeout(WAIT, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Ok(None),
        }
    }

    /// Returns a stanza of so many bytes to ourselves, and its id: a result that nothing waits for. Any other program
    /// that gets it drops it.
    fn padded(&mut self, size: usize) -> Option<(String, Vec<u8>)> {
        self.number += 1;
        let id = format!("check-size-{}", self.number);
        let address = self.jid.as_str();
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", "result"), ("from", address), ("to", address), ("id", &id)],
        );
        let mut padding = Element::bare("padding", ns::KEYS);
        padding.append_text("a");
        iq.append_child(padding);
        let least = size::of(&iq).ok()?;
        if let Some(padding) = iq.get_child_mut("padding", ns::KEYS) {
            padding.append_text("a".repeat(size.saturating_sub(least)));
        }
        let mut bytes = Vec::new();
        xml::write(&iq, &mut bytes).ok()?;
        Some((id, bytes))
    }

    /// Sends many stanzas to ourselves at once. Returns when those arrived that came back in time.
    async fn arrivals(&mut self) -> Vec<Instant> {
        let (mut ids, mut bytes) = (HashSet::new(), Vec::new());
        for _ in 0..PACE_STANZAS {
            let Some((id, stanza)) = self.padded(PACE_STANZA) else { continue };
            ids.insert(id);
            bytes.extend(stanza);
        }
        let mut arrivals = Vec::new();
        let (reader, writer) = &mut self.halves;
        let exchange = async {
            let come_back = async {
                while !ids.is_empty() {
                    match reader.read().await {
                        Ok(Received::Element(element) | Received::Oversized(element)) => {
                            if element.attr("id").is_some_and(|id| ids.remove(id)) {
                                arrivals.push(Instant::now());
                            }
                        }
                        Ok(Received::Header(_) | Received::Dropped) => {}
                        Ok(Received::Footer) | Err(_) => return,
                    }
                }
            };
            // A failure shows in what comes back.
            let _ = tokio::join!(writer.write_all(&bytes), come_back);
        };
        // What has arrived by then is enough.
        let _ = timeout(PACE_TIME, exchange).await;
        arrivals
    }

    /// Returns whether the server delivers a stanza of so many bytes to ourselves; `None` if it does not come back in
    /// time.
    async fn passes(&mut self, size: usize) -> Option<bool> {
        let (id, bytes) = self.padded(size)?;
        let (reader, writer) = &mut self.halves;
        let exchange = async {
            // The server may end the stream before it has read the whole stanza. Prosody counts only the bytes before
            // the end of a stanza, so the end comes on its own.
            let (head, tail) = bytes.split_at(bytes.len() - TAIL);
            let mut sent = writer.write_all(head).await;
            if sent.is_ok() {
                sleep(RETRY).await;
                sent = writer.write_all(tail).await;
            }
            loop {
                match reader.read().await {
                    Ok(Received::Element(element) | Received::Oversized(element)) => {
                        if element.attr("id") == Some(&id) {
                            return true;
                        }
                        if element.is("error", ns::STREAM) {
                            return false;
                        }
                    }
                    Ok(Received::Header(_) | Received::Dropped) => {}
                    Ok(Received::Footer) | Err(_) => return false,
                }
                if sent.is_err() {
                    return false;
                }
            }
        };
        timeout(LONGEST, exchange).await.ok()
    }

    /// Returns whether every stanza to ourselves comes back to this connection, once.
    async fn is_alone(&mut self) -> Result<bool, CommandFailure> {
        let mut echo = Echo::new(rand::random(), None, Instant::now());
        let (reader, writer) = &mut self.halves;
        let mut bytes = Vec::new();
        for id in echo.due(Instant::now()) {
            xml::write(&link::ping(&self.jid, &id), &mut bytes)?;
        }
        writer.write_all(&bytes).await?;
        let own = self.jid.as_str();
        let all_back = async {
            while echo.is_waiting() {
                match reader.read().await? {
                    Received::Element(element) if element.attr("from") == Some(own) => {
                        let id = element.attr("id").unwrap_or_default();
                        if echo.came(id, Instant::now()) == EchoOf::Foreign {
                            echo.is_shared(Instant::now());
                        }
                    }
                    Received::Footer => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    _ => {}
                }
            }
            Ok(())
        };
        match timeout(PATIENCE, all_back).await {
            Ok(done) => done?,
            Err(_) => return Ok(false),
        }
        Ok(echo.route(Instant::now()) == Route::Good)
    }

    async fn close(mut self) {
        let _ = self.halves.1.write_all(b"</stream:stream>").await;
        let _ = self.halves.1.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_counts_from_the_first_arrival() {
        let start = Instant::now();
        let at = |millis: &[u64]| {
            millis.iter().map(|n| start + Duration::from_millis(*n)).collect::<Vec<_>>()
        };
        assert_eq!(rate(8_000, &at(&[900, 980, 1060])), Some(100_000));
        assert_eq!(rate(8_000, &at(&[1, 1])), Some(8_000_000_000));
        assert_eq!((rate(8_000, &at(&[1])), rate(8_000, &[])), (None, None));
    }

    #[test]
    fn a_kernel_that_does_not_probe_the_path_is_told_of() {
        let told = |socks5: &str, probing| {
            let text =
                format!("[component]\njid = 'x.example.org'\nsecret = 's'\n[socks5]\n{socks5}\n");
            let (config, _) = Config::parse("t.toml", &text, []).unwrap();
            let mut out = Vec::new();
            path_mtu(&config, probing, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(told("", Some("0\n")).contains("net.ipv4.tcp_mtu_probing is 0"));
        assert_eq!(told("", Some("1\n")) + &told("", None), "");
        assert_eq!(told("max_segment = 1220", Some("0\n")) + &told("listen = []", Some("0")), "");
    }
}
