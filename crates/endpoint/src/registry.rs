//! Asks the component's registry about a peer, in every session, brokered or direct.
//!
//! Hints come from the broker of a session, and a direct session has none. If only hints counted, the peer could avoid
//! the registry. So the endpoint always asks, and the worse of both results counts.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    ns,
    print::{Method, Print},
    rsm,
    stanza::{Condition, RequestKind},
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use super::{endpoint::Endpoint, error::condition, policy::KnownKey};

/// How long the registry may take for all pages of its answer.
const ANSWER: Duration = Duration::from_secs(15);
/// The pause before the registry is asked again after a refusal for lack of room.
const AGAIN: Duration = Duration::from_secs(1);
/// The most pages of one user's keys. A longer answer is rejected.
const PAGES: usize = 64;
/// The most certificates that are requested for one key: the registry keeps one, and others may have been added by
/// print.
const CERTIFICATES: usize = 4;

/// Returns the certificate in an answer about one key; `None` if the registry has only prints of it.
///
/// # Errors
/// Why the answer is rejected.
fn read_material(answer: Option<&Element>, id: &str) -> Result<Option<Vec<u8>>, &'static str> {
    let key = answer
        .filter(|key| key.is("key", ns::KEYS) && key.attr("id") == Some(id))
        .ok_or("the answer is not the key that was asked for")?;
    let Some(material) = key.get_child("material", ns::KEYS) else { return Ok(None) };
    let text: String = material.text().split_whitespace().collect();
    STANDARD.decode(text).map(Some).map_err(|_| "the certificate in the answer is not base64")
}

/// The registry's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RegistryAnswer {
    /// All keys of the user that this endpoint may see.
    Keys(Vec<KnownKey>),
    /// The registry does not serve this user. That is its operator's choice, and never the peer's.
    NotServed,
    /// The registry did not answer, for this reason.
    Unavailable(String),
}

/// The pages of one answer (XEP-0059).
#[derive(Debug, Default)]
struct Pages {
    keys: Vec<KnownKey>,
    pages: usize,
    last: Option<String>,
}

impl Pages {
    /// Writes the request for the next page.
    fn request(&self, peer: &BareJid) -> Element {
        let mut keys = xml::element("keys", ns::KEYS, &[("jid", peer.as_str())]);
        if let Some(last) = &self.last {
            keys.append_child(rsm::after(last));
        }
        keys
    }

    /// Takes a page; returns `true` if it was the last.
    ///
    /// # Errors
    /// Why the answer is rejected.
    fn handle(
        &mut self,
        page: Option<&Element>,
        now: OffsetDateTime,
    ) -> Result<bool, &'static str> {
        let Some(page) = page else { return Ok(true) };
        if !page.is("keys", ns::KEYS) {
            return Err("the answer is not a list of keys");
        }
        let before = self.keys.len();
        let keys = page.children().filter(|child| child.is("key", ns::KEYS));
        self.keys.extend(keys.map(|key| KnownKey::read(key, now)));
        let part = rsm::Part::read(page, self.keys.len() - before);
        if !part.more {
            let count = page
                .get_child("set", ns::RSM)
                .and_then(|set| set.get_child("count", ns::RSM)?.text().trim().parse().ok());
            if count.is_some_and(|count: usize| count > self.keys.len()) {
                return Err("the list of keys is incomplete");
            }
            return Ok(true);
        }
        self.pages += 1;
        if part.last == self.last || self.pages >= PAGES {
            return Err("the list of keys has no end");
        }
        self.last = part.last;
        Ok(false)
    }
}

