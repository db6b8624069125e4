//! Starts an endpoint.

use std::sync::{Arc, Mutex};

use fingerpost_wire::{ns, transport_kind::TransportKind};
use tokio::sync::Semaphore;

use super::{
    builder::Builder,
    consent::DirectPath,
    endpoint::{Endpoint, EndpointShared},
    error::Error,
    guesses::Guesses,
    hub::{Admission, Hub},
    keeper::{self, Keeper, Keeping},
    login::{Connection, Login},
    negotiate::Incoming,
    network::Network,
    places::Places,
};

/// The most attempts at a time to connect by ICE that peers have asked for. Each dials addresses of the peer's choice.
const MOST_ICE: usize = 4;

impl Builder {
    /// Logs in, and starts.
    ///
    /// # Errors
    /// [`Error::Login`].
    pub async fn login(self, login: &Login) -> Result<(Endpoint, Incoming), Error> {
        let Some((listener, begins_anew)) = &self.reconnect else {
            return Ok(self.over(super::login::login(login).await?));
        };
        let keeping = Keeping {
            listener: Arc::clone(listener),
            begins_anew: *begins_anew,
            resource: login.resource.clone(),
            network: Network::watch(),
        };
        let (connection, keeper) = keeper::keep(login.clone(), login.keepalive, keeping).await?;
        Ok(self.start(connection, Some(keeper)))
    }

    /// Starts over an existing connection.
    pub fn over(self, connection: Connection) -> (Endpoint, Incoming) {
        self.start(connection, None)
    }

    pub(crate) fn start(
        self,
        connection: Connection,
        keeper: Option<Keeper>,
    ) -> (Endpoint, Incoming) {
        let mut features: Vec<String> = [
            ns::DISCO_INFO,
            ns::PING,
            ns::JINGLE,
            ns::JINGLE_0,
            ns::SECURITY_OFFER,
            ns::XTLS,
            ns::HINTS,
        ]
        .map(str::to_owned)
        .to_vec();
        if self.raw {
            features.push(ns::APPS_TLS.to_owned());
        }
        let takes = |kind| self.transport.is_none_or(|only| only == kind);
        if takes(TransportKind::S5b) {
            features.push(ns::JINGLE_S5B.to_owned());
        }
        if takes(TransportKind::Ibb) {
            features.extend([ns::IBB, ns::JINGLE_IBB, ns::JINGLE_IBB_0].map(str::to_owned));
        }
        if self.direct_path != DirectPath::Never {
            features.push(ns::PATHS.to_owned());
            // Sessions of a broker have no use of it, and on a link nothing has to be found.
            let is_reached = self.via.is_none() || self.accept_direct;
            if is_reached && self.link.is_none() && takes(TransportKind::Ice) {
                features.push(ns::JINGLE_ICE.to_owned());
            }
        }
        if self.ringer.is_some() {
            features.push(ns::JINGLE_MESSAGE.to_owned());
        }
        features.extend(self.features.iter().cloned());
        let admission = Admission {
            component: self.component.clone(),
            only_brokered: self.via.is_some() && !self.accept_direct,
            policy: Arc::clone(&self.policy),
            places: Places::default(),
            ringer: self.ringer.clone(),
        };
        let (hub, arrivals, task) = Hub::start(connection, keeper.clone(), features, admission);
        let guesses = Guesses::new(self.guesses);
        let inner = EndpointShared {
            hub,
            builder: self,
            guesses,
            ice: Semaphore::new(MOST_ICE),
            task: task.abort_handle(),
            keeper,
            appeared: Mutex::default(),
            available: Mutex::default(),
        };
        let endpoint = Endpoint { inner: Arc::new(inner) };
        endpoint.appear_in_each_session();
        (endpoint.clone(), Incoming { endpoint, arrivals })
    }
}
