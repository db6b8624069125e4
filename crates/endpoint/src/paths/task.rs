//! Finds direct connections for a stream: consent, candidates, attempts, and again when one is lost.
//!
//! Each side first says that it may learn and tell addresses, and tells none before both have. The TLS client starts the
//! attempts and numbers them; the server answers each with its own candidates, and both dial.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{ns, stanza::RequestKind, xml};
use jid::Jid;
use minidom::Element;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Path,
    keys::{Keys, Message},
    leg::{PathLeg, Paths, taken},
    machine::Need,
    quota::Quota,
};
use crate::{
    consent::{DirectPath, SessionConsent},
    direct::{Connecting, DirectStream, Found, Listening, Mapping, Observation, addresses::Scope},
    hub::Hub,
    network::Network,
    session::Session,
    stun_servers::{self, StunServers},
    transport::SessionLeg,
};

/// How long to wait before each attempt after the first, and after the loss of a direct connection.
const AGAIN: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];
/// How long the server's answer to an attempt may take. It follows all bytes that the relay holds.
const ANSWER: Duration = Duration::from_secs(120);
/// How long the client may take to use a connection that has greeted.
const USED: Duration = Duration::from_secs(10);
/// The most connections of one attempt that have greeted and wait to be used.
const GREETED: usize = 8;
/// The shortest time between two attempts that the peer starts.
const PACE: Duration = Duration::from_secs(1);
/// How many attempts the peer may start at once, and after which time one more. An honest client makes no more than these, and it waits
/// longer for the answer.
const ATTEMPTS: u32 = 6;
const ONE_MORE: Duration = Duration::from_secs(20);
/// How long the component, and STUN servers, may take to say where they see us.
const OBSERVED: Duration = Duration::from_secs(2);
/// How often the component learns how many bytes a direct connection carries.
const REPORT: Duration = Duration::from_secs(60);

/// Whether addresses may be told and learned: known, or to be asked.
type Consenting = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Session {
    /// Decides whether the peer may learn this machine's addresses, if that is known without a question.
    pub(crate) fn remember_consent(&mut self) {
        self.consent = SessionConsent::new(self.endpoint.may_learn_addresses(&self.peer));
    }

    /// Decides that the peer, which has shown a further key, learns no address in this session: earlier answers are about other
    /// keys, and the user may still refuse this one.
    pub(crate) fn forget_consent(&mut self) {
        if self.endpoint.inner.builder.direct_path != DirectPath::Always {
            self.consent = SessionConsent::new(Some(false));
        }
    }

    /// Returns whether the session may have direct paths.
    pub(crate) fn allows_direct_paths(&self) -> bool {
        let can_ask = || self.endpoint.inner.builder.consent.can_ask();
        self.consent.decision().unwrap_or_else(can_ask)
    }

    /// Puts the path layer on a leg of a relay, if both sides have it.
    pub(crate) fn with_paths(&self, leg: SessionLeg, has_paths: bool) -> PathLeg {
        match leg {
            SessionLeg::Bytestream(leg) if has_paths => PathLeg::with_paths(leg, self.initiator),
            SessionLeg::Bytestream(leg) => PathLeg::Plain(leg),
            // It is a direct connection already.
            SessionLeg::Ice(leg) => PathLeg::Ice(leg),
        }
    }

    /// Finds direct paths for the stream of the session, whose peer is verified. If nothing is decided yet, the user is asked.
    pub(crate) fn find_paths(&self, paths: Paths, keys: Keys) {
        paths.open();
        let hub = self.endpoint.hub();
        let address = || self.address.clone();
        // A proxy that is not the broker cannot tell which connection belongs to which user.
        let observer =
            self.is_brokered().then(|| Observer { hub: hub.clone(), address: address() });
        paths.name_bytestream(self.bytestream.clone());
        tokio::spawn(follow_network(paths.clone(), hub.network()));
        self.renew_relay(paths.clone());
        let is_counted = self.is_brokered() && self.initiator;
        let decision = self.consent.decision();
        if is_counted && decision != Some(false) {
            let reporter = Reporter { hub: hub.clone(), address: address(), info: self.info() };
            tokio::spawn(reporter.run(paths.clone()));
        }
        let consenting: Consenting = match decision {
            Some(answer) => Box::pin(std::future::ready(answer)),
            None => {
                let (ask, peer) =
                    (Arc::clone(&self.endpoint.inner.builder.consent), self.peer.clone());
                let consent = self.consent.clone();
                Box::pin(async move {
                    consent.decide(ask.ask(&peer).await);
                    consent.is_given()
                })
            }
        };
        let scope = self.endpoint.scope();
        let stun = self.endpoint.inner.builder.stun.clone();
        let mut finder = Finder {
            paths,
            keys,
            chooses: self.initiator,
            scope,
            observer,
            network: hub.network(),
            listened: None,
            // On a local network, no NAT is between the two sides.
            stun: (scope == Scope::Network).then(|| StunServers::new(hub.clone(), stun)),
            servers: None,
            varied: None,
        };
        tokio::spawn(async move { finder.run(consenting).await });
    }
}

