//! The commands that use a component's registry: `keys`, `register`, `prove`, `revoke`.

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_endpoint::{Endpoint, RequestKind};
use fingerpost_secure::{identity::Identity, openpgp::OpenPgpKey};
use fingerpost_wire::{
    ns,
    print::{Method, Print},
    proof::Nonce,
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;

use super::{
    account::Account,
    args::Common,
    credential::{own_identity, own_openpgp, passphrase},
    discover,
    display::shown,
    output::{Output, XtlsError},
};

/// A client of a component's registry.
struct RegistryClient {
    endpoint: Endpoint,
    component: BareJid,
}

impl RegistryClient {
    /// Logs in. If the account has no component, takes the only one that its server lists, and stores it.
    async fn connect(common: &Common, account: &Account) -> Result<Self, XtlsError> {
        // No session is set up here, so any identity will do.
        let identity = Identity::generate(&account.jid)?;
        let login = account.login(common)?;
        let known = common.via.clone().or_else(|| account.via.clone());
        if let Some(component) = known {
            let builder = Endpoint::builder(identity).component(component.clone());
            let (endpoint, _) = builder.login(&login).await?;
            return Ok(Self { endpoint, component });
        }
        let (endpoint, _) = Endpoint::builder(identity).login(&login).await?;
        let found = discover::components(&endpoint).await;
        match found.as_slice() {
            [component] => {
                let component = component.clone();
                Account { via: Some(component.clone()), ..account.clone() }.store()?;
                Ok(Self { endpoint, component })
            }
            several => {
                endpoint.close().await;
                let text = match several {
                    [] => "your XMPP server lists no component".to_owned(),
                    several => {
                        let names = discover::names(several);
                        format!("your XMPP server lists several components: {names}")
                    }
                };
                Err(XtlsError::usage(text).hint("name one with --via, here or at `xtls login`"))
            }
        }
    }

    /// Sends a request, and reads an answer in pages to its end.
    async fn ask(&self, kind: RequestKind, payload: Element) -> Result<Option<Element>, XtlsError> {
        let to = Jid::from(self.component.clone());
        Ok(match kind {
            RequestKind::Get => self.endpoint.request_all(&to, payload).await?,
            RequestKind::Set => self.endpoint.request(kind, &to, payload).await?,
        })
    }
}

impl RegistryClient {
    /// Registers a key, if necessary, and proves it. Returns it as the registry has it then.
    async fn prove(&self, own: &OwnKey, label: &str) -> Result<Option<Element>, XtlsError> {
        let added = self.ask(RequestKind::Set, own.add_request(label)).await?;
        let key = added.ok_or_else(|| XtlsError::failed("the registry's answer is empty"))?;
        let id = key.attr("id").unwrap_or_default().to_owned();
        let challenge = xml::element("challenge", ns::KEYS, &[("id", &id)]);
        let nonce = self
            .ask(RequestKind::Get, challenge)
            .await?
            .and_then(|challenge| STANDARD.decode(challenge.attr("nonce")?).ok())
            .and_then(|nonce| Nonce::try_from(nonce).ok())
            .ok_or_else(|| XtlsError::failed("the registry's challenge is not valid"))?;
        let owner = self.endpoint.jid().to_bare();
        let message = fingerpost_wire::proof::message(&self.component, &owner, &nonce);
        let signature = own.sign(&message)?;
        let mut prove = xml::element("prove", ns::KEYS, &[("id", &id)]);
        let mut element = Element::bare("signature", ns::KEYS);
        element.append_text(STANDARD.encode(signature));
        prove.append_child(element);
        self.ask(RequestKind::Set, prove).await
    }
}

/// Sends a request to the registry and shows the keys in its answer.
pub(super) async fn registry(
    common: &Common,
    kind: RequestKind,
    payload: Element,
    output: Output,
) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let registry = RegistryClient::connect(common, &account).await?;
    let answer = registry.ask(kind, payload).await;
    registry.endpoint.close().await;
    show_keys(answer?, output);
    Ok(())
}

/// Registers the user's key, if necessary, and proves it by a signature over the registry's challenge.
pub(super) async fn prove(common: &Common, output: Output) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let own = OwnKey::load(common.method, &account)?;
    let registry = RegistryClient::connect(common, &account).await?;
    let proven = registry.prove(&own, "xtls").await;
    registry.endpoint.close().await;
    show_keys(proven?, output);
    Ok(())
}

/// What was done to have a key registered and proven.
pub(super) struct Enrolled {
    pub(super) id: String,
    /// Whether it was registered now.
    pub(super) registered: bool,
    /// Whether it was proven now.
    pub(super) proven: bool,
}

