//! The methods of TLS security: how an endpoint proves its identity, what it offers, and what it expects.
//!
//! `x509` is a certificate that a peer knows by its print, `openpgp` an OpenPGP key that vouches for one, and `srp` a
//! password that both users know. A profile marks a method other than x509, because its name alone has meant other
//! things (RFC 5081, RFC 5054). docs/PROTOCOL.md describes both profiles.

use std::{io, time::Duration};

use fingerpost_secure::{
    srp,
    stream::{self as tls, Protocol, Secured},
    verify::Expected,
};
use fingerpost_wire::{ns, offer::Offer, print::Method, word::Word};
use jid::BareJid;
use minidom::Element;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsStream;

use super::{
    credential::{Credential, profile},
    error::Error,
    guesses::{Guess, Spent},
    paths::PathLeg,
    session::Session,
};

/// How long handshake and password check may take. The short authentication string relies on it.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How long a peer may take for its guess of the password once it has its turn: two messages.
const GUESS: Duration = Duration::from_secs(20);

/// Returns the requirements on the peer's certificate, from its offer for `method`.
///
/// # Errors
/// [`Error::Unsupported`] if the peer does not offer the method, [`Error::Unverified`] if it names no key for it.
pub(super) fn expected(
    peer: &BareJid,
    method: Method,
    content: &Element,
) -> Result<Expected, Error> {
    let offer = Offer::read(content);
    let named = offer.methods.iter().any(|name| *name == method);
    let marked = is_marked(content, method);
    // Prints of the third dialect may come without a method.
    if !marked || !(named || offer.methods.is_empty()) {
        let offered: Vec<_> = offer.methods.iter().map(Word::as_str).collect();
        return Err(Error::Unsupported(format!(
            "no TLS method in common: {peer} offers {}, and the method here is {method}{}",
            if offered.is_empty() { "none".to_owned() } else { offered.join(", ") },
            profile(method).map(|profile| format!(" ({profile})")).unwrap_or_default(),
        )));
    }
    let pins = offer.prints_for(method);
    match method {
        Method::Srp => Ok(Expected::Anyone),
        _ if pins.is_empty() => Err(Error::unverified(format!(
            "{peer} offered no print of an {method} key: nothing was sent"
        ))),
        Method::X509 => Ok(Expected::Certificate(pins)),
        Method::OpenPgp => Ok(Expected::OpenPgp(pins)),
    }
}

/// Returns whether a content names the method as it is defined here: with the profile that it has, or without any.
fn is_marked(content: &Element, method: Method) -> bool {
    let methods = content.children().flat_map(|child| {
        let direct = child.children().filter(|c| c.is("method", ns::XTLS));
        let listed = child
            .children()
            .filter(|c| c.is("methods", ns::APPS_TLS))
            .flat_map(|methods| methods.children().filter(|c| c.is("method", ns::APPS_TLS)));
        direct.chain(listed)
    });
    let named = methods.filter(|element| element.attr("name") == Some(method.as_str()));
    let mut profiles = named.map(|element| {
        let profile = element.children().find(|child| child.is("profile", ns::HINTS));
        profile.map(|profile| profile.attr("name").unwrap_or_default())
    });
    match profile(method) {
        Some(own) => profiles.any(|profile| profile == Some(own)),
        // Not every form of an offer has elements for its methods.
        None => {
            profiles.next().is_none_or(|first| first.is_none() || profiles.any(|p| p.is_none()))
        }
    }
}

impl Session {
    /// Sets up TLS over the transport. The responder is the TLS server.
    pub(super) async fn secure(
        &mut self,
        leg: PathLeg,
        expected: Expected,
        protocol: Option<Protocol>,
    ) -> Result<(TlsStream<PathLeg>, Secured), Error> {
        let identity = self.endpoint.credential().identity()?;
        let initiator = self.initiator;
        let handshake = in_time(async {
            Ok(if initiator {
                tls::connect_for(leg, &identity, expected, protocol).await?
            } else {
                tls::accept_for(leg, &identity, expected, protocol).await?
            })
        });
        self.unless_ended(handshake).await
    }