/// What finds the paths of one stream.
struct Finder {
    paths: Paths,
    keys: Keys,
    /// Whether this side is the TLS client.
    chooses: bool,
    scope: Scope,
    /// Asks the component at which address it sees our connection to the relay.
    observer: Option<Observer>,
    network: Network,
    /// The address of the connection to the relay on whose port an attempt has listened.
    listened: Option<SocketAddr>,
    /// What knows the STUN servers to ask, and those that it has named and that have answered.
    stun: Option<StunServers>,
    servers: Option<Vec<SocketAddr>>,
    /// The public address of a NAT that was found to be symmetric.
    varied: Option<IpAddr>,
}

/// Asks the component at which address it sees our SOCKS5 connection.
#[derive(Clone, Debug)]
struct Observer {
    hub: Hub,
    /// The address that stands for the peer at the component.
    address: Jid,
}

impl Observer {
    /// `sid` is the id of the SOCKS5 bytestream.
    async fn observed(&self, sid: &str) -> Option<SocketAddr> {
        let query = xml::element("observed", ns::PATHS, &[("sid", sid)]);
        let asked = self.hub.request(RequestKind::Get, &self.address, query);
        let Answer::Result(Some(answer)) = timeout(OBSERVED, asked).await.ok()? else {
            return None;
        };
        let host = answer.attr("host")?.parse().ok()?;
        Some(SocketAddr::new(host, answer.attr("port")?.parse().ok()?))
    }
}

impl Finder {
    /// Finds direct connections until the stream is over.
    async fn run(&mut self, consent: Consenting) {
        let over = self.paths.over().clone();
        let Some(sealed) = self.paths.sealed() else { return };
        let work = async {
            if !consent.await {
                return;
            }
            if self.chooses {
                self.choose(sealed).await;
            } else {
                self.follow(sealed).await;
            }
        };
        tokio::select! {
            () = over.cancelled() => {}
            () = work => {}
        }
    }

    fn tell(&mut self, message: &Message) -> bool {
        let sealed = self.keys.seal(message);
        sealed.map(|sealed| self.paths.seal(sealed)).is_some()
    }

    /// Returns the peer's next message, `None` when the stream is over.
    async fn told(&mut self, sealed: &mut mpsc::Receiver<Vec<u8>>) -> Option<Message> {
        loop {
            let message = sealed.recv().await?;
            if let Some(message) = self.keys.open(&message) {
                return Some(message);
            }
            tracing::debug!("a sealed message is not the peer's");
        }
    }

    /// Listens on new ports. The first attempt beside a SOCKS5 connection to the relay uses the port of that connection. Asks the
    /// component and STUN servers at which address they see the port.
    async fn listen(&mut self) -> io::Result<Listening> {
        let (local, sid) = self.paths.relay();
        let also = local.filter(|_| local != self.listened);
        if local != self.listened {
            // This machine may be in another network now.
            (self.servers, self.varied) = (None, None);
        }
        self.listened = local;
        let mut listening = Listening::open_in(self.scope, also)?;
        let component = async {
            let (local, sid, observer) = (local?, sid?, self.observer.as_ref()?);
            let observed = observer.observed(&sid).await?;
            Some(Observation { local, observed })
        };
        let asking =
            timeout(OBSERVED, stun_servers::ask(self.stun.as_ref(), &mut self.servers, &listening));
        let (seen, answers) = tokio::join!(component, asking);
        seen.into_iter().for_each(|seen| listening.observed(seen));
        answers.into_iter().flatten().for_each(|answer| listening.keep(answer));
        listening.known_to_vary(self.varied);
        if let Mapping::Varies(ip) = listening.mapping(true) {
            tracing::debug!(%ip, "the NAT takes another port for each peer");
            self.varied = Some(ip);
        }
        Ok(listening)
    }

