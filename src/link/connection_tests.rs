//! The link against a listener on loopback that shows every byte that is written to it.

use fingerpost_carry::outbound::Outbound;
use fingerpost_secure::redact::Secret;
use fingerpost_wire::{ns, plain::Plain, size, xml};
use jid::BareJid;
use minidom::Element;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::link::{self, Handler, LinkOptions, Software};

const LIMIT: usize = 10_000;
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
                      xmlns:stream='http://etherx.jabber.org/streams' id='1' from='xtls.example.org'>";

/// Keeps the link's events; answers plain stanzas with `reply`.
struct Kept {
    stanzas: mpsc::UnboundedSender<Element>,
    reply: Vec<u8>,
}

impl Handler for Kept {
    fn up(&mut self, _: Software) {}

    fn down(&mut self) {}

    fn stanza(&mut self, element: Element) {
        let _ = self.stanzas.send(element);
    }

    fn plain(&mut self, _: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(&self.reply);
        !self.reply.is_empty()
    }
}

/// The server's end of a connection.
struct Server {
    stream: TcpStream,
    /// What has come and was not asked for yet: the link may write more right behind a marker.
    ahead: Vec<u8>,
}

impl Server {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self { stream, ahead: Vec::new() }
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Returns what the link writes, up to the end of this text.
    async fn read_until(&mut self, end: &str) -> String {
        let mut searched = 0;
        loop {
            let mut windows = self.ahead[searched..].windows(end.len());
            if let Some(found) = windows.position(|part| part == end.as_bytes()) {
                let text = self.ahead.drain(..searched + found + end.len()).collect();
                return String::from_utf8(text).unwrap();
            }
            searched = (self.ahead.len() + 1).saturating_sub(end.len());
            self.ahead.reserve(1 << 20);
            assert_ne!(self.stream.read_buf(&mut self.ahead).await.unwrap(), 0);
        }
    }
}

/// A link that is up, and the other end of its connection.
struct Linked {
    server: Server,
    outbound: Outbound,
    stanzas: mpsc::UnboundedReceiver<Element>,
    task: JoinHandle<()>,
}

impl Linked {
    async fn up(reply: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = LinkOptions {
            servers: vec![listener.local_addr().unwrap().to_string()],
            jid: BareJid::new("xtls.example.org").unwrap(),
            secret: Secret::new("secret"),
            max_stanza_bytes: LIMIT,
        };
        let (outbound, queue) = mpsc::channel(64);
        let (sender, stanzas) = mpsc::unbounded_channel();
        let kept = Kept { stanzas: sender, reply: reply.as_bytes().to_vec() };
        let task = tokio::spawn(async move {
            link::run(options, queue, mpsc::channel(1).1, kept, CancellationToken::new())
                .await
                .unwrap();
        });
        let mut server = log_in(&listener).await;
        server.write("<handshake/>").await;
        // Stanzas that are queued before the link is up are dropped. The first one that comes through shows that it is
        // up.
        let mut linked = Self { server, outbound, stanzas, task };
        linked.server.write("<message from='a@b' to='xtls.example.org' id='up'/>").await;
        if reply.is_empty() {
            assert_eq!(linked.stanzas.recv().await.unwrap().attr("id"), Some("up"));
        }
        linked
    }

