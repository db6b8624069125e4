//! The trust store: which key each peer had when it was first seen, by method. A change is refused, loudly.
//!
//! A peer that is known by one method and comes with the first key of another is refused too: else whoever is in the
//! middle would only have to choose the other method.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jid::BareJid;

use super::{account::write_private, output::XtlsError};
use crate::{
    endpoint::Known,
    print::{Method, Print},
};

/// Known peers: by method the SHA-256 prints of their certificates and the fingerprints of their OpenPGP keys.
#[derive(Debug)]
pub struct Trust {
    path: PathBuf,
    peers: BTreeMap<String, BTreeMap<String, String>>,
}

impl Trust {
    /// Reads the store of an account's folder.
    ///
    /// # Errors
    /// If the file cannot be read or is no list of prints.
    pub fn load(dir: &Path) -> Result<Self, XtlsError> {
        let path = dir.join("trust.toml");
        let peers = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                XtlsError::failed(format!("{}: {}", path.display(), error.message()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(XtlsError::failed(format!("{}: {error}", path.display()))),
        };
        Ok(Self { path, peers })
    }

    /// All peers with their methods and prints.
    pub fn peers(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.peers.iter().flat_map(|(peer, prints)| {
            prints.iter().map(|(method, print)| (peer.as_str(), method.as_str(), print.as_str()))
        })
    }

    /// Compares a peer's key with the known one.
    ///
    /// # Errors
    /// Exit status 4 if it is another, or the first of this method of a peer known by another.
    pub fn check(&self, peer: &BareJid, method: Method, print: &Print) -> Result<Known, XtlsError> {
        let Some(prints) = self.peers.get(peer.as_str()).filter(|prints| !prints.is_empty()) else {
            return Ok(Known::First);
        };
        let text = prints.get(method.as_str());
        if text.and_then(|text| Print::parse(text, None).ok()).is_some_and(|known| known == *print)
        {
            return Ok(Known::Same);
        }
        let (what, known) = match text {
            Some(text) => (format!("THE KEY OF {peer} HAS CHANGED."), text.clone()),
            None => (
                format!("{peer} IS KNOWN BY ANOTHER KEY."),
                prints
                    .iter()
                    .map(|(m, print)| format!("{m} {print}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        };
        let option = if method == Method::X509 { "" } else { "--method openpgp " };
        Err(XtlsError::unverified(format!(
            "{what} Someone may be in the middle, or the key is new.\n  \
             known: {known}\n  shown: {method} {print}\nNothing was sent. If {peer} confirms the new key another \
             way: xtls trust set {option}{peer} {print}"
        )))
    }

    /// Trusts a key from now on.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set(&mut self, peer: &BareJid, method: Method, print: &Print) -> Result<(), XtlsError> {
        let prints = self.peers.entry(peer.to_string()).or_default();
        prints.insert(method.as_str().to_owned(), print.to_string());
        self.write()
    }

    /// Forgets a peer; `false` if it was not known.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn forget(&mut self, peer: &BareJid) -> Result<bool, XtlsError> {
        let known = self.peers.remove(peer.as_str()).is_some();
        self.write()?;
        Ok(known)
    }

    fn write(&self) -> Result<(), XtlsError> {
        let text =
            toml::to_string(&self.peers).map_err(|error| XtlsError::failed(error.to_string()))?;
        write_private(&self.path, text.as_bytes())
            .map_err(|error| XtlsError::failed(format!("{}: {error}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::HashKind;

    #[test]
    fn a_first_key_of_another_method_is_refused_until_it_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let certificate = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        let openpgp = Print::new(HashKind::Sha1, &[2; 20]).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        trust.set(&peer, Method::OpenPgp, &openpgp).unwrap();
        assert_eq!(trust.check(&peer, Method::OpenPgp, &openpgp), Ok(Known::Same));
        let refused = trust.check(&peer, Method::X509, &certificate).unwrap_err();
        assert_eq!(refused.code, 4);
        assert!(refused.text.contains("xtls trust set juliet@capulet.lit 01:01"), "{refused}");
        trust.set(&peer, Method::X509, &certificate).unwrap();
        let trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, Method::X509, &certificate), Ok(Known::Same));
        assert_eq!(trust.check(&peer, Method::OpenPgp, &openpgp), Ok(Known::Same));
        assert_eq!(trust.peers().count(), 2);
    }

    #[test]
    fn a_first_key_is_kept_and_a_changed_one_refused_with_status_4() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let first = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        let second = Print::new(HashKind::Sha256, &[2; 32]).unwrap();
        let x509 = Method::X509;
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, x509, &first), Ok(Known::First));
        trust.set(&peer, x509, &first).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, x509, &first), Ok(Known::Same));
        assert_eq!(trust.check(&peer, x509, &second).unwrap_err().code, 4);
        assert!(trust.forget(&peer).unwrap());
        assert_eq!(trust.check(&peer, x509, &second), Ok(Known::First));
    }
}
