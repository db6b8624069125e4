//! What sessions ask users, their servers and the registry.

use std::time::Duration;

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{ns, print::Print, stanza::RequestKind};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{features::Features, rooms::ROOMS, shared::BrokerState};
use crate::registry::model::Key;

/// How long a user may take to answer disco#info before its features count as unknown.
const DISCO: Duration = Duration::from_secs(3);

/// A client's answer to disco#info.
pub(super) enum FeatureAnswer {
    /// Its features.
    Features(Features),
    /// No answer in time.
    Silence,
    /// An error, which may come from its server.
    Error,
}

impl BrokerState {
    /// Returns the features that a user's client announces.
    pub(super) async fn features(&self, user: &Jid, mask: &Jid) -> FeatureAnswer {
        let known = self.lock().features.known(user, Instant::now().into_std());
        if let Some(known) = known {
            return FeatureAnswer::Features(known);
        }
        let query = Element::bare("query", ns::DISCO_INFO);
        match self.requests.request(RequestKind::Get, mask, user, query, DISCO).await {
            Answer::Result(Some(answer)) => FeatureAnswer::Features(self.lock().features.learn(
                user,
                &answer,
                Instant::now().into_std(),
            )),
            Answer::Result(None) => FeatureAnswer::Features(Features::default()),
            Answer::Error(_) => FeatureAnswer::Error,
            Answer::Timeout => FeatureAnswer::Silence,
        }
    }

    /// Returns whether a domain hosts chat rooms, if that is known.
    pub(super) fn is_room(&self, domain: &str) -> Option<bool> {
        let mut state = self.lock();
        let (until, is_room) = *state.rooms.0.peek(domain)?;
        if Instant::now() < until {
            return Some(is_room);
        }
        state.rooms.0.remove(domain);
        None
    }

    /// Asks a domain whether it hosts chat rooms. Each domain is asked once at a time, and seldom.
    pub(super) async fn look_up_room(&self, domain: &str) -> bool {
        if let Some(known) = self.is_room(domain) {
            return known;
        }
        let Ok(to) = Jid::new(domain) else { return false };
        let keep = |is_room, time| {
            let until = Instant::now() + time;
            self.lock().rooms.0.insert(domain.to_owned(), (until, is_room));
        };
        let [found, not, silent] = ROOMS;
        keep(false, silent);
        let own = Jid::from(self.options().jid.clone());
        let query = Element::bare("query", ns::DISCO_INFO);
        let is_room = match self.requests.request(RequestKind::Get, &own, &to, query, DISCO).await {
            Answer::Result(Some(info)) => info.children().any(|child| {
                child.is("identity", ns::DISCO_INFO) && child.attr("category") == Some("conference")
            }),
            Answer::Result(None) | Answer::Error(_) => false,
            Answer::Timeout => return false,
        };
        keep(is_room, if is_room { found } else { not });
        is_room
    }

    /// Returns the present keys of `owner` that `asker` may know of, to judge `prints` by.
    pub(super) async fn keys(
        &self,
        owner: &BareJid,
        asker: &BareJid,
        prints: &[Print],
    ) -> Result<Vec<Key>, ()> {
        let now = OffsetDateTime::now_utc();
        match self.registry.keys_to_judge(asker, owner, prints).await {
            Ok(keys) => Ok(keys.iter().map(|key| key.as_of(now)).collect()),
            Err(error) => {
                tracing::error!(%error, "the registry cannot be read");
                Err(())
            }
        }
    }
}