    /// Returns the bytes up to a marker that is sent last.
    async fn written(&mut self) -> String {
        let addressed = [("from", "xtls.example.org"), ("to", "a@b"), ("id", "marker")];
        let marker = xml::element("message", ns::CLIENT, &addressed);
        self.outbound.send(marker.into()).await.unwrap();
        // A server that says nothing for long counts as dead, and a busy machine may be slow.
        self.server.write(" ").await;
        let text = self.server.read_until("id='marker' to='a@b'/>").await;
        let stanzas =
            text.split_inclusive("</iq>").filter(|stanza| !stanza.contains("fingerpost-echo-"));
        let text: String = stanzas.collect();
        text[..text.rfind("<message").unwrap()].to_owned()
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns a stanza that is `size` bytes long when it is written.
fn stanza(name: &str, type_: &str, size: usize, filling: &str) -> Element {
    let attributes =
        [("type", type_), ("from", "xtls.example.org"), ("to", "bob@example.org/b"), ("id", "7")];
    let build = |text: &str| {
        let mut stanza = xml::element(name, ns::CLIENT, &attributes);
        let mut payload = Element::bare("x", "urn:x");
        payload.append_text(text);
        stanza.append_child(payload);
        stanza
    };
    let empty = size::of(&build("a")).unwrap() - 1;
    let mut text = filling.repeat((size - empty) / 5);
    text.push_str(&"a".repeat(size - size::of(&build(&text)).unwrap()));
    let stanza = build(&text);
    assert_eq!(size::of(&stanza).unwrap(), size);
    stanza
}

#[tokio::test]
async fn nothing_longer_than_the_limit_is_written_and_nothing_is_lost_in_silence() {
    let mut linked = Linked::up("").await;
    for (name, type_) in [
        ("iq", "get"),
        ("iq", "set"),
        ("iq", "result"),
        ("iq", "error"),
        ("message", "chat"),
        ("message", "error"),
        ("presence", "unavailable"),
    ] {
        for filling in ["a", "&", ">", "\r"] {
            for size in [LIMIT - 1, LIMIT] {
                let fits = stanza(name, type_, size, filling);
                linked.outbound.send(fits.into()).await.unwrap();
                let written = linked.written().await;
                assert_eq!(written.len(), size, "{name} {type_} {filling:?}");
            }
            linked.outbound.send(stanza(name, type_, LIMIT + 1, filling).into()).await.unwrap();
            let written = linked.written().await;
            let at = format!("{name} {type_} {filling:?}: {written}");
            if matches!(type_, "result" | "error") && name == "iq" {
                assert!(written.contains("to='bob@example.org/b'"), "{at}");
                assert!(written.contains("id='7'"), "{at}");
                assert!(written.contains("type='error'"), "{at}");
                assert!(written.contains("policy-violation"), "{at}");
                assert!(written.contains("10001 bytes"), "{at}");
                continue;
            }
            assert_eq!(written, "", "{at}");
            if matches!(type_, "get" | "set" | "chat") {
                let error = linked.stanzas.recv().await.unwrap();
                assert_eq!(error.attr("from"), Some("bob@example.org/b"), "{at}");
                assert_eq!(error.attr("to"), Some("xtls.example.org"), "{at}");
                assert_eq!(
                    (error.attr("id"), error.attr("type")),
                    (Some("7"), Some("error")),
                    "{at}"
                );
            }
        }
    }
    assert!(linked.stanzas.try_recv().is_err());
}

#[tokio::test]
async fn an_answer_with_an_id_that_is_too_long_is_left_out_and_the_link_stays() {
    let mut linked = Linked::up("").await;
    let mut answer = stanza("iq", "result", LIMIT / 2, "a");
    xml::set(&mut answer, "id", &"i".repeat(LIMIT));
    linked.outbound.send(answer.into()).await.unwrap();
    assert_eq!(linked.written().await, "");
    // The longest id of a request is not longer in its answer.
    let mut answer = stanza("iq", "result", LIMIT, "a");
    let id = ">\"".repeat(LIMIT / 2 - 300);
    xml::set(&mut answer, "id", &id);
    linked.outbound.send(answer.into()).await.unwrap();
    let written = linked.written().await;
    assert!(written.len() <= LIMIT && written.contains(&format!("id='{id}'")), "{}", written.len());
    assert!(written.contains("policy-violation"));
}

#[tokio::test]
async fn an_answer_that_is_written_at_once_is_measured_too() {
    for (size, fits) in [(LIMIT - 1, true), (LIMIT, true), (LIMIT + 1, false)] {
        let reply = format!("<iq id='{}'/>", "a".repeat(size - 11));
        assert_eq!(reply.len(), size);
        let mut linked = Linked::up(&reply).await;
        if fits {
            assert!(linked.server.read_until(&reply).await.ends_with(&reply));
        } else {
            assert_eq!(linked.stanzas.recv().await.unwrap().attr("id"), Some("up"));
            assert_eq!(linked.written().await, "");
        }
    }
}

/// What one stanza of a user can multiply leaves room for answers, of which each has somebody who waits.
#[tokio::test]
async fn messages_to_a_server_that_does_not_read_leave_room_for_requests_and_answers() {
    let mut linked = Linked::up("").await;
    let message = stanza("message", "chat", LIMIT, "a");
    let mut turns = 0;
    let back = 'full: loop {
        for _ in 0..32 {
            linked.outbound.send(message.clone().into()).await.unwrap();
        }
        // The link takes what is queued between two stanzas that it reads.
        turns += 1;
        let turn = format!("<message from='a@b' to='xtls.example.org' id='turn{turns}'/>");
        linked.server.write(&turn.repeat(2)).await;
        let mut seen = 0;
        while seen < 2 {
            let came = linked.stanzas.recv().await.unwrap();
            match came.attr("type") {
                Some("error") => break 'full came,
                _ => seen += 1,
            }
        }
    };
    let error = back.get_child("error", ns::CLIENT).unwrap();
    assert_eq!((back.attr("from"), back.attr("id")), (Some("bob@example.org/b"), Some("7")));
    assert!(error.has_child("resource-constraint", ns::STANZA_ERRORS), "{back:?}");
    for (type_, id) in [("get", "asked"), ("result", "answered")] {
        let mut iq = stanza("iq", type_, LIMIT / 2, "a");
        xml::set(&mut iq, "id", id);
        linked.outbound.send(iq.into()).await.unwrap();
    }
    for id in ["id='asked'", "id='answered'"] {
        linked.server.write(" ").await;
        linked.server.read_until(id).await;
    }
}

/// Lets a component log in.
async fn log_in(listener: &TcpListener) -> Server {
    let mut server = Server::accept(listener).await;
    server.write(HEADER).await;
    server.read_until("</handshake>").await;
    server
}

fn several(servers: Vec<String>) -> LinkOptions {
    LinkOptions {
        servers,
        jid: BareJid::new("xtls.example.org").unwrap(),
        secret: Secret::new("secret"),
        max_stanza_bytes: LIMIT,
    }
}

/// Runs a link until it is dropped.
fn run(options: LinkOptions) -> JoinHandle<Result<(), link::LinkError>> {
    let (outbound, queue) = mpsc::channel(64);
    let (sender, stanzas) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let _kept = (outbound, stanzas);
        let kept = Kept { stanzas: sender, reply: Vec::new() };
        link::run(options, queue, mpsc::channel(1).1, kept, CancellationToken::new()).await
    })
}

