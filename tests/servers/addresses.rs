//! Which stanzas show the addresses of the users: all stanzas of the clients and of the component are recorded and searched.

use std::{fs::File, process::Command};

use support::{
    PATIENCE,
    internet::Internet,
    netns::{Nat, Place},
    programs::Options,
    servers::{Kind, Server},
    tap::Tap,
    wait_for,
};

use crate::terminal::Terminal;

/// The addresses of alice's machine and of bob's: each has one of its own and one that its NAT gives it.
const MACHINES: [[&str; 2]; 2] = [["10.1.0.2", "198.18.1.2"], ["10.2.0.2", "198.18.2.2"]];

/// The stanzas of one session.
struct Recorded {
    /// All of the clients, and all of the component, each as it came.
    text: String,
}

impl Recorded {
    /// Returns which of the machines' addresses a stanza holds.
    fn addresses(&self) -> Vec<&'static str> {
        let (text, all) = (self.text.as_str(), MACHINES.as_flattened());
        let holds = |address: &str| {
            text.match_indices(address).any(|(at, _)| {
                // 10.1.0.2 is in 10.1.0.25 and 110.1.0.2, too.
                let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
                let (bytes, end) = (text.as_bytes(), at + address.len());
                !is_digit(at.checked_sub(1).and_then(|at| bytes.get(at)))
                    && !is_digit(bytes.get(end))
            })
        };
        all.iter().copied().filter(|address| holds(address)).collect()
    }

    /// Returns the answers of the component about observed addresses, and removes them.
    fn take_observed(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = String::new();
        for stanza in self.text.split_inclusive("</iq>") {
            if stanza.contains("<observed ") && stanza.contains("host=") {
                found.push(stanza.rsplit("<iq ").next().unwrap().to_owned());
            } else {
                rest.push_str(stanza);
            }
        }
        self.text = rest;
        found
    }
}

/// The server's record of the clients' stanzas and the component's link, up to where they were looked at.
struct Recorder<'a> {
    internet: &'a Internet,
    link: Tap,
    seen: [usize; 3],
}

impl Recorder<'_> {
    /// Returns what has come since the last call.
    fn take(&mut self) -> Recorded {
        let stanzas = self.internet.server.stanzas();
        let mut text = stanzas[self.seen[0]..].join("\n");
        assert!(text.contains("session-initiate"), "the clients' stanzas are there:\n{text}");
        self.seen[0] = stanzas.len();
        let links = self.link.captured();
        let streams = [0, 1].map(|way| {
            let streams = links.iter().map(|link| if way == 0 { &link.up } else { &link.down });
            streams.flatten().copied().collect::<Vec<u8>>()
        });
        for (seen, stream) in self.seen[1..].iter_mut().zip(&streams) {
            assert!(stream.len() > *seen, "the component's stanzas are there:\n{text}");
            text.push_str(&String::from_utf8_lossy(&stream[*seen..]));
            *seen = stream.len();
        }
        Recorded { text: text.replace('"', "'").replace("\\'", "'") }
    }

    /// Lets alice and bob send each other something; returns the stanzas.
    fn session(&mut self, more: &[&str], paths: [&str; 2], is_direct: bool) -> Recorded {
        let [alice, bob] = paths.map(|path| ["--direct-path", path]);
        let mut pipe = self.internet.pipe(more, [&alice, &bob]);
        if is_direct {
            pipe.wait_until_direct(|| self.internet.logs(&pipe));
        }
        // The time of two round trips: whatever is asked at the start has been answered.
        for text in [["to bob", "to alice"], ["again to bob", "again to alice"]] {
            pipe.exchange(text);
        }
        pipe.finish();
        self.take()
    }
}

/// Starts two users behind NATs, and a record of the component's link.
fn start(kind: Kind, change: impl FnOnce(Server) -> Server + Send) -> (Internet, Tap) {
    let mut link = None;
    let nats = [Nat::PortRestricted; 2];
    let start = |address: &str| change(Server::start_at(kind, address)).with_stanzas_recorded();
    let internet = Internet::start(nats, Place::Public, start, |_, server| {
        let port = server.component_address().rsplit(':').next().unwrap().parse().unwrap();
        let tap = link.insert(Tap::start(port));
        let address = format!("127.0.0.1:{}", tap.port());
        Options { env: vec![("FINGERPOST_COMPONENT__SERVER", address)], ..Options::default() }
    });
    (internet, link.unwrap())
}

