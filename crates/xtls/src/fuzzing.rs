//! Functions for the fuzz targets (fuzz/src/lib.rs): pure functions of this module's private parts.

use jid::BareJid;
use minidom::Element;
use tokio::time::Instant;

use super::set::manifest;
pub use super::{lan::SERVICE, stream::MAX_DEPTH};

/// Returns a file's name made safe, as [`file`] does.
pub fn safe_name(name: &str) -> String {
    super::file_offer::safe_name(name)
}

/// Reads a peer's `<file/>`: its safe name, size and SHA-256.
pub fn file(element: &Element) -> Option<(String, u64, Option<Vec<u8>>)> {
    super::file_offer::FileOffer::parse(element)
        .ok()
        .map(|file| (file.name, file.size, file.sha256))
}

/// Reads the manifest of a set. Returns its bytes as this program writes it, and the parts of the paths where its entries
/// land.
pub fn manifest(bytes: &[u8]) -> Option<(Vec<u8>, Vec<Vec<String>>)> {
    let entries = manifest::read(bytes).ok()?;
    Some((manifest::write(&entries), entries.iter().map(manifest::Entry::landing).collect()))
}

/// Reads the bytes of a chat's XML stream in pieces of one size. Returns its first-level elements, and how it ended.
pub fn stream(bytes: &[u8], size: usize) -> (Vec<Element>, String) {
    super::stream::read_pieces(bytes, size)
}

/// Returns the name before that of the service in the full name of an mDNS service.
pub fn instance(full: &str) -> Option<String> {
    super::lan::instance(full)
}

/// Returns what a listener of the local network is called after others have sent this mDNS message twice.
pub fn name_after(message: &[u8], name: BareJid) -> BareJid {
    super::lan::name_after(message, name, Instant::now())
}
