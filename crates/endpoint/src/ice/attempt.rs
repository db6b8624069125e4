//! One attempt: dials the peer's candidates, takes its connections, and lets the [`Agent`] choose one.

use std::{collections::VecDeque, io, net::SocketAddr, task::Poll, time::Duration};

use fingerpost_wire::ice::{Candidate, CandidateType, Credentials};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{
    agent::{ANSWER, Agent, Id, Output},
    frames::{Frames, Next, framed},
    stream::IceStream,
};
use crate::{
    direct::{self, CandidateKind, Dialled, Listening, Punch, Step},
    socks5,
};

/// The most accepted connections on which the peer has not shown the password; one more takes the place of the oldest. So
/// strangers keep the peer out only if they connect faster than it checks.
const MOST_STRANGERS: usize = 16;
/// The most accepted connections that have shown the session's ICE password. Servers have seen it, and the peer needs only a few.
const MOST_OF_PEER: usize = 16;
/// The most bytes of the application that come before a connection is selected: the first ones of TLS.
const MOST_EARLY: usize = 16 * 1024;
/// How long accepting pauses after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that is not selected yet.
struct Link {
    id: Id,
    stream: TcpStream,
    remote: SocketAddr,
    is_accepted: bool,
    frames: Frames,
    early: Vec<u8>,
}

/// An attempt that is under way.
pub(super) struct Attempt {
    listening: Listening,
    own: Credentials,
    agent: Agent,
    punch: Punch,
    targets: Vec<SocketAddr>,
    dials: JoinSet<(usize, io::Result<TcpStream>)>,
    /// The connections, the oldest first.
    links: VecDeque<Link>,
    next: Id,
    /// The connection that was read last: the others come before it.
    read: Id,
    /// When the attempt ends although the peer has shown the password on a connection.
    end: Option<Instant>,
}

impl Attempt {
    /// Begins with what is known of the peer.
    pub(super) fn new(
        listening: Listening,
        controlling: bool,
        own: Credentials,
        peer: Credentials,
    ) -> Self {
        let random = Box::new(rand::random::<u128>);
        Self {
            listening,
            agent: Agent::new(controlling, own.clone(), peer, random),
            own,
            punch: Punch::new(std::iter::empty(), controlling, Instant::now()),
            targets: Vec::new(),
            dials: JoinSet::new(),
            links: VecDeque::new(),
            next: 1,
            read: 0,
            end: None,
        }
    }

    /// Adds candidates of the peer. Skips addresses that must not be dialled.
    pub(super) fn add(&mut self, candidates: &[Candidate]) {
        self.agent.add_remote(candidates);
        let pairs = self.agent.pairs();
        let theirs: Vec<direct::Candidate> = pairs
            .iter()
            .map(|pair| direct::Candidate {
                address: pair.remote.address,
                kind: match pair.remote.kind {
                    CandidateType::Host | CandidateType::Relayed => CandidateKind::Host,
                    CandidateType::PeerReflexive | CandidateType::ServerReflexive => {
                        CandidateKind::ServerReflexive
                    }
                },
            })
            .filter(|candidate| candidate.address.port() != 0)
            .collect();
        for (address, pace) in self.listening.targets(&theirs) {
            if !self.targets.contains(&address) {
                self.targets.push(address);
                self.punch.add(pace);
            }
        }
    }

    /// Runs until a connection is selected; `None` if none is in time. `more` has candidates that the peer tells later.
    pub(super) async fn run(
        mut self,
        more: &mut mpsc::Receiver<Vec<Candidate>>,
    ) -> Option<IceStream> {
        loop {
            while let Some(output) = self.agent.poll() {
                let is_last = matches!(output, Output::Selected(_));
                let selected = self.carry_out(output);
                if is_last || selected.is_some() {
                    // `None` if the connection has just gone.
                    return selected;
                }
            }
            let until = match self.punch.next(Instant::now()) {
                Step::Dial(number) => {
                    self.dial(number);
                    continue;
                }
                // The peer would have to be told of another port, with another generation of candidates.
                Step::Move => continue,
                Step::Wait(until) => until,
                // The peer may just have selected a connection: its answer counts.
                Step::Over if self.agent.has_peer() => {
                    let now = Instant::now();
                    let end = *self.end.get_or_insert(now + ANSWER);
                    if now >= end {
                        return None;
                    }
                    end
                }
                Step::Over => return None,
            };
            let until = self.agent.deadline().map_or(until, |deadline| deadline.min(until));
            tokio::select! {
                Some(candidates) = more.recv() => self.add(&candidates),
                Some(dialled) = self.dials.join_next() => self.dialled(dialled),
                accepted = self.listening.accept() => self.accepted(accepted).await,
                place = readable(&self.links, self.read) => self.read(place),
                () = sleep_until(until) => self.agent.timeout(Instant::now()),
            }
        }
    }

