//! Authentication at the XMPP server: SCRAM (RFC 5802, RFC 7677) with channel binding, or PLAIN (RFC 4616); or ANONYMOUS
//! (RFC 4505), without an account.
//!
//! A state machine: the server's offer goes in, messages come out; the connection belongs to the caller.
//!
//! Neither SASL library for Rust covers it. `sasl` 0.5.2 has no `tls-server-end-point`, does not escape user names and
//! does not prepare passwords. `rsasl` 2.3.1 leaves extensions of the server's first message out of the signed text, so
//! authentication fails at each server that protects its offer against downgrades (XEP-0474).
//!
//! Which GS2 flag is sent (RFC 5802, section 6):
//!
//! | the server offers | flag |
//! |---|---|
//! | a -PLUS mechanism and names a channel binding type that both sides have (XEP-0440) | `p=` and the type |
//! | anything else | `n` |
//!
//! The flag `y`, "you do not offer it", is never sent. Prosody 13 and ejabberd 24.12 refuse it whenever they could bind
//! the connection, even if their operator has switched the -PLUS mechanisms off. The offer's hash shows whether it was
//! changed on its way (XEP-0474).

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fingerpost_secure::redact::Secret;
use subtle::ConstantTimeEq;

use super::fast::FastToken;

mod binding;

pub(super) use binding::Channel;

/// Fewer iterations would give an attacker that poses as the server a cheap guess (RFC 7677, section 4).
const MIN_ITERATIONS: u32 = 4096;
/// More would let a server keep this side busy.
const MAX_ITERATIONS: u32 = 1_000_000;
const PLUS: &str = "-PLUS";
/// Mechanisms for tokens (XEP-0484), the best first.
const TOKENS: [&str; 3] = ["HT-SHA-256-EXPR", "HT-SHA-256-ENDP", "HT-SHA-256-NONE"];
const PLAIN: &str = "PLAIN";
const ANONYMOUS: &str = "ANONYMOUS";

/// What the server offers in its stream features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LoginOffer {
    /// The names in `<mechanisms/>`.
    pub(super) mechanisms: Vec<String>,
    /// The types in `<sasl-channel-binding/>` (XEP-0440); `None` without that element.
    pub(super) bindings: Option<Vec<String>>,
}

/// Why authentication cannot continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SaslError {
    /// The server and this client have no mechanism in common.
    #[error("the server offers no login method that xtls has (it offers: {0})")]
    NoMechanism(String),
    /// A message of the server does not follow the protocol.
    #[error("the server's login message is not valid: {0}")]
    Malformed(&'static str),
    /// The server requires a number of iterations outside the accepted range.
    #[error("the server asks for {0} iterations; expected {MIN_ITERATIONS} to {MAX_ITERATIONS}")]
    Iterations(u32),
    /// The offer differs from the one that the server has sent (XEP-0474).
    #[error(
        "the server's list of login methods was changed on its way: somebody may be intercepting this connection"
    )]
    Downgrade,
    /// The server does not know the password.
    #[error(
        "the server did not prove that it knows the password: somebody may be intercepting this connection"
    )]
    Server,
}

/// The hash function of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha512,
    Sha256,
    Sha1,
}

impl Hash {
    /// The strongest first.
    const ALL: [Self; 3] = [Self::Sha512, Self::Sha256, Self::Sha1];

    fn mechanism(self) -> &'static str {
        match self {
            Self::Sha512 => "SCRAM-SHA-512",
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha1 => "SCRAM-SHA-1",
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha512 => hmac::HMAC_SHA512,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        self.hmac().digest_algorithm()
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
        }
    }

    fn sign(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.hmac(), key), text).as_ref().to_vec()
    }
}

/// One authentication.
pub(super) struct Exchange {
    mechanism: String,
    offer: LoginOffer,
    password: Secret,
    state: ScramState,
}

enum ScramState {
    /// One message, after which the server decides.
    Plain(Vec<u8>),
    /// The message for a token; the server must answer with this signature.
    Token(Vec<u8>, Vec<u8>),
    First(Scram),
    /// The client's proof is sent; the server must answer with this signature.
    Final(Vec<u8>),
    Done,
}

