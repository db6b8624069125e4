//! A kept connection against a server that the test plays, with a clock that the test controls.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use fingerpost_carry::reader::StanzaReader;
use fingerpost_wire::{
    ns,
    xml::{self, Rules},
};
use minidom::Element;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use super::*;
use crate::{login::Stream, network::OwnAddresses, sasl2::Wish};

const HEADER: &str = "<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";
const OWN: &str = "bob@example.test/xtls-1";
/// How long a server may be silent after a change of the network.
const NEW: Duration = crate::driver::NEW_NETWORK;
/// Our address on all connections, and another one.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// The features of a server with stream management.
const MANAGED: &str = "<stream:features><sm xmlns='urn:xmpp:sm:3'/></stream:features>";
const ENABLED: &str = "<enabled xmlns='urn:xmpp:sm:3' id='s1' resume='true' max='300'/>";

/// Hands out the prepared outcomes: the server's end of a connection, or a failure.
struct Script {
    attempts: Mutex<mpsc::Receiver<Result<DuplexStream, LoginFailure>>>,
    /// The number of failed attempts.
    refused: Arc<AtomicUsize>,
}

impl Dialer for Script {
    type Io = DuplexStream;

    async fn begin(
        &self,
        name: Name<'_>,
        resumed: Option<&Management>,
    ) -> Result<Begun<DuplexStream>, LoginFailure> {
        let next = std::future::poll_fn(|cx| self.attempts.lock().unwrap().poll_recv(cx)).await;
        let io = next.expect("the test still runs");
        if io.is_err() {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
        let (read, writer) = split(io?);
        let reader = StanzaReader::with_rules(read, Rules::CLIENT);
        let mut stream = Stream { reader, writer };
        let features = stream.next().await?;
        let (agent, by_token, token_for) = (None, false, None);
        let wish = Wish { name, resumed, managed: true, agent, by_token, token_for };
        let start = login::start(&mut stream, &features, &wish, false).await?;
        Ok(Begun { stream, start, local: Some(LOCAL) })
    }
}

/// The server's end of one connection.
struct Server {
    io: DuplexStream,
    read: String,
}

impl Server {
    async fn say(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until `text` has come; returns everything up to its end.
    async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.read.find(text) {
                let rest = self.read.split_off(at + text.len());
                return std::mem::replace(&mut self.read, rest);
            }
            let mut buffer = [0; 4096];
            let count = self.io.read(&mut buffer).await.unwrap();
            assert!(count > 0, "expected {text}, the client closed after {:?}", self.read);
            self.read += str::from_utf8(&buffer[..count]).unwrap();
        }
    }

    /// Waits until the client closes.
    async fn closed(&mut self) {
        let mut buffer = [0; 4096];
        while self.io.read(&mut buffer).await.unwrap() > 0 {}
    }

    /// Answers the request to bind.
    async fn bind(&mut self, jid: &str) {
        let asked = self.until("</iq>").await;
        let id = asked.split("id='").nth(1).unwrap().split('\'').next().unwrap();
        self.say(&format!(
            "<iq type='result' id='{id}'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>{jid}</jid></bind></iq>"
        ))
        .await;
    }
}

struct World {
    attempts: mpsc::Sender<Result<DuplexStream, LoginFailure>>,
    refused: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<Contact>>>,
    /// This machine's addresses.
    addresses: watch::Sender<OwnAddresses>,
}

impl World {
    /// Begins to keep a connection; the test must play the server meanwhile.
    fn new() -> (Self, impl Future<Output = Result<(Connection, Keeper), Error>>) {
        Self::keeping(true)
    }

    fn keeping(
        begins_anew: bool,
    ) -> (Self, impl Future<Output = Result<(Connection, Keeper), Error>>) {
        let (attempts, receiver) = mpsc::channel(64);
        let refused = Arc::<AtomicUsize>::default();
        let script = Script { attempts: Mutex::new(receiver), refused: Arc::clone(&refused) };
        let heard = Arc::<Mutex<Vec<Contact>>>::default();
        let hears = Arc::clone(&heard);
        let listener: Listener =
            Arc::new(move |contact| hears.lock().unwrap().push(contact.clone()));
        let (addresses, network) = watch::channel([LOCAL].into());
        let network = Network::of(network);
        let keeping = Keeping { listener, begins_anew, resource: None, network };
        (
            Self { attempts, refused, heard, addresses },
            keep(script, Duration::from_secs(30), keeping),
        )
    }

    /// Lets one attempt through to a server with these features.
    async fn accept(&self, features: &str) -> Server {
        let (ours, theirs) = duplex(1 << 16);
        self.attempts.send(Ok(ours)).await.unwrap();
        let mut server = Server { io: theirs, read: String::new() };
        server.say(HEADER).await;
        server.say(features).await;
        server
    }