    fn dial(&mut self, number: usize) {
        let Some(dialling) = self.listening.dial(self.targets[number]) else { return };
        self.dials.spawn(async move { (number, dialling.await) });
    }

    fn dialled(&mut self, dialled: Result<(usize, io::Result<TcpStream>), JoinError>) {
        // Dials neither panic nor are they aborted.
        let Ok((number, stream)) = dialled else { return };
        let (target, result) = (self.targets[number], Dialled::of(&stream));
        tracing::trace!(%target, ?result, "ICE: dialled a candidate");
        let now = Instant::now();
        self.punch.dialled(number, result, now, rand::random());
        if let Ok(stream) = stream {
            let id = self.add_link(stream, target, false);
            self.agent.dialled(id, target, now);
        }
    }

    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "ICE: cannot accept a connection");
                return sleep(PAUSE).await;
            }
        };
        let is_peers = |link: &&Link| link.is_accepted && self.agent.is_peers(link.id);
        if self.links.iter().filter(is_peers).count() >= MOST_OF_PEER {
            return;
        }
        let is_stranger = |link: &&Link| link.is_accepted && !self.agent.is_peers(link.id);
        if self.links.iter().filter(is_stranger).count() >= MOST_STRANGERS
            && let Some(oldest) = self.links.iter().find(is_stranger).map(|link| link.id)
        {
            self.close(oldest);
        }
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let id = self.add_link(stream, from, true);
        self.agent.accepted(id, from, Instant::now());
    }

    fn add_link(&mut self, stream: TcpStream, remote: SocketAddr, is_accepted: bool) -> Id {
        let id = self.next;
        self.next += 1;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
        let (frames, early) = (Frames::new(), Vec::new());
        self.links.push_back(Link { id, stream, remote, is_accepted, frames, early });
        id
    }

    /// Closes a connection from this side, which the agent does not know yet.
    fn close(&mut self, id: Id) {
        self.links.retain(|link| link.id != id);
        self.agent.closed(id, Instant::now());
    }

    /// Returns the stream when a connection is selected.
    fn carry_out(&mut self, output: Output) -> Option<IceStream> {
        match output {
            Output::Send(id, message) => {
                let frame = framed(&message);
                let link = self.links.iter().find(|link| link.id == id)?;
                // A connection that cannot take a hundred bytes is of no use.
                if link.stream.try_write(&frame).ok() != Some(frame.len()) {
                    self.close(id);
                }
                None
            }
            Output::Close(id) => {
                self.links.retain(|link| link.id != id);
                None
            }
            Output::Selected(id) => {
                let place = self.links.iter().position(|link| link.id == id)?;
                let Link { stream, remote, frames, early, .. } = self.links.remove(place)?;
                if let Err(error) = socks5::watch(&stream) {
                    tracing::debug!(%error, "could not set keepalive");
                }
                tracing::debug!(%remote, "ICE has selected a connection");
                Some(IceStream::new(stream, remote, self.own.clone(), frames, early))
            }
        }
    }

    /// Reads what has come on a connection.
    fn read(&mut self, place: usize) {
        let Some(link) = self.links.get_mut(place) else { return };
        let (id, now) = (link.id, Instant::now());
        self.read = id;
        match link.stream.try_read(link.frames.free()) {
            Ok(0) => return self.close(id),
            Ok(count) => link.frames.filled(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close(id),
        }
        // What follows a selection is the stream's.
        while !self.agent.is_over() {
            match link.frames.next() {
                Next::Stun(range) => {
                    if self.agent.received(id, link.frames.bytes(range.clone()), now) {
                        link.frames.take_stun(&range);
                    } else {
                        link.frames.is_data(&range);
                    }
                }
                Next::Data(range) => {
                    if !self.agent.is_peers(id) || link.early.len() + range.len() > MOST_EARLY {
                        tracing::debug!(remote = %link.remote, "ICE: bytes of a stranger");
                        return self.close(id);
                    }
                    link.early.extend_from_slice(link.frames.bytes(range.clone()));
                    link.frames.take_data(range.len());
                }
                Next::More => break,
            }
        }
        if self.agent.is_peers(id) {
            self.punch.succeeded();
        }
    }
}

