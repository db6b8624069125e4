//! ICE as the transport of a session without a broker (XEP-0371), and what replaces it if it finds no connection.
//!
//! Nobody has proved to be the peer when addresses are told, so only a peer that may learn them without a question gets any. Nothing
//! that the peer names is dialled before that either.

use std::{pin::pin, time::Duration};

use fingerpost_carry::iq::{Answer, random_id};
use fingerpost_wire::{
    ice::IceTransport,
    jingle::{Action, Reason},
    ns,
    transport_kind::TransportKind,
    xml,
};
use jid::Jid;
use minidom::Element;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{Gathered, IceStream, attempt::Attempt};
use crate::{
    application::{first_content, transport_of},
    direct::addresses::Scope,
    endpoint::Endpoint,
    error::Error,
    session::{STEP, Session},
    stun_servers::StunServers,
    transport::SessionLeg,
};

/// How long the peer may take to name credentials after it has accepted the session.
const CREDENTIALS: Duration = Duration::from_secs(5);
/// The most transport-infos that come before the session-accept.
const MOST_EARLY: usize = 32;
/// The most transport-infos that wait for an attempt to take them.
const MOST_NEWS: usize = 16;

/// What the peer says of the transport.
enum News {
    Told(IceTransport),
    /// It offers another one.
    Replaced(Element),
}

/// The outcome of an attempt.
pub(crate) enum Outcome {
    Selected(IceStream),
    Failed(String),
    Replaced(Element),
}

impl Endpoint {
    /// Returns whether a program has ICE, and whether it has the direct paths of this project; `None` if it does not say.
    async fn has_ice(&self, address: &Jid) -> Option<[bool; 2]> {
        let Answer::Result(Some(info)) = self.info_of(address).await else { return None };
        let has = |feature: &str| xml::features(&info).any(|one| one == feature);
        Some([has(ns::JINGLE_ICE), has(ns::PATHS)])
    }
}

impl Session {
    /// Returns why no connection by ICE can be had here, if that is so.
    fn refuse_ice(&self) -> Result<(), Error> {
        self.demand(TransportKind::Ice)?;
        let text = if self.is_brokered() {
            "a broker carries no connections by ICE"
        } else if self.endpoint.scope() != Scope::Network {
            "ICE is not used on this link"
        } else if !self.consent.is_given() {
            "direct connections with this peer are not allowed: offer another transport"
        } else {
            return Ok(());
        };
        Err(Error::Transport(text.to_owned()))
    }

    /// Gathers candidates to offer as initiator.
    ///
    /// # Errors
    /// [`Error::Transport`] if ICE cannot be used with this peer. Nothing was told to it by then.
    pub(crate) async fn offer_ice(&self) -> Result<Gathered, Error> {
        if let Err(Error::Transport(_)) = self.refuse_ice() {
            let peer = &self.peer;
            return Err(Error::Transport(if self.is_brokered() {
                "a broker carries no connections by ICE".to_owned()
            } else {
                format!("{peer} may not learn this machine's addresses, which ICE would tell")
            }));
        }
        let is_required = self.endpoint.transport() == Some(TransportKind::Ice);
        let fits = match self.endpoint.has_ice(&self.address).await {
            Some([has_ice, has_paths]) => has_ice && (is_required || !has_paths),
            None => false,
        };
        if !fits {
            return Err(Error::Transport(format!("{} takes no connections by ICE", self.address)));
        }
        self.gather().await
    }

    async fn gather(&self) -> Result<Gathered, Error> {
        let hub = self.endpoint.hub().clone();
        let stun = StunServers::new(hub, self.endpoint.inner.builder.stun.clone());
        Gathered::gather(&stun)
            .await
            .map_err(|error| Error::Transport(format!("cannot listen for the peer: {error}")))
    }

    /// Says that no more candidates will come. Nobody waits for the answer.
    pub(crate) fn say_gathered(&self, gathered: &Gathered) {
        let transport = IceTransport {
            credentials: Some(gathered.own.clone()),
            is_complete: true,
            ..IceTransport::default()
        };
        self.say(Action::TransportInfo, vec![transport.to_element()]);
    }

    /// Sends an action without waiting for its answer.
    fn say(&self, action: Action, children: Vec<Element>) {
        let attributes = [("type", "set"), ("to", self.address.as_str()), ("id", &random_id())];
        let mut iq = xml::element("iq", ns::CLIENT, &attributes);
        iq.append_child(self.jingle(action, None, children));
        self.endpoint.hub().try_send(iq);
    }