    /// The TLS client's part: attempts one after the other, and the first connection that greets.
    async fn choose(&mut self, mut sealed: mpsc::Receiver<Vec<u8>>) {
        // The server says when it has consent.
        if self.told(&mut sealed).await.is_none() {
            return;
        }
        let mut again = AGAIN.iter();
        let mut renewed = self.paths.renewed();
        // The peer can lose the relay's leg, or the direct connection, again and again.
        let mut quota = Quota::new(ATTEMPTS, ONE_MORE, Instant::now());
        for attempt in 1.. {
            sleep_until(quota.take(Instant::now())).await;
            let mut path = self.paths.path();
            renewed.borrow_and_update();
            match self.attempt(attempt, &mut sealed, renewed.clone()).await {
                Ok(Some((stream, address))) => {
                    path.borrow_and_update();
                    if self.paths.choose(stream, address) {
                        lost(&mut path).await;
                        renewed.borrow_and_update();
                        // Anyone who carries a path can have the server refuse the connection, again and again.
                        if self.paths.has_answer() {
                            again = AGAIN.iter();
                        }
                    }
                }
                Ok(None) => tracing::debug!(attempt, "no direct connection"),
                Err(error) => tracing::debug!(attempt, %error, "no direct connection"),
            }
            let pause = again.next().copied();
            if self.another_chance(pause, &mut renewed).await {
                again = AGAIN.iter();
            }
        }
    }

    /// Waits until an attempt may do better than the last one. Returns whether the reason is another network of either side, and not
    /// just a pause.
    async fn another_chance(
        &mut self,
        pause: Option<Duration>,
        renewed: &mut watch::Receiver<u32>,
    ) -> bool {
        tokio::select! {
            // One side is in another network now, perhaps since the last attempt began.
            biased;
            Ok(()) = renewed.changed() => true,
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => false,
            () = self.network.changed() => {
                let _ = self.paths.need().wait_for(|need| *need == Need::Nothing).await;
                true
            }
        }
    }

