//! The negotiation of new legs against a peer and a server that the test plays, with a clock that the test controls.

use fingerpost_carry::outbound::QueuedStanza;
use fingerpost_wire::stanza::{Refusal, Stanza};
use jid::{FullJid, Jid};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};

use super::*;
use crate::{
    Endpoint,
    keeper::{Keeper, Status},
    login::Connection,
    paths::{
        leg::tests::{Ends, ends, pair},
        machine::LATER,
    },
};

const OWN: &str = "bob@b.example/x";
const PEER: &str = "alice@a.example/x";

/// One end of a stream, whose connection to the server the test plays.
struct Scene {
    sent: mpsc::Receiver<QueuedStanza>,
    stanzas: mpsc::Sender<Stanza>,
    status: watch::Sender<Status>,
    /// Our end of the stream.
    own: Paths,
    _ends: Ends,
    _session: Session,
}

impl Scene {
    /// Returns the end of a session's initiator or responder, which negotiates new legs.
    async fn new(is_initiator: bool) -> Self {
        let (outbound, sent) = mpsc::channel(64);
        let (stanzas, inbound) = mpsc::channel(64);
        let (jid, task) = (FullJid::new(OWN).unwrap(), tokio::spawn(async {}));
        let (status, keeper) = Keeper::played(bound());
        let identity = fingerpost_secure::identity::Identity::anonymous().unwrap();
        let builder = Endpoint::builder(identity).transport(TransportKind::Ibb);
        let connection = Connection { jid, outbound, inbound, task };
        let (endpoint, _) = builder.start(connection, Some(keeper));
        let peer = Jid::new(PEER).unwrap();
        let inbox = endpoint.hub().session(&peer, "s");
        let mut session = Session::new(&endpoint, inbox, peer, "s".to_owned());
        session.initiator = is_initiator;
        let ends = ends().await;
        let own = ends.paths[usize::from(!is_initiator)].clone();
        session.renew_relay(own.clone());
        // From here on time passes only when everybody waits for it.
        tokio::time::pause();
        Self { sent, stanzas, status, own, _ends: ends, _session: session }
    }

    fn lose_the_relay(&self) {
        self.own.told_lost(self.own.leg());
    }

    /// Brings a new leg, on which the peer says nothing.
    async fn mend_the_relay(&self) -> TcpStream {
        let [leg, other] = pair().await;
        let number = LATER.max(self.own.leg() + 1);
        assert!(self.own.follow_leg(number, TcpLeg::Socket(leg), None));
        other
    }

    /// Returns the next request.
    async fn asked(&mut self) -> Stanza {
        let next = tokio::time::timeout(Duration::from_secs(60), self.sent.recv()).await;
        let mut request = next.expect("a request is sent").unwrap().into_element();
        xml::set(&mut request, "from", OWN);
        Stanza::parse(request).unwrap()
    }

    /// Returns the next request with a report of a loss.
    async fn told(&mut self) -> Stanza {
        let asked = self.asked().await;
        let jingle = asked.payload().unwrap();
        assert!(jingle.has_child("lost", ns::PATHS), "{jingle:?}");
        asked
    }

    async fn answer(&self, answer: Element) {
        self.stanzas.send(Stanza::parse(answer).unwrap()).await.unwrap();
    }

    async fn refuse(&self, asked: &Stanza) {
        self.answer(asked.refusal(&Refusal::unknown_session("There is no such session"))).await;
    }
}

fn bound() -> Status {
    Status { over: 0, bound: Some(FullJid::new(OWN).unwrap()) }
}

/// A component that has just been started may not know the session yet: more than once in a long session.
#[tokio::test]
async fn two_refused_reports_in_a_row_end_the_stream_and_others_do_not() {
    let mut scene = Scene::new(false).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        scene.lose_the_relay();
        let asked = scene.told().await;
        scene.refuse(&asked).await;
        let asked = scene.told().await;
        scene.answer(asked.result(None)).await;
        others.push(scene.mend_the_relay().await);
    }
    scene.lose_the_relay();
    for _ in 0..2 {
        assert!(!scene.own.over().is_cancelled());
        let asked = scene.told().await;
        scene.refuse(&asked).await;
    }
    let refused = Instant::now();
    scene.own.over().cancelled().await;
    assert!(refused.elapsed() < Duration::from_secs(1), "{:?}", refused.elapsed());
}

/// Returns the first request after the server is back, of an end that has lost the relay without it.
async fn asked_when_the_server_is_back(is_initiator: bool) -> Element {
    let mut scene = Scene::new(is_initiator).await;
    scene.status.send_replace(Status { over: 0, bound: None });
    scene.lose_the_relay();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(scene.sent.try_recv().is_err());
    scene.status.send_replace(bound());
    let back = Instant::now();
    let asked = scene.asked().await;
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    asked.payload().unwrap().clone()
}

/// A report while the connection to the server is lost would go nowhere.
#[tokio::test]
async fn a_responder_tells_of_the_loss_as_soon_as_its_server_is_back() {
    let told = asked_when_the_server_is_back(false).await;
    assert!(told.has_child("lost", ns::PATHS), "{told:?}");
}

#[tokio::test]
async fn an_initiator_offers_a_leg_as_soon_as_its_server_is_back() {
    let offered = asked_when_the_server_is_back(true).await;
    assert_eq!(offered.attr("action"), Some("transport-replace"));
}
