//! Our own requests: the ids cannot be guessed, and only the right peer can answer.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fingerpost_wire::{
    ns,
    stanza::{Kind, RequestKind, Stanza, StanzaType},
};
use jid::Jid;
use minidom::Element;
use tokio::sync::oneshot;

use crate::{
    outbound::Outbound,
    shares::{Full, Limits, Place, Shares},
};

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Answer {
    /// `type='result'` with its payload.
    Result(Option<Element>),
    /// `type='error'` with its `<error/>`.
    Error(Element),
    /// Nothing came in time, or the link is down or full.
    Timeout,
}

/// The most requests to programs that wait at once: in all, to one user, and how many times the free ones to one domain.
const LIMITS: Limits = Limits::new(20_000, 512, 8);
/// The same of requests that a person answers. They wait for minutes, and take no place from the others.
const OFFERS: Limits = Limits::new(10_000, 64, 8);
/// The most of these from one user to one other.
const OF_ONE: u32 = 8;

/// Whether a program or a person answers a request.
#[derive(Clone, Copy, Debug)]
enum Answerer {
    Program,
    Person,
}

#[derive(Debug)]
struct Asked {
    of: Jid,
    sender: oneshot::Sender<Answer>,
    place: Place,
    /// The keyed hash of both users if a person answers.
    pair: Option<u64>,
}

/// By id: the addressee, and the waiting sender.
#[derive(Debug, Default)]
struct WaitingRequest {
    asked: HashMap<String, Asked>,
    /// Shares by addressee: a domain that never answers does not block requests to others.
    shares: Shares,
    offers: Shares,
    /// How many offers of one user to one other wait, by the keyed hash of both.
    pairs: HashMap<u64, u32>,
    hasher: RandomState,
}

impl WaitingRequest {
    fn shares(&mut self, answerer: Answerer) -> (&mut Shares, &'static Limits) {
        match answerer {
            Answerer::Program => (&mut self.shares, &LIMITS),
            Answerer::Person => (&mut self.offers, &OFFERS),
        }
    }

    fn remove(&mut self, id: &str) -> Option<oneshot::Sender<Answer>> {
        let asked = self.asked.remove(id)?;
        let answerer = asked.pair.map_or(Answerer::Program, |_| Answerer::Person);
        self.shares(answerer).0.give_back(&asked.place);
        if let Some(pair) = asked.pair
            && let Some(left) = self.pairs.get_mut(&pair)
        {
            *left -= 1;
            if *left == 0 {
                self.pairs.remove(&pair);
            }
        }
        Some(asked.sender)
    }
}

/// Requests that wait for their answers.
#[derive(Clone, Debug)]
pub struct Requests {
    outbound: Outbound,
    waiting: Arc<Mutex<WaitingRequest>>,
}

/// A request that has been sent. Dropping it forgets it.
#[derive(Debug)]
pub struct Pending {
    requests: Requests,
    id: String,
    answer: Option<oneshot::Receiver<Answer>>,
}

impl Pending {
    /// Waits for the answer.
    pub async fn answer(mut self, wait: Duration) -> Answer {
        let Some(answer) = self.answer.take() else { return Answer::Timeout };
        tokio::time::timeout(wait, answer)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Answer::Timeout)
    }
}

impl Pending {
    /// Waits this long for the answer; `None` if it has not come by then.
    ///
    /// # Cancel safety
    /// The answer is not lost if the future is dropped.
    pub async fn answer_within(&mut self, wait: Duration) -> Option<Answer> {
        let Some(answer) = &mut self.answer else { return Some(Answer::Timeout) };
        let answer = tokio::time::timeout(wait, answer).await.ok()?;
        self.answer = None;
        Some(answer.unwrap_or(Answer::Timeout))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.id);
    }
}

