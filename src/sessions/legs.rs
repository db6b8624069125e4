//! The state of one leg while its transport is negotiated.

use fingerpost_wire::{ns, transport::Transport};
use jid::BareJid;

/// The planned transport of a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// In-band.
    Ibb {
        /// The namespace of the Jingle transport.
        namespace: &'static str,
        /// The bytestream's id; `None`: the first open of this user on this session's address counts.
        sid: Option<Box<str>>,
        /// The largest block, bytes before base64.
        block_size: u16,
        /// Whether we have sent our `<open/>`.
        opened: bool,
    },
    /// SOCKS5.
    S5b {
        /// The bytestream's id.
        sid: Box<str>,
        /// Our candidate's id.
        cid: Box<str>,
        /// The id of the user's own candidate at this component, if it has one.
        own_proxy: Option<Box<str>>,
        /// Whether we have sent candidate-used or candidate-error.
        nominated: bool,
        /// Whether the connection is established.
        arrived: bool,
        /// Whether the user has chosen the connection to us.
        used: bool,
    },
}

impl Plan {
    /// Returns the namespace of its Jingle transport.
    pub(crate) fn namespace(&self) -> &'static str {
        match self {
            Self::Ibb { namespace, .. } => namespace,
            Self::S5b { .. } => ns::JINGLE_S5B,
        }
    }
}

/// The state of one leg while it becomes a byte stream.
#[derive(Clone, Debug)]
pub(crate) struct LegState {
    /// Its transport.
    pub(crate) plan: Plan,
    /// Whether its bytes can flow.
    pub(crate) ready: bool,
    /// The in-band bytestream that we have offered instead: its id and its largest block. Until it is accepted the plan
    /// stands; until it is answered, SOCKS5 is not used.
    pub(crate) replacing: Option<Box<(String, u16)>>,
    /// Whether the user has not yet accepted this leg, which we have offered in place of a broken one.
    pub(crate) is_offered: bool,
}

impl LegState {
    /// Creates a leg at the start of its negotiation.
    pub(crate) fn new(plan: Plan) -> Self {
        Self { plan, ready: false, replacing: None, is_offered: false }
    }

    /// Creates an in-band leg.
    pub(crate) fn ibb(namespace: &'static str, sid: Option<String>, block_size: u16) -> Self {
        let sid = sid.map(Into::into);
        Self::new(Plan::Ibb { namespace, sid, block_size, opened: false })
    }

    /// Creates a SOCKS5 leg.
    pub(crate) fn s5b(sid: String, cid: String, own_proxy: Option<String>) -> Self {
        let (sid, cid, own_proxy) = (sid.into(), cid.into(), own_proxy.map(Into::into));
        Self::new(Plan::S5b { sid, cid, own_proxy, nominated: false, arrived: false, used: false })
    }

    /// Creates the leg of a user that offers SOCKS5 with these candidates: cid, type, JID. `ours` is this component.
    pub(crate) fn offered_s5b(
        sid: String,
        candidates: Vec<(String, String, String)>,
        ours: &BareJid,
        cid: String,
    ) -> Self {
        let is_ours =
            |(_, kind, jid): &(String, String, String)| kind == "proxy" && jid == ours.as_str();
        let own = candidates.into_iter().find(is_ours);
        Self::s5b(sid, cid, own.map(|(cid, ..)| cid))
    }

    /// Returns whether the user's own candidate at this component may still be used.
    pub(crate) fn has_own_proxy(&self) -> bool {
        matches!(&self.plan, Plan::S5b { own_proxy: Some(_), .. })
    }

    /// Takes the transport in the user's answer.
    pub(crate) fn accept(&mut self, transport: Option<Transport>) {
        match (transport, &mut self.plan) {
            (
                Some(Transport::Ibb { sid, block_size, .. }),
                Plan::Ibb { sid: own, block_size: size, .. },
            ) => {
                if own.is_none() {
                    *own = sid.map(Into::into);
                }
                *size = (*size).min(block_size);
            }
            // The answer uses another transport than the offer: accept it as stated.
            (Some(Transport::Ibb { namespace, sid, block_size }), plan @ Plan::S5b { .. }) => {
                let sid = sid.map(Into::into);
                *plan = Plan::Ibb { namespace, sid, block_size, opened: false };
            }
            _ => {}
        }
    }

    /// Notes that the SOCKS5 connection is established.
    pub(crate) fn mark_arrived(&mut self) {
        if let Plan::S5b { arrived, .. } = &mut self.plan {
            *arrived = true;
        }
    }

    /// Notes that the user has chosen the connection to us.
    pub(crate) fn mark_used(&mut self) {
        if let Plan::S5b { used, .. } = &mut self.plan {
            *used = true;
        }
    }

    /// Returns whether the plan is SOCKS5 and its connection is missing.
    pub(crate) fn awaits_socks5(&self) -> bool {
        !self.ready && matches!(self.plan, Plan::S5b { .. })
    }

    /// Returns whether a SOCKS5 leg has its connection, and the user has chosen it.
    pub(crate) fn has_connection(&self) -> bool {
        matches!(self.plan, Plan::S5b { arrived: true, used: true, .. })
    }

    /// Returns whether a SOCKS5 leg is complete: it has the connection, the user has chosen it, and no replacement is
    /// pending.
    pub(crate) fn is_connected(&self) -> bool {
        self.replacing.is_none() && self.has_connection()
    }
}