    async fn attempt(
        &mut self,
        attempt: u32,
        sealed: &mut mpsc::Receiver<Vec<u8>>,
        mut renewed: watch::Receiver<u32>,
    ) -> io::Result<Option<(DirectStream, SocketAddr)>> {
        let listening = self.listen().await?;
        self.tell(&Message { attempt, candidates: listening.candidates() });
        let answer = async {
            loop {
                match self.told(sealed).await {
                    Some(message) if message.attempt == attempt => return Some(message),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        let answer = tokio::select! {
            answer = timeout(ANSWER, answer) => answer.ok().flatten(),
            // Messages under way may have been lost with the old leg.
            Ok(()) = renewed.changed() => None,
        };
        let Some(answer) = answer else { return Ok(None) };
        let mut connecting =
            listening.connect(&answer.candidates, self.keys.greeting(), self.chooses);
        loop {
            tokio::select! {
                found = connecting.next() => match found {
                    Some(Found::Peer(stream, address)) => return Ok(Some((stream, address))),
                    Some(Found::PortRefused) => self.take_port(attempt, &connecting).await,
                    None => return Ok(None),
                },
                Some(message) = self.told(sealed) => if message.attempt == attempt {
                    connecting.peer_has_moved(message.candidates);
                },
            }
        }
    }

    /// Takes another port within an attempt, and tells the peer.
    async fn take_port(&mut self, attempt: u32, connecting: &Connecting) {
        match self.listen().await {
            Ok(listening) => {
                self.tell(&Message { attempt, candidates: listening.candidates() });
                connecting.take_port(listening);
            }
            Err(error) => tracing::debug!(%error, "no other port for direct connections"),
        }
    }

    /// Says that this side has consented, until the client has heard it: a leg of the relay that is lost may have taken it along, also
    /// one whose loss this side never saw. Returns the client's first message.
    async fn consent(&mut self, sealed: &mut mpsc::Receiver<Vec<u8>>) -> Option<Message> {
        let mut renewed = self.paths.renewed();
        loop {
            renewed.borrow_and_update();
            if !self.tell(&Message { attempt: 0, candidates: Vec::new() }) {
                return None;
            }
            tokio::select! {
                first = self.told(sealed) => return first,
                Ok(()) = renewed.changed() => {}
            }
        }
    }

    /// The TLS server's part: answers each attempt, and follows the client to the connection that it uses.
    async fn follow(&mut self, mut sealed: mpsc::Receiver<Vec<u8>>) {
        let mut last = 0;
        let mut quota = Quota::new(ATTEMPTS, ONE_MORE, Instant::now());
        let mut next = self.consent(&mut sealed).await;
        while let Some(message) = next.take() {
            if message.attempt <= last {
                next = self.told(&mut sealed).await;
                continue;
            }
            // Each costs up to 400 dials, and questions to the component and to STUN servers.
            sleep_until(quota.take(Instant::now())).await;
            let listening = match self.listen().await {
                Ok(listening) => listening,
                Err(error) => {
                    tracing::debug!(%error, "cannot listen for direct connections");
                    next = self.told(&mut sealed).await;
                    continue;
                }
            };
            last = message.attempt;
            self.tell(&Message { attempt: last, candidates: listening.candidates() });
            let mut connecting =
                listening.connect(&message.candidates, self.keys.greeting(), self.chooses);
            let mut greeted = JoinSet::new();
            let mut is_finding = true;
            while is_finding || !greeted.is_empty() {
                tokio::select! {
                    found = connecting.next(), if is_finding => match found {
                        Some(Found::Peer(stream, address)) if greeted.len() < GREETED => {
                            greeted.spawn(used(stream, address));
                        }
                        Some(Found::Peer(..)) => {}
                        Some(Found::PortRefused) => self.take_port(last, &connecting).await,
                        None => is_finding = false,
                    },
                    Some(one) = greeted.join_next() => {
                        if let Ok(Some((number, stream, address))) = one
                            && !self.paths.follow(number, stream, address)
                        {
                            tracing::debug!(number, "a direct connection was given up before it was used");
                        }
                    }
                    message = self.told(&mut sealed) => match message {
                        Some(message) if message.attempt == last => {
                            connecting.peer_has_moved(message.candidates);
                        }
                        message => {
                            next = message;
                            break;
                        }
                    },
                }
            }
            sleep(PACE).await;
            if next.is_none() {
                next = self.told(&mut sealed).await;
            }
        }
    }
}

/// Returns a connection that the TLS client uses, and its number.
async fn used(
    mut stream: DirectStream,
    address: SocketAddr,
) -> Option<(u32, DirectStream, SocketAddr)> {
    let number = timeout(USED, taken(&mut stream)).await.ok()?.ok()??;
    Some((number, stream, address))
}

/// Tells a stream that this machine has left a network, or joined one.
async fn follow_network(paths: Paths, mut network: Network) {
    let over = paths.over().clone();
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            () = network.changed() => paths.heed(&network),
        }
    }
}

/// Waits until the stream is back on the relay. `path` has seen the value from before the move.
async fn lost(path: &mut watch::Receiver<Path>) {
    while path.changed().await.is_ok() {
        if *path.borrow_and_update() == Path::Relay {
            return;
        }
    }
}

/// Tells the component of the path, for its metrics.
#[derive(Debug)]
struct Reporter {
    hub: Hub,
    address: Jid,
    /// A session-info without content.
    info: Element,
}

impl Reporter {
    /// Reports each change, and at times the bytes that direct connections have carried.
    async fn run(self, paths: Paths) {
        let (mut path, over) = (paths.path(), paths.over().clone());
        let mut told = 0;
        loop {
            let is_direct = *path.borrow() != Path::Relay;
            tokio::select! {
                changed = path.changed() => if changed.is_err() { return },
                () = sleep(REPORT), if is_direct => {}
                () = over.cancelled() => {}
            }
            let is_over = over.is_cancelled();
            let kind = if *path.borrow_and_update() == Path::Relay { "relay" } else { "direct" };
            let [_, bytes] = paths.carried();
            if is_over && bytes == told {
                return;
            }
            told = bytes;
            let report = [("kind", kind), ("bytes", &bytes.to_string())];
            let mut info = self.info.clone();
            info.append_child(xml::element("path", ns::PATHS, &report));
            // The answer does not matter.
            let _ = self.hub.request(RequestKind::Set, &self.address, info).await;
            if is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_secure::stream::TlsStream;
    use futures::future::join;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::direct::{Candidate, CandidateKind};
    use crate::paths::leg::tests::{Ends, ends, pair};
    use crate::paths::machine::LATER;
    use crate::transport::TcpLeg;

    /// Returns the tasks of two ends on this machine, and the ends.
    async fn finders() -> ([TlsStream<PathLeg>; 2], [Finder; 2]) {
        let Ends { streams, paths } = ends().await;
        let finders = [0, 1].map(|end| Finder {
            paths: paths[end].clone(),
            keys: Keys::of(&streams[end]).unwrap(),
            chooses: end == 0,
            scope: Scope::Loopback,
            observer: None,
            network: Network::fixed(),
            listened: None,
            stun: None,
            servers: None,
            varied: None,
        });
        (streams, finders)
    }

    fn consent(given: bool) -> Consenting {
        Box::pin(std::future::ready(given))
    }

    async fn exchange(streams: &mut [TlsStream<PathLeg>; 2]) {
        for from in [0, 1] {
            streams[from].write_all(&[7; 100_000]).await.unwrap();
            streams[from].flush().await.unwrap();
            let mut got = vec![0; 100_000];
            streams[1 - from].read_exact(&mut got).await.unwrap();
            assert!(got.iter().all(|byte| *byte == 7));
        }
    }

    #[tokio::test]
    async fn two_ends_that_agree_move_to_a_direct_connection_and_to_another_after_its_loss() {
        let (mut streams, [mut a, mut b]) = finders().await;
        let paths = [a.paths.clone(), b.paths.clone()];
        let finding = tokio::spawn(async move {
            join(a.run(consent(true)), b.run(consent(true))).await;
        });
        for attempt in [1, 2] {
            for paths in &paths {
                paths.path().wait_for(|path| *path != Path::Relay).await.unwrap();
            }
            let before = paths[0].carried()[1];
            exchange(&mut streams).await;
            assert!(paths[0].carried()[1] > before + 200_000);
            if attempt == 1 {
                paths[0].give_up_direct();
                for paths in &paths {
                    paths.path().wait_for(|path| *path == Path::Relay).await.unwrap();
                }
                // The pause before the next attempt.
                tokio::time::pause();
                tokio::time::advance(AGAIN[0]).await;
                tokio::time::resume();
            }
        }
        drop(streams);
        finding.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_that_does_not_agree_tells_and_learns_no_address() {
        for agrees in [[true, false], [false, true], [false, false]] {
            let (mut streams, [mut a, mut b]) = finders().await;
            let finding = join(a.run(consent(agrees[0])), b.run(consent(agrees[1])));
            tokio::select! {
                biased;
                _ = finding => assert_eq!(agrees, [false, false]),
                () = exchange(&mut streams) => {}
            }
            // The server says that it agrees, without an address. The client says nothing before that.
            assert_eq!(a.keys.sent(), 0);
            assert_eq!(b.keys.sent(), u64::from(agrees[1]));
            for finder in [a, b] {
                assert_eq!(
                    (*finder.paths.path().borrow(), finder.paths.carried()[1]),
                    (Path::Relay, 0)
                );
            }
        }
    }

    /// Gives the leg of the relay up for a new one.
    async fn take_new_leg(paths: &[Paths; 2]) {
        paths.iter().for_each(Paths::renew);
        let [a, b] = pair().await.map(TcpLeg::Socket);
        assert!(paths[1].follow_leg(LATER, b, None));
        assert!(paths[0].replace(a, None));
    }

    /// The client has given the old leg up, and the server learns it by the new one.
    #[tokio::test]
    async fn a_server_says_again_on_a_new_leg_of_the_relay_that_it_agrees() {
        let (_streams, [mut client, mut server]) = finders().await;
        let mut sealed = client.paths.sealed().unwrap();
        let paths = [client.paths.clone(), server.paths.clone()];
        let finding = tokio::spawn(async move { server.run(consent(true)).await });
        assert_eq!(client.told(&mut sealed).await.unwrap().attempt, 0);
        take_new_leg(&paths).await;
        let again = timeout(Duration::from_secs(60), client.told(&mut sealed)).await;
        assert_eq!(again.expect("it says so again").unwrap().attempt, 0);
        finding.abort();
    }

    /// The server's candidates may be lost with the old leg.
    #[tokio::test]
    async fn a_client_waits_for_no_answer_of_before_a_new_leg_of_the_relay() {
        let (_streams, [mut client, mut server]) = finders().await;
        let mut sealed = server.paths.sealed().unwrap();
        let paths = [client.paths.clone(), server.paths.clone()];
        let finding = tokio::spawn(async move { client.run(consent(true)).await });
        server.tell(&Message { attempt: 0, candidates: Vec::new() });
        assert_eq!(server.told(&mut sealed).await.unwrap().attempt, 1);
        take_new_leg(&paths).await;
        // Long before the answer is given up.
        let next = timeout(ANSWER / 2, server.told(&mut sealed)).await;
        assert_eq!(next.expect("it begins again").unwrap().attempt, 2);
        finding.abort();
    }

    /// Opens ports on this machine; returns them, and candidates of ports that are closed again, as if a NAT had mapped them.
    fn open_and_closed() -> (Listening, Vec<Candidate>) {
        let [open, closed] = [(); 2].map(|()| Listening::open_in(Scope::Loopback, None).unwrap());
        let mapped = |host: Candidate| Candidate { kind: CandidateKind::ServerReflexive, ..host };
        let candidates = closed.candidates().into_iter().map(mapped).collect();
        drop(closed);
        (open, candidates)
    }

    #[tokio::test]
    async fn a_client_whose_dials_are_refused_tells_another_port_and_follows_a_server_that_does() {
        let (_streams, [mut client, mut server]) = finders().await;
        let mut sealed = server.paths.sealed().unwrap();
        let paths = client.paths.clone();
        let finding = tokio::spawn(async move { client.run(consent(true)).await });
        server.tell(&Message { attempt: 0, candidates: Vec::new() });
        let first = server.told(&mut sealed).await.unwrap();
        let (listening, closed) = open_and_closed();
        server.tell(&Message { attempt: 1, candidates: closed });
        let second = server.told(&mut sealed).await.unwrap();
        assert_eq!([first.attempt, second.attempt], [1, 1]);
        assert_ne!(first.candidates, second.candidates);
        server.tell(&Message { attempt: 1, candidates: listening.candidates() });
        let _connecting =
            listening.connect(&second.candidates, server.keys.greeting(), server.chooses);
        paths.path().wait_for(|path| *path != Path::Relay).await.unwrap();
        finding.abort();
    }

    #[tokio::test]
    async fn a_server_whose_dials_are_refused_tells_another_port_and_follows_a_client_that_does() {
        let (_streams, [mut client, mut server]) = finders().await;
        let mut sealed = client.paths.sealed().unwrap();
        let finding = tokio::spawn(async move { server.run(consent(true)).await });
        assert_eq!(client.told(&mut sealed).await.unwrap().attempt, 0);
        let (listening, closed) = open_and_closed();
        client.tell(&Message { attempt: 1, candidates: closed });
        let first = client.told(&mut sealed).await.unwrap();
        let second = client.told(&mut sealed).await.unwrap();
        assert_eq!([first.attempt, second.attempt], [1, 1]);
        assert_ne!(first.candidates, second.candidates);
        // In the same attempt, which the server has not given up.
        client.tell(&Message { attempt: 1, candidates: listening.candidates() });
        let mut connecting =
            listening.connect(&second.candidates, client.keys.greeting(), client.chooses);
        while !matches!(connecting.next().await.unwrap(), Found::Peer(..)) {}
        finding.abort();
    }
}
