//! Finds the STUN servers that may be asked at which address they see us.
//!
//! They come from the user or from the user's own XMPP server, never from a peer or a component. What the server names is
//! checked as the addresses of a peer are: it cannot have us connect to this machine or to the ports of usual services.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{ns, stanza::RequestKind};
use jid::Jid;
use minidom::Element;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    direct::{Listening, Observation, addresses},
    discovery,
    hub::Hub,
};

/// The usual port (RFC 8489, section 8).
const PORT: u16 = 3478;
/// The most services that are asked. With the component there are then three observers.
const MOST: usize = 2;
/// The most services of an answer that are read.
const MOST_READ: usize = 64;
/// How long the server may take to name them.
const ANSWER: Duration = Duration::from_secs(2);

/// Which servers are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum StunChoice {
    /// Those that the user's XMPP server names (XEP-0215).
    #[default]
    Named,
    /// These, each `host:port` or `[IPv6]:port`.
    These(Vec<String>),
}

/// Finds the servers of an endpoint.
#[derive(Clone, Debug)]
pub(super) struct StunServers {
    hub: Hub,
    choice: StunChoice,
}

impl StunServers {
    pub(super) fn new(hub: Hub, choice: StunChoice) -> Self {
        Self { hub, choice }
    }

    /// Returns the addresses of the servers, at most one in each family for each.
    pub(super) async fn find(&self) -> Vec<SocketAddr> {
        let (names, is_chosen) = match &self.choice {
            StunChoice::Named => (self.named().await, false),
            StunChoice::These(names) => (names.clone(), true),
        };
        let own = addresses::own();
        let mut found = Vec::new();
        for name in names.iter().take(MOST) {
            match discovery::addresses(name).await {
                Ok(addresses) => found.extend(choose(addresses, is_chosen, &own)),
                Err(error) => tracing::debug!(name, %error, "a STUN server has no address"),
            }
        }
        found
    }

    /// Asks the user's own server.
    async fn named(&self) -> Vec<String> {
        let Ok(server) = Jid::new(self.hub.jid().domain().as_str()) else { return Vec::new() };
        let query = Element::bare("services", ns::EXTDISCO);
        let asked = self.hub.request(RequestKind::Get, &server, query);
        match timeout(ANSWER, asked).await {
            Ok(Answer::Result(Some(answer))) => read(&answer),
            _ => Vec::new(),
        }
    }
}

/// Asks STUN servers, all at once. Those that do not answer are not asked again.
pub(super) async fn ask(
    stun: Option<&StunServers>,
    servers: &mut Option<Vec<SocketAddr>>,
    listening: &Listening,
) -> Vec<(TcpStream, Observation)> {
    let found = match (&*servers, stun) {
        (Some(servers), _) => servers.clone(),
        (None, Some(stun)) => stun.find().await,
        (None, None) => Vec::new(),
    };
    let mut asking = JoinSet::new();
    for server in found {
        let ask = listening.ask(server);
        asking.spawn(async move { (server, ask.await) });
    }
    let mut answers = Vec::new();
    let answered = servers.insert(Vec::new());
    while let Some(asked) = asking.join_next().await {
        match asked {
            Ok((server, Ok(answer))) => {
                answered.push(server);
                answers.push(answer);
            }
            Ok((server, Err(error))) => {
                tracing::debug!(%server, %error, "a STUN server does not answer");
            }
            // They neither panic nor are they aborted.
            Err(_) => {}
        }
    }
    answers
}

/// Returns the services that answer STUN over TCP, each as `host:port`. A TURN server is a STUN server too (RFC 8656), and asks for
/// no password then.
fn read(answer: &Element) -> Vec<String> {
    let services = answer.children().filter(|child| child.is("service", ns::EXTDISCO));
    let mut found = Vec::new();
    for service in services.take(MOST_READ) {
        let is_stun = matches!(service.attr("type"), Some("stun" | "turn"));
        let port = service.attr("port").map_or(Ok(PORT), str::parse::<u16>);
        let (true, Some("tcp"), Some(host), Ok(port)) =
            (is_stun, service.attr("transport"), service.attr("host"), port)
        else {
            continue;
        };
        let name = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).to_string(),
            Err(_) => format!("{host}:{port}"),
        };
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.truncate(MOST);
    found
}

/// Chooses one address of each family. The user's own choice is not checked.
fn choose(
    addresses: Vec<SocketAddr>,
    is_chosen: bool,
    own: &[IpAddr],
) -> impl Iterator<Item = SocketAddr> {
    let allowed = |one: &SocketAddr| is_chosen || addresses::may_be_dialled(*one, own);
    let of =
        |is_ipv4| addresses.iter().copied().filter(allowed).find(|one| one.is_ipv4() == is_ipv4);
    [of(true), of(false)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(text: &str) -> Vec<String> {
        let answer = format!("<services xmlns='{}'>{text}</services>", ns::EXTDISCO);
        read(&answer.parse().unwrap())
    }

    #[test]
    fn servers_that_answer_over_tcp_are_read() {
        let found = services(
            "<service host='stun.example.org' port='3478' transport='udp' type='stun'/>\
             <service host='ftp.example.org' port='20' transport='tcp' type='ftp'/>\
             <service host='turn.example.org' port='5349' transport='tcp' type='turn' \
              restricted='true' username='u' password='p'/>\
             <service host='2001:db8::1' transport='tcp' type='stun'/>\
             <service host='third.example.org' port='3478' transport='tcp' type='stun'/>",
        );
        assert_eq!(found, ["turn.example.org:5349", "[2001:db8::1]:3478"]);
    }

    #[test]
    fn odd_services_are_passed_over() {
        for odd in [
            "<service port='3478' transport='tcp' type='stun'/>",
            "<service host='a' port='65536' transport='tcp' type='stun'/>",
            "<service host='a' port='x' transport='tcp' type='stun'/>",
            "<service host='a' port='3478' type='stun'/>",
            "<service host='a' port='3478' transport='tcp'/>",
            "<service xmlns='other' host='a' port='3478' transport='tcp' type='stun'/>",
            "<item/>",
            "",
        ] {
            assert_eq!(services(odd), [""; 0], "{odd}");
        }
        let same = "<service host='a' port='3478' transport='tcp' type='stun'/>";
        assert_eq!(services(&same.repeat(500)), ["a:3478"]);
    }

    #[test]
    fn the_server_cannot_have_this_machine_or_a_usual_service_asked() {
        let own = ["192.0.2.7".parse().unwrap()];
        let texts = [
            "127.0.0.1:3478",
            "[::1]:3478",
            "169.254.169.254:3478",
            "192.0.2.7:3478",
            "192.0.2.8:25",
            "192.0.2.8:3478",
            "192.0.2.9:3478",
            "[2001:db8::1]:3478",
        ];
        let all: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let chosen = |is_chosen| -> Vec<String> {
            choose(all.clone(), is_chosen, &own).map(|one| one.to_string()).collect()
        };
        assert_eq!(chosen(false), ["192.0.2.8:3478", "[2001:db8::1]:3478"]);
        // The user may.
        assert_eq!(chosen(true), ["127.0.0.1:3478", "[::1]:3478"]);
    }
}
