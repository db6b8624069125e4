//! What becomes of offers in a session: the check of their keys, and the dialect for each side.

use std::collections::HashSet;

use fingerpost_wire::{
    dialect::{self, Dialect},
    file::{FileError, FileOffer},
    jingle::{self, Reason},
    ns,
    offer::{self, Printed, Protection},
    print::Method,
    stanza::Stanza,
    transport::Transport,
    word::Word,
    xml,
};
use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;

use super::{
    Acceptance, BrokeredSession, Check, Question, SessionAction, SessionPhase,
    contents::{contents, name},
    dino,
    direct::{self, DirectUse},
    timers::Timer,
};
use crate::{
    registry::model::Key,
    sessions::{
        features, hints,
        options::PlainFiles,
        side::{PerSide, Side},
    },
};

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

/// A side's offer after policy: a content, or the part of a stanza beside its contents.
struct CheckedOffer {
    element: Element,
    /// Verdicts on the offer, if there is one.
    hints: Option<Element>,
    /// The methods that it has left, and whether it had any.
    methods: Vec<Word<Method>>,
    had_methods: bool,
}

impl BrokeredSession {
    /// Passes the session-initiate on once everything that it needs is known.
    pub(super) fn pass_initiate(&mut self) {
        let Acceptance::Unanswered(initiate) = &self.acceptance else { return };
        let SessionPhase::Checking { chosen, features: Some(features), keys: Some(keys) } =
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
        if let Some((reason, text)) = self.refuses_file(&features) {
            return self.end_both(reason, &text);
        }
        let both = self.check_with_beside(Side::Initiator, content, &jingle, &keys);
        let (checked, beside) = match both {
            Ok(checked) => checked,
            Err(text) => return self.refuse_key(&self.owner(Side::Initiator), &text),
        };
        if checked.had_methods && checked.methods.is_empty() {
            let owner = self.peers.initiator.user().to_bare();
            let text = format!(
                "No TLS method is left: this service accepts none of the keys that {owner} offers"
            );
            return self.end_both(Reason::UnsupportedApplications, &text);
        }
        self.content.methods = checked.methods.clone();
        let Some(transport) = self.offer_leg(&features) else {
            let text = "The component offers neither SOCKS5 nor IBB";
            return self.end_both(Reason::UnsupportedTransports, text);
        };
        let out = self.pass(Side::Responder, &beside, &checked, transport);
        self.phase = SessionPhase::Negotiating;
        if self.content.needs_socks5 {
            let greeting = dino::greeting(&self.owner(Side::Initiator), self.marks());
            self.actions.push_back(SessionAction::Greet(greeting));
        }
        self.ask(Side::Responder, out, Question::Initiate);
        if self.legs.initiator.ready {
            self.open(Side::Responder);
        }
    }

    /// Returns the file that the initiator offers, if the responder's client has these features and takes files by stream initiation
    /// alone; or a text for the initiator, if there are no words for the offer there.
    pub(crate) fn untranslated(&self, features: &[String]) -> Option<Result<FileOffer, String>> {
        let (Acceptance::Unanswered(initiate), SessionPhase::Checking { chosen, .. }) =
            (&self.acceptance, &self.phase)
        else {
            return None;
        };
        // What protects a file has no place there either.
        let is_bare = self.content.protection == Protection::None;
        let application = self.content.file.filter(|_| is_bare)?;
        if !features::translates(features, application) {
            return None;
        }
        let content = contents(initiate.stanza.payload()?).nth(*chosen)?;
        Some(FileOffer::of_jingle(content).map_err(|error| {
            let why = match error {
                FileError::Name => "the offer does not name the file",
                FileError::Request => "files can only be sent to it, and not requested from it",
                FileError::Size => "the offer does not say how many bytes the file has",
            };
            let user = self.owner(Side::Responder);
            format!("The client of {user} takes files by stream initiation (XEP-0096) alone: {why}")
        }))
    }