struct Scram {
    hash: Hash,
    gs2: String,
    binding: Vec<u8>,
    nonce: String,
    /// The client's first message without its GS2 header.
    bare: String,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Chooses a mechanism: one with channel binding before one without, then by the strength of its hash.
    ///
    /// `username` is the local part of the address. `nonce` is 18 random bytes or more.
    ///
    /// # Errors
    /// [`SaslError::NoMechanism`] if none is common.
    pub(super) fn new(
        offer: LoginOffer,
        channel: &Channel,
        username: &str,
        password: Secret,
        nonce: &[u8],
    ) -> Result<Self, SaslError> {
        let offered = |name: &str| offer.mechanisms.iter().any(|known| known == name);
        let plus = |hash: Hash| format!("{}{PLUS}", hash.mechanism());
        let bound = offer.bindings.as_deref().and_then(|types| channel.choose(types));
        let (mechanism, hash, gs2, binding) =
            match (Hash::ALL.into_iter().find(|hash| offered(&plus(*hash))), bound) {
                (Some(hash), Some((name, data))) => {
                    (plus(hash), hash, format!("p={name},,"), data.to_vec())
                }
                _ => {
                    let plain_scram = Hash::ALL.into_iter().find(|hash| offered(hash.mechanism()));
                    let Some(hash) = plain_scram else {
                        if !offered(PLAIN) {
                            return Err(SaslError::NoMechanism(list(&offer.mechanisms)));
                        }
                        let message = format!("\0{username}\0{}", password.expose_secret());
                        let (mechanism, state) =
                            (PLAIN.to_owned(), ScramState::Plain(message.into()));
                        return Ok(Self { mechanism, offer, password, state });
                    };
                    (hash.mechanism().to_owned(), hash, "n,,".to_owned(), Vec::new())
                }
            };
        let nonce = BASE64.encode(nonce);
        let bare = format!("n={},r={nonce}", escape(&prepare(username)));
        let state = ScramState::First(Scram { hash, gs2, binding, nonce, bare });
        Ok(Self { mechanism, offer, password, state })
    }

    /// Authenticates nobody: the server chooses the address. The message, a trace of the user, is empty.
    ///
    /// # Errors
    /// [`SaslError::NoMechanism`] if the server wants to know the user.
    pub(super) fn anonymous(offer: &LoginOffer) -> Result<Self, SaslError> {
        if !offer.mechanisms.iter().any(|name| name == ANONYMOUS) {
            return Err(SaslError::NoMechanism(list(&offer.mechanisms)));
        }
        Ok(Self {
            mechanism: ANONYMOUS.to_owned(),
            offer: LoginOffer::default(),
            password: Secret::default(),
            state: ScramState::Plain(Vec::new()),
        })
    }

    /// Authenticates by a token instead of the password; `None` if the connection lacks the binding that the token needs.
    pub(super) fn by_token(token: &FastToken, channel: &Channel, username: &str) -> Option<Self> {
        if !TOKENS.contains(&token.mechanism.as_str()) {
            return None;
        }
        let binding = channel.of_token(&token.mechanism)?;
        let key = token.token.expose_secret().as_bytes();
        let sign = |role: &[u8]| Hash::Sha256.sign(key, &[role, binding].concat());
        let message = [username.as_bytes(), b"\0", &sign(b"Initiator")].concat();
        Some(Self {
            mechanism: token.mechanism.clone(),
            offer: LoginOffer::default(),
            password: Secret::default(),
            state: ScramState::Token(message, sign(b"Responder")),
        })
    }

    /// Returns the mechanism's name.
    pub(super) fn mechanism(&self) -> &str {
        &self.mechanism
    }

    /// Returns the initial response.
    pub(super) fn initial(&self) -> Vec<u8> {
        match &self.state {
            ScramState::Plain(message) | ScramState::Token(message, _) => message.clone(),
            ScramState::First(scram) => format!("{}{}", scram.gs2, scram.bare).into_bytes(),
            ScramState::Final(_) | ScramState::Done => Vec::new(),
        }
    }

    /// Returns the response to a challenge.
    ///
    /// # Errors
    /// Any [`SaslError`] but [`SaslError::NoMechanism`]. Close the connection then, and send nothing more.
    pub(super) fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, SaslError> {
        match std::mem::replace(&mut self.state, ScramState::Done) {
            ScramState::First(scram) => {
                let (response, signature) = scram.prove(challenge, &self.offer, &self.password)?;
                self.state = ScramState::Final(signature);
                Ok(response)
            }
            // Some servers send their signature as a challenge and then an empty success.
            ScramState::Final(signature) => {
                verify(challenge, &signature)?;
                Ok(Vec::new())
            }
            ScramState::Plain(_) | ScramState::Token(..) | ScramState::Done => {
                Err(SaslError::Malformed("an unexpected challenge"))
            }
        }
    }