    /// Refuses the transport that the peer offers instead.
    pub(crate) fn reject_transport(&self, replace: &Element) {
        let content = first_content(replace).ok();
        let theirs = content.as_ref().and_then(transport_of).cloned();
        self.say(Action::TransportReject, theirs.into_iter().collect());
    }

    /// Returns the session-accept, and what the peer has told of the transport before it.
    pub(crate) async fn ice_accepted(
        &mut self,
        wait: Duration,
    ) -> Result<(Element, Vec<IceTransport>), Error> {
        let until = Instant::now() + wait;
        let mut early = Vec::new();
        loop {
            let wanted = [Action::SessionAccept, Action::TransportInfo, Action::TransportReplace];
            let left = until.saturating_duration_since(Instant::now());
            let (action, jingle) = self.expect(&wanted, left).await?;
            match action {
                Action::TransportInfo if early.len() < MOST_EARLY => early.extend(told(&jingle)),
                Action::TransportInfo => {}
                // A session that is not accepted can be started again with another transport.
                Action::TransportReplace => self.reject_transport(&jingle),
                _ => return Ok((jingle, early)),
            }
        }
    }

    /// Sets up the transport that the responder has accepted.
    pub(crate) async fn ice_initiator_leg(
        &mut self,
        content: &Element,
        offered: Gathered,
        early: Vec<IceTransport>,
    ) -> Result<SessionLeg, Error> {
        let theirs = content.get_child("transport", ns::JINGLE_ICE);
        let theirs = theirs.ok_or_else(|| Error::failed("the peer accepted another transport"))?;
        let theirs =
            IceTransport::read(theirs).map_err(|error| Error::failed(error.to_string()))?;
        let why = match self.ice(offered, early.into_iter().chain([theirs]).collect()).await? {
            Outcome::Selected(stream) => return Ok(SessionLeg::Ice(stream)),
            Outcome::Replaced(jingle) => return self.replaced(&jingle).await,
            Outcome::Failed(why) => why,
        };
        if self.endpoint.transport().is_some() {
            return Err(Error::Transport(why));
        }
        tracing::debug!(why, "ICE has failed: other transports are offered");
        for kind in [TransportKind::S5b, TransportKind::Ibb] {
            let (offered, transport) = self.offer_transport(kind).await;
            self.bytestream = Some(offered.sid().to_owned());
            self.tell_transport(Action::TransportReplace, transport).await?;
            let wanted =
                [Action::TransportAccept, Action::TransportReject, Action::TransportReplace];
            let (action, jingle) = loop {
                let (action, jingle) = self.expect(&wanted, STEP).await?;
                if action != Action::TransportReplace {
                    break (action, jingle);
                }
                // It crossed ours, and the initiator's wins (XEP-0166, 7.2.16). The hub refuses later ones.
                self.reject_transport(&jingle);
            };
            if action == Action::TransportAccept {
                let leg = self.initiator_leg(&first_content(&jingle)?, offered).await?;
                return Ok(SessionLeg::Bytestream(leg));
            }
        }
        Err(Error::failed(format!("{why}, and the peer refuses other transports")))
    }

    /// Accepts the session with `children` as the answer, and tries the offered transport.
    pub(crate) async fn ice_answer(
        &mut self,
        content: &Element,
        transport: &Element,
        mut children: Vec<Element>,
    ) -> Result<Outcome, Error> {
        if let Err(error) = self.refuse_ice() {
            if let Error::Transport(text) = &error {
                self.terminate(Reason::UnsupportedTransports, text).await;
            }
            return Err(error);
        }
        let theirs =
            IceTransport::read(transport).map_err(|error| Error::failed(error.to_string()))?;
        let gathered = self.gather().await?;
        children.push(gathered.transport().to_element());
        self.tell(self.jingle(Action::SessionAccept, content.attr("senders"), children)).await?;
        self.say_gathered(&gathered);
        self.ice(gathered, vec![theirs]).await
    }

    /// Returns the connection that was selected as responder, or sets up what replaces it.
    pub(crate) async fn ice_responder_leg(
        &mut self,
        outcome: Outcome,
    ) -> Result<SessionLeg, Error> {
        match outcome {
            Outcome::Selected(stream) => Ok(SessionLeg::Ice(stream)),
            Outcome::Replaced(jingle) => self.replaced(&jingle).await,
            Outcome::Failed(why) if self.endpoint.transport().is_some() => {
                Err(Error::Transport(why))
            }
            Outcome::Failed(why) => {
                tracing::debug!(why, "ICE has failed: the peer may offer another transport");
                loop {
                    let (_, jingle) = self.expect(&[Action::TransportReplace], STEP).await?;
                    if !is_ice(&jingle) {
                        return self.replaced(&jingle).await;
                    }
                    self.reject_transport(&jingle);
                }
            }
        }
    }

