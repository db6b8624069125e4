//! The contents of a session: the brokered one, the checks of its offer, and the dialect for each side.

use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;

use super::{Phase, Question, Session};
use crate::{
    broker::{
        Options, Side,
        dialect::{self, Dialect},
        hints, offer, rewrite,
        transport::Transport,
    },
    print::Print,
    registry::model::Key,
    xmpp::{
        ns,
        stanza::{Refusal, Stanza},
        xml,
    },
};

/// Returns the number and the transport of the content that is brokered: the first one that is secured and has a
/// supported transport.
///
/// # Errors
/// The answer to the initiator, if there is none.
pub(crate) fn choose(jingle: &Element, options: &Options) -> Result<(usize, Transport), Refusal> {
    let all: Vec<&Element> = contents(jingle).collect();
    if all.is_empty() {
        return Err(Refusal::bad_request("A session-initiate must have a content"));
    }
    let secured =
        |content: &&(usize, &Element)| !options.require_tls || offer::is_secured(content.1);
    let mut secured = all.into_iter().enumerate().filter(|content| secured(&content)).peekable();
    if secured.peek().is_none() {
        let text = "Only sessions secured by TLS are brokered: offer urn:xmpp:jingle:apps:tls or a \
                    security element";
        return Err(Refusal::new("modify", "not-acceptable", text)
            .with_extra("security-required", ns::JINGLE_ERRORS));
    }
    secured
        .find_map(|(number, content)| {
            let transport = Transport::read(content)?;
            let can = match transport {
                Transport::Ibb { .. } => options.ibb,
                Transport::S5b { .. } => options.socks5,
            };
            can.then_some((number, transport))
        })
        .ok_or_else(|| {
            let text = "The transport must be SOCKS5 or in-band bytestreams";
            Refusal::new("cancel", "feature-not-implemented", text)
                .with_extra("unsupported-transports", ns::JINGLE_ERRORS)
        })
}

/// Returns the application of a content if two users need it only once between them: a raw TLS stream, or an XML
/// stream. If two offers of it cross, one must give way (XEP-0166, 7.2.16); two files may cross.
pub(crate) fn channel(jingle: &Element, number: usize) -> Option<String> {
    application(jingle, number)
        .filter(|namespace| [ns::APPS_TLS, ns::XMLSTREAM].contains(&namespace.as_str()))
}

/// Returns the application of a content: the namespace of its description.
pub(crate) fn application(jingle: &Element, number: usize) -> Option<String> {
    let mut children = contents(jingle).nth(number)?.children();
    children.find(|child| child.name() == "description").map(Element::ns)
}

/// Returns the contents of a Jingle element.
pub(super) fn contents(jingle: &Element) -> impl Iterator<Item = &Element> {
    let namespace = jingle.ns();
    jingle.children().filter(move |child| child.is("content", namespace.as_str()))
}

/// Returns the prints that a content offers.
pub(super) fn offered_prints(content: &Element) -> Vec<Print> {
    offer::Offer::read(content).prints.into_iter().map(|(_, print)| print).collect()
}

/// Returns a content of a later stanza, in a dialect that its reader knows. `methods` are those of the session.
pub(super) fn translated(content: &Element, known: &[Dialect], methods: &[String]) -> Element {
    let prints = hints::judge(&offer::Offer::read(content), methods, &[]).prints();
    dialect::for_peer(content, known, &prints)
}

fn name(content: &Element) -> &str {
    content.attr("name").unwrap_or_default()
}

/// A side's offer after policy.
struct Checked {
    content: Element,
    hints: Element,
    /// The methods that it has left, and whether it had any.
    methods: Vec<String>,
    had_methods: bool,
}