#[tokio::test]
async fn several_servers_are_tried_in_order_and_after_each_loss_from_the_first_on() {
    let [first, second] = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let addresses = [&first, &second].map(|listener| listener.local_addr().unwrap().to_string());
    drop(first);
    let task = run(several(addresses.to_vec()));
    let mut link = log_in(&second).await;
    link.write("<handshake/>").await;
    link.read_until("</iq>").await;
    // The first server is back.
    let first = TcpListener::bind(&addresses[0]).await.unwrap();
    drop(link);
    let mut link = log_in(&first).await;
    link.write("<handshake/>").await;
    link.read_until("</iq>").await;
    task.abort();
}

#[tokio::test]
async fn a_secret_is_refused_for_good_when_every_server_refuses_it() {
    let [first, second] = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let addresses = [&first, &second].map(|listener| listener.local_addr().unwrap().to_string());
    let task = run(several(addresses.to_vec()));
    let refusal = "<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
    let mut refused = log_in(&first).await;
    refused.write(refusal).await;
    // The second one ends the connection without an error: both are tried again.
    drop(log_in(&second).await);
    for listener in [&first, &second] {
        let mut refused = log_in(listener).await;
        refused.write(refusal).await;
    }
    let error = task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("or has no such component"), "{error}");
    assert!(error.contains("has xtls.example.org in its `hosts`"), "{error}");
}

#[tokio::test]
async fn what_has_no_sender_or_addressee_is_never_written() {
    let mut linked = Linked::up("").await;
    for (from, to, fits) in [
        (Some("xtls.example.org"), Some("a@b"), true),
        (Some("user@xtls.example.org/r/@x"), Some("a@b/c"), true),
        (Some("XTLS.example.ORG."), Some("a@b/c"), true),
        (None, Some("a@b"), false),
        (Some("xtls.example.org"), None, false),
        (Some("xtls.example.org"), Some(""), false),
        (None, None, false),
        (Some(""), Some("a@b"), false),
        (Some("a@b"), Some("xtls.example.org"), false),
        (Some("example.org/xtls.example.org"), Some("a@b"), false),
        (Some("sub.xtls.example.org"), Some("a@b"), false),
        (Some("example.org"), Some("a@b"), false),
    ] {
        for (name, type_) in [("iq", "result"), ("message", "chat"), ("presence", "unavailable")] {
            let mut stanza = xml::element(name, ns::CLIENT, &[("type", type_), ("id", "7")]);
            for (name, value) in [("from", from), ("to", to)] {
                if let Some(value) = value {
                    xml::set(&mut stanza, name, value);
                }
            }
            linked.outbound.send(stanza.into()).await.unwrap();
            let written = linked.written().await;
            assert_eq!(!written.is_empty(), fits, "{from:?} {to:?} {name}: {written}");
        }
    }
}

#[test]
fn a_server_without_clusters_is_told_by_the_id_of_its_stream() {
    assert_eq!(Software::of("2fb0c234-f1ba-4cbc-bda9-561a5803c5a7"), Software::Alone);
    for id in ["14838472610027563113", "", "1", "2fb0c234-f1ba-4cbc-bda9", "-----"] {
        assert_eq!(Software::of(id), Software::Node, "{id}");
    }
}
