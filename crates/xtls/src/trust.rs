//! The trust store: the keys of each peer, one for each device. Another key is refused, loudly, unless the user accepts it
//! as the key of a further device.
//!
//! A peer that is known by one method and shows its first key of another method is refused too; otherwise an attacker in
//! the middle could simply choose the other method.

pub(super) mod command;
mod file;

use std::path::{Path, PathBuf};

use fingerpost_endpoint::Known;
use fingerpost_secure::shared_file;
use fingerpost_wire::print::{Method, Print};
use jid::BareJid;
use time::OffsetDateTime;

use self::file::PeerKeys;
pub use self::file::{Device, Verified};
use super::{account, output::XtlsError};

/// The most keys of one peer. With `--accept-new-device registry` a registry could otherwise add any number.
const MOST: usize = 64;
/// How many keys an error or a question names.
pub(super) const NAMED: usize = 4;

/// Known peers: the SHA-256 prints of their certificates and the fingerprints of their OpenPGP keys, by method.
#[derive(Debug)]
pub struct Trust {
    dir: PathBuf,
    peers: PeerKeys,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("trust.toml")
}

impl Trust {
    /// Reads the store in an account's directory.
    ///
    /// # Errors
    /// If the file cannot be read, is empty or cut off, or is not a list of prints.
    pub fn load(dir: &Path) -> Result<Self, XtlsError> {
        Ok(Self { dir: dir.to_owned(), peers: file::read(&path(dir))? })
    }

    /// Returns all peers with their keys.
    pub fn devices(&self) -> impl Iterator<Item = (&BareJid, &Device)> {
        self.peers.iter().flat_map(|(peer, keys)| keys.iter().map(move |key| (peer, key)))
    }

    /// Returns the keys of a peer.
    pub fn keys(&self, peer: &BareJid) -> &[Device] {
        self.peers.get(peer).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns whether any key of a peer is known.
    pub fn knows(&self, peer: &BareJid) -> bool {
        self.peers.contains_key(peer)
    }

    /// Returns whether a peer may learn this machine's addresses: the user's answer, otherwise yes if the user trusts the peer,
    /// and `None` if nobody was asked.
    ///
    /// The user trusts a peer after vouching for its keys. A key of first use is anybody's, so none may be among them. The
    /// registry's word is enough for a further key, because the user relies on it, but never for all keys.
    pub fn allows_direct(&self, peer: &BareJid) -> Option<bool> {
        let keys = self.keys(peer);
        let answer = keys.iter().filter_map(|key| key.direct).min();
        let is_vouched_for = |key: &Device| key.verified.is_some_and(Verified::is_by_user);
        let is_acceptable =
            |key: &Device| is_vouched_for(key) || key.verified == Some(Verified::Registry);
        let is_trusted = keys.iter().all(is_acceptable) && keys.iter().any(is_vouched_for);
        answer.or(is_trusted.then_some(true))
    }

    /// Keeps the user's answer whether a peer may learn this machine's addresses, if the peer is known.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set_direct(&mut self, peer: &BareJid, allowed: bool) -> Result<(), XtlsError> {
        self.change(|trust| {
            for key in trust.peers.get_mut(peer).into_iter().flatten() {
                key.direct = Some(allowed);
            }
            Ok(())
        })
    }

