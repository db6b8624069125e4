//! What an endpoint proves its identity with, and how it offers that to a peer.

use std::sync::Arc;

use fingerpost_secure::{
    identity::Identity,
    openpgp::{self, Certifier},
    srp,
};
use fingerpost_wire::{
    ns,
    print::{HashKind, Method, Print},
    xml,
};
use minidom::Element;

use super::error::{Detail, Error};

/// The endpoint's proof of its identity; it decides the method of all its sessions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Credential {
    /// `x509`: a certificate and its key.
    X509(Arc<Identity>),
    /// `openpgp`: an OpenPGP key, which vouches for the key of a certificate that is made for each session.
    OpenPgp(Arc<Certifier>),
    /// `srp`: a password that both users know. Certificates are made for each session and prove nothing.
    Srp(srp::Password),
}

impl From<Identity> for Credential {
    fn from(identity: Identity) -> Self {
        Self::X509(Arc::new(identity))
    }
}

impl From<Arc<Identity>> for Credential {
    fn from(identity: Arc<Identity>) -> Self {
        Self::X509(identity)
    }
}

impl From<Certifier> for Credential {
    fn from(certifier: Certifier) -> Self {
        Self::OpenPgp(Arc::new(certifier))
    }
}

impl From<srp::Password> for Credential {
    fn from(password: srp::Password) -> Self {
        Self::Srp(password)
    }
}

impl Credential {
    /// Returns the method.
    pub fn method(&self) -> Method {
        match self {
            Self::X509(_) => Method::X509,
            Self::OpenPgp(_) => Method::OpenPgp,
            Self::Srp(_) => Method::Srp,
        }
    }

    /// Returns the print that peers know its key by: the certificate's SHA-256, or the OpenPGP fingerprint. A password
    /// has none.
    pub fn print(&self) -> Option<Print> {
        match self {
            Self::X509(identity) => Some(identity.print()),
            Self::OpenPgp(certifier) => Some(certifier.print().clone()),
            Self::Srp(_) => None,
        }
    }

    /// Returns the certificate and key of one TLS channel.
    pub(super) fn identity(&self) -> Result<Arc<Identity>, Error> {
        match self {
            Self::X509(identity) => Ok(Arc::clone(identity)),
            Self::OpenPgp(certifier) => {
                certifier.certify().map(Arc::new).map_err(|error| Error::failed(Detail::of(error)))
            }
            Self::Srp(_) => Identity::anonymous()
                .map(Arc::new)
                .map_err(|error| Error::failed(Detail::of(error))),
        }
    }
}

/// An offer: a method, and the print of its key.
#[derive(Clone, Debug)]
pub(super) struct OwnOffer {
    method: Method,
    print: Option<Print>,
}

impl OwnOffer {
    pub(super) fn new(method: Method, print: Option<Print>) -> Self {
        Self { method, print }
    }

    /// Returns it as `<description xmlns='urn:xmpp:jingle:apps:tls'/>`.
    pub(super) fn description(&self) -> Element {
        let mut method = self.element(ns::APPS_TLS);
        if let Some(print) = &self.print {
            let mut element = Element::bare("print", ns::APPS_TLS);
            element.append_text(print.to_string());
            method.append_child(element);
        }
        let mut methods = Element::bare("methods", ns::APPS_TLS);
        methods.append_child(method);
        let mut description = Element::bare("description", ns::APPS_TLS);
        description.append_child(methods);
        description
    }

    /// Returns it as `<security xmlns='urn:xmpp:jingle:security:xtls:0'/>`.
    pub(super) fn security(&self) -> Element {
        let mut security = Element::bare("security", ns::XTLS);
        if let Some(print) = &self.print {
            let algo = if print.hash() == HashKind::Sha1 { "sha-1" } else { "sha-256" };
            let mut fingerprint = xml::element("fingerprint", ns::XTLS, &[("algo", algo)]);
            fingerprint.append_text(print.to_string());
            security.append_child(fingerprint);
        }
        security.append_child(self.element(ns::XTLS));
        security
    }

    fn element(&self, namespace: &str) -> Element {
        let mut method = xml::element("method", namespace, &[("name", self.method.as_str())]);
        if let Some(profile) = profile(self.method) {
            method.append_child(xml::element("profile", ns::HINTS, &[("name", profile)]));
        }
        method
    }
}

/// Returns the profile of a method whose name alone is ambiguous.
pub(super) fn profile(method: Method) -> Option<&'static str> {
    match method {
        Method::X509 => None,
        Method::OpenPgp => Some(openpgp::PROFILE),
        Method::Srp => Some(srp::PROFILE),
    }
}
