//! Our own requests: sent with an id that nobody can guess, answered by the right peer or not at all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jid::Jid;
use minidom::Element;
use tokio::sync::{mpsc, oneshot};

use super::{
    ns,
    stanza::{Kind, Stanza},
    xml,
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

/// By id: who was asked, and who waits.
type Waiting = HashMap<String, (Jid, oneshot::Sender<Answer>)>;

/// Requests that wait for their answers.
#[derive(Clone, Debug)]
pub struct Requests {
    outbound: mpsc::Sender<Element>,
    waiting: Arc<Mutex<Waiting>>,
}

/// A request that has been sent. Dropped, it is forgotten.
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

impl Drop for Pending {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.id);
    }
}

impl Requests {
    /// At most this many requests wait at once.
    const LIMIT: usize = 20_000;

    /// Requests that are sent through `outbound`.
    pub fn new(outbound: mpsc::Sender<Element>) -> Self {
        Self { outbound, waiting: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an IQ and waits for its answer.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the request.
    pub async fn request(
        &self,
        type_: &str,
        from: &Jid,
        to: &Jid,
        payload: Element,
        wait: Duration,
    ) -> Answer {
        let sent = tokio::time::timeout(wait, self.send(type_, from, to, payload)).await;
        match sent {
            Ok(pending) => pending.answer(wait).await,
            Err(_) => Answer::Timeout,
        }
    }

    /// Sends an IQ. When this returns it has its place in the queue: what is sent later comes later.
    pub async fn send(&self, type_: &str, from: &Jid, to: &Jid, payload: Element) -> Pending {
        let id = random_id();
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", type_), ("from", from.as_str()), ("to", to.as_str()), ("id", &id)],
        );
        iq.append_child(payload);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.len() >= Self::LIMIT {
                return Pending { requests: self.clone(), id, answer: None };
            }
            waiting.insert(id.clone(), (to.clone(), sender));
        }
        let pending = Pending { requests: self.clone(), id, answer: Some(receiver) };
        let _ = self.outbound.send(iq).await;
        pending
    }

    /// Takes an answer if it is to one of these requests and comes from whom was asked.
    pub fn handle(&self, stanza: &Stanza) -> bool {
        if stanza.kind != Kind::Iq || stanza.is_request() {
            return false;
        }
        let mut waiting = self.lock();
        if waiting.get(&stanza.id).is_none_or(|(peer, _)| *peer != stanza.from) {
            return false;
        }
        let Some((_, sender)) = waiting.remove(&stanza.id) else {
            return false;
        };
        let answer = match stanza.element.get_child("error", ns::CLIENT) {
            Some(error) if stanza.type_ == "error" => Answer::Error(error.clone()),
            _ if stanza.type_ == "error" => Answer::Timeout,
            _ => Answer::Result(stanza.payload().cloned()),
        };
        let _ = sender.send(answer);
        true
    }

    /// Ends all waiting requests: the link is gone.
    pub fn fail_all(&self) {
        self.lock().clear();
    }
}

/// 128 random bits, as 32 hex digits.
pub fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
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
            asking.request("get", &from, &to, ping, Duration::from_secs(5)).await
        });
        let id = sent.recv().await.unwrap().attr("id").unwrap().to_owned();
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
}