impl Session {
    /// Returns the brokered content in one side's stanza: the one with its name, or, if the session was offered with
    /// one content, that one under any name.
    pub(super) fn own_content<'a>(&self, jingle: &'a Element) -> Option<&'a Element> {
        let named = contents(jingle).find(|content| name(content) == self.name);
        named.or_else(|| contents(jingle).next().filter(|_| self.removed.is_empty()))
    }

    /// Passes the session-initiate on once everything that it needs is known.
    pub(super) fn pass_initiate(&mut self) {
        let Phase::Checking { features: Some(features), keys: Some(keys) } = &mut self.phase else {
            return;
        };
        let (features, keys) = (std::mem::take(features), std::mem::take(keys));
        let Some(jingle) = self.initiate.as_ref().and_then(Stanza::payload).cloned() else {
            return;
        };
        let Some(content) = contents(&jingle).nth(self.chosen) else { return };
        self.dialects = [Dialect::of(content), Dialect::known(&features)];
        self.choose_namespace(&features);
        let checked = match self.check(Side::Initiator, content, &keys) {
            Ok(checked) => checked,
            Err(text) => return self.refuse_key(&self.owner(Side::Initiator), &text),
        };
        if checked.had_methods && checked.methods.is_empty() {
            let owner = self.peer(Side::Initiator).user.to_bare();
            let text = format!(
                "No TLS method is left: this service accepts none of the keys that {owner} offers"
            );
            return self.end_both("unsupported-applications", &text);
        }
        self.methods.clone_from(&checked.methods);
        let Some(transport) = self.offer_leg(&features) else {
            let text = "The component offers neither SOCKS5 nor IBB";
            return self.end_both("unsupported-transports", text);
        };
        let out = self.pass(Side::Responder, &jingle, self.chosen, &checked, transport);
        self.phase = Phase::Negotiating;
        self.leg(Side::Responder).told = true;
        self.ask(Side::Responder, out, Question::Initiate);
        if self.legs[0].ready {
            self.open_responder();
        }
    }

    /// Chooses the Jingle namespace for the responder: the initiator's, unless the responder knows only the other.
    fn choose_namespace(&mut self, features: &[String]) {
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        let responder = &mut self.peers[Side::Responder.index()];
        let (offered, other) = if responder.namespace == ns::JINGLE_0 {
            (ns::JINGLE_0, ns::JINGLE)
        } else {
            (ns::JINGLE, ns::JINGLE_0)
        };
        if speaks(other) && !speaks(offered) {
            other.clone_into(&mut responder.namespace);
        }
    }

    /// Returns a session-initiate or session-accept for the other side, with only the checked content of this number.
    fn pass(
        &self,
        to: Side,
        jingle: &Element,
        number: usize,
        checked: &Checked,
        transport: Element,
    ) -> Element {
        let frame = self.frame(to);
        let content = rewrite::reframe(&checked.content, &jingle.ns(), frame.namespace);
        let mut content =
            Some(rewrite::content(&content, Some(transport), Some(checked.hints.clone())));
        let mut alone = xml::head_in(jingle, &jingle.ns());
        let mut count = 0;
        for node in jingle.nodes() {
            let is_content =
                node.as_element().is_some_and(|e| e.is("content", jingle.ns().as_str()));
            if !is_content || count == number {
                alone.append_node(node.clone());
            }
            count += usize::from(is_content);
        }
        rewrite::jingle(&alone, &frame, |moved| content.take().unwrap_or(moved))
    }

    /// Returns the owner of the keys that a side offers.
    fn owner(&self, side: Side) -> BareJid {
        self.peer(side).user.to_bare()
    }

    /// Adds hints to one side's offer, applies the policies, and writes it in a dialect of the other side.
    ///
    /// # Errors
    /// The text for both users, if policy forbids the session.
    fn check(&self, side: Side, content: &Element, keys: &[Key]) -> Result<Checked, String> {
        let owner = self.owner(side);
        let offer = offer::Offer::read(content);
        // An answer that names no method means one that the initiator has offered.
        let others = if side == Side::Responder { self.methods.as_slice() } else { &[] };
        let judged = hints::judge(&offer, others, keys);
        let gone = hints::decide(&judged, &self.options.policies, &owner)?;
        let left = offer::without(content, &gone.prints, &gone.methods);
        let mut prints = judged.prints();
        prints.retain(|(_, print)| !gone.prints.iter().any(|other| other.same_bytes(print)));
        let known = &self.dialects[side.other().index()];
        let methods = judged.methods(&offer, &gone);
        Ok(Checked {
            content: dialect::for_peer(&left, known, &prints),
            hints: hints::to_element(&judged, keys, &owner),
            had_methods: !methods.is_empty() || !gone.methods.is_empty(),
            methods,
        })
    }

    /// Passes the session-accept on.
    pub(super) fn pass_accept(&mut self, keys: &[Key], now: Instant) {
        let Some(stanza) = self.accept.take() else { return };
        let Some(jingle) = stanza.payload().cloned() else { return };
        let Some(content) = self.own_content(&jingle) else { return };
        let number = contents(&jingle).position(|other| std::ptr::eq(other, content)).unwrap_or(0);
        let checked = match self.check(Side::Responder, content, keys) {
            Ok(checked) => checked,
            Err(text) => {
                self.send(stanza.result(None));
                return self.refuse_key(&self.owner(Side::Responder), &text);
            }
        };
        let common = checked.methods.iter().any(|method| self.methods.contains(method));
        if checked.had_methods && !self.methods.is_empty() && !common {
            self.send(stanza.result(None));
            let list = |names: &[String]| match names {
                [] => "none that this service accepts".to_owned(),
                names => names.join(", "),
            };
            let text = format!(
                "No TLS method in common: the initiator has {}, the responder {}",
                list(&self.methods),
                list(&checked.methods)
            );
            return self.end_both("unsupported-applications", &text);
        }
        self.acknowledge();
        self.leg(Side::Responder).accept(Transport::read(content));
        self.accepted = true;
        let transport = self.accept_leg();
        let out = self.pass(Side::Initiator, &jingle, number, &checked, transport);
        self.ask(Side::Initiator, out, Question::Forwarded(Box::new(stanza)));
        if matches!(self.phase, Phase::Negotiating) {
            self.deadline = now + self.options.activation_timeout;
        }
        for side in [Side::Initiator, Side::Responder] {
            self.nominate(side);
            self.expect_choice(side, now);
        }
        self.open_responder();
    }

    /// Tells the initiator which of its contents are not brokered.
    pub(super) fn remove_contents(&mut self) {
        if !self.removed.is_empty() {
            let text = "A brokered session carries one stream: this content is not part of it";
            let jingle =
                self.refuse_contents(Side::Initiator, "content-remove", &self.removed, text);
            self.tell(Side::Initiator, jingle);
        }
    }

    /// Answers a content-add: a session has one content.
    pub(super) fn reject_contents(&mut self, side: Side, stanza: &Stanza, jingle: &Element) {
        let added: Vec<Element> = contents(jingle).cloned().collect();
        let text = "A brokered session carries one stream: start another session";
        let rejection = self.refuse_contents(side, "content-reject", &added, text);
        self.answer_and_tell(side, stanza, rejection);
    }

    fn refuse_contents(
        &self,
        side: Side,
        action: &str,
        refused: &[Element],
        text: &str,
    ) -> Element {
        let frame = self.frame(side);
        let mut jingle = rewrite::own(action, &frame);
        for content in refused {
            let creator = content.attr("creator").unwrap_or("initiator");
            let attributes = [("creator", creator), ("name", name(content))];
            jingle.append_child(xml::element("content", frame.namespace, &attributes));
        }
        jingle.append_child(rewrite::reason(&frame, "unsupported-applications", text));
        jingle
    }
}