    /// Notes that the users have compared the digits of a session with a known key, if the user had not vouched for that key yet.
    /// `forms` are its other prints.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set_compared(
        &mut self,
        peer: &BareJid,
        method: Method,
        print: &Print,
        forms: &[Print],
    ) -> Result<(), XtlsError> {
        self.change(|trust| {
            for key in trust.peers.get_mut(peer).into_iter().flatten() {
                if key.is_shown_by(method, print, forms)
                    && !key.verified.is_some_and(Verified::is_by_user)
                {
                    key.verified = Some(Verified::Compared);
                }
            }
            Ok(())
        })
    }

    /// Compares a peer's key with the known ones.
    pub fn check(&self, peer: &BareJid, method: Method, print: &Print) -> Known {
        self.check_forms(peer, method, print, &[])
    }

    /// Does the same for a key that may also be known by another of its prints: the user may have set the print of the
    /// public key.
    pub fn check_forms(
        &self,
        peer: &BareJid,
        method: Method,
        print: &Print,
        forms: &[Print],
    ) -> Known {
        let Some(keys) = self.peers.get(peer) else { return Known::First };
        if keys.iter().any(|key| key.is_shown_by(method, print, forms)) {
            return Known::Same;
        }
        Known::Further
    }

    /// Returns the error, of exit status 4, for a peer's key that is not a known one. `remark` is added to its text.
    pub fn refusal(
        &self,
        peer: &BareJid,
        method: Method,
        print: &Print,
        remark: &str,
    ) -> XtlsError {
        let keys = self.keys(peer);
        let what = match keys.iter().any(|key| key.method == method) {
            true => format!("THE KEY OF {peer} HAS CHANGED."),
            false => format!("{peer} IS KNOWN BY ANOTHER KEY."),
        };
        let named = keys.iter().take(NAMED).map(|key| format!("{} {}", key.method, key.print));
        let mut known = named.collect::<Vec<_>>().join(", ");
        if keys.len() > NAMED {
            known += &format!(" and {} more", keys.len() - NAMED);
        }
        XtlsError::unverified(format!(
            "{what} Someone may be in the middle, or the key is new.\n  \
             known: {known}\n  shown: {method} {print}\n{remark}Nothing was sent. If {peer} confirms the new key another \
             way: {}",
            set_command(peer, method, print)
        ))
    }

    /// Keeps a peer's first key, unless another session was faster; returns whether it was the first. `forms` are its
    /// other prints, by which it may be known meanwhile.
    ///
    /// # Errors
    /// Exit status 4 if another key has been kept meanwhile; or if the store cannot be written.
    pub fn keep(
        &mut self,
        peer: &BareJid,
        device: Device,
        forms: &[Print],
    ) -> Result<Known, XtlsError> {
        self.change(|trust| {
            let known = trust.check_forms(peer, device.method, &device.print, forms);
            match known {
                Known::First => trust.insert(peer, device)?,
                Known::Further => {
                    return Err(trust.refusal(peer, device.method, &device.print, ""));
                }
                Known::Same => {}
            }
            Ok(known)
        })
    }

    /// Trusts a key from now on, beside the known keys. For a known key, replaces its label and how it was verified.
    ///
    /// # Errors
    /// If the store cannot be written, or the peer has too many keys.
    pub fn add(&mut self, peer: &BareJid, device: Device) -> Result<(), XtlsError> {
        self.change(|trust| trust.insert(peer, device))
    }

    /// Forgets a peer, or one key of it; `false` if it was not known.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn forget(&mut self, peer: &BareJid, print: Option<&Print>) -> Result<bool, XtlsError> {
        self.change(|trust| {
            let Some(keys) = trust.peers.get_mut(peer) else { return Ok(false) };
            let before = keys.len();
            keys.retain(|key| print.is_some_and(|print| !key.print.same_bytes(print)));
            let forgotten = keys.len() < before;
            if keys.is_empty() {
                trust.peers.remove(peer);
            }
            Ok(forgotten)
        })
    }

    fn insert(&mut self, peer: &BareJid, device: Device) -> Result<(), XtlsError> {
        let keys = self.peers.entry(peer.clone()).or_default();
        let same =
            |key: &&mut Device| key.method == device.method && key.print.same_bytes(&device.print);
        if let Some(known) = keys.iter_mut().find(same) {
            known.verified = device.verified;
            if !device.label.is_empty() {
                known.label = device.label;
            }
            return Ok(());
        }
        // The answer is about the peer, whichever key it shows.
        let direct = keys.iter().find_map(|key| key.direct).or(device.direct);
        if keys.len() >= MOST {
            return Err(XtlsError::failed(format!("{peer} has {MOST} keys, which is the most"))
                .hint(format!("xtls trust forget {peer} PRINT forgets one of them")));
        }
        keys.push(Device { direct, ..device });
        Ok(())
    }

    /// Changes the store as it is now; other processes may have changed it since it was loaded.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, XtlsError>,
    ) -> Result<T, XtlsError> {
        let _lock = account::lock(&self.dir)?;
        let path = path(&self.dir);
        let before = file::read(&path)?;
        self.peers.clone_from(&before);
        let done = change(self)?;
        if self.peers != before {
            let text =
                file::write(&self.peers).map_err(|error| XtlsError::failed(error.to_string()))?;
            shared_file::replace(&path, text.as_bytes())
                .map_err(|error| XtlsError::failed(format!("{}: {error}", path.display())))?;
        }
        Ok(done)
    }
}