    /// Takes the transport that the peer offers instead.
    async fn replaced(&mut self, jingle: &Element) -> Result<SessionLeg, Error> {
        let content = first_content(jingle)?;
        let transport = transport_of(&content);
        self.bytestream = transport.and_then(|transport| transport.attr("sid")).map(str::to_owned);
        let leg = self.accepted_leg(Action::TransportAccept, &content, Vec::new()).await?;
        Ok(SessionLeg::Bytestream(leg))
    }

    /// Finds a connection. `theirs` is what the peer has told so far.
    async fn ice(&mut self, ours: Gathered, theirs: Vec<IceTransport>) -> Result<Outcome, Error> {
        // The addresses are of the peer's choice, and it has not proved yet who it is.
        let endpoint = self.endpoint.clone();
        let place = (!self.initiator).then(|| endpoint.inner.ice.try_acquire());
        if let Some(Err(_)) = place {
            return Ok(Outcome::Failed("too many peers try to connect by ICE".to_owned()));
        }
        let mut known = IceTransport::default();
        theirs.into_iter().for_each(|one| add(&mut known, one));
        let until = Instant::now() + CREDENTIALS;
        let peer = loop {
            if let Some(credentials) = known.credentials.clone() {
                break credentials;
            }
            let news = match timeout_at(until, self.ice_news()).await {
                Ok(news) => news?,
                Err(_) => {
                    return Ok(Outcome::Failed("the peer told no ICE credentials".to_owned()));
                }
            };
            match news {
                News::Told(more) => add(&mut known, more),
                News::Replaced(jingle) => return Ok(Outcome::Replaced(jingle)),
            }
        };
        if known.is_complete && known.candidates.is_empty() {
            return Ok(Outcome::Failed("the peer has no ICE candidates over TCP".to_owned()));
        }
        let mut attempt = Attempt::new(ours.listening, self.initiator, ours.own, peer.clone());
        attempt.add(&known.candidates);
        let (more, mut receiver) = mpsc::channel(MOST_NEWS);
        let mut run = pin!(attempt.run(&mut receiver));
        loop {
            tokio::select! {
                selected = &mut run => {
                    let text = "ICE found no connection to the peer";
                    return Ok(selected.map_or_else(|| Outcome::Failed(text.to_owned()), Outcome::Selected));
                }
                news = self.ice_news() => match news? {
                    // Other credentials would restart ICE (RFC 8445, 9), which is not done here.
                    News::Told(told) if told.credentials.as_ref().is_none_or(|of| *of == peer) => {
                        // An attempt that has so many to look at gets no more.
                        let _ = more.try_send(told.candidates);
                    }
                    News::Told(_) => {}
                    News::Replaced(jingle) => return Ok(Outcome::Replaced(jingle)),
                },
            }
        }
    }

    async fn ice_news(&mut self) -> Result<News, Error> {
        loop {
            let (action, jingle) = self.next().await?;
            match action.known() {
                Some(Action::TransportInfo) => {
                    if let Some(told) = told(&jingle) {
                        return Ok(News::Told(told));
                    }
                }
                // That would restart ICE as well.
                Some(Action::TransportReplace) if is_ice(&jingle) => self.reject_transport(&jingle),
                Some(Action::TransportReplace) => return Ok(News::Replaced(jingle)),
                Some(Action::SessionTerminate) => {
                    return Err(Error::refused("the peer ended the session early"));
                }
                _ => {}
            }
        }
    }
}

/// Returns whether an action names ICE as the transport.
fn is_ice(jingle: &Element) -> bool {
    first_content(jingle).is_ok_and(|content| content.has_child("transport", ns::JINGLE_ICE))
}

/// Returns what a transport-info tells, if that can be read.
fn told(jingle: &Element) -> Option<IceTransport> {
    let content = first_content(jingle).ok()?;
    let transport = content.get_child("transport", ns::JINGLE_ICE)?;
    IceTransport::read(transport)
        .inspect_err(|error| tracing::debug!(%error, "a transport-info is not usable"))
        .ok()
}

/// Adds what the peer tells later, unless it is of other credentials.
fn add(known: &mut IceTransport, more: IceTransport) {
    if known.credentials.is_some()
        && more.credentials.is_some()
        && known.credentials != more.credentials
    {
        return;
    }
    known.credentials = known.credentials.take().or(more.credentials);
    known.candidates.extend(more.candidates);
    known.others += more.others;
    known.is_complete |= more.is_complete;
}