fn no_stanza_holds_an_address_that_a_user_keeps(kind: Kind) {
    let (internet, link) = start(kind, |server| server);
    let mut recorder = Recorder { internet: &internet, link, seen: [0; 3] };
    let none: [&str; 0] = [];
    for paths in [["never", "always"], ["always", "never"]] {
        for more in [&[][..], &["--direct"]] {
            let recorded = recorder.session(more, paths, false);
            assert_eq!(
                recorded.addresses(),
                none,
                "{kind:?}, {paths:?}, {more:?}\n{}",
                recorded.text
            );
        }
    }
    // By now both programs have kept the other's key, but no user has vouched for it. Without a terminal nobody can be asked.
    for (paths, hidden) in [(["always", "auto"], 1), (["auto", "always"], 0)] {
        for more in [&[][..], &["--direct"]] {
            let recorded = recorder.session(more, paths, false);
            let mut addresses = recorded.addresses();
            // Without a broker, the other one's are in its offer.
            addresses.retain(|address| more.is_empty() || MACHINES[hidden].contains(address));
            assert_eq!(addresses, none, "{kind:?}, {paths:?}, {more:?}\n{}", recorded.text);
        }
    }
    internet.alice.trust(&internet.bob);
    internet.bob.trust(&internet.alice);
    for paths in [["auto", "auto"], ["always", "always"]] {
        let mut recorded = recorder.session(&[], paths, true);
        let observed = recorded.take_observed();
        assert_eq!(recorded.addresses(), none, "{kind:?}, {paths:?}\n{}", recorded.text);
        // Each user learns where the component sees it: from the component, which sees it, by the server, which sees it too.
        assert!(!observed.is_empty(), "{kind:?}");
        for answer in observed {
            let (user, address) = match answer.contains(MACHINES[0][1]) {
                true => ("alice", MACHINES[0][1]),
                false => ("bob", MACHINES[1][1]),
            };
            assert!(answer.contains(&format!("to='{user}@")), "{answer}");
            assert_eq!(Recorded { text: answer }.addresses(), [address]);
        }
    }
    // That the search finds what there is: without a broker the addresses are in the offers, as the pages say.
    let found = recorder.session(&["--direct"], ["always", "always"], false).addresses();
    assert!(found.contains(&MACHINES[0][0]), "{kind:?}: {found:?}");
}

#[test]
fn prosody_no_stanza_holds_an_address_that_a_user_keeps() {
    no_stanza_holds_an_address_that_a_user_keeps(Kind::Prosody);
}

#[test]
fn ejabberd_no_stanza_holds_an_address_that_a_user_keeps() {
    no_stanza_holds_an_address_that_a_user_keeps(Kind::Ejabberd);
}

/// The programs ask each other what they have, and get an error. One of them may be the one that takes no direct connections.
#[test]
fn an_error_in_place_of_the_features_tells_no_address() {
    let (internet, link) = start(Kind::Prosody, Server::without_features);
    let mut recorder = Recorder { internet: &internet, link, seen: [0; 3] };
    for paths in [["never", "always"], ["always", "never"]] {
        let recorded = recorder.session(&["--direct"], paths, false);
        assert_eq!(recorded.addresses(), [""; 0], "{paths:?}\n{}", recorded.text);
    }
}

/// The peer offers a new leg of the relay while the user at the terminal has not answered. In another window the user vouches for the
/// peer's key: that is no answer in this session, which has begun without one.
#[test]
fn no_address_is_told_while_the_user_is_asked() {
    let (mut internet, _link) = start(Kind::Prosody, |server| server);
    let (alice, bob) = (&internet.alice, &internet.bob);
    let listen = bob.command(["pipe", "--listen", "--direct", "--direct-path", "auto"]);
    let terminal = Terminal::start(bob.home(), &listen, "true");
    let shown = terminal.wait_for("listening as ");
    let (_, jid) = shown.split_once("listening as ").unwrap();
    let jid = jid.split(|c: char| c.is_whitespace() || c == ',').next().unwrap().to_owned();
    let fifo = alice.home().join("in");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _held = File::options().read(true).write(true).open(fifo).unwrap();
    let args = ["pipe", &jid, "--json", "--direct", "--direct-path", "always"];
    let pipe = alice.start_between(args, "in", "out");
    let logs = || format!("{}\n{}", terminal.text(), pipe.log());
    wait_for("the question", PATIENCE, logs, || terminal.text().contains("[y/N]"));
    bob.trust(alice);
    let seen = internet.server.stanzas().len();
    internet.networks.inside(Place::Public, || internet.component.kill_and_restart());
    let stanzas = || internet.server.stanzas()[seen..].join("\n");
    wait_for("the answer", PATIENCE, logs, || stanzas().contains("transport-accept"));
    let recorded = Recorded { text: stanzas() };
    let addresses = recorded.addresses();
    assert!(!MACHINES[1].iter().any(|of| addresses.contains(of)), "{}", recorded.text);
}
