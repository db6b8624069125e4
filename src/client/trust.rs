//! The trust store: which key each peer had when it was first seen. A change is refused, loudly.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jid::BareJid;

use super::{account::write_private, output::XtlsError};
use crate::{
    endpoint::Known,
    print::{HashKind, Print},
};

/// Known peers and the SHA-256 prints of their certificates.
#[derive(Debug)]
pub struct Trust {
    path: PathBuf,
    peers: BTreeMap<String, String>,
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

    /// All peers with their prints.
    pub fn peers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.peers.iter().map(|(peer, print)| (peer.as_str(), print.as_str()))
    }

    /// Compares a peer's key with the known one.
    ///
    /// # Errors
    /// Exit status 4 if it is another.
    pub fn check(&self, peer: &BareJid, print: &Print) -> Result<Known, XtlsError> {
        let Some(text) = self.peers.get(peer.as_str()) else { return Ok(Known::First) };
        let known = Print::parse(text, Some(HashKind::Sha256));
        if known.is_ok_and(|known| known == *print) {
            return Ok(Known::Same);
        }
        Err(XtlsError::unverified(format!(
            "THE KEY OF {peer} HAS CHANGED. Someone may be in the middle, or the key is new.\n  \
             known: {text}\n  shown: {print}\nNothing was sent. If {peer} confirms the new key another way: \
             xtls trust set {peer} {print}"
        )))
    }

    /// Trusts a key from now on.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set(&mut self, peer: &BareJid, print: &Print) -> Result<(), XtlsError> {
        self.peers.insert(peer.to_string(), print.to_string());
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

    #[test]
    fn a_first_key_is_kept_and_a_changed_one_refused_with_status_4() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let first = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        let second = Print::new(HashKind::Sha256, &[2; 32]).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, &first), Ok(Known::First));
        trust.set(&peer, &first).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, &first), Ok(Known::Same));
        assert_eq!(trust.check(&peer, &second).unwrap_err().code, 4);
        assert!(trust.forget(&peer).unwrap());
        assert_eq!(trust.check(&peer, &second), Ok(Known::First));
    }
}
