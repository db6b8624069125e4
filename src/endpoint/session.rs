//! One Jingle session of an endpoint: its actions in and out, and how it ends (XEP-0166).

use std::{collections::VecDeque, time::Duration};

use jid::{BareJid, Jid};
use minidom::Element;
use tokio::time::timeout;

use super::{
    Endpoint,
    error::Error,
    hub::{Inbox, condition},
};
use crate::{
    broker::rewrite,
    xmpp::{
        iq::{Answer, random_id},
        ns,
        stanza::Stanza,
        xml,
    },
};

/// How long a goodbye may wait for its answer.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long what is under way may take to arrive when the peer has ended the session.
const LINGER: Duration = Duration::from_secs(5);
/// Actions that wait for their turn.
const HELD: usize = 32;
/// How long the reason of a stream's end may come after the end itself.
const REASON: Duration = Duration::from_secs(2);

/// The Jingle session that a secured stream belongs to.
///
/// It ends with [`terminate`](Self::terminate) or, told by the peer, shows in [`terminated`](Self::terminated) and
/// [`during`](Self::during). However it is dropped before that, on Ctrl-C for one, the peer is told `cancel`.
#[derive(Debug)]
pub struct Session {
    pub(super) endpoint: Endpoint,
    pub(super) inbox: Inbox,
    pub(super) address: Jid,
    pub(super) peer: BareJid,
    pub(super) sid: String,
    pub(super) namespace: String,
    pub(super) content: String,
    pub(super) initiator: bool,
    /// One side has said that it is over, or the other never knew of it.
    pub(super) over: bool,
    /// What has come while something else was waited for.
    held: VecDeque<(String, Element)>,
    pub(super) answer: Option<Element>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", "set"), ("to", self.address.as_str()), ("id", &random_id())],
        );
        iq.append_child(self.goodbye("cancel", ""));
        self.endpoint.hub().try_send(iq);
    }
}

impl Session {
    pub(super) fn new(endpoint: &Endpoint, inbox: Inbox, address: Jid, sid: String) -> Self {
        Self {
            peer: endpoint.user_of(&address),
            endpoint: endpoint.clone(),
            inbox,
            address,
            sid,
            namespace: ns::JINGLE.to_owned(),
            content: "e2e-tls".to_owned(),
            initiator: true,
            over: false,
            held: VecDeque::new(),
            answer: None,
        }
    }

    /// The user at the other end.
    pub fn peer(&self) -> &BareJid {
        &self.peer
    }

    /// The address of the other end: the peer's own, or the one that stands for it at the component.
    pub fn address(&self) -> &Jid {
        &self.address
    }

    /// The `<description/>` with which the responder has answered ours, on the initiator's side.
    pub fn answer(&self) -> Option<&Element> {
        self.answer.as_ref()
    }

    /// Whether the session runs through the broker.
    pub(super) fn is_brokered(&self) -> bool {
        self.endpoint.via().is_some_and(|via| via.domain() == self.address.domain())
    }

