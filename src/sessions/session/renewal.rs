//! How both legs are replaced when a stream has broken that its users' programs can go on with.
//!
//! Two programs that have agreed to direct paths number the bytes of their stream, and go on over another connection
//! where one has broken. The component keeps the session of such a stream for [`RENEWAL`] after its end. If the
//! initiator sends a transport-replace in this time, or while bytes flow, the component cuts what is left of both legs,
//! accepts the new transport, and offers the responder a new one of the kind that it had. The same works with a session that
//! an earlier run of the component has left in the journal: [`BrokeredSession::restored`].

use std::{sync::Arc, time::Duration};

use fingerpost_wire::{
    jingle::{self, Reason},
    ns,
    stanza::Condition,
    transport::Transport,
};
use minidom::Element;
use tokio::time::Instant;
use tracing::info;

use super::{
    Acceptance, BrokeredSession, Question, SessionAction, SessionPhase, contents::BrokeredContent,
    direct::DirectUse, timers::Timer,
};
use crate::sessions::{
    journal::{LeftSession, Renewable},
    legs::{LegState, Plan},
    options::BrokerOptions,
    peer_error::is_unknown,
    side::{PerSide, Side},
};

/// How often the legs of a session may be replaced.
const RENEWALS: u8 = 100;
/// After which time an attempt is given up of which the responder does not know.
const REPEAT: Duration = Duration::from_secs(1);
/// How long the users have to go on with a broken stream.
pub(crate) const RENEWAL: Duration = Duration::from_secs(20);

impl BrokeredSession {
    /// Returns whether the users' programs can go on with a broken stream.
    pub(super) fn can_renew(&self) -> bool {
        self.direct.is_some()
    }

    /// Returns whether another run can go on with the session: its stream has begun, and no user has ended it. That both legs
    /// have ended means nothing: a program ends a leg that it takes for lost.
    pub(super) fn goes_on(&self) -> bool {
        self.can_renew()
            && match &self.phase {
                SessionPhase::Negotiating => self.renewals > 0,
                SessionPhase::Relayed { .. }
                | SessionPhase::Relaying { .. }
                | SessionPhase::Restored => true,
                _ => false,
            }
    }

    /// Returns what another run needs to go on with the session; `None` if it cannot.
    pub(crate) fn renewable(&self) -> Option<Renewable> {
        self.goes_on().then(|| Renewable {
            content: self.content.name.clone(),
            transports: PerSide {
                initiator: self.legs.initiator.plan.namespace(),
                responder: self.legs.responder.plan.namespace(),
            },
        })
    }

    /// Returns a session that an earlier run has left. It is over if the initiator does not go on with it by the deadline.
    pub(crate) fn restored(
        options: Arc<BrokerOptions>,
        ids: fn() -> String,
        LeftSession { peers, renewable, .. }: LeftSession,
        now: Instant,
        deadline: Instant,
    ) -> Self {
        let block_size = options.block_size;
        let legs = renewable.transports.map(|namespace| {
            let leg = match namespace {
                ns::JINGLE_S5B => LegState::s5b(ids(), ids(), None),
                ibb => LegState::ibb(ibb, None, block_size),
            };
            // It had one, and takes another only in place of that.
            LegState { ready: true, ..leg }
        });
        let is_in_band = renewable.transports.iter().any(|namespace| *namespace != ns::JINGLE_S5B);
        let content = BrokeredContent::accepted(renewable.content);
        let state = (SessionPhase::Restored, Acceptance::Accepted);
        let mut session = Self::begin(options, ids, peers, legs, content, state, deadline);
        session.direct = Some(Box::new(DirectUse::new(now)));
        if is_in_band {
            session.tell_lost();
        }
        session
    }

    /// Tells the initiator's program that its leg is gone. The kernel does that for a connection. But the blocks under way were lost
    /// with the earlier run, so nobody refuses one, and the program would wait for answers.
    fn tell_lost(&mut self) {
        let mut info = jingle::own(jingle::Action::SessionInfo, &self.frame(Side::Initiator));
        info.append_child(Element::bare("lost", ns::PATHS));
        self.tell(Side::Initiator, info);
    }

    /// Returns whether a transport of the initiator replaces both legs: once they were joined, and also when it tries again
    /// because new legs have failed. While its leg is set up, in-band bytestreams replace SOCKS5 on it alone.
    pub(super) fn renews(&self, content: &Element) -> bool {
        match self.phase {
            SessionPhase::Relaying { .. }
            | SessionPhase::Relayed { .. }
            | SessionPhase::Restored => true,
            SessionPhase::Negotiating => {
                let falls_back = self.legs.initiator.awaits_socks5()
                    && matches!(Transport::read(content), Some(Transport::Ibb { .. }));
                self.renewals > 0 && !falls_back
            }
            _ => false,
        }
    }

