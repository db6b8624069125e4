//! Our presence on the local network: a name that is ours alone, announced for as long as we listen.
//!
//! [`Claim`] decides who has the name. What it decides is done here: its messages go out, the name is announced on each
//! interface with the addresses of that interface only, and the user is told.

use std::{cell::OnceCell, io, net::IpAddr, time::Duration};

use futures::future::join_all;
use jid::BareJid;
use mdns_sd::{DaemonEvent, IfKind, Receiver, ServiceDaemon, ServiceInfo};
use serde_json::json;
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    claim::{Claim, ClaimAction, Forged, LABEL, Notice, properties},
    discovery::{SERVICE, bad, daemon},
    multicast::{MulticastGroup, interfaces, own_addresses},
};
use crate::output::{Output, XtlsError};

/// The first probe goes out at a random time within this (RFC 6762, 8.1).
const DELAY_MS: u64 = 250;
/// How long an announcement may take to go out.
const ANNOUNCE: Duration = Duration::from_secs(1);
/// How long our goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often we look whether the machine is on other networks now.
const LOOK: Duration = Duration::from_secs(5);

/// Our name, which changes if another program has it.
#[derive(Clone)]
pub(super) struct OwnName(watch::Receiver<Option<BareJid>>);

impl OwnName {
    pub(super) fn now(&self) -> Result<BareJid, XtlsError> {
        self.0.borrow().clone().ok_or_else(|| bad("we have no name"))
    }
}

/// Our presence on the network; it ends with [`Presence::end`].
pub(super) struct Presence {
    name: OwnName,
    token: CancellationToken,
    task: JoinHandle<Result<(), XtlsError>>,
}

impl Presence {
    /// Takes the name, or the next one that is free, and announces that we listen at `port`.
    pub(super) async fn start(
        name: BareJid,
        port: u16,
        interfaces: Vec<String>,
        output: Output,
    ) -> Result<Self, XtlsError> {
        if name.as_str().len() > LABEL {
            return Err(XtlsError::usage(format!(
                "the name {name} is too long for the local network: expected {LABEL} bytes at most, found {}",
                name.as_str().len()
            ))
            .hint("name a shorter one with --name"));
        }
        let (sender, mut names) = watch::channel(None);
        let delay = Duration::from_millis(rand::random_range(0..DELAY_MS));
        let host = format!("{:016x}", rand::random::<u64>());
        let mut keeper = NameKeeper {
            claim: Claim::new(name, host, port, Instant::now(), delay),
            group: MulticastGroup::new(),
            interfaces,
            port,
            voices: Vec::new(),
            names: sender,
            output,
        };
        keeper.look().map_err(bad)?;
        let token = CancellationToken::new();
        let mut task = tokio::spawn(keeper.run(token.clone()));
        tokio::select! {
            _ = names.wait_for(Option::is_some) => {}
            ended = &mut task => return Err(why(ended)),
        }
        Ok(Self { name: OwnName(names), token, task })
    }

    /// Returns our name, which may change.
    pub(super) fn name(&self) -> OwnName {
        self.name.clone()
    }

    /// Waits until others cannot find us any more, and returns why. Cancel safe.
    pub(super) async fn lost(&mut self) -> XtlsError {
        why((&mut self.task).await)
    }

    /// Says goodbye.
    pub(super) async fn end(self) {
        self.token.cancel();
        if !self.task.is_finished() {
            let _ = self.task.await;
        }
    }
}

/// Returns why the keeper has ended unasked.
fn why(ended: Result<Result<(), XtlsError>, JoinError>) -> XtlsError {
    match ended {
        Ok(Err(error)) => error,
        _ => bad("it has ended"),
    }
}

struct NameKeeper {
    claim: Claim,
    group: MulticastGroup,
    /// The names of the interfaces to be on; all if there are none.
    interfaces: Vec<String>,
    port: u16,
    voices: Vec<Voice>,
    names: watch::Sender<Option<BareJid>>,
    output: Output,
}