/// Waits until one of the connections has something to read, or has ended; returns its place. They take turns, so that one on which
/// more and more comes does not hold up the others: `last` had the last turn.
async fn readable(links: &VecDeque<Link>, last: Id) -> usize {
    let begin = links.iter().position(|link| link.id > last).unwrap_or_default();
    std::future::poll_fn(|cx| {
        let mut places = (begin..links.len()).chain(0..begin);
        let ready = |place: &usize| links[*place].stream.poll_read_ready(cx).is_ready();
        places.find(ready).map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
    };

    use super::{
        super::{
            message::{Check, Class, Request},
            offered,
        },
        *,
    };
    use crate::direct::addresses::Scope;

    fn credentials(name: &str) -> Credentials {
        Credentials::new(name, &name.repeat(6)).unwrap()
    }

    /// A side, before it knows the other's candidates.
    fn side(controlling: bool, own: &str, peer: &str) -> (Attempt, Vec<Candidate>) {
        let listening = Listening::open_in(Scope::Loopback, None).unwrap();
        let candidates = offered(&listening.candidates());
        (Attempt::new(listening, controlling, credentials(own), credentials(peer)), candidates)
    }

    fn run(attempt: Attempt) -> (mpsc::Sender<Vec<Candidate>>, JoinHandle<Option<IceStream>>) {
        let (more, mut receiver) = mpsc::channel(4);
        let task = tokio::spawn(async move { attempt.run(&mut receiver).await });
        (more, task)
    }

    /// Sends some bytes there and back.
    async fn talk(a: &mut IceStream, b: &mut IceStream) {
        a.write_all(b"there").await.unwrap();
        let mut got = [0; 5];
        b.read_exact(&mut got).await.unwrap();
        b.write_all(&got).await.unwrap();
        a.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"there");
    }

    #[tokio::test]
    async fn two_sides_select_one_connection_whatever_roles_they_claim() {
        for roles in [[true, false], [true, true], [false, false]] {
            let (mut alice, of_alice) = side(roles[0], "alice", "bobby");
            let (mut bob, of_bob) = side(roles[1], "bobby", "alice");
            alice.add(&of_bob);
            bob.add(&of_alice);
            let ((_a, alice), (_b, bob)) = (run(alice), run(bob));
            let (mut alice, mut bob) = (alice.await.unwrap().unwrap(), bob.await.unwrap().unwrap());
            talk(&mut alice, &mut bob).await;
        }
    }

    #[tokio::test]
    async fn a_side_that_is_told_nothing_waits_for_the_peer_or_for_later_candidates() {
        let (mut alice, of_alice) = side(true, "alice", "bobby");
        let (bob, of_bob) = side(false, "bobby", "alice");
        alice.add(&of_bob);
        let ((_a, alice), (_b, bob)) = (run(alice), run(bob));
        let (mut alice, mut bob) = (alice.await.unwrap().unwrap(), bob.await.unwrap().unwrap());
        talk(&mut alice, &mut bob).await;

        let (carol, _) = side(true, "carol", "david");
        let (david, of_david) = side(false, "david", "carol");
        let ((tell_carol, carol), (_d, david)) = (run(carol), run(david));
        for candidate in of_david {
            tell_carol.send(vec![candidate]).await.unwrap();
        }
        let (mut carol, mut david) = (carol.await.unwrap().unwrap(), david.await.unwrap().unwrap());
        talk(&mut carol, &mut david).await;
        assert!(of_alice.len() > 2);
    }

    #[tokio::test]
    async fn strangers_do_not_keep_the_peer_out() {
        let (mut alice, _) = side(true, "alice", "bobby");
        let (bob, of_bob) = side(false, "bobby", "alice");
        let passive = |one: &&Candidate| one.address.is_ipv4() && one.address.port() > 9;
        let address = of_bob.iter().find(passive).unwrap().address;
        let (_b, bob) = run(bob);
        let mut strangers = Vec::new();
        for number in 0..2 * MOST_STRANGERS {
            let mut stranger = TcpStream::connect(address).await.unwrap();
            // Some are silent, the others say something else.
            if number % 2 == 0 {
                stranger.write_all(&[&[0, 8][..], &[b'x'; 8]].concat()).await.unwrap();
            }
            strangers.push(stranger);
        }
        alice.add(&of_bob);
        let (_a, alice) = run(alice);
        let (mut alice, mut bob) = (alice.await.unwrap().unwrap(), bob.await.unwrap().unwrap());
        talk(&mut alice, &mut bob).await;
        for mut stranger in strangers {
            let mut got = Vec::new();
            // It may be a reset.
            let _ = stranger.read_to_end(&mut got).await;
            assert!(got.is_empty(), "nothing is told to strangers");
        }
    }

    #[tokio::test]
    async fn connections_are_read_in_turns_whatever_comes_on_them() {
        let (mut alice, _) = side(true, "alice", "bobby");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut far = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // More than is read here.
            stream.write_all(&[0; 64]).await.unwrap();
            far.push(stream);
            let (near, from) = listener.accept().await.unwrap();
            near.readable().await.unwrap();
            alice.add_link(near, from, true);
        }
        let mut turns = Vec::new();
        for _ in 0..7 {
            let place = readable(&alice.links, alice.read).await;
            turns.push(place);
            alice.read = alice.links[place].id;
        }
        assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0]);
    }

    /// Alice's check, as a peer that is not ours sends it to bob.
    fn request(id: u128, nominates: bool) -> Vec<u8> {
        let (own, peer) = (&credentials("alice"), &credentials("bobby"));
        let (id, priority, controlling, tie_breaker) = (id.into(), 1, true, 1);
        let request = Request { id, own, peer, priority, controlling, tie_breaker, nominates };
        framed(&request.write())
    }

    async fn frame(far: &mut TcpStream) -> Vec<u8> {
        let mut frame = vec![0; far.read_u16().await.unwrap().into()];
        far.read_exact(&mut frame).await.unwrap();
        frame
    }

    /// Connects to bob, sends alice's check, and returns the answer to his own one, which is not sent yet.
    async fn connected(of_bob: &[Candidate], nominates: bool) -> (TcpStream, Vec<u8>) {
        let passive = |one: &&Candidate| one.address.is_ipv4() && one.address.port() > 9;
        let address = of_bob.iter().find(passive).unwrap().address;
        let mut far = TcpStream::connect(address).await.unwrap();
        far.write_all(&request(1, nominates)).await.unwrap();
        let answer = frame(&mut far).await;
        assert_eq!(Check::read(&answer).unwrap().class, Class::Success);
        let triggered = frame(&mut far).await;
        let triggered = Check::read(&triggered).unwrap();
        assert_eq!(triggered.class, Class::Request);
        let answer = triggered.success(far.peer_addr().unwrap(), &credentials("alice"));
        (far, framed(&answer))
    }

    #[tokio::test]
    async fn a_connection_on_which_the_peer_has_shown_the_password_may_be_selected_a_little_late() {
        let (bob, of_bob) = side(false, "bobby", "alice");
        let (_b, bob) = run(bob);
        let (mut far, answer) = connected(&of_bob, false).await;
        far.write_all(&[answer, request(2, false)].concat()).await.unwrap();
        let answer = frame(&mut far).await;
        assert_eq!(Check::read(&answer).unwrap().id(), 2.into());
        // The clock runs while bytes are on their way: a clock that stands still jumps then.
        tokio::time::pause();
        tokio::time::advance(direct::punch::ATTEMPT + Duration::from_secs(1)).await;
        tokio::time::resume();
        far.write_all(&request(3, true)).await.unwrap();
        assert!(bob.await.unwrap().is_some());
    }

    /// A peer that is not ours says the last of its check and the first of the stream at once.
    #[tokio::test]
    async fn what_follows_a_selection_is_the_stream_s() {
        let (bob, of_bob) = side(false, "bobby", "alice");
        let (_b, bob) = run(bob);
        let (mut far, answer) = connected(&of_bob, true).await;
        let early = framed(b"hello");
        let all = [early, answer, request(2, false), framed(b" there")].concat();
        far.write_all(&all).await.unwrap();
        let mut bob = bob.await.unwrap().unwrap();
        let mut got = [0; 11];
        bob.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello there");
        let answer = frame(&mut far).await;
        let answer = Check::read(&answer).unwrap();
        assert_eq!((answer.class, answer.id()), (Class::Success, 2.into()));
    }

    #[tokio::test]
    async fn a_peer_with_another_password_is_not_taken() {
        let (mut alice, _) = side(true, "alice", "bobby");
        let (bob, of_bob) = side(false, "bobby", "alice");
        alice.agent = Agent::new(
            true,
            credentials("alice"),
            Credentials::new("bobby", &"wrong".repeat(6)).unwrap(),
            Box::new(rand::random::<u128>),
        );
        alice.add(&of_bob);
        let ((_a, alice), (_b, bob)) = (run(alice), run(bob));
        assert!(alice.await.unwrap().is_none() && bob.await.unwrap().is_none());
    }
}
