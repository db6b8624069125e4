//! Login in one step: SASL2 (XEP-0388) with Bind 2 (XEP-0386), resumption (XEP-0198) and FAST (XEP-0484).
//!
//! This module reads a server's offer and writes the requests. [`sasl`](super::sasl) chooses the mechanism and checks
//! the server's proof.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fingerpost_secure::redact::Secret;
use fingerpost_wire::{ns, xml};
use jid::FullJid;
use minidom::Element;

use super::{managed::Management, sasl::LoginOffer};

/// The longest accepted token, in bytes.
const LONGEST_TOKEN: usize = 4096;

/// The parts of a server's offer (XEP-0388, section 2.3).
#[derive(Debug, Default)]
pub(super) struct Inline {
    pub(super) mechanisms: Vec<String>,
    /// Mechanisms for tokens.
    pub(super) fast: Vec<String>,
    /// Whether a resource can be bound at once.
    can_bind: bool,
    /// Whether stream management can be enabled for it.
    can_enable: bool,
    can_resume: bool,
}

impl Inline {
    /// Reads stream features.
    pub(super) fn read(features: &Element) -> Option<Self> {
        let authentication = features.get_child("authentication", ns::SASL2)?;
        let mechanisms = texts(authentication, ns::SASL2);
        let mut offer = Self { mechanisms, ..Self::default() };
        let Some(inline) = authentication.get_child("inline", ns::SASL2) else {
            return Some(offer);
        };
        offer.fast = inline
            .get_child("fast", ns::FAST)
            .map(|fast| texts(fast, ns::FAST))
            .unwrap_or_default();
        offer.can_resume = inline.has_child("sm", ns::SM);
        if let Some(bind) = inline.get_child("bind", ns::BIND2) {
            offer.can_bind = true;
            let features = bind.get_child("inline", ns::BIND2);
            offer.can_enable = features.is_some_and(|inline| {
                inline.children().any(|feature| {
                    feature.name() == "feature" && feature.attr("var") == Some(ns::SM)
                })
            });
        }
        Some(offer)
    }

    /// Returns the part that [`sasl`](super::sasl) chooses from.
    pub(super) fn offer(&self, bindings: Option<Vec<String>>) -> LoginOffer {
        LoginOffer { mechanisms: self.mechanisms.clone(), bindings }
    }
}

fn texts(parent: &Element, namespace: &str) -> Vec<String> {
    parent.children().filter(|child| child.is("mechanism", namespace)).map(Element::text).collect()
}

/// The name of a resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    /// The prefix for a server that makes the name itself, and makes the same name again for the same prefix (XEP-0386,
    /// section 2.3). Without one the resource is bound afterwards, by its whole name.
    pub(super) tag: Option<&'a str>,
    /// The whole name, for a server that uses ours.
    pub(super) resource: &'a str,
}

/// The requests of a login.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// The name of the resource.
    pub(super) name: Name<'a>,
    /// The session to resume.
    pub(super) resumed: Option<&'a Management>,
    /// Whether a new session shall have stream management.
    pub(super) managed: bool,
    /// The identifier of this installation, if it has one.
    pub(super) agent: Option<&'a str>,
    /// Whether the mechanism is one for tokens.
    pub(super) by_token: bool,
    /// The mechanism to request a token for.
    pub(super) token_for: Option<&'a str>,
}

/// Writes `<authenticate/>`.
pub(super) fn authenticate(
    inline: &Inline,
    wish: &Wish<'_>,
    mechanism: &str,
    initial: &[u8],
) -> Element {
    let mut request = xml::element("authenticate", ns::SASL2, &[("mechanism", mechanism)]);
    request.append_child(data("initial-response", initial));
    if let Some(id) = wish.agent {
        let mut agent = xml::element("user-agent", ns::SASL2, &[("id", id)]);
        let mut software = Element::bare("software", ns::SASL2);
        software.append_text("xtls");
        agent.append_child(software);
        request.append_child(agent);
    }
    let resume = wish.resumed.and_then(Management::resume);
    // A session that can be resumed only after the login must not be replaced by a new one in it.
    let can_bind = inline.can_bind && (resume.is_none() || inline.can_resume);
    let tag = wish.name.tag.filter(|_| can_bind);
    if let Some(resume) = resume.filter(|_| inline.can_resume) {
        request.append_child(resume);
    }
    if let Some(name) = tag {
        let mut bind = Element::bare("bind", ns::BIND2);
        let mut tag = Element::bare("tag", ns::BIND2);
        tag.append_text(name);
        bind.append_child(tag);
        if wish.managed && inline.can_enable {
            bind.append_child(Management::enable());
        }
        request.append_child(bind);
    }
    if let Some(mechanism) = wish.token_for {
        request.append_child(xml::element("request-token", ns::FAST, &[("mechanism", mechanism)]));
    }
    if wish.by_token {
        request.append_child(Element::bare("fast", ns::FAST));
    }
    request
}