    /// Runs the mutual password check, if that is the method.
    pub(super) async fn authenticate(&mut self, tls: &mut TlsStream<PathLeg>) -> Result<(), Error> {
        let Credential::Srp(password) = self.endpoint.credential().clone() else { return Ok(()) };
        let me = self.endpoint.jid().to_bare();
        let user = if self.initiator { me } else { self.peer.clone() };
        let shared = srp::Shared { user: user.to_string(), password, binding: tls::binding(tls)? };
        let (endpoint, initiator, peer) =
            (self.endpoint.clone(), self.initiator, self.peer.clone());
        let proof = async {
            if initiator {
                return in_time(async { Ok(prove(tls, shared).await?) }).await;
            }
            let remembered = endpoint.policy().remembers(&peer);
            let turn = async {
                let turn = endpoint.guesses().turn(&peer, remembered).await;
                turn.map_err(|Spent| Error::failed("no further guess is taken"))
            };
            let mut guess = in_time(turn).await?;
            timeout(GUESS, check_proof(tls, shared, &mut guess))
                .await
                .map_err(|_| Error::failed("the peer did not answer in time"))??;
            Ok(())
        };
        // However this step ends, the peer has not proved the password.
        self.unless_ended(proof).await.map_err(|_| {
            Error::unverified(format!(
                "{} has not shown to know the password, or someone is in the middle: nothing was sent",
                self.peer
            ))
        })
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(HANDSHAKE, step)
        .await
        .unwrap_or_else(|_| Err(Error::failed("the handshake has taken too long")))
}

/// Returns the initiator's part of the password check.
async fn prove(tls: &mut TlsStream<PathLeg>, shared: srp::Shared) -> io::Result<()> {
    let (initiator, hello) = srp::Initiator::new(shared, rand::random());
    send(tls, &hello).await?;
    let challenge = receive(tls, srp::Initiator::EXPECTS).await?;
    let (initiator, proof) = initiator.handle_challenge(&challenge).map_err(io::Error::other)?;
    send(tls, &proof).await?;
    let answer = receive(tls, srp::InitiatorProved::EXPECTS).await?;
    initiator.handle_proof(&answer).map_err(io::Error::other)
}

/// Returns the responder's part of the password check.
async fn check_proof(
    tls: &mut TlsStream<PathLeg>,
    shared: srp::Shared,
    guess: &mut Guess<'_>,
) -> io::Result<()> {
    let responder = srp::Responder::new(shared, rand::random(), rand::random());
    let hello = receive(tls, srp::Responder::EXPECTS).await?;
    let (responder, challenge) = responder.handle_hello(&hello).map_err(io::Error::other)?;
    send(tls, &challenge).await?;
    let proof = receive(tls, srp::ResponderChallenged::EXPECTS).await?;
    let answer = responder.handle_proof(&proof);
    guess.settle(answer.is_ok());
    send(tls, &answer.map_err(io::Error::other)?).await
}

async fn send(tls: &mut TlsStream<PathLeg>, message: &[u8]) -> io::Result<()> {
    tls.write_all(message).await?;
    tls.flush().await
}

async fn receive(tls: &mut TlsStream<PathLeg>, shape: srp::Shape) -> io::Result<Vec<u8>> {
    let mut head = [0; srp::HEAD];
    tls.read_exact(&mut head).await?;
    let mut body = vec![0; shape.read_head(head).map_err(io::Error::other)?];
    tls.read_exact(&mut body).await?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::print::{HashKind, Print};

    use super::*;
    use crate::credential::OwnOffer;

    fn content(child: Element) -> Element {
        let mut content = Element::bare("content", ns::JINGLE);
        content.append_child(child);
        content
    }

    fn print(byte: u8) -> Print {
        Print::new(HashKind::Sha1, &[byte; 20]).unwrap()
    }

    #[test]
    fn what_is_offered_is_expected_in_both_dialects() {
        let peer = BareJid::new("bob@example.org").unwrap();
        for (method, own, then) in [
            (Method::X509, Some(print(1)), Expected::Certificate(vec![print(1)])),
            (Method::OpenPgp, Some(print(2)), Expected::OpenPgp(vec![print(2)])),
            (Method::Srp, None, Expected::Anyone),
        ] {
            let offered = OwnOffer::new(method, own);
            for child in [offered.description(), offered.security()] {
                assert_eq!(expected(&peer, method, &content(child)), Ok(then.clone()));
            }
        }
    }

    #[test]
    fn a_method_that_is_not_offered_is_told_with_what_is() {
        let peer = BareJid::new("bob@example.org").unwrap();
        let offered = content(OwnOffer::new(Method::X509, Some(print(1))).description());
        let Err(Error::Unsupported(text)) = expected(&peer, Method::Srp, &offered) else {
            panic!("srp is not offered");
        };
        assert!(text.contains("bob@example.org offers x509"), "{text}");
        assert!(text.contains("the method here is srp"), "{text}");
    }

    #[test]
    fn a_method_of_another_profile_is_not_the_same() {
        let peer = BareJid::new("bob@example.org").unwrap();
        let bare: Element = format!(
            "<description xmlns='{}'><methods><method name='openpgp'><print>{}</print></method>\
             <method name='srp'/></methods></description>",
            ns::APPS_TLS,
            print(3)
        )
        .parse()
        .unwrap();
        for method in [Method::OpenPgp, Method::Srp] {
            let refused = expected(&peer, method, &content(bare.clone()));
            assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        }
        for (also, is_taken) in [("", false), ("<method name='x509'/>", true)] {
            let marked = format!(
                "<description xmlns='{}'><methods><method name='x509'><print>{}</print>\
                 <profile xmlns='{}' name='another'/></method>{also}</methods></description>",
                ns::APPS_TLS,
                print(3),
                ns::HINTS
            );
            let answer = expected(&peer, Method::X509, &content(marked.parse().unwrap()));
            assert_eq!(answer.is_ok(), is_taken, "{answer:?}");
        }
    }
}
