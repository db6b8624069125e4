//! The handshake by which a component proves that it knows the secret.

use data_encoding::HEXLOWER;
use sha1::{Digest, Sha1};

/// Returns the content of `<handshake/>`: SHA-1 of the stream's id and the secret, 40 lower case hexadecimal digits.
///
/// Spec: XEP-0114 1.6 (Jabber Component Protocol), section 3.
pub fn digest(stream_id: &str, secret: &str) -> String {
    let sha1 = Sha1::new().chain_update(stream_id).chain_update(secret).finalize();
    HEXLOWER.encode(&sha1)
}

#[cfg(test)]
mod tests {
    use xmpp_parsers::component::Handshake;

    use super::*;

    #[test]
    fn it_is_that_of_another_implementation() {
        for (id, secret) in [("3BF96D32", "secret"), ("", ""), ("\u{e9}", "a'b\u{1f600}")] {
            let other = Handshake::from_stream_id_and_password(id.to_owned(), secret).data.unwrap();
            assert_eq!(digest(id, secret), HEXLOWER.encode(&other));
        }
    }
}