impl Requests {
    /// Requests that are sent through `outbound`.
    pub fn new(outbound: Outbound) -> Self {
        Self { outbound, waiting: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WaitingRequest> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an IQ and waits for its answer.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the request.
    pub async fn request(
        &self,
        kind: RequestKind,
        from: &Jid,
        to: &Jid,
        payload: Element,
        wait: Duration,
    ) -> Answer {
        let sent = tokio::time::timeout(wait, self.send(kind, from, to, payload)).await;
        match sent {
            Ok(pending) => pending.answer(wait).await,
            Err(_) => Answer::Timeout,
        }
    }

    /// Sends an IQ. It has its place in the queue when this returns: later stanzas come after it.
    pub async fn send(&self, kind: RequestKind, from: &Jid, to: &Jid, payload: Element) -> Pending {
        let unsent = || Pending { requests: self.clone(), id: String::new(), answer: None };
        self.ask(Answerer::Program, kind, from, to, payload).await.unwrap_or_else(|_| unsent())
    }

    /// Sends an IQ that a person answers, as [`Self::send`] does.
    ///
    /// # Errors
    /// If too many of them wait for this user, from the same sender or from all, or in all.
    pub async fn ask_person(
        &self,
        kind: RequestKind,
        from: &Jid,
        to: &Jid,
        payload: Element,
    ) -> Result<Pending, Full> {
        self.ask(Answerer::Person, kind, from, to, payload).await
    }

    async fn ask(
        &self,
        answerer: Answerer,
        kind: RequestKind,
        from: &Jid,
        to: &Jid,
        payload: Element,
    ) -> Result<Pending, Full> {
        let id = random_id();
        let iq = kind.iq(from.as_str(), to.as_str(), &id, payload);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.lock();
            let pair = match answerer {
                Answerer::Person => Some(waiting.hasher.hash_one((from.to_bare(), to.to_bare()))),
                Answerer::Program => None,
            };
            let open = pair.and_then(|pair| waiting.pairs.get(&pair));
            if open.is_some_and(|open| *open >= OF_ONE) {
                return Err(Full::User);
            }
            let (shares, limits) = waiting.shares(answerer);
            let place = shares.take(&to.to_bare(), 1, limits)?;
            if let Some(pair) = pair {
                *waiting.pairs.entry(pair).or_default() += 1;
            }
            let asked = Asked { of: to.clone(), sender, place, pair };
            waiting.asked.insert(id.clone(), asked);
        }
        let pending = Pending { requests: self.clone(), id, answer: Some(receiver) };
        let _ = self.outbound.send(iq.into()).await;
        Ok(pending)
    }

    /// Takes an answer if it belongs to one of these requests and comes from the addressee.
    pub fn handle(&self, stanza: &Stanza) -> bool {
        if stanza.kind != Kind::Iq || stanza.is_request() {
            return false;
        }
        let mut waiting = self.lock();
        if waiting.asked.get(&stanza.id).is_none_or(|asked| asked.of != stanza.from) {
            return false;
        }
        let Some(sender) = waiting.remove(&stanza.id) else {
            return false;
        };
        drop(waiting);
        let answer = match stanza.element.get_child("error", ns::CLIENT) {
            Some(error) if stanza.type_ == StanzaType::Error => Answer::Error(error.clone()),
            _ if stanza.type_ == StanzaType::Error => Answer::Timeout,
            _ => Answer::Result(stanza.payload().cloned()),
        };
        let _ = sender.send(answer);
        true
    }

    /// Fails all waiting requests, because the link is gone.
    pub fn fail_all(&self) {
        *self.lock() = WaitingRequest::default();
    }
}

/// Returns 128 random bits, as 32 hex digits.
pub fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::xml;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn only_who_was_asked_can_answer() {
        let (outbound, mut sent) = mpsc::channel(1);
        let requests = Requests::new(outbound);
        let from = Jid::new("xtls.example.org").unwrap();
        let to = Jid::new("romeo@montague.lit/orchard").unwrap();
        let asking = requests.clone();
        let task = tokio::spawn(async move {
            let ping = Element::bare("ping", ns::PING);
            asking.request(RequestKind::Get, &from, &to, ping, Duration::from_secs(5)).await
        });
        let id = sent.recv().await.unwrap().into_element().attr("id").unwrap().to_owned();
        let answer = |peer: &str| {
            let iq = xml::element(
                "iq",
                ns::CLIENT,
                &[("type", "result"), ("from", peer), ("to", "xtls.example.org"), ("id", &id)],
            );
            Stanza::parse(iq).unwrap()
        };
        assert!(!requests.handle(&answer("mallory@montague.lit/x")));
        assert!(requests.handle(&answer("romeo@montague.lit/orchard")));
        assert!(!requests.handle(&answer("romeo@montague.lit/orchard")));
        assert!(matches!(task.await.unwrap(), Answer::Result(None)));
    }

