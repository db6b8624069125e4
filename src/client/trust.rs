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

use super::{account, output::XtlsError};
use crate::{
    endpoint::Known,
    print::{Method, Print},
    shared_file,
};

/// The first line of the store: with it a store without peers is not an empty file, which is a broken store.
const HEADER: &str = "# Keys of known peers, changed by `xtls trust`.\n";

/// By peer and method, the print.
type Peers = BTreeMap<String, BTreeMap<String, String>>;

/// Known peers: by method the SHA-256 prints of their certificates and the fingerprints of their OpenPGP keys.
#[derive(Debug)]
pub struct Trust {
    dir: PathBuf,
    peers: Peers,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("trust.toml")
}

/// Reads the store as it is now. A store that cannot be understood is never taken for one without peers: else
/// anyone who can break it could make every key a first one.
fn read(dir: &Path) -> Result<Peers, XtlsError> {
    let path = path(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Peers::new()),
        Err(error) => return Err(broken(&path, &error.to_string())),
    };
    let peers: Peers = toml::from_str(&text).map_err(|error| broken(&path, error.message()))?;
    if peers.is_empty() && !text.starts_with(HEADER) {
        return Err(broken(&path, "expected known peers, found an empty file"));
    }
    for (peer, prints) in &peers {
        let known = BareJid::new(peer).is_ok()
            && prints.iter().all(|(method, print)| {
                method.parse::<Method>().is_ok() && Print::parse(print, None).is_ok()
            });
        if !known {
            return Err(broken(&path, &format!("{peer}: expected a print for each method")));
        }
    }
    Ok(peers)
}

fn broken(path: &Path, what: &str) -> XtlsError {
    let path = path.display();
    XtlsError::failed(format!("{path}: {what}; nothing was sent")).hint(format!(
        "restore {path} from a backup; or remove it, and each peer's next key is taken on first use again"
    ))
}

impl Trust {
    /// Reads the store in an account's directory.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, or is not a list of prints.
    pub fn load(dir: &Path) -> Result<Self, XtlsError> {
        Ok(Self { dir: dir.to_owned(), peers: read(dir)? })
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
        self.check_forms(peer, method, print, &[])
    }