    /// Checks the data of the server's success.
    ///
    /// # Errors
    /// [`SaslError::Server`] if the server has not proved that it knows the password.
    pub(super) fn finish(self, data: &[u8]) -> Result<(), SaslError> {
        match self.state {
            ScramState::Plain(_) | ScramState::Done => Ok(()),
            ScramState::First(_) => Err(SaslError::Server),
            ScramState::Token(_, signature) if data.ct_eq(&signature).into() => Ok(()),
            ScramState::Token(..) => Err(SaslError::Server),
            ScramState::Final(signature) => verify(data, &signature),
        }
    }
}

/// Returns the best mechanism for tokens that the server offers and the connection supports.
pub(super) fn token_mechanism(offered: &[String], channel: &Channel) -> Option<&'static str> {
    TOKENS.into_iter().find(|name| {
        offered.iter().any(|offered| offered == name) && channel.of_token(name).is_some()
    })
}

impl Scram {
    /// Returns the client's final message, and the expected signature of the server.
    fn prove(
        &self,
        challenge: &[u8],
        offer: &LoginOffer,
        password: &Secret,
    ) -> Result<(Vec<u8>, Vec<u8>), SaslError> {
        let first = str::from_utf8(challenge).map_err(|_| SaslError::Malformed("not UTF-8"))?;
        let mut attributes = first.split(',');
        let mut next = |name: &str| {
            let attribute = attributes.next().and_then(|text| text.strip_prefix(name));
            attribute.ok_or(SaslError::Malformed("expected r=, s= and i="))
        };
        let (nonce, salt, iterations) = (next("r=")?, next("s=")?, next("i=")?);
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(SaslError::Malformed("its nonce does not begin with ours"));
        }
        let salt =
            BASE64.decode(salt).map_err(|_| SaslError::Malformed("its salt is not base64"))?;
        let iterations: u32 =
            iterations.parse().map_err(|_| SaslError::Malformed("i= is not a number"))?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(SaslError::Iterations(iterations));
        }
        if let Some(promised) = attributes.find_map(|text| text.strip_prefix("h="))
            && promised != fingerprint(offer, self.hash)
        {
            return Err(SaslError::Downgrade);
        }
        let mut salted = vec![0; self.hash.digest().output_len()];
        let rounds = NonZeroU32::new(iterations).ok_or(SaslError::Iterations(0))?;
        let prepared = prepare(password.expose_secret());
        pbkdf2::derive(self.hash.pbkdf2(), rounds, &salt, prepared.as_bytes(), &mut salted);
        let client_key = self.hash.sign(&salted, b"Client Key");
        let server_key = self.hash.sign(&salted, b"Server Key");
        let stored_key = digest::digest(self.hash.digest(), &client_key);
        let bound = BASE64.encode([self.gs2.as_bytes(), &self.binding].concat());
        let without_proof = format!("c={bound},r={nonce}");
        let signed = [&self.bare, first, &without_proof].join(",");
        let signature = self.hash.sign(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let last = format!("{without_proof},p={}", BASE64.encode(proof));
        Ok((last.into_bytes(), self.hash.sign(&server_key, signed.as_bytes())))
    }
}

/// Compares the server's final message with the expected signature.
fn verify(message: &[u8], signature: &[u8]) -> Result<(), SaslError> {
    let shown = str::from_utf8(message)
        .ok()
        .and_then(|text| text.split(',').next()?.strip_prefix("v="))
        .and_then(|text| BASE64.decode(text).ok())
        .ok_or(SaslError::Server)?;
    if bool::from(shown.as_slice().ct_eq(signature)) { Ok(()) } else { Err(SaslError::Server) }
}

/// Returns the hash of an offer (XEP-0474, section 5.1), in base64.
fn fingerprint(offer: &LoginOffer, hash: Hash) -> String {
    let join = |names: &[String]| {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.join("\u{1e}")
    };
    let mut text = join(&offer.mechanisms);
    if let Some(bindings) = &offer.bindings {
        text.push('\u{1f}');
        text += &join(bindings);
    }
    BASE64.encode(digest::digest(hash.digest(), text.as_bytes()))
}

/// Prepares a user name or a password (RFC 4013). A text that the profile does not allow, such as one with newer
/// characters, stays as it is, because servers keep it so.
fn prepare(text: &str) -> std::borrow::Cow<'_, str> {
    stringprep::saslprep(text).unwrap_or(std::borrow::Cow::Borrowed(text))
}

/// Writes a user name as `saslname` (RFC 5802, section 7).
fn escape(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

/// Lists at most a few names, for an error message.
fn list(names: &[String]) -> String {
    let clean = |name: &String| -> String {
        name.chars().filter(char::is_ascii_graphic).take(40).collect()
    };
    names.iter().take(10).map(clean).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