    /// Looks at what the responder's client says of files, if the content is one. Returns the reason and the text for the
    /// initiator, if it cannot take the file.
    fn refuses_file(&mut self, features: &[String]) -> Option<(Reason, String)> {
        let application = self.content.file?;
        let knows = |feature: &str| features.iter().any(|known| known == feature);
        let user = self.owner(Side::Responder);
        if knows(features::DINO) {
            self.content.needs_socks5 = true;
            let why = match (self.options.socks5, knows(ns::JINGLE_S5B)) {
                (false, _) => "this service has SOCKS5 switched off",
                (true, false) => "this one does not announce it",
                (true, true) => return None,
            };
            return Some((Reason::UnsupportedTransports, dino::needs_socks5(&user, why)));
        }
        // Clients that offer TLS know each other. A client whose features are unknown may take everything.
        let is_tls = self.content.protection == Protection::Tls;
        if is_tls || features.is_empty() || features::takes(features, application) {
            return None;
        }
        let text = match knows(application) {
            true => "announces no bytestream (SOCKS5 or in-band) for it".to_owned(),
            false => format!("does not announce {application}"),
        };
        let text = format!("The client of {user} cannot receive this file: it {text}");
        Some((Reason::UnsupportedApplications, text))
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
            responder.namespace = other;
        }
    }

    /// Returns a session-initiate or session-accept for the other side, with only the checked content.
    fn pass(
        &self,
        to: Side,
        beside: &CheckedOffer,
        checked: &CheckedOffer,
        transport: Element,
    ) -> Element {
        let frame = self.frame(to);
        let from = beside.element.ns();
        let content = jingle::reframe(&checked.element, &from, frame.namespace);
        let hints = checked.hints.clone();
        let mut content = jingle::content(&content, Some(transport), hints);
        if self.marks() {
            content.append_child(xml::element("unencrypted", ns::HINTS, &[]));
        }
        self.assemble(to, beside, [content])
    }

    /// Returns whether both users are told that nothing encrypts the session from end to end.
    fn marks(&self) -> bool {
        self.options.plain == PlainFiles::Mark && self.content.is_plain()
    }

    /// Returns a stanza for the other side with these contents.
    fn assemble(
        &self,
        to: Side,
        beside: &CheckedOffer,
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
        self.peers[side].user().to_bare()
    }

    /// Adds hints to one side's offer, applies the policies, and writes it in a dialect of the other side.
    ///
    /// # Errors
    /// The text for both users, if policy forbids the session.
    fn check(&self, side: Side, content: &Element, keys: &[Key]) -> Result<CheckedOffer, String> {
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
        Ok(CheckedOffer {
            element: dialect::for_peer(&left, known, &prints),
            hints: (!offer.is_empty()).then(|| hints::to_element(&judged, keys, &owner)),
            had_methods: !methods.is_empty() || !gone.methods.is_empty(),
            methods,
        })
    }

    /// The same for the part of a stanza beside its contents.
    fn check_beside(
        &self,
        side: Side,
        jingle: &Element,
        keys: &[Key],
    ) -> Result<CheckedOffer, String> {
        self.check(side, &beside(jingle), keys)
    }

    /// Checks a content of a stanza, and then the part beside the contents.
    fn check_with_beside(
        &self,
        side: Side,
        content: &Element,
        jingle: &Element,
        keys: &[Key],
    ) -> Result<(CheckedOffer, CheckedOffer), String> {
        let checked = self.check(side, content, keys)?;
        Ok((checked, self.check_beside(side, jingle, keys)?))
    }

    /// Passes a stanza on whose offer had to be checked.
    pub(super) fn pass_checked(&mut self, side: Side, keys: &[Key], now: Instant) {
        let Some(check) = self.check.take_if(|check| check.side == side) else { return };
        let Check { stanza, behind, .. } = *check;
        self.pass_on(side, stanza, keys, now);
        self.handle_all(behind, now);
    }

    fn pass_on(&mut self, side: Side, stanza: Stanza, keys: &[Key], now: Instant) {
        let Some(jingle) = stanza.payload().cloned() else { return };
        if jingle::action(&jingle) == jingle::Action::SessionAccept {
            return self.pass_accept(stanza, &jingle, keys, now);
        }
        let all: Result<Vec<CheckedOffer>, String> =
            contents(&jingle).map(|content| self.check(side, content, keys)).collect();
        match all.and_then(|all| Ok((all, self.check_beside(side, &jingle, keys)?))) {
            Ok((all, beside)) => {
                let to = side.other();
                let namespace = self.peers[to].namespace;
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
        if self.content.asks_for_paths && direct::is_asked_for(content) {
            self.direct = Some(Box::new(DirectUse::new(now)));
        }
        let transport = self.leg_transport(Side::Initiator);
        let out = self.pass(Side::Initiator, &beside, &checked, transport);
        self.ask(Side::Initiator, out, Question::Forwarded(Box::new(stanza)));
        if matches!(self.phase, SessionPhase::Negotiating) {
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
        jingle.append_child(jingle::reason(frame.namespace, Reason::UnsupportedApplications, text));
        jingle
    }
}