/// Registers and proves a key, as far as that is still to be done.
///
/// # Errors
/// Also if the key can no longer be used.
pub(super) async fn enrol(
    common: &Common,
    account: &Account,
    own: &OwnKey,
    label: &str,
) -> Result<Enrolled, XtlsError> {
    let registry = RegistryClient::connect(common, account).await?;
    let enrolled = async {
        let known = registered(&registry.endpoint, &registry.component, own).await?;
        let state = known.as_ref().and_then(|key| key.attr("state"));
        if state.is_some_and(|state| state != "active") {
            return Err(XtlsError::failed(
                "your key was revoked or replaced in the registry, or has expired",
            )
            .hint("make another key: docs/XTLS.md, \"Replace or revoke a key\""));
        }
        let is_proven = |key: &Element| key.attr("assurance").is_some_and(|how| how != "asserted");
        let registered = known.is_none();
        let (key, proven) = match known {
            Some(key) if is_proven(&key) => (Some(key), false),
            _ => (registry.prove(own, label).await?, true),
        };
        let id = key.as_ref().and_then(|key| key.attr("id")).unwrap_or_default().to_owned();
        Ok(Enrolled { id, registered, proven })
    }
    .await;
    registry.endpoint.close().await;
    enrolled
}

/// Returns the user's key as the registry has it, if it does.
pub(super) async fn registered(
    endpoint: &Endpoint,
    component: &BareJid,
    own: &OwnKey,
) -> Result<Option<Element>, XtlsError> {
    let to = Jid::from(component.clone());
    let keys = endpoint.request_all(&to, Element::bare("keys", ns::KEYS)).await?;
    let print = own.print();
    let is_own = |key: &&Element| {
        key.children()
            .filter(|child| child.is("print", ns::KEYS))
            .filter_map(|child| Print::parse(&child.text(), None).ok())
            .any(|known| known.same_bytes(&print))
    };
    let keys = keys.iter().flat_map(Element::children);
    Ok(keys.filter(|child| child.is("key", ns::KEYS)).find(is_own).cloned())
}

/// The user's key for a method, to be registered and proven.
#[derive(Debug)]
pub(super) enum OwnKey {
    X509(Identity),
    OpenPgp(Box<OpenPgpKey>),
}

impl OwnKey {
    pub(super) fn load(method: Method, account: &Account) -> Result<Self, XtlsError> {
        match method {
            Method::X509 => own_identity(account).map(Self::X509),
            Method::OpenPgp => own_openpgp(account).map(Box::new).map(Self::OpenPgp),
            Method::Srp => Err(XtlsError::usage("srp has no keys, only a password")),
        }
    }

    /// Returns its print.
    pub(super) fn print(&self) -> Print {
        match self {
            Self::X509(identity) => identity.print(),
            Self::OpenPgp(key) => key.print().clone(),
        }
    }

    /// Returns the request that registers it.
    pub(super) fn add_request(&self, label: &str) -> Element {
        let (method, material) = match self {
            Self::X509(identity) => (Method::X509, identity.certificate.as_ref()),
            Self::OpenPgp(key) => (Method::OpenPgp, key.certificate()),
        };
        let mut key =
            xml::element("key", ns::KEYS, &[("method", method.as_str()), ("label", label)]);
        let mut element = Element::bare("material", ns::KEYS);
        element.append_text(STANDARD.encode(material));
        key.append_child(element);
        let mut add = Element::bare("add", ns::KEYS);
        add.append_child(key);
        add
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, XtlsError> {
        match self {
            Self::X509(identity) => identity.sign(message).ok_or_else(|| {
                XtlsError::failed("only Ed25519, ECDSA P-256, RSA and ML-DSA keys can be proven")
            }),
            Self::OpenPgp(key) => Ok(key.sign(message, &passphrase(key)?)?),
        }
    }
}

/// Shows the keys in an answer of the registry.
fn show_keys(payload: Option<Element>, output: Output) {
    let Some(payload) = payload else { return };
    let keys: Vec<&Element> =
        if payload.name() == "key" { vec![&payload] } else { payload.children().collect() };
    for key in keys {
        let get = |name| key.attr(name).unwrap_or_default();
        let prints: Vec<_> = key
            .children()
            .filter(|child| child.name() == "print")
            .map(|print| json!({"hash": print.attr("hash"), "print": print.text()}))
            .collect();
        let lines: Vec<_> = prints
            .iter()
            .map(|print| {
                format!(
                    "\n  {} {}",
                    print["hash"].as_str().unwrap_or_default(),
                    print["print"].as_str().unwrap_or_default()
                )
            })
            .collect();
        let expired = key.attr("expired") == Some("true");
        output.data(
            &json!({"id": get("id"), "method": get("method"), "state": get("state"), "expired": expired,
                    "expires": key.attr("expires"), "assurance": get("assurance"), "label": get("label"),
                    "created": get("created"), "prints": prints}),
            &format!(
                "{} {} {} {} {}{}",
                get("id"),
                get("method"),
                if expired { "expired" } else { get("state") },
                get("assurance"),
                get("label"),
                lines.concat()
            ),
        );
        // The registry's note to the user about an added key.
        if let Some(note) = key.get_child("note", ns::KEYS) {
            output.warn(&shown(&note.text(), None));
        }
    }
}
