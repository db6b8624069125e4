//! Watches whether the component knows of a listener: repeats its presence, and checks that the component answers.

use std::{future::pending, time::Duration};

use fingerpost_endpoint::{Endpoint, Error};
use serde_json::{Value, json};

use super::output::{Output, XtlsError};

/// How often presence is repeated: a component that has restarted may not know who is reachable, and no event reports
/// its start or its end.
const REAPPEAR: Duration = Duration::from_secs(60);
/// The same while it is gone: no user can reach us until it gets our presence.
const GONE: Duration = Duration::from_secs(15);

/// The state of the component.
#[derive(Debug, Default)]
struct Watch {
    /// Why it cannot be used, since that was found.
    gone: Option<Error>,
}

/// News about the component.
#[derive(Debug, PartialEq, Eq)]
enum ComponentNews {
    Gone(Error),
    Back,
}

impl Watch {
    /// Takes the result of [`Endpoint::check_component`]; returns the news.
    fn found(&mut self, found: Result<(), Error>) -> Option<ComponentNews> {
        match (found, self.gone.take()) {
            (Ok(()), None) => None,
            (Ok(()), Some(_)) => Some(ComponentNews::Back),
            // This error is not about the component; the part that needs the connection reports it.
            (Err(Error::Disconnected), gone) => {
                self.gone = gone;
                None
            }
            // The text may change while it is away.
            (Err(error), gone) => {
                let is_new = gone.is_none_or(|gone| {
                    matches!(gone, Error::Blocked(_)) != matches!(error, Error::Blocked(_))
                });
                self.gone = Some(error.clone());
                is_new.then_some(ComponentNews::Gone(error))
            }
        }
    }

    /// Returns the time until the next check.
    fn pause(&self) -> Duration {
        if self.gone.is_some() { GONE } else { REAPPEAR }
    }
}

/// Sends our presence to the component every minute, and tells the user when the component is gone and when it is back.
/// Never ends.
pub(super) async fn component(endpoint: &Endpoint, output: Output) {
    watch(endpoint, |news| {
        let component = endpoint.component().map(ToString::to_string).unwrap_or_default();
        match news {
            ComponentNews::Gone(error) => {
                let event = event("component-gone", &component, Some(&error));
                let XtlsError { text, hint, .. } = error.into();
                output.alert(&event, &format!("nobody can reach this listener: {text}"), hint);
            }
            ComponentNews::Back => output.event(
                &event("component-back", &component, None),
                &format!("{component} is back: this listener can be reached again"),
            ),
        }
    })
    .await;
}

fn event(name: &str, component: &str, error: Option<&Error>) -> Value {
    let mut event = json!({"event": name, "component": component});
    if let Some(error) = error {
        event["message"] = error.to_string().into();
    }
    event
}