    /// The same for a key that may be known by any of these prints of it too: a user may have set that of its public key.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_forms(
        &self,
        peer: &BareJid,
        method: Method,
        print: &Print,
        forms: &[Print],
    ) -> Result<Known, XtlsError> {
        let Some(prints) = self.peers.get(peer.as_str()).filter(|prints| !prints.is_empty()) else {
            return Ok(Known::First);
        };
        let text = prints.get(method.as_str());
        let is_shown = |known: Print| {
            known == *print
                || forms.iter().any(|form| form.as_bytes().len() == 32 && known.same_bytes(form))
        };
        if text.and_then(|text| Print::parse(text, None).ok()).is_some_and(is_shown) {
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

    /// Keeps a peer's first key, unless another session was quicker; returns whether it was the first.
    ///
    /// # Errors
    /// Exit status 4 if another key has been kept meanwhile; or if the store cannot be written.
    pub fn keep(
        &mut self,
        peer: &BareJid,
        method: Method,
        print: &Print,
    ) -> Result<Known, XtlsError> {
        self.change(|trust| {
            let known = trust.check(peer, method, print)?;
            if known == Known::First {
                trust.insert(peer, method, print);
            }
            Ok(known)
        })
    }

    /// Trusts a key from now on.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set(&mut self, peer: &BareJid, method: Method, print: &Print) -> Result<(), XtlsError> {
        self.change(|trust| {
            trust.insert(peer, method, print);
            Ok(())
        })
    }

    /// Forgets a peer; `false` if it was not known.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn forget(&mut self, peer: &BareJid) -> Result<bool, XtlsError> {
        self.change(|trust| Ok(trust.peers.remove(peer.as_str()).is_some()))
    }

    fn insert(&mut self, peer: &BareJid, method: Method, print: &Print) {
        let prints = self.peers.entry(peer.to_string()).or_default();
        prints.insert(method.as_str().to_owned(), print.to_string());
    }

    /// Changes the store as it is now; other processes may have changed it since it was loaded.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, XtlsError>,
    ) -> Result<T, XtlsError> {
        let _lock = account::lock(&self.dir)?;
        let before = read(&self.dir)?;
        self.peers.clone_from(&before);
        let done = change(self)?;
        if self.peers != before {
            let peers = toml::to_string(&self.peers)
                .map_err(|error| XtlsError::failed(error.to_string()))?;
            let path = path(&self.dir);
            shared_file::replace(&path, format!("{HEADER}{peers}").as_bytes())
                .map_err(|error| XtlsError::failed(format!("{}: {error}", path.display())))?;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{print::HashKind, tls::identity::Identity};

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

    #[test]
    fn the_print_of_the_public_key_pins_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let [one, other] = [(); 2].map(|()| Identity::generate(&peer).unwrap());
        let spki = Print::of_certificate(HashKind::SpkiSha256, &one.certificate).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        let check = |trust: &Trust, identity: &Identity| {
            let forms = Print::forms(Method::X509, &identity.print(), &identity.certificate);
            trust.check_forms(&peer, Method::X509, &identity.print(), &forms)
        };
        // As `certtool --key-id --hash sha256` prints it: nothing shows that it belongs to a public key.
        let bare = spki.to_string().replace(':', "").to_lowercase();
        for text in [bare.clone(), format!("Public Key ID:\n\tsha256:{bare}")] {
            trust.set(&peer, Method::X509, &Print::pin(&text, Method::X509).unwrap()).unwrap();
            let trust = Trust::load(dir.path()).unwrap();
            assert_eq!(check(&trust, &one), Ok(Known::Same));
            assert_eq!(check(&trust, &other).unwrap_err().code, 4);
        }
    }

    #[test]
    fn first_keys_of_many_peers_at_once_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..12_u8 {
                let dir = dir.path();
                scope.spawn(move || {
                    // Each has read the store before the others changed it, or in between.
                    let mut trust = Trust::load(dir).unwrap();
                    let peer = BareJid::new(&format!("peer{n}@capulet.lit")).unwrap();
                    let print = Print::new(HashKind::Sha256, &[n; 32]).unwrap();
                    assert_eq!(trust.keep(&peer, Method::X509, &print), Ok(Known::First));
                });
            }
        });
        assert_eq!(Trust::load(dir.path()).unwrap().peers().count(), 12);
    }

    #[test]
    fn of_two_first_keys_of_one_peer_the_second_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let [one, two] = [1, 2].map(|n| Print::new(HashKind::Sha256, &[n; 32]).unwrap());
        let mut stores = [(); 2].map(|()| Trust::load(dir.path()).unwrap());
        assert_eq!(stores[0].keep(&peer, Method::X509, &one), Ok(Known::First));
        assert_eq!(stores[1].keep(&peer, Method::X509, &two).unwrap_err().code, 4);
        assert_eq!(stores[1].keep(&peer, Method::X509, &one), Ok(Known::Same));
    }

    #[test]
    fn a_broken_store_knows_nobody_and_takes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let print = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        for text in [
            "",
            "\n",
            "# a comment\n",
            "[\"juliet@capulet.lit\"]\nx509 = \"01:",
            "[\"juliet@capulet.lit\"]\nx509 = \"zz\"\n",
            "[\"juliet@capulet.lit\"]\nx510 = \"01:01\"\n",
            "juliet = 1\n",
            "\0\0\0\0",
        ] {
            fs::write(dir.path().join("trust.toml"), text).unwrap();
            let error = Trust::load(dir.path()).unwrap_err();
            assert!(error.text.contains("trust.toml: "), "{text:?}: {error}");
            assert!(error.hint.unwrap().contains("restore"), "{text:?}");
            assert!(trust.keep(&peer, Method::X509, &print).is_err(), "{text:?}");
            let now = fs::read_to_string(dir.path().join("trust.toml")).unwrap();
            assert_eq!(now, text, "a broken store is left as it is");
        }
        // One that has lost its last peer by a command is not broken.
        fs::remove_file(dir.path().join("trust.toml")).unwrap();
        trust.set(&peer, Method::X509, &print).unwrap();
        assert!(trust.forget(&peer).unwrap());
        assert_eq!(Trust::load(dir.path()).unwrap().peers().count(), 0);
    }
}
