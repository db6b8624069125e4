//! The state of one leg while its transport is negotiated.

use jid::Jid;

use super::transport::Transport;
use crate::{
    mediator::{
        leg::Leg,
        socket::Socket,
        table::{Registration, Table},
        transfer::DstAddr,
    },
    xmpp::iq::random_id,
};

/// Which transport a leg is to have.
#[derive(Debug)]
pub(crate) enum Plan {
    /// In-band.
    Ibb {
        /// The namespace of the Jingle transport.
        namespace: String,
        /// The bytestream's id; `None`: the first open of this user on this session's address is it.
        sid: Option<String>,
        /// The largest block.
        block_size: u16,
    },
    /// SOCKS5.
    S5b {
        /// The bytestream's id.
        sid: String,
        /// Our candidate's id.
        cid: String,
        /// The user's own candidate at this component, if it has one.
        ours: Option<String>,
        /// Whether we have sent candidate-used or candidate-error.
        nominated: bool,
        /// Whether the user has chosen the connection to us.
        used: bool,
    },
}

/// One leg on its way to a byte stream.
#[derive(Debug)]
pub(crate) struct LegState {
    /// Its transport.
    pub(crate) plan: Plan,
    /// The SOCKS5 connection before the user has chosen it.
    pub(crate) socket: Option<Socket>,
    /// The stream, until the relay takes it.
    pub(crate) ready: Option<Leg>,
    /// Whether the user on this leg knows of the session.
    pub(crate) told: bool,
    /// Whether someone is about to open the in-band bytestream.
    pub(crate) opening: bool,
    /// Whether we have sent our `<open/>`.
    pub(crate) opened: bool,
    registration: Option<Registration>,
}

impl LegState {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            socket: None,
            ready: None,
            told: false,
            opening: false,
            opened: false,
            registration: None,
        }
    }

    /// An in-band leg.
    pub(crate) fn ibb(namespace: &str, sid: Option<String>, block_size: u16) -> Self {
        Self::new(Plan::Ibb { namespace: namespace.to_owned(), sid, block_size })
    }

    /// A SOCKS5 leg: from now on a connection for either order of the two addresses is this leg's.
    pub(crate) fn s5b(table: &Table, sid: &str, user: &Jid, mask: &Jid) -> Self {
        let hashes = vec![DstAddr::compute(sid, mask, user), DstAddr::compute(sid, user, mask)];
        let mut leg = Self::new(Plan::S5b {
            sid: sid.to_owned(),
            cid: random_id(),
            ours: None,
            nominated: false,
            used: false,
        });
        leg.registration = Some(table.register(hashes));
        leg
    }

    /// Our candidate's id.
    pub(crate) fn cid(&self) -> &str {
        match &self.plan {
            Plan::S5b { cid, .. } => cid,
            Plan::Ibb { .. } => "",
        }
    }

    /// Notes the user's own candidate at this component.
    pub(crate) fn set_own_proxy(&mut self, own: Option<String>) {
        if let Plan::S5b { ours, .. } = &mut self.plan {
            *ours = own;
        }
    }

    /// Whether the user's own candidate at this component may still be used.
    pub(crate) fn has_own_proxy(&self) -> bool {
        matches!(&self.plan, Plan::S5b { ours: Some(_), .. })
    }

    /// The registration, to wait for its connection.
    pub(crate) fn take_registration(&mut self) -> Option<Registration> {
        self.registration.take()
    }

    /// What the user's answer says of the transport.
    pub(crate) fn accept(&mut self, transport: Option<Transport>) {
        match (transport, &mut self.plan) {
            (
                Some(Transport::Ibb { sid, block_size, .. }),
                Plan::Ibb { sid: own, block_size: size, .. },
            ) => {
                if own.is_none() {
                    *own = sid;
                }
                *size = (*size).min(block_size);
            }
            // An answer in another transport than the offer's: take it at its word.
            (Some(Transport::Ibb { namespace, sid, block_size }), plan @ Plan::S5b { .. }) => {
                *plan = Plan::Ibb { namespace, sid, block_size };
            }
            _ => {}
        }
    }

    /// The user has chosen the connection to us.
    pub(crate) fn used(&mut self) {
        if let Plan::S5b { used, .. } = &mut self.plan {
            *used = true;
        }
    }

    /// Whether the user has chosen the connection to us.
    pub(crate) fn is_used(&self) -> bool {
        matches!(self.plan, Plan::S5b { used: true, .. })
    }
}
