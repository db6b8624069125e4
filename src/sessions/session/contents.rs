//! The contents of a session: the brokered one, the checks of its offer, and the dialect for each side.

use std::collections::HashSet;

use fingerpost_wire::{
    dialect::{self, Dialect},
    jingle::{self, Reason},
    ns,
    offer::{self, Printed},
    print::{Method, Print},
    stanza::{Condition, ErrorType, Refusal, Stanza},
    transport::Transport,
    word::Word,
    xml,
};
use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;

use super::{Acceptance, Check, Phase, Question, Session, timers::Timer};
use crate::{
    registry::model::Key,
    sessions::{
        hints,
        options::Options,
        side::{PerSide, Side},
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
    for content in &all {
        let creator = content.attr("creator").unwrap_or_default();
        if !matches!(creator, "initiator" | "responder") || name(content).is_empty() {
            return Err(Refusal::bad_request(
                "A content must have a name, and as creator initiator or responder",
            ));
        }
    }
    let secured =
        |content: &&(usize, &Element)| !options.require_tls || offer::is_secured(content.1);
    let mut secured = all.into_iter().enumerate().filter(|content| secured(&content)).peekable();
    if secured.peek().is_none() {
        let text = "Only sessions secured by TLS are brokered: offer urn:xmpp:jingle:apps:tls or a \
                    security element";
        return Err(Refusal::new(ErrorType::Modify, Condition::NotAcceptable, text)
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
            Refusal::new(ErrorType::Cancel, Condition::FeatureNotImplemented, text)
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

/// Returns the readable prints that a stanza offers, in its contents or beside them.
pub(super) fn offered_prints(jingle: &Element) -> Vec<Print> {
    readable(&offer::Offer::read(jingle))
}

/// Returns the readable prints of an offer.
pub(super) fn readable(offer: &offer::Offer) -> Vec<Print> {
    offer.prints.iter().filter_map(|(_, printed)| printed.print().cloned()).collect()
}

/// Returns the part of a Jingle element that is beside its contents. Contents in the other Jingle namespace are not
/// part of the session.
fn beside(jingle: &Element) -> Element {
    let mut alone = xml::head_in(jingle, &jingle.ns());
    let is_content = |e: &Element| e.is("content", ns::JINGLE) || e.is("content", ns::JINGLE_0);
    for node in jingle.nodes() {
        if !node.as_element().is_some_and(is_content) {
            alone.append_node(node.clone());
        }
    }
    alone
}

fn name(content: &Element) -> &str {
    content.attr("name").unwrap_or_default()
}

/// A side's offer after policy: a content, or the part of a stanza beside its contents.
struct Checked {
    element: Element,
    /// Verdicts on the offer, if there is one.
    hints: Option<Element>,
    /// The methods that it has left, and whether it had any.
    methods: Vec<Word<Method>>,
    had_methods: bool,
}

/// The content of a session that is brokered.
#[derive(Debug)]
pub(super) struct BrokeredContent {
    pub(super) name: String,
    /// The initiator's other contents.
    pub(super) removed: Vec<Element>,
    /// Whether it is a raw TLS stream, without another application.
    pub(super) is_raw: bool,
    /// The TLS methods of the initiator that policy lets pass.
    methods: Vec<Word<Method>>,
    /// The offer dialects that each side knows; empty: any.
    dialects: PerSide<Vec<Dialect>>,
}

impl BrokeredContent {
    /// Returns the content of this number in a session-initiate.
    pub(super) fn new(initiate: Option<&Element>, chosen: usize) -> Self {
        let mut removed: Vec<&Element> = initiate.into_iter().flat_map(contents).collect();
        let content = (chosen < removed.len()).then(|| removed.remove(chosen));
        Self {
            name: content.map(name).unwrap_or_default().to_owned(),
            removed: removed.into_iter().cloned().collect(),
            is_raw: content.is_some_and(|content| content.has_child("description", ns::APPS_TLS)),
            methods: Vec::new(),
            dialects: PerSide::default(),
        }
    }

    /// Returns the brokered content in one side's stanza: the one with its name, or, if the session was offered with
    /// one content, that one under any name.
    pub(super) fn find<'a>(&self, jingle: &'a Element) -> Option<&'a Element> {
        let named = contents(jingle).find(|content| name(content) == self.name);
        named.or_else(|| contents(jingle).next().filter(|_| self.removed.is_empty()))
    }
}

impl Session {
    /// Passes the session-initiate on once everything that it needs is known.
    pub(super) fn pass_initiate(&mut self) {
        let Acceptance::Unanswered(initiate) = &self.acceptance else { return };
        let Phase::Checking { chosen, features: Some(features), keys: Some(keys) } =
            &mut self.phase
        else {
            return;
        };
        let (features, keys) = (std::mem::take(features), std::mem::take(keys));
        let Some(jingle) = initiate.stanza.payload().cloned() else { return };
        let Some(content) = contents(&jingle).nth(*chosen) else { return };
        self.content.dialects =
            PerSide { initiator: Dialect::of(content), responder: Dialect::known(&features) };
        self.choose_namespace(&features);
        let both = self.check_with_beside(Side::Initiator, content, &jingle, &keys);
        let (checked, beside) = match both {
            Ok(checked) => checked,
            Err(text) => return self.refuse_key(&self.owner(Side::Initiator), &text),
        };
        if checked.had_methods && checked.methods.is_empty() {
            let owner = self.peers.initiator.user.to_bare();
            let text = format!(
                "No TLS method is left: this service accepts none of the keys that {owner} offers"
            );
            return self.end_both(Reason::UnsupportedApplications, &text);
        }
        self.content.methods.clone_from(&checked.methods);
        let Some(transport) = self.offer_leg(&features) else {
            let text = "The component offers neither SOCKS5 nor IBB";
            return self.end_both(Reason::UnsupportedTransports, text);
        };
        let out = self.pass(Side::Responder, &beside, &checked, transport);
        self.phase = Phase::Negotiating;
        self.ask(Side::Responder, out, Question::Initiate);
        if self.legs.initiator.ready {
            self.open(Side::Responder);
        }
    }

    /// Chooses the Jingle namespace for the responder: the initiator's, unless the responder knows only the other.
    fn choose_namespace(&mut self, features: &[String]) {
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        let responder = &mut self.peers.responder;
        let (offered, other) = if responder.namespace == ns::JINGLE_0 {
            (ns::JINGLE_0, ns::JINGLE)
        } else {
            (ns::JINGLE, ns::JINGLE_0)
        };
        if speaks(other) && !speaks(offered) {
            other.clone_into(&mut responder.namespace);
        }
    }

    /// Returns a session-initiate or session-accept for the other side, with only the checked content.
    fn pass(&self, to: Side, beside: &Checked, checked: &Checked, transport: Element) -> Element {
        let frame = self.frame(to);
        let from = beside.element.ns();
        let content = jingle::reframe(&checked.element, &from, frame.namespace);
        let hints = checked.hints.clone();
        self.assemble(to, beside, [jingle::content(&content, Some(transport), hints)])
    }

    /// Returns a stanza for the other side with these contents.
    fn assemble(
        &self,
        to: Side,
        beside: &Checked,
        contents: impl IntoIterator<Item = Element>,
    ) -> Element {
        let mut out = jingle::jingle(&beside.element, &self.frame(to), |content| content);
        for content in contents {
            out.append_child(content);
        }
        if let Some(hints) = &beside.hints {
            out.append_child(hints.clone());
        }
        out
    }

    /// Returns the owner of the keys that a side offers.
    fn owner(&self, side: Side) -> BareJid {
        self.peers[side].user.to_bare()
    }

    /// Adds hints to one side's offer, applies the policies, and writes it in a dialect of the other side.
    ///
    /// # Errors
    /// The text for both users, if policy forbids the session.
    fn check(&self, side: Side, content: &Element, keys: &[Key]) -> Result<Checked, String> {
        let owner = self.owner(side);
        let offer = offer::Offer::read(content);
        // An answer that names no method means one that the initiator has offered.
        let judged = hints::judge(&offer, &self.content.methods, keys);
        let gone = hints::decide(&judged, &self.options.policies, &owner)?;
        let left = offer::without(content, &gone.prints, &gone.methods);
        let mut prints = judged.prints();
        let stripped: HashSet<_> = gone.prints.iter().map(Printed::identity).collect();
        prints.retain(|(_, print)| !stripped.contains(&print.identity()));
        let known = &self.content.dialects[side.other()];
        let methods = judged.methods(&offer, &gone);
        Ok(Checked {
            element: dialect::for_peer(&left, known, &prints),
            hints: (!offer.is_empty()).then(|| hints::to_element(&judged, keys, &owner)),
            had_methods: !methods.is_empty() || !gone.methods.is_empty(),
            methods,
        })
    }

    /// The same for the part of a stanza beside its contents.
    fn check_beside(&self, side: Side, jingle: &Element, keys: &[Key]) -> Result<Checked, String> {
        self.check(side, &beside(jingle), keys)
    }

    /// Checks a content of a stanza, and then the part beside the contents.
    fn check_with_beside(
        &self,
        side: Side,
        content: &Element,
        jingle: &Element,
        keys: &[Key],
    ) -> Result<(Checked, Checked), String> {
        let checked = self.check(side, content, keys)?;
        Ok((checked, self.check_beside(side, jingle, keys)?))
    }

    /// Passes a stanza on whose offer had to be checked.
    pub(super) fn pass_checked(&mut self, side: Side, keys: &[Key], now: Instant) {
        let Some(Check { stanza, behind, .. }) = self.check.take_if(|check| check.side == side)
        else {
            return;
        };
        self.pass_on(side, stanza, keys, now);
        self.handle_all(behind, now);
    }

    fn pass_on(&mut self, side: Side, stanza: Stanza, keys: &[Key], now: Instant) {
        let Some(jingle) = stanza.payload().cloned() else { return };
        if jingle::action(&jingle) == jingle::Action::SessionAccept {
            return self.pass_accept(stanza, &jingle, keys, now);
        }
        let all: Result<Vec<Checked>, String> =
            contents(&jingle).map(|content| self.check(side, content, keys)).collect();
        match all.and_then(|all| Ok((all, self.check_beside(side, &jingle, keys)?))) {
            Ok((all, beside)) => {
                let to = side.other();
                let namespace = self.peers[to].namespace.as_str();
                let contents = all.into_iter().map(|checked| {
                    let mut content = jingle::reframe(&checked.element, &jingle.ns(), namespace);
                    if let Some(hints) = checked.hints {
                        content.append_child(hints);
                    }
                    content
                });
                let out = self.assemble(to, &beside, contents);
                self.ask(to, out, Question::Forwarded(Box::new(stanza)));
            }
            Err(text) => {
                self.send(stanza.result(None));
                self.refuse_key(&self.owner(side), &text);
            }
        }
    }

    /// Passes the session-accept on.
    fn pass_accept(&mut self, stanza: Stanza, jingle: &Element, keys: &[Key], now: Instant) {
        let Some(content) = self.content.find(jingle) else { return };
        let both = self.check_with_beside(Side::Responder, content, jingle, keys);
        let (checked, beside) = match both {
            Ok(checked) => checked,
            Err(text) => {
                self.send(stanza.result(None));
                return self.refuse_key(&self.owner(Side::Responder), &text);
            }
        };
        let common = checked.methods.iter().any(|method| self.content.methods.contains(method));
        if checked.had_methods && !self.content.methods.is_empty() && !common {
            self.send(stanza.result(None));
            let list = |names: &[Word<Method>]| match names {
                [] => "none that this service accepts".to_owned(),
                names => names.iter().map(Word::as_str).collect::<Vec<_>>().join(", "),
            };
            let text = format!(
                "No TLS method in common: the initiator has {}, the responder {}",
                list(&self.content.methods),
                list(&checked.methods)
            );
            return self.end_both(Reason::UnsupportedApplications, &text);
        }
        self.acknowledge();
        self.legs.responder.accept(Transport::read(content));
        self.acceptance = Acceptance::Accepted;
        let transport = self.accept_leg();
        let out = self.pass(Side::Initiator, &beside, &checked, transport);
        self.ask(Side::Initiator, out, Question::Forwarded(Box::new(stanza)));
        if matches!(self.phase, Phase::Negotiating) {
            self.timers.set(Timer::Phase, now + self.options.activation_timeout);
        }
        for side in Side::BOTH {
            self.nominate(side);
            self.expect_choice(side, now);
        }
        self.open(Side::Responder);
    }

    /// Tells the initiator which of its contents are not brokered.
    pub(super) fn remove_contents(&mut self) {
        if !self.content.removed.is_empty() {
            let text = "A brokered session carries one stream: this content is not part of it";
            let jingle = self.refuse_contents(
                Side::Initiator,
                jingle::Action::ContentRemove,
                &self.content.removed,
                text,
            );
            self.tell(Side::Initiator, jingle);
        }
    }

    /// Answers a content-add: a session has one content.
    pub(super) fn reject_contents(&mut self, side: Side, stanza: &Stanza, jingle: &Element) {
        let added: Vec<Element> = contents(jingle).cloned().collect();
        let text = "A brokered session carries one stream: start another session";
        let rejection = self.refuse_contents(side, jingle::Action::ContentReject, &added, text);
        self.answer_and_tell(side, stanza, rejection);
    }

    fn refuse_contents(
        &self,
        side: Side,
        action: jingle::Action,
        refused: &[Element],
        text: &str,
    ) -> Element {
        let frame = self.frame(side);
        let mut jingle = jingle::own(action, &frame);
        for content in refused {
            let creator = content.attr("creator").unwrap_or("initiator");
            let attributes = [("creator", creator), ("name", name(content))];
            jingle.append_child(xml::element("content", frame.namespace, &attributes));
        }
        jingle.append_child(jingle::reason(&frame, Reason::UnsupportedApplications, text));
        jingle
    }
}