async fn watch(endpoint: &Endpoint, mut tell: impl FnMut(ComponentNews)) {
    if endpoint.component().is_none() {
        return pending().await;
    }
    let mut watch = Watch::default();
    loop {
        if let Some(news) = watch.found(endpoint.check_component().await) {
            let is_back = news == ComponentNews::Back;
            tell(news);
            if is_back {
                // It may have restarted, and know nothing of us.
                endpoint.appear(1).await;
            }
        }
        tokio::time::sleep(watch.pause()).await;
        endpoint.appear(1).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use fingerpost_endpoint::Connection;
    use fingerpost_secure::identity::Identity;
    use fingerpost_wire::stanza::{Condition, ErrorType, Refusal, Stanza};
    use jid::FullJid;
    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    /// The answers of the server and the component to a ping of the component.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Here,
        NotConnected,
        Blocked,
        Nothing,
    }

    /// Returns a listener whose component gives prepared answers, and the count of its presences.
    fn listener() -> (Endpoint, Arc<Mutex<Says>>, Arc<Mutex<usize>>) {
        let (outbound, mut sent) = mpsc::channel(64);
        let (stanzas, inbound) = mpsc::channel(64);
        let jid = FullJid::new("bob@example.test/x").unwrap();
        let connection = Connection { jid, outbound, inbound, task: tokio::spawn(async {}) };
        let (says, appeared) = (Arc::new(Mutex::new(Says::Here)), Arc::new(Mutex::new(0)));
        let (mode, count) = (Arc::clone(&says), Arc::clone(&appeared));
        tokio::spawn(async move {
            while let Some(stanza) = sent.recv().await {
                let mut element = stanza.into_element();
                if element.name() == "presence" {
                    *count.lock().unwrap() += 1;
                    continue;
                }
                fingerpost_wire::xml::set(&mut element, "from", "bob@example.test/x");
                let asked = Stanza::parse(element).unwrap();
                let says = *mode.lock().unwrap();
                let refusal = match says {
                    _ if asked.to.as_str() == "example.test" => None,
                    Says::Here => None,
                    Says::NotConnected => Some(Refusal::new(
                        ErrorType::Cancel,
                        Condition::RemoteServerNotFound,
                        "enoname",
                    )),
                    Says::Blocked => {
                        let text = "You have blocked this JID";
                        let refusal =
                            Refusal::new(ErrorType::Cancel, Condition::NotAcceptable, text);
                        Some(refusal.with_extra("blocked", "urn:xmpp:blocking:errors"))
                    }
                    Says::Nothing => continue,
                };
                let answer = match refusal {
                    None => asked.result(None),
                    Some(refusal) => asked.refusal(&refusal),
                };
                stanzas.send(Stanza::parse(answer).unwrap()).await.unwrap();
            }
        });
        let identity = Identity::generate(&"bob@example.test".parse().unwrap()).unwrap();
        let builder = Endpoint::builder(identity).via("xtls.example.test".parse().unwrap());
        (builder.over(connection).0, says, appeared)
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_goes_is_told_within_a_minute_and_so_is_its_return() {
        let (endpoint, says, appeared) = listener();
        let (told, mut news) = mpsc::unbounded_channel();
        let watched = endpoint.clone();
        let task = tokio::spawn(async move {
            watch(&watched, |news| told.send(news).unwrap()).await;
        });
        let began = Instant::now();
        tokio::time::sleep(REAPPEAR * 3).await;
        assert!(news.try_recv().is_err(), "nothing is said while it is there");
        assert!(*appeared.lock().unwrap() >= 2, "it is told again and again");
        for gone in [Says::NotConnected, Says::Nothing, Says::Blocked] {
            *says.lock().unwrap() = gone;
            let since = Instant::now();
            let first = news.recv().await.unwrap();
            match (gone, &first) {
                (Says::Blocked, ComponentNews::Gone(Error::Blocked(_))) => {}
                (
                    Says::NotConnected | Says::Nothing,
                    ComponentNews::Gone(Error::NoComponent(_)),
                ) => {}
                other => panic!("{other:?}"),
            }
            assert!(since.elapsed() <= REAPPEAR + Duration::from_secs(10), "{gone:?}");
            tokio::time::sleep(REAPPEAR * 3).await;
            assert!(news.try_recv().is_err(), "it is said once");
            *says.lock().unwrap() = Says::Here;
            let (since, before) = (Instant::now(), *appeared.lock().unwrap());
            assert_eq!(news.recv().await, Some(ComponentNews::Back));
            assert!(since.elapsed() <= GONE + Duration::from_secs(10));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(*appeared.lock().unwrap() > before, "a returned component gets our presence");
        }
        assert!(began.elapsed() > REAPPEAR * 10);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_is_not_there_from_the_beginning_is_told_at_once() {
        let (endpoint, says, _) = listener();
        *says.lock().unwrap() = Says::NotConnected;
        let (told, mut news) = mpsc::unbounded_channel();
        let since = Instant::now();
        let task = tokio::spawn(async move {
            watch(&endpoint, |news| told.send(news).unwrap()).await;
        });
        assert!(matches!(news.recv().await, Some(ComponentNews::Gone(Error::NoComponent(_)))));
        assert!(since.elapsed() < Duration::from_secs(1));
        task.abort();
    }

    #[test]
    fn who_blocks_a_component_that_is_away_is_told_both() {
        let mut watch = Watch::default();
        let gone = Error::NoComponent("gone".to_owned());
        let blocked = Error::Blocked("blocked".to_owned());
        assert_eq!(watch.found(Err(gone.clone())), Some(ComponentNews::Gone(gone.clone())));
        assert_eq!(watch.found(Err(Error::NoComponent("in other words".to_owned()))), None);
        assert_eq!(watch.found(Err(blocked.clone())), Some(ComponentNews::Gone(blocked)));
        assert_eq!(watch.found(Err(Error::Disconnected)), None);
        assert_eq!(watch.found(Ok(())), Some(ComponentNews::Back));
        assert_eq!(watch.found(Ok(())), None);
        let event = event("component-gone", "xtls.example.test", Some(&gone));
        assert_eq!(event["message"], "gone");
    }
}