impl NameKeeper {
    async fn run(mut self, token: CancellationToken) -> Result<(), XtlsError> {
        // The first look was taken before the names were claimed.
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.claim.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                () = due => self.claim.handle_deadline(Instant::now()),
                Some(message) = self.group.next() => {
                    let own = OnceCell::new();
                    let is_own = |ip: IpAddr| own.get_or_init(own_addresses).contains(&ip);
                    self.claim.handle_message(&message, is_own, Instant::now());
                }
                _ = looks.tick() => {
                    if self.look().is_ok_and(|changed| changed) {
                        self.claim.handle_network(Instant::now());
                    }
                }
            }
            let mut announced = false;
            while let Some(action) = self.claim.poll_action() {
                match action {
                    ClaimAction::Send(message) => self.group.send(&message).await,
                    ClaimAction::Mute => self.mute(),
                    ClaimAction::Announce => {
                        self.announce().await?;
                        announced = true;
                    }
                    ClaimAction::Tell(notice) => self.tell(&notice),
                }
            }
            if announced {
                self.names.send_replace(Some(self.claim.name().clone()));
            }
        }
        join_all(self.voices.drain(..).map(Voice::goodbye)).await;
        Ok(())
    }

    /// Follows the machine to its networks; returns true if they have changed.
    fn look(&mut self) -> io::Result<bool> {
        self.group.join(interfaces(&self.interfaces)?)
    }

    async fn announce(&mut self) -> Result<(), XtlsError> {
        self.mute();
        let (name, host) = (self.claim.name().as_str(), self.claim.host());
        for interface in self.group.interfaces() {
            self.voices.push(Voice::raise(name, &host, self.port, &interface.name)?);
        }
        let until = Instant::now() + ANNOUNCE;
        for voice in &self.voices {
            voice.announced(until).await;
        }
        Ok(())
    }

    fn mute(&mut self) {
        for voice in self.voices.drain(..) {
            voice.mute();
        }
    }

    fn tell(&self, notice: &Notice) {
        let name = self.claim.name();
        let (event, text) = match notice {
            Notice::Renamed { from, to } => (
                json!({"event": "renamed", "from": from.as_str(), "to": to.as_str()}),
                format!(
                    "another program on the local network is called {from}: this one is called {to} now (--name chooses a name)"
                ),
            ),
            Notice::Defended { forged } => {
                let (what, said) = match forged {
                    Forged::Place(place) => ("place", format!("that {name} is at {place}")),
                    Forged::Properties => ("properties", format!("other properties of {name}")),
                    Forged::Address(ip) => {
                        ("address", format!("that the machine of {name} has the address {ip}"))
                    }
                    Forged::Goodbye => ("goodbye", format!("that {name} has gone")),
                };
                (
                    json!({"event": "defended", "jid": name.as_str(), "forged": what, "announced": said}),
                    format!(
                        "another program on the local network announced {said}: the name is ours and was announced again"
                    ),
                )
            }
        };
        self.output.event(&event, "");
        self.output.warn(&text);
    }
}

/// The announcer of our name on one interface, with the addresses of that interface.
struct Voice {
    daemon: ServiceDaemon,
    events: Receiver<DaemonEvent>,
    fullname: String,
}

impl Voice {
    fn raise(name: &str, host: &str, port: u16, interface: &str) -> Result<Self, XtlsError> {
        let properties = properties(port);
        let mut service = ServiceInfo::new(SERVICE, name, host, "", port, &properties[..])
            .map_err(bad)?
            .enable_addr_auto();
        // The claim has asked already.
        service.set_requires_probe(false);
        let daemon = daemon(&[interface.to_owned()])?;
        let events = daemon.monitor().map_err(bad)?;
        let fullname = service.get_fullname().to_owned();
        daemon.register(service).map_err(bad)?;
        Ok(Self { daemon, events, fullname })
    }

    /// Waits until the announcement is out.
    async fn announced(&self, until: Instant) {
        while let Ok(Ok(event)) = timeout_at(until, self.events.recv_async()).await {
            if matches!(event, DaemonEvent::Announce(..)) {
                break;
            }
        }
    }

    /// Ends without a goodbye: a disabled interface gets none.
    fn mute(self) {
        let _ = self.daemon.disable_interface(IfKind::All);
        let _ = self.daemon.shutdown();
    }

    async fn goodbye(self) {
        let until = Instant::now() + GOODBYE;
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            let _ = timeout_at(until, done.recv_async()).await;
        }
        if let Ok(done) = self.daemon.shutdown() {
            let _ = timeout_at(until, done.recv_async()).await;
        }
    }
}