/// Writes `<response/>`.
pub(super) fn response(bytes: &[u8]) -> Element {
    data("response", bytes)
}

fn data(name: &str, bytes: &[u8]) -> Element {
    let mut element = Element::bare(name, ns::SASL2);
    // Zero bytes are an equals sign in XEP-0388 too.
    element.append_text(if bytes.is_empty() { "=".to_owned() } else { BASE64.encode(bytes) });
    element
}

/// The content of a server's success.
#[derive(Debug, Default)]
pub(super) struct Success {
    /// The mechanism's last message, base64.
    pub(super) additional: String,
    /// The address that was bound.
    pub(super) bound: Option<FullJid>,
    /// The server's `<resumed/>`.
    pub(super) resumed: Option<Element>,
    /// The server's `<enabled/>`.
    pub(super) enabled: Option<Element>,
    /// A new token, and its expiry.
    pub(super) token: Option<(Secret, String)>,
}

impl Success {
    /// Reads `<success/>`.
    pub(super) fn read(success: &Element) -> Self {
        let text =
            |name: &str| success.get_child(name, ns::SASL2).map(Element::text).unwrap_or_default();
        let identifier = text("authorization-identifier");
        let bound = success.get_child("bound", ns::BIND2);
        let token = success.get_child("token", ns::FAST).and_then(|element| {
            let token = element.attr("token").filter(|token| token.len() <= LONGEST_TOKEN)?;
            Some((Secret::new(token), element.attr("expiry").unwrap_or_default().to_owned()))
        });
        Self {
            additional: text("additional-data"),
            bound: bound.and_then(|_| FullJid::new(identifier.trim()).ok()),
            resumed: success.get_child("resumed", ns::SM).cloned(),
            enabled: bound.and_then(|bound| bound.get_child("enabled", ns::SM)).cloned(),
            token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fast::FastToken;

    fn parse(text: &str) -> Element {
        text.parse().unwrap()
    }

    /// The features of XEP-0388, section 2.3, with those of XEP-0386 and XEP-0484 in them.
    const FEATURES: &str = "<features xmlns='http://etherx.jabber.org/streams'>\
        <authentication xmlns='urn:xmpp:sasl:2'>\
          <mechanism>SCRAM-SHA-1</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism>\
          <inline>\
            <sm xmlns='urn:xmpp:sm:3'/>\
            <bind xmlns='urn:xmpp:bind:0'><inline>\
              <feature var='urn:xmpp:carbons:2'/><feature var='urn:xmpp:sm:3'/></inline></bind>\
            <fast xmlns='urn:xmpp:fast:0'><mechanism>HT-SHA-256-UNIQ</mechanism>\
              <mechanism>HT-SHA-256-NONE</mechanism></fast>\
          </inline></authentication></features>";

    fn wish() -> Wish<'static> {
        Wish {
            name: Name { tag: Some("xtls-1"), resource: "xtls-1.x" },
            resumed: None,
            managed: true,
            agent: Some("d4565fa7-4d72-4749-b3d3-740edbf87770"),
            by_token: false,
            token_for: None,
        }
    }

    fn management() -> Management {
        let enabled = [("resume", "true"), ("id", "s1")];
        Management::new(&xml::element("enabled", ns::SM, &enabled))
    }

    #[test]
    fn the_offer_of_the_examples_is_read() {
        let inline = Inline::read(&parse(FEATURES)).unwrap();
        assert_eq!(inline.mechanisms, ["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"]);
        assert_eq!(inline.fast, ["HT-SHA-256-UNIQ", "HT-SHA-256-NONE"]);
        assert!(inline.can_bind && inline.can_enable && inline.can_resume);
        let bare = "<features xmlns='http://etherx.jabber.org/streams'>\
            <authentication xmlns='urn:xmpp:sasl:2'><mechanism>PLAIN</mechanism></authentication></features>";
        let inline = Inline::read(&parse(bare)).unwrap();
        assert!(!inline.can_bind && !inline.can_enable && !inline.can_resume);
        assert!(inline.fast.is_empty());
        let none = "<features xmlns='http://etherx.jabber.org/streams'/>";
        assert!(Inline::read(&parse(none)).is_none());
    }

    #[test]
    fn what_the_server_offers_is_asked_for_in_one_request() {
        let inline = Inline::read(&parse(FEATURES)).unwrap();
        let wish = Wish { token_for: Some("HT-SHA-256-NONE"), ..wish() };
        let request = authenticate(&inline, &wish, "SCRAM-SHA-1-PLUS", b"p=tls-exporter,,n=a,r=b");
        assert_eq!(request.attr("mechanism"), Some("SCRAM-SHA-1-PLUS"));
        let initial = request.get_child("initial-response", ns::SASL2).unwrap().text();
        assert_eq!(initial, "cD10bHMtZXhwb3J0ZXIsLG49YSxyPWI=");
        let agent = request.get_child("user-agent", ns::SASL2).unwrap();
        assert_eq!(agent.attr("id"), wish.agent);
        let bind = request.get_child("bind", ns::BIND2).unwrap();
        assert_eq!(bind.get_child("tag", ns::BIND2).unwrap().text(), "xtls-1");
        assert!(bind.has_child("enable", ns::SM));
        let token = request.get_child("request-token", ns::FAST).unwrap();
        assert_eq!(token.attr("mechanism"), Some("HT-SHA-256-NONE"));
        assert!(!request.has_child("fast", ns::FAST) && !request.has_child("resume", ns::SM));
    }

    #[test]
    fn a_session_to_resume_is_never_given_up_for_a_new_one() {
        let (kept, inline) = (management(), Inline::read(&parse(FEATURES)).unwrap());
        let wish = Wish { resumed: Some(&kept), ..wish() };
        let request = authenticate(&inline, &wish, "SCRAM-SHA-1", b"");
        assert_eq!(request.get_child("initial-response", ns::SASL2).unwrap().text(), "=");
        assert_eq!(request.get_child("resume", ns::SM).unwrap().attr("previd"), Some("s1"));
        // If it cannot be resumed, a new one begins at once.
        assert!(request.has_child("bind", ns::BIND2));
        let inline = Inline { can_resume: false, ..inline };
        let request = authenticate(&inline, &wish, "SCRAM-SHA-1", b"");
        assert!(!request.has_child("resume", ns::SM) && !request.has_child("bind", ns::BIND2));
    }

    #[test]
    fn a_resource_that_must_have_its_name_is_not_left_to_the_server() {
        let inline = Inline::read(&parse(FEATURES)).unwrap();
        let wish = Wish { name: Name { tag: None, resource: "xtls-code-7" }, ..wish() };
        let request = authenticate(&inline, &wish, "SCRAM-SHA-1", b"");
        assert!(!request.has_child("bind", ns::BIND2));
    }

    #[test]
    fn the_success_of_the_examples_is_read() {
        let text = "<success xmlns='urn:xmpp:sasl:2'>\
            <additional-data>dj1tc1ZIcy9CeklPSERxWGVWSDdFbW1EdTlpZDg9</additional-data>\
            <authorization-identifier>user@example.org/xtls-1~a</authorization-identifier>\
            <bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3' id='s2' resume='1'/></bound>\
            <token xmlns='urn:xmpp:fast:0' expiry='2020-03-12T14:36:15Z' token='WXZzciBwYmFmdmZnZiBqdmd1IGp2eXFhcmZm'/>\
            </success>";
        let success = Success::read(&parse(text));
        assert_eq!(success.additional, "dj1tc1ZIcy9CeklPSERxWGVWSDdFbW1EdTlpZDg9");
        assert_eq!(success.bound.unwrap().as_str(), "user@example.org/xtls-1~a");
        assert_eq!(success.enabled.unwrap().attr("id"), Some("s2"));
        let (token, expiry) = success.token.unwrap();
        assert_eq!(token.expose_secret(), "WXZzciBwYmFmdmZnZiBqdmd1IGp2eXFhcmZm");
        assert_eq!(expiry, "2020-03-12T14:36:15Z");
        assert!(success.resumed.is_none());

        // Without a bound resource the identifier is a bare address, and tells nothing new.
        let bare = "<success xmlns='urn:xmpp:sasl:2'>\
            <authorization-identifier>user@example.org</authorization-identifier>\
            <resumed xmlns='urn:xmpp:sm:3' h='4' previd='s1'/></success>";
        let success = Success::read(&parse(bare));
        assert!(success.bound.is_none() && success.token.is_none());
        assert_eq!(success.resumed.unwrap().attr("h"), Some("4"));
        let long = format!(
            "<success xmlns='urn:xmpp:sasl:2'><token xmlns='urn:xmpp:fast:0' token='{}'/></success>",
            "x".repeat(LONGEST_TOKEN + 1)
        );
        assert!(Success::read(&parse(&long)).token.is_none());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = FastToken::new("HT-SHA-256-EXPR", "the-token", "");
        assert!(!format!("{token:?}").contains("the-token"));
        let success = Success { token: Some((token.token, String::new())), ..Success::default() };
        assert!(!format!("{success:?}").contains("the-token"));
    }
}