    /// Replaces both legs: the initiator offers another transport in place of its leg.
    pub(super) fn renew(&mut self, content: &Element, now: Instant) {
        let leg = match Transport::read(content)
            .filter(|_| !self.asks_enough() && self.renewals < RENEWALS)
        {
            Some(Transport::Ibb { namespace, sid: Some(sid), block_size }) if self.options.ibb => {
                let block_size = block_size.min(self.options.block_size);
                LegState::ibb(namespace, Some(sid), block_size)
            }
            Some(Transport::S5b { sid, candidates }) if self.options.socks5 => {
                LegState::offered_s5b(sid, candidates, &self.options.jid, (self.ids)())
            }
            _ => {
                let rejection = self.replace_rejection(Side::Initiator, content);
                return self.tell(Side::Initiator, rejection);
            }
        };
        self.actions.push_back(SessionAction::Part);
        self.renewals += 1;
        info!(number = self.renewals, "the users replace both legs");
        if !self.awaits_consent() {
            self.timers.set(Timer::Phase, now + self.options.activation_timeout);
        }
        self.phase = SessionPhase::Negotiating;
        self.legs.initiator = leg;
        self.expect(Side::Initiator);
        let transport = self.leg_transport(Side::Initiator);
        self.tell_transport(Side::Initiator, jingle::Action::TransportAccept, transport);
        self.nominate(Side::Initiator);
        self.timers.stop(Timer::FallBack(Side::Initiator));
        self.timers.stop(Timer::Repeat);
        self.expect_choice(Side::Initiator, now);
        self.offer_again();
    }

    /// Offers the responder a new transport.
    fn offer_again(&mut self) {
        self.timers.stop(Timer::FallBack(Side::Responder));
        self.legs.responder = self.responder_leg();
        self.expect(Side::Responder);
        let transport = self.leg_transport(Side::Responder);
        let replace = jingle::Action::TransportReplace;
        let name = self.content.name.clone();
        let jingle = self.transport_jingle(Side::Responder, replace, &name, transport);
        let question = Question::Renew(self.stream_sid(Side::Responder));
        self.ask(Side::Responder, jingle, question);
    }

    /// Returns a leg to be offered to the responder: of the kind that it had, or of the other kind if the operator has switched that one
    /// off since.
    fn responder_leg(&self) -> LegState {
        let BrokerOptions { socks5, ibb, .. } = *self.options;
        let namespace = match &self.legs.responder.plan {
            Plan::S5b { .. } if socks5 => ns::JINGLE_S5B,
            Plan::S5b { .. } if self.peers.responder.namespace == ns::JINGLE_0 => ns::JINGLE_IBB_0,
            Plan::S5b { .. } => ns::JINGLE_IBB,
            Plan::Ibb { namespace, .. } if ibb || !socks5 => namespace,
            Plan::Ibb { .. } => ns::JINGLE_S5B,
        };
        LegState { is_offered: true, ..self.new_leg(namespace) }
    }

    /// Returns a leg of this transport whose ids nobody knows yet.
    fn new_leg(&self, namespace: &'static str) -> LegState {
        let sid = (self.ids)();
        match namespace {
            ns::JINGLE_S5B => LegState::s5b(sid, (self.ids)(), None),
            ibb => LegState::ibb(ibb, Some(sid), self.options.block_size),
        }
    }

    /// Expects the connection or the bytestream of a new leg.
    fn expect(&mut self, side: Side) {
        self.actions.push_back(match &self.legs[side].plan {
            Plan::S5b { sid, .. } => SessionAction::Connect(side, sid.to_string()),
            Plan::Ibb { sid, .. } => {
                SessionAction::ExpectOpen(side, sid.as_deref().map(str::to_owned))
            }
        });
    }

    /// Handles the responder's consent to its new transport.
    pub(super) fn renewed(&mut self, answer: Option<Transport>, now: Instant) {
        let side = Side::Responder;
        let sid = match &answer {
            Some(Transport::S5b { sid, .. }) => Some(sid),
            Some(Transport::Ibb { sid, .. }) => sid.as_ref(),
            None => None,
        };
        if sid != Some(&self.stream_sid(side)) {
            // It answers an offer before the last one.
            return;
        }
        // Both legs have time again to come up.
        self.timers.set(Timer::Phase, now + self.options.activation_timeout);
        let leg = &mut self.legs[side];
        leg.is_offered = false;
        leg.accept(answer);
        self.nominate(side);
        self.expect_choice(side, now);
        self.open(side);
    }

    /// Handles an error in place of the responder's consent. A server may lose its way to a user for a moment.
    pub(super) fn renewal_failed(&mut self, error: &Element, now: Instant) {
        if !self.awaits_consent() {
            return;
        }
        if is_unknown(error) || Condition::of(error) == Some(Condition::FeatureNotImplemented) {
            return self.end_both(
                Reason::FailedTransport,
                "The other user does not go on with the stream",
            );
        }
        self.timers.set(Timer::Repeat, now + REPEAT);
    }

    /// Returns whether the responder has not accepted its new leg.
    fn awaits_consent(&self) -> bool {
        matches!(self.phase, SessionPhase::Negotiating)
            && self.renewals > 0
            && self.legs.responder.is_offered
    }

    /// Cuts the initiator's new leg, because the responder does not know of its own: the initiator then begins again. Such an attempt
    /// does not count, but all in succession have the time that the users have to go on with a broken stream.
    pub(super) fn repeat_renewal(&mut self, now: Instant) {
        if !self.awaits_consent() {
            return;
        }
        if !self.legs.initiator.ready {
            // It would take the cut for a failure of SOCKS5.
            return self.timers.set(Timer::Repeat, now + REPEAT);
        }
        self.timers.hasten(Timer::Phase, now + RENEWAL);
        self.actions.push_back(SessionAction::Part);
        // Nothing that is late can belong to a leg that nobody knows.
        self.legs.responder = self.responder_leg();
        self.legs.initiator = self.new_leg(self.legs.initiator.plan.namespace());
        self.renewals = self.renewals.saturating_sub(1).max(1);
    }
}