/// Returns the command that trusts a key.
pub fn set_command(peer: &BareJid, method: Method, print: &Print) -> String {
    let option = if method == Method::X509 { "" } else { "--method openpgp " };
    format!("xtls trust set {option}{peer} {print}")
}

impl Device {
    /// Describes a key that is seen for the first time now.
    pub fn seen_now(method: Method, print: Print, label: &str, verified: Verified) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            method,
            print,
            label: label.to_owned(),
            first_seen: Some(now.replace_nanosecond(0).unwrap_or(now)),
            verified: Some(verified),
            direct: None,
        }
    }

    /// Returns whether this is the key that a peer shows by its print or by one of its other prints.
    fn is_shown_by(&self, method: Method, print: &Print, forms: &[Print]) -> bool {
        let is_form = |form: &Print| form.as_bytes().len() == 32 && self.print.same_bytes(form);
        self.method == method && (self.print == *print || forms.iter().any(is_form))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fingerpost_secure::identity::Identity;
    use fingerpost_wire::print::HashKind;

    use super::*;

    fn peer() -> BareJid {
        BareJid::new("juliet@capulet.lit").unwrap()
    }

    fn print(byte: u8) -> Print {
        Print::new(HashKind::Sha256, &[byte; 32]).unwrap()
    }

    fn x509(print: &Print) -> Device {
        Device::seen_now(Method::X509, print.clone(), "", Verified::Set)
    }

    fn openpgp(print: &Print) -> Device {
        Device { method: Method::OpenPgp, ..x509(print) }
    }

    #[test]
    fn a_first_key_of_another_method_is_refused_until_it_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, certificate) = (peer(), print(1));
        let fingerprint = Print::new(HashKind::Sha1, &[2; 20]).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        trust.add(&peer, openpgp(&fingerprint)).unwrap();
        assert_eq!(trust.check(&peer, Method::OpenPgp, &fingerprint), Known::Same);
        assert_eq!(trust.check(&peer, Method::X509, &certificate), Known::Further);
        let refused = trust.refusal(&peer, Method::X509, &certificate, "");
        assert_eq!(refused.code, 4);
        assert!(refused.text.contains("IS KNOWN BY ANOTHER KEY"), "{refused}");
        assert!(refused.text.contains("xtls trust set juliet@capulet.lit 01:01"), "{refused}");
        trust.add(&peer, x509(&certificate)).unwrap();
        let trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, Method::X509, &certificate), Known::Same);
        assert_eq!(trust.check(&peer, Method::OpenPgp, &fingerprint), Known::Same);
        assert_eq!(trust.devices().count(), 2);
    }

    #[test]
    fn a_first_key_is_kept_and_a_changed_one_refused_with_status_4() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, first, second) = (peer(), print(1), print(2));
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, Method::X509, &first), Known::First);
        assert_eq!(trust.keep(&peer, x509(&first), &[]), Ok(Known::First));
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer, Method::X509, &first), Known::Same);
        assert_eq!(trust.check(&peer, Method::X509, &second), Known::Further);
        let refused = trust.keep(&peer, x509(&second), &[]).unwrap_err();
        assert_eq!(refused.code, 4);
        assert!(refused.text.starts_with("THE KEY OF juliet@capulet.lit HAS CHANGED"), "{refused}");
        assert!(trust.forget(&peer, None).unwrap());
        assert_eq!(trust.check(&peer, Method::X509, &second), Known::First);
    }

    #[test]
    fn a_peer_has_a_key_for_each_device_and_one_of_them_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, other) = (peer(), BareJid::new("nurse@capulet.lit").unwrap());
        let mut trust = Trust::load(dir.path()).unwrap();
        trust.add(&other, x509(&print(9))).unwrap();
        for byte in 1..=3 {
            trust
                .add(&peer, Device { label: format!("device {byte}"), ..x509(&print(byte)) })
                .unwrap();
        }
        // Once more, without a label: it stays as it is.
        trust.add(&peer, x509(&print(2))).unwrap();
        let trust = &mut Trust::load(dir.path()).unwrap();
        let known = |trust: &Trust, byte| trust.check(&peer, Method::X509, &print(byte));
        assert_eq!(
            [1, 2, 3, 4].map(|byte| known(trust, byte)),
            [Known::Same, Known::Same, Known::Same, Known::Further]
        );
        assert_eq!(trust.check(&peer, Method::OpenPgp, &print(1)), Known::Further);
        let labels: Vec<_> = trust.devices().map(|(_, key)| key.label.as_str()).collect();
        assert_eq!(labels, ["device 1", "device 2", "device 3", ""]);
        assert!(trust.forget(&peer, Some(&print(2))).unwrap());
        assert!(!trust.forget(&peer, Some(&print(2))).unwrap());
        assert_eq!(
            [1, 2, 3].map(|byte| known(trust, byte)),
            [Known::Same, Known::Further, Known::Same]
        );
        for byte in [1, 3] {
            assert!(trust.forget(&peer, Some(&print(byte))).unwrap());
        }
        assert_eq!(known(trust, 2), Known::First);
        assert!(trust.knows(&other) && !trust.knows(&peer));
    }

    #[test]
    fn a_peer_has_so_many_keys_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        for byte in (0..).take(MOST) {
            trust.add(&peer(), x509(&print(byte))).unwrap();
        }
        assert!(trust.add(&peer(), x509(&print(255))).is_err());
        trust.add(&peer(), x509(&print(0))).unwrap();
        let refused = trust.refusal(&peer(), Method::X509, &print(255), "");
        assert!(refused.text.contains(" and 60 more\n"), "{refused}");
    }

    #[test]
    fn a_store_in_the_older_form_keeps_all_its_keys_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trust.toml");
        let old = format!(
            "# Keys of known peers, changed by `xtls trust`.\n[\"juliet@capulet.lit\"]\nopenpgp = \"{}\"\nx509 = \"{}\"\n",
            "02".repeat(20),
            "01".repeat(32)
        );
        fs::write(&file, &old).unwrap();
        let mut trust = Trust::load(dir.path()).unwrap();
        assert_eq!(trust.check(&peer(), Method::X509, &print(1)), Known::Same);
        assert_eq!(fs::read_to_string(&file).unwrap(), old, "reading changes nothing");
        trust.add(&peer(), x509(&print(3))).unwrap();
        let trust = Trust::load(dir.path()).unwrap();
        for byte in [1, 3] {
            assert_eq!(trust.check(&peer(), Method::X509, &print(byte)), Known::Same);
        }
        let fingerprint = Print::new(HashKind::Sha1, &[2; 20]).unwrap();
        assert_eq!(trust.check(&peer(), Method::OpenPgp, &fingerprint), Known::Same);
    }

    #[test]
    fn the_print_of_the_public_key_pins_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let peer = peer();
        let [one, other] = [(); 2].map(|()| Identity::generate(&peer).unwrap());
        let spki = Print::of_certificate(HashKind::SpkiSha256, &one.certificate).unwrap();
        let check = |trust: &Trust, identity: &Identity| {
            let forms = Print::forms(Method::X509, &identity.print(), &identity.certificate);
            trust.check_forms(&peer, Method::X509, &identity.print(), &forms)
        };
        // As `certtool --key-id --hash sha256` prints it: nothing shows that it belongs to a public key.
        let bare = spki.to_string().replace(':', "").to_lowercase();
        for text in [bare.clone(), format!("Public Key ID:\n\tsha256:{bare}")] {
            let mut trust = Trust::load(dir.path()).unwrap();
            trust.forget(&peer, None).unwrap();
            trust.add(&peer, x509(&Print::pin(&text, Method::X509).unwrap())).unwrap();
            let trust = Trust::load(dir.path()).unwrap();
            assert_eq!(check(&trust, &one), Known::Same);
            assert_eq!(check(&trust, &other), Known::Further);
        }
    }

    /// The user may set the print of the public key while a session waits for a turn.
    #[test]
    fn a_key_whose_public_key_was_set_meanwhile_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let peer = peer();
        let [one, other] = [(); 2].map(|()| Identity::generate(&peer).unwrap());
        let forms = |identity: &Identity| {
            Print::forms(Method::X509, &identity.print(), &identity.certificate)
        };
        let mut waiting = Trust::load(dir.path()).unwrap();
        assert_eq!(waiting.check(&peer, Method::X509, &one.print()), Known::First);
        let spki = Print::of_certificate(HashKind::SpkiSha256, &one.certificate).unwrap();
        Trust::load(dir.path()).unwrap().add(&peer, x509(&spki)).unwrap();
        let kept = waiting.keep(&peer, x509(&one.print()), &forms(&one));
        assert_eq!(kept, Ok(Known::Same));
        let refused = waiting.keep(&peer, x509(&other.print()), &forms(&other));
        assert_eq!(refused.unwrap_err().code, 4);
        assert_eq!(Trust::load(dir.path()).unwrap().keys(&peer).len(), 1);
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
                    assert_eq!(trust.keep(&peer, x509(&print(n)), &[]), Ok(Known::First));
                });
            }
        });
        assert_eq!(Trust::load(dir.path()).unwrap().devices().count(), 12);
    }

    #[test]
    fn of_two_first_keys_of_one_peer_the_second_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, one, two) = (peer(), print(1), print(2));
        let mut stores = [(); 2].map(|()| Trust::load(dir.path()).unwrap());
        assert_eq!(stores[0].keep(&peer, x509(&one), &[]), Ok(Known::First));
        assert_eq!(stores[1].keep(&peer, x509(&two), &[]).unwrap_err().code, 4);
        assert_eq!(stores[1].keep(&peer, x509(&one), &[]), Ok(Known::Same));
    }

    #[test]
    fn a_broken_store_knows_nobody_and_takes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (peer, file) = (peer(), dir.path().join("trust.toml"));
        let mut trust = Trust::load(dir.path()).unwrap();
        for text in [
            "",
            "\n",
            "# a comment\n",
            "[\"juliet@capulet.lit\"]\nx509 = \"01:",
            "[\"juliet@capulet.lit\"]\nx509 = \"zz\"\n",
            "[\"juliet@capulet.lit\"]\nx510 = \"01:01\"\n",
            "[[\"juliet@capulet.lit\".x509]]\nlabel = \"laptop\"\n",
            "[[\"juliet@capulet.lit\".x509]]\nprint = \"zz\"\n",
            "juliet = 1\n",
            "\0\0\0\0",
        ] {
            fs::write(&file, text).unwrap();
            let error = Trust::load(dir.path()).unwrap_err();
            assert!(error.text.contains("trust.toml: "), "{text:?}: {error}");
            assert!(error.hint.unwrap().contains("restore"), "{text:?}");
            assert!(trust.keep(&peer, x509(&print(1)), &[]).is_err(), "{text:?}");
            let now = fs::read_to_string(&file).unwrap();
            assert_eq!(now, text, "a broken store is left as it is");
        }
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &file).unwrap();
        assert!(Trust::load(dir.path()).is_err());
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(Trust::load(dir.path()).is_err());
        // One that has lost its last peer by a command is not broken.
        fs::remove_dir(&file).unwrap();
        trust.add(&peer, x509(&print(1))).unwrap();
        assert!(trust.forget(&peer, None).unwrap());
        assert_eq!(Trust::load(dir.path()).unwrap().devices().count(), 0);
    }

    #[test]
    fn a_store_that_others_can_write_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trust.toml");
        Trust::load(dir.path()).unwrap().add(&peer(), x509(&print(1))).unwrap();
        for (mode, is_refused) in [(0o600, false), (0o644, false), (0o664, true), (0o602, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let hint = Trust::load(dir.path()).err().and_then(|error| error.hint);
            assert_eq!(
                hint.is_some_and(|hint| hint.contains("chmod 600 ")),
                is_refused,
                "{mode:o}"
            );
        }
    }
}