    /// Ends the session with a reason (XEP-0166, 7.4: `success`, `cancel`, `decline`, …) and a text for the peer's
    /// user, which may be empty. If it is over already, nothing happens.
    pub async fn terminate(&mut self, reason: &str, text: &str) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let hub = self.endpoint.hub();
        let wait = hub.request("set", &self.address, self.goodbye(reason, text));
        let _ = timeout(GOODBYE, wait).await;
    }

    fn goodbye(&self, reason: &str, text: &str) -> Element {
        let me = self.endpoint.jid();
        let frame = rewrite::Frame {
            namespace: &self.namespace,
            sid: &self.sid,
            initiator: &me,
            responder: &self.address,
        };
        rewrite::terminate(&frame, reason, text)
    }

    /// Does `work` on the session's stream for as long as the peer does not end the session.
    ///
    /// A peer that ends it with success has sent all; what is still under way gets a moment to arrive. A lost
    /// XMPP connection does not end a stream that may run beside it.
    ///
    /// # Errors
    /// Those of `work`, or why the peer ended the session, which says more.
    pub async fn during<T, E: From<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::pin!(work);
        let ended = tokio::select! {
            biased;
            done = &mut work => {
                let Err(error) = done else { return done };
                // What has no peer any more may still have failed by itself.
                let reason = self.reason().await.filter(|reason| *reason != Error::Disconnected);
                return Err(reason.map_or(error, E::from));
            }
            ended = self.terminated() => ended,
        };
        match ended {
            Ok(()) => timeout(LINGER, work).await.unwrap_or_else(|_| {
                Err(Error::refused("the peer ended the session before all was said").into())
            }),
            Err(_) if !self.over => work.await,
            Err(error) => Err(error.into()),
        }
    }

    /// Why the session is over: that may be a moment behind a stream that broke, and says more.
    async fn reason(&mut self) -> Option<Error> {
        timeout(REASON, self.terminated()).await.ok()?.err()
    }

    /// Waits until the peer ends the session, if it is not over.
    ///
    /// # Errors
    /// Why, unless the reason is success.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn terminated(&mut self) -> Result<(), Error> {
        if self.over {
            return Ok(());
        }
        loop {
            let (action, _) = self.next().await?;
            if action == "success" {
                return Ok(());
            }
        }
    }

    /// The next action. A terminate is `success` or an error.
    async fn next(&mut self) -> Result<(String, Element), Error> {
        if let Some(held) = self.held.pop_front() {
            return Ok(held);
        }
        let stanza = self.inbox.next().await;
        self.received(stanza)
    }

    fn received(&mut self, stanza: Option<Stanza>) -> Result<(String, Element), Error> {
        let jingle = payload(&stanza.ok_or(Error::Disconnected)?);
        let action = jingle.attr("action").unwrap_or_default().to_owned();
        if action != "session-terminate" {
            return Ok((action, jingle));
        }
        self.over = true;
        let namespace = jingle.ns();
        let reason = jingle.get_child("reason", namespace.as_str());
        let name = reason
            .and_then(|reason| reason.children().find(|child| child.name() != "text"))
            .map_or("no reason", Element::name)
            .to_owned();
        let text = reason
            .and_then(|reason| reason.get_child("text", namespace.as_str()))
            .map(|text| {
                text.text().chars().filter(|c| !c.is_control()).take(300).collect::<String>()
            })
            .filter(|text| !text.is_empty())
            .map(|text| format!(": {text}"))
            .unwrap_or_default();
        match name.as_str() {
            "success" => Ok(("success".to_owned(), jingle)),
            "gone" | "timeout" | "connectivity-error" | "failed-transport" => Err(Error::failed(
                format!("the session with {} was ended: {name}{text}", self.peer),
            )),
            // What went wrong on the peer's side, not what the peer does not want.
            "failed-application" | "general-error" | "media-error" => {
                Err(Error::failed(format!("{} ended the session: {name}{text}", self.peer)))
            }
            _ => Err(Error::refused(format!("{} ended the session: {name}{text}", self.peer))),
        }
    }

    /// The next action of a given name.
    pub(super) async fn expect(
        &mut self,
        wanted: &[&str],
        wait: Duration,
    ) -> Result<(String, Element), Error> {
        let wanted_action = async {
            loop {
                let (action, jingle) = self.next().await?;
                if wanted.contains(&action.as_str()) {
                    return Ok((action, jingle));
                }
                if action == "success" {
                    return Err(Error::refused("the peer ended the session early"));
                }
            }
        };
        timeout(wait, wanted_action).await.map_err(|_| {
            Error::failed(format!("the peer did not answer in time ({})", wanted.join(", ")))
        })?
    }

    /// Does a step of the negotiation, which the peer may end.
    pub(super) async fn unless_ended<T>(
        &mut self,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = step => match done {
                Err(Error::Failed(text)) => {
                    Err(self.reason().await.unwrap_or(Error::Failed(text)))
                }
                done => done,
            },
            ended = self.terminated() => Err(match ended {
                Ok(()) => Error::refused("the peer ended the session before it was secured"),
                Err(error) => error,
            }),
        }
    }

    /// A `<jingle/>` of this session with one content.
    pub(super) fn jingle(
        &self,
        action: &str,
        senders: Option<&str>,
        children: Vec<Element>,
    ) -> Element {
        let me = self.endpoint.jid();
        let mut jingle =
            xml::element("jingle", &self.namespace, &[("action", action), ("sid", &self.sid)]);
        match action {
            "session-initiate" => xml::set(&mut jingle, "initiator", me.as_str()),
            "session-accept" => xml::set(&mut jingle, "responder", me.as_str()),
            _ => {}
        }
        let mut content = xml::element(
            "content",
            &self.namespace,
            &[("creator", "initiator"), ("name", &self.content)],
        );
        if let Some(senders) = senders {
            xml::set(&mut content, "senders", senders);
        }
        for child in children {
            content.append_child(child);
        }
        jingle.append_child(content);
        jingle
    }

    /// Asks the other side, unless it ends the session; what else it says meanwhile is kept.
    pub(super) async fn ask(&mut self, jingle: Element) -> Result<(), Error> {
        let (hub, address) = (self.endpoint.hub().clone(), self.address.clone());
        let asking = hub.request("set", &address, jingle);
        tokio::pin!(asking);
        let answer = loop {
            tokio::select! {
                // What came before the answer is looked at before it.
                biased;
                stanza = self.inbox.next() => {
                    let news = self.received(stanza)?;
                    if news.0 == "success" {
                        return Err(Error::refused("the peer ended the session early"));
                    }
                    if self.held.len() >= HELD {
                        return Err(Error::refused("the peer says too much at once"));
                    }
                    self.held.push_back(news);
                }
                answer = &mut asking => break answer,
            }
        };
        match answer {
            Answer::Result(_) => Ok(()),
            Answer::Error(error) => {
                let condition = condition(&error);
                let text = format!("{}: {condition}", self.peer);
                Err(match condition.split(' ').next().unwrap_or_default() {
                    "recipient-unavailable"
                    | "item-not-found"
                    | "service-unavailable"
                    | "remote-server-not-found"
                    | "remote-server-timeout"
                    | "gone" => Error::Unreachable(text),
                    _ => Error::Refused(text),
                })
            }
            Answer::Timeout if hub.is_lost() => Err(Error::Disconnected),
            Answer::Timeout => Err(Error::Unreachable(format!("{} did not answer", self.peer))),
        }
    }

    pub(super) async fn tell_transport(
        &mut self,
        action: &str,
        transport: Element,
    ) -> Result<(), Error> {
        self.ask(self.jingle(action, None, vec![transport])).await
    }
}

/// The `<jingle/>` of a stanza.
pub(super) fn payload(stanza: &Stanza) -> Element {
    stanza.payload().cloned().unwrap_or_else(|| Element::bare("jingle", ns::JINGLE))
}