    async fn refuse(&self, is_final: bool) {
        let failure = LoginFailure { is_final, ..Error::login("no").into() };
        self.attempts.send(Err(failure)).await.unwrap();
    }

    /// Logs in at a server with stream management.
    async fn managed() -> (Self, Server, Connection, Keeper) {
        Self::managed_for(true).await
    }

    async fn managed_for(begins_anew: bool) -> (Self, Server, Connection, Keeper) {
        let (world, keeping) = Self::keeping(begins_anew);
        let server = async {
            let mut server = world.accept(MANAGED).await;
            server.bind(OWN).await;
            server.until("<enable ").await;
            server.until("/>").await;
            server.say(ENABLED).await;
            server
        };
        let (server, kept) = tokio::join!(server, keeping);
        let (connection, keeper) = kept.unwrap();
        (world, server, connection, keeper)
    }

    fn heard(&self) -> Vec<Contact> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

fn message(id: &str) -> Element {
    xml::element("message", ns::CLIENT, &[("to", "a@b.c"), ("id", id)])
}

fn from_server(id: &str) -> String {
    format!("<message from='a@b.c/d' to='{OWN}' id='{id}'/>")
}

fn back(resumed: bool) -> Contact {
    Contact::Back { jid: FullJid::new(OWN).unwrap(), resumed }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_resumed_without_loss_and_without_a_second_time() {
    let (world, mut server, mut connection, keeper) = World::managed().await;
    for id in ["1", "2", "3"] {
        connection.outbound.send(message(id).into()).await.unwrap();
    }
    server.until("id='3' to='a@b.c'/>").await;
    server.say("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    server.say(&from_server("in1")).await;
    assert_eq!(connection.inbound.recv().await.unwrap().id, "in1");
    // A stanza of which only a part has arrived does not count.
    server.say("<message from='a@b.c/d' id='in2'><bo").await;
    drop(server);

    let mut server = world.accept(MANAGED).await;
    let resume = server.until("previd='s1'/>").await;
    assert!(resume.contains("<resume ") && resume.contains("h='1'"), "{resume}");
    server.say("<resumed xmlns='urn:xmpp:sm:3' previd='s1' h='2'/>").await;
    server.say(&from_server("in2")).await;
    assert_eq!(connection.inbound.recv().await.unwrap().id, "in2");
    connection.outbound.send(message("4").into()).await.unwrap();
    let sent = server.until("id='4' to='a@b.c'/>").await;
    assert!(sent.contains("id='3'") && !sent.contains("id='2'"), "{sent}");
    server.say("<r xmlns='urn:xmpp:sm:3'/>").await;
    server.until("h='2'/>").await;
    let [Contact::Lost { .. }, back_again] = &world.heard()[..] else { panic!() };
    assert_eq!(*back_again, back(true));
    assert_eq!(keeper.status.borrow().over, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_resumed_is_followed_by_one_at_the_same_address() {
    let (world, mut server, mut connection, keeper) = World::managed().await;
    connection.outbound.send(message("old").into()).await.unwrap();
    server.until("id='old' to='a@b.c'/>").await;
    drop(server);

    let mut server = world.accept(MANAGED).await;
    server.until("<resume ").await;
    server.until("/>").await;
    server
        .say(
            "<failed xmlns='urn:xmpp:sm:3'><item-not-found \
             xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>",
        )
        .await;
    let asked = server.until("</resource>").await;
    assert!(asked.contains("<resource>xtls-1</resource>"), "{asked}");
    server.read.insert_str(0, &asked);
    server.bind(OWN).await;
    // Stanzas before the stream is managed are not counted.
    server.say(&from_server("early")).await;
    server.until("<enable ").await;
    server.say(ENABLED).await;
    server.say(&from_server("late")).await;
    for id in ["early", "late"] {
        assert_eq!(connection.inbound.recv().await.unwrap().id, id);
    }
    server.say("<r xmlns='urn:xmpp:sm:3'/>").await;
    server.until("h='1'/>").await;
    connection.outbound.send(message("new").into()).await.unwrap();
    let sent = server.until("id='new' to='a@b.c'/>").await;
    // It is unknown whether it has arrived, so its senders get an error.
    assert!(!sent.contains("id='old'"), "{sent}");
    assert_eq!(keeper.status.borrow().over, 1);
    assert_eq!(world.heard().last(), Some(&back(false)));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_stream_management_gets_a_new_session() {
    let (world, keeping) = World::new();
    let server = async {
        let mut server = world.accept("<stream:features/>").await;
        server.bind(OWN).await;
        server
    };
    let (server, kept) = tokio::join!(server, keeping);
    let (connection, keeper) = kept.unwrap();
    drop(server);
    let mut status = keeper.status.clone();
    status.wait_for(|status| status.bound.is_none()).await.unwrap();
    let mut server = world.accept("<stream:features/>").await;
    // The server still knows the old session, and another name is used.
    let asked = server.until("</iq>").await;
    let id = asked.split("id='").nth(1).unwrap().split('\'').next().unwrap();
    let conflict = format!(
        "<iq type='error' id='{id}'><error type='cancel'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
    );
    server.say(&conflict).await;
    server.bind("bob@example.test/other").await;
    let status = status.wait_for(|status| status.bound.is_some()).await.unwrap();
    assert_eq!(status.bound, Some(FullJid::new("bob@example.test/other").unwrap()));
    drop(status);
    connection.outbound.send(message("new").into()).await.unwrap();
    server.until("id='new' to='a@b.c'/>").await;
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_a_minute_and_everything_transient_is_tried_again() {
    let (world, server, _connection, keeper) = World::managed().await;
    drop(server);
    let begin = Instant::now();
    for _ in 0..20 {
        world.refuse(false).await;
    }
    let mut server = world.accept(MANAGED).await;
    // The session was given up meanwhile, so no resumption is requested.
    let asked = server.until("<bind").await;
    assert!(!asked.contains("<resume "), "{asked}");
    assert_eq!(world.refused.load(Ordering::SeqCst), 20);
    let most = 1 + 2 + 4 + 8 + 16 + 32 + 15 * 60;
    assert!(begin.elapsed() <= Duration::from_secs(most), "{:?}", begin.elapsed());
    assert!(begin.elapsed() >= Duration::from_secs(most / 2 - 1), "{:?}", begin.elapsed());
    assert!(matches!(&world.heard()[..], [Contact::Lost { .. }]), "it is said once");
    assert_eq!(keeper.status.borrow().over, 1);
}

#[test]
fn pauses_differ_from_one_client_to_the_next() {
    let (mut low, mut high) = (Pauses::default(), Pauses::default());
    let seconds: Vec<_> =
        (0..10).map(|_| (low.next(0.0).as_secs_f64(), high.next(1.0).as_secs_f64())).collect();
    assert_eq!(seconds[..4], [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0)]);
    assert_eq!(seconds[9], (30.0, 60.0));
    let mut many = Pauses { failed: u32::MAX - 1 };
    assert_eq!(many.next(1.0), LONGEST);
}

#[tokio::test(start_paused = true)]
async fn a_refused_password_and_a_conflict_end_it_and_say_why() {
    let (world, server, mut connection, keeper) = World::managed().await;
    drop(server);
    world.refuse(true).await;
    assert!(connection.inbound.recv().await.is_none());
    assert_eq!(keeper.why_ended(), Some(Error::login("no")));

    let (world, mut server, mut connection, keeper) = World::managed().await;
    server
        .say(
            "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Replaced</text></stream:error></stream:stream>",
        )
        .await;
    assert!(connection.inbound.recv().await.is_none());
    let why = keeper.why_ended().unwrap().to_string();
    assert_eq!(
        why,
        format!("another program has taken over the address {OWN}: conflict (Replaced)")
    );
    assert_eq!(world.heard(), []);
}

/// However the server ends the stream, the session is over: the same bytes must not come again and again.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_ended_or_broken_by_what_was_said_is_not_resumed() {
    for last in [
        "<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>",
        "</stream:stream>",
        "<a xmlns='urn:xmpp:sm:3' h='7'/>",
        "<message></iq>",
    ] {
        let (world, mut server, _connection, keeper) = World::managed().await;
        server.say(last).await;
        keeper.status.clone().wait_for(|status| status.bound.is_none()).await.unwrap();
        let mut server = world.accept(MANAGED).await;
        let asked = server.until("<bind").await;
        assert!(!asked.contains("<resume "), "{last}: {asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_or_acknowledges_nothing_is_left() {
    let (world, mut server, connection, keeper) = World::managed().await;
    let begin = Instant::now();
    server.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert_eq!(begin.elapsed().as_secs(), 30);
    let mut second = world.accept(MANAGED).await;
    second.until("<resume ").await;
    assert!((60..=61).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    second.say("<resumed xmlns='urn:xmpp:sm:3' previd='s1' h='0'/>").await;

    // The server sends other elements and handles nothing: a new session begins.
    connection.outbound.send(message("1").into()).await.unwrap();
    second.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    let mut status = keeper.status.clone();
    let mut over = std::pin::pin!(status.wait_for(|status| status.bound.is_none()));
    loop {
        tokio::select! {
            biased;
            _ = &mut over => break,
            () = sleep(Duration::from_secs(20)) => second.say(" ").await,
        }
    }
    assert!(begin.elapsed() >= Duration::from_secs(60 + 180), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_stream_is_closed_at_the_end_and_a_wait_for_the_next_attempt_is_cut_short() {
    let (_world, mut server, connection, keeper) = World::managed().await;
    connection.outbound.send(message("last").into()).await.unwrap();
    tokio::task::yield_now().await;
    keeper.closing.cancel();
    let last = server.until("</stream:stream>").await;
    assert!(last.contains("id='last'"), "{last}");
    keeper.done.cancelled().await;

    let (_world, server, _connection, keeper) = World::managed().await;
    drop(server);
    tokio::task::yield_now().await;
    keeper.closing.cancel();
    keeper.done.cancelled().await;
    assert_eq!(keeper.why_ended(), None);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_resumed_at_once_when_its_address_is_gone() {
    let (world, mut server, mut connection, keeper) = World::managed().await;
    let begin = Instant::now();
    world.addresses.send_replace(OwnAddresses::new());
    server.closed().await;
    // No way leads to the server until there is an address again.
    for _ in 0..6 {
        world.refuse(false).await;
    }
    while world.refused.load(Ordering::SeqCst) < 6 {
        sleep(Duration::from_millis(10)).await;
    }
    let before = begin.elapsed();
    world.addresses.send_replace([LOCAL].into());
    let mut server = world.accept(MANAGED).await;
    server.until("previd='s1'/>").await;
    assert!(begin.elapsed() <= before + FIRST, "{:?}", begin.elapsed());
    server.say("<resumed xmlns='urn:xmpp:sm:3' previd='s1' h='0'/>").await;
    server.say(&from_server("in")).await;
    assert_eq!(connection.inbound.recv().await.unwrap().id, "in");
    assert_eq!(keeper.status.borrow().over, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_must_answer_soon_after_a_change_of_the_network() {
    let (world, mut server, _connection, _keeper) = World::managed().await;
    // It answers, so nothing happens.
    world.addresses.send_replace([LOCAL, OTHER].into());
    server.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    server.say("<a xmlns='urn:xmpp:sm:3' h='0'/>").await;
    sleep(NEW * 2).await;
    assert_eq!(world.heard(), []);
    // It does not.
    world.addresses.send_replace([LOCAL].into());
    let begin = Instant::now();
    server.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    server.closed().await;
    assert!(begin.elapsed() <= NEW, "{:?}", begin.elapsed());
    let mut server = world.accept(MANAGED).await;
    server.until("previd='s1'/>").await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_resumed_waits_for_its_address_to_come_back() {
    let (world, keeping) = World::new();
    let server = async {
        let mut server = world.accept("<stream:features/>").await;
        server.bind(OWN).await;
        server
    };
    let (mut server, kept) = tokio::join!(server, keeping);
    let (mut connection, _keeper) = kept.unwrap();
    world.addresses.send_replace(OwnAddresses::new());
    sleep(NEW * 2).await;
    server.say(&from_server("in")).await;
    assert_eq!(connection.inbound.recv().await.unwrap().id, "in");
    assert_eq!(world.heard(), []);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_only_to_be_resumed_ends_if_it_cannot_be() {
    // The server has closed it.
    let (world, mut server, mut connection, keeper) = World::managed_for(false).await;
    server.say("</stream:stream>").await;
    assert!(connection.inbound.recv().await.is_none());
    assert_eq!((keeper.why_ended(), world.heard()), (None, vec![]));

    // The server has forgotten it.
    let (world, server, mut connection, _keeper) = World::managed_for(false).await;
    drop(server);
    let mut server = world.accept(MANAGED).await;
    server.until("previd='s1'/>").await;
    server.say("<failed xmlns='urn:xmpp:sm:3'/>").await;
    server.bind(OWN).await;
    server.until("<enable ").await;
    server.say(ENABLED).await;
    assert!(connection.inbound.recv().await.is_none());
    assert!(matches!(&world.heard()[..], [Contact::Lost { .. }]));

    // No way leads to the server.
    let (world, server, mut connection, _keeper) = World::managed_for(false).await;
    let begin = Instant::now();
    drop(server);
    let ended = tokio::spawn(async move { connection.inbound.recv().await.is_none() });
    while !ended.is_finished() {
        world.refuse(false).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!(ended.await.unwrap());
    let most = ONLY_RESUMED + 2 * LONGEST;
    assert!(begin.elapsed() >= ONLY_RESUMED && begin.elapsed() < most, "{:?}", begin.elapsed());
}