    #[tokio::test]
    async fn offers_that_nobody_answers_take_no_place_from_other_requests() {
        let (outbound, mut sent) = mpsc::channel(1);
        tokio::spawn(async move { while sent.recv().await.is_some() {} });
        let requests = Requests::new(outbound);
        let from = Jid::new("xtls.example.org").unwrap();
        let romeo = Jid::new("romeo@montague.lit/orchard").unwrap();
        let offer_of = async |sender: &str, to: &Jid| {
            let payload = Element::bare("si", ns::SI);
            let from = Jid::new(&format!("{sender}\\40capulet.lit@xtls.example.org/x")).unwrap();
            requests.ask_person(RequestKind::Set, &from, to, payload).await
        };
        let offer = async |to: &Jid| offer_of("alice", to).await;
        let mut pending = Vec::new();
        for _ in 0..100 {
            pending.extend(offer_of("mallory", &romeo).await);
        }
        assert_eq!(pending.len(), 8);
        let alice = offer(&romeo).await;
        assert!(alice.is_ok(), "one sender leaves room for the others");
        drop(alice);
        for n in 0..100 {
            pending.extend(offer_of(&format!("m{n}"), &romeo).await);
        }
        assert_eq!(pending.len(), OFFERS.per_user);
        assert!(offer(&Jid::new("tybalt@capulet.lit/x").unwrap()).await.is_ok());
        let ping = Element::bare("ping", ns::PING);
        let asked = requests.send(RequestKind::Get, &from, &romeo, ping).await;
        assert!(asked.answer.is_some());
        drop((pending, asked));
        assert!(offer(&romeo).await.is_ok());
        let waiting = requests.lock();
        assert_eq!((waiting.offers.taken(), waiting.shares.taken()), (0, 0));
        assert!(waiting.pairs.is_empty());
    }

    #[tokio::test]
    async fn a_domain_that_never_answers_holds_up_no_question_to_another() {
        let (outbound, mut sent) = mpsc::channel(1);
        tokio::spawn(async move { while sent.recv().await.is_some() {} });
        let requests = Requests::new(outbound);
        let from = Jid::new("xtls.example.org").unwrap();
        let ask = async |to: &str| {
            let ping = Element::bare("ping", ns::PING);
            requests.send(RequestKind::Get, &from, &Jid::new(to).unwrap(), ping).await
        };
        let mut pending = Vec::new();
        for number in 0..LIMITS.total {
            pending.push(ask(&format!("u{number}@silent.test/x")).await);
        }
        let refused = pending.iter().filter(|pending| pending.answer.is_none()).count();
        assert!(refused > 0 && refused < LIMITS.total / 4, "{refused}");
        assert!(ask("romeo@montague.lit/orchard").await.answer.is_some());
        let mut to_one = 0;
        for _ in 0..2 * LIMITS.per_user {
            let asked = ask("tybalt@capulet.lit/x").await;
            to_one += usize::from(asked.answer.is_some());
            pending.push(asked);
        }
        assert!(to_one <= LIMITS.per_user, "{to_one}");
        drop(pending);
        assert_eq!(requests.lock().shares.taken(), 0);
    }
}