impl Endpoint {
    /// Asks the registry for a user's keys, and for the certificate of the OpenPGP key with the print `shown`; `None` if
    /// the endpoint knows no registry.
    pub(super) async fn keys_of(
        &self,
        peer: &BareJid,
        shown: Option<&Print>,
    ) -> Option<RegistryAnswer> {
        let component = self.component()?;
        let to = Jid::from(component.clone());
        let asking = async {
            let mut pages = Pages::default();
            loop {
                let page = self.ask_registry(&to, pages.request(peer)).await?;
                match pages.handle(page.as_ref(), OffsetDateTime::now_utc()) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(why) => return Err(RegistryAnswer::Unavailable(why.to_owned())),
                }
            }
            let mut keys = pages.keys;
            let is_shown = |key: &&mut KnownKey| {
                key.method == Method::OpenPgp && shown.is_some_and(|print| key.has(print))
            };
            for key in keys.iter_mut().filter(is_shown).take(CERTIFICATES) {
                let request =
                    xml::element("key", ns::KEYS, &[("id", &key.id), ("material", "true")]);
                let answer = self.ask_registry(&to, request).await?;
                key.material = read_material(answer.as_ref(), &key.id)
                    .map_err(|why| RegistryAnswer::Unavailable(why.to_owned()))?;
            }
            Ok(RegistryAnswer::Keys(keys))
        };
        let late = || Ok(RegistryAnswer::Unavailable("no answer in time".to_owned()));
        let asked = timeout(ANSWER, asking).await.unwrap_or_else(|_| late());
        Some(asked.unwrap_or_else(|why| why))
    }

    /// Asks the registry again while it has no room.
    async fn ask_registry(
        &self,
        to: &Jid,
        request: Element,
    ) -> Result<Option<Element>, RegistryAnswer> {
        loop {
            return match self.hub().request(RequestKind::Get, to, request.clone()).await {
                Answer::Result(answer) => Ok(answer),
                Answer::Error(error) => match Condition::of(&error) {
                    Some(Condition::Forbidden) => Err(RegistryAnswer::NotServed),
                    Some(Condition::ResourceConstraint) => {
                        // Our peers cause many of our requests; none of them may silence the registry.
                        sleep(AGAIN).await;
                        continue;
                    }
                    _ => Err(RegistryAnswer::Unavailable(condition(&error))),
                },
                Answer::Timeout => Err(RegistryAnswer::Unavailable("no answer".to_owned())),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_secure::identity::Identity;
    use fingerpost_wire::{
        print::HashKind,
        stanza::{Refusal, Stanza},
    };
    use jid::FullJid;
    use time::macros::datetime;
    use tokio::{sync::mpsc, time::Instant};

    use super::*;
    use crate::{Connection, policy::Standing};

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn page(keys: &[u8], set: &str) -> Element {
        let keys: String = keys
            .iter()
            .map(|byte| {
                format!(
                    "<key id='{byte}' method='x509' state='active'><print hash='spki-sha-256'>{}</print></key>",
                    format!("{byte:02X}").repeat(32)
                )
            })
            .collect();
        format!(
            "<keys xmlns='urn:fingerpost:keys:0' jid='a@b.c'>{keys}\
             <set xmlns='http://jabber.org/protocol/rsm'>{set}</set></keys>"
        )
        .parse()
        .unwrap()
    }

    #[test]
    fn pages_are_followed_to_their_end() {
        let peer = BareJid::new("a@b.c").unwrap();
        let mut pages = Pages::default();
        assert!(!String::from(&pages.request(&peer)).contains("after"));
        let first = page(&[1, 2], "<first index='0'>1</first><last>2</last><count>3</count>");
        assert_eq!(pages.handle(Some(&first), NOW), Ok(false));
        assert!(String::from(&pages.request(&peer)).contains("<after>2</after>"));
        let second = page(&[3], "<first index='2'>3</first><last>3</last><count>3</count>");
        assert_eq!(pages.handle(Some(&second), NOW), Ok(true));
        assert_eq!(pages.keys.len(), 3);
        for (byte, key) in (1..).zip(&pages.keys) {
            assert!(key.has(&Print::new(HashKind::Sha256, &[byte; 32]).unwrap()));
        }
        // Without a count, an empty page is the end; without a set, the first page is.
        let mut pages = Pages::default();
        assert_eq!(pages.handle(Some(&page(&[1], "<last>1</last>")), NOW), Ok(false));
        assert_eq!(pages.handle(Some(&page(&[], "")), NOW), Ok(true));
        let bare: Element = "<keys xmlns='urn:fingerpost:keys:0'/>".parse().unwrap();
        assert_eq!(Pages::default().handle(Some(&bare), NOW), Ok(true));
        assert_eq!(Pages::default().handle(None, NOW), Ok(true));
    }

    #[test]
    fn an_answer_that_is_incomplete_endless_or_another_is_not_believed() {
        let short = page(&[1], "<count>2</count>");
        assert!(Pages::default().handle(Some(&short), NOW).is_err());
        let other: Element = "<query xmlns='jabber:iq:version'/>".parse().unwrap();
        assert!(Pages::default().handle(Some(&other), NOW).is_err());
        let mut pages = Pages::default();
        let again = page(&[1], "<last>1</last>");
        assert_eq!(pages.handle(Some(&again), NOW), Ok(false));
        assert!(pages.handle(Some(&again), NOW).is_err());
        let mut pages = Pages::default();
        let end = (0..=PAGES)
            .find_map(|n| pages.handle(Some(&page(&[1], &format!("<last>{n}</last>"))), NOW).err());
        assert!(end.is_some());
        assert!(pages.keys.len() <= PAGES);
    }

    #[test]
    fn a_key_past_its_time_has_expired() {
        let read = |attributes: &str| {
            let key: Element =
                format!("<key xmlns='urn:fingerpost:keys:0' method='x509' {attributes}/>")
                    .parse()
                    .unwrap();
            KnownKey::read(&key, NOW).standing
        };
        assert_eq!(read("state='active'"), Standing::Vouched);
        assert_eq!(read("state='active' expires='2026-11-24T02:00:01Z'"), Standing::Vouched);
        assert_eq!(read("state='active' expires='2026-11-24T02:00:00Z'"), Standing::Expired);
        let marked = "state='superseded' expired='true' expires='2026-11-24T02:00:00Z'";
        assert_eq!(read(marked), Standing::Expired);
        assert_eq!(read("state='superseded' expires='2026-11-24T02:00:00Z'"), Standing::Superseded);
        assert_eq!(read("state='superseded' expires='2026-11-24T02:00:01Z'"), Standing::Superseded);
        assert_eq!(read("state='revoked' expired='true'"), Standing::Revoked);
        assert_eq!(read("state='revoked' expires='2026-11-24T02:00:00Z'"), Standing::Revoked);
    }

    #[test]
    fn a_certificate_is_read_only_from_the_answer_about_its_key() {
        let read = |xml: &str| {
            let answer: Option<Element> = Some(xml.parse().unwrap());
            read_material(answer.as_ref(), "7")
        };
        let key = "<key xmlns='urn:fingerpost:keys:0' id='7'>";
        assert_eq!(
            read(&format!("{key}<material>aGVs\nbG8=</material></key>")),
            Ok(Some(b"hello".to_vec()))
        );
        assert_eq!(read(&format!("{key}</key>")), Ok(None));
        assert!(read(&format!("{key}<material>#</material></key>")).is_err());
        assert!(read("<key xmlns='urn:fingerpost:keys:0' id='8'/>").is_err());
        assert!(read("<keys xmlns='urn:fingerpost:keys:0' id='7'/>").is_err());
        assert!(read_material(None, "7").is_err());
    }

    /// Returns an endpoint whose registry refuses the first `refusals` requests for lack of room, and the result of
    /// asking it, the time, and the number of requests.
    async fn ask(refusals: usize) -> (Option<RegistryAnswer>, Duration, usize) {
        let me = BareJid::new("bob@example.org").unwrap();
        let component = BareJid::new("xtls.example.org").unwrap();
        let (outbound, mut requests) = mpsc::channel(64);
        let (answers, inbound) = mpsc::channel(64);
        let connection = Connection {
            jid: FullJid::new("bob@example.org/x").unwrap(),
            outbound,
            inbound,
            task: tokio::spawn(std::future::pending()),
        };
        let builder = Endpoint::builder(Identity::generate(&me).unwrap()).component(component);
        let (endpoint, _incoming) = builder.over(connection);
        let begin = Instant::now();
        let peer = BareJid::new("a@b.c").unwrap();
        let asking = endpoint.keys_of(&peer, None);
        tokio::pin!(asking);
        let mut asked = 0;
        loop {
            let request = tokio::select! {
                done = &mut asking => return (done, begin.elapsed(), asked),
                request = requests.recv() => Stanza::parse(request.unwrap().into_element()).unwrap(),
            };
            asked += 1;
            let answer = if asked <= refusals {
                request.refusal(&Refusal::resource_constraint("Too many requests"))
            } else {
                request.result(Some(page(&[1], "")))
            };
            answers.send(Stanza::parse(answer).unwrap()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_has_no_room_is_asked_again_within_its_time() {
        for refusals in [0, 1, 5] {
            let (asked, time, requests) = ask(refusals).await;
            assert!(
                matches!(&asked, Some(RegistryAnswer::Keys(keys)) if keys.len() == 1),
                "{asked:?}"
            );
            assert_eq!((time.as_secs(), requests), (refusals as u64, refusals + 1));
        }
        let (asked, time, _) = ask(usize::MAX).await;
        assert!(matches!(asked, Some(RegistryAnswer::Unavailable(_))), "{asked:?}");
        assert_eq!(time.as_secs(), ANSWER.as_secs());
    }
}
