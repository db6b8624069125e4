//! The text of in-band blocks: base64 (RFC 4648, section 4), through wide registers where the processor has them.

use base64::{Engine, engine::general_purpose};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static ENGINE: std::sync::LazyLock<base64::engine::Simd> =
    std::sync::LazyLock::new(|| base64::engine::Simd::standard(general_purpose::PAD));

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static ENGINE: general_purpose::GeneralPurpose = general_purpose::STANDARD;

/// Appends the text of some bytes to `out`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let before = out.len();
    // Four characters for each three bytes, the last ones padded.
    out.resize(before + bytes.len().div_ceil(3) * 4, 0);
    // The text always fits.
    let written = ENGINE.encode_slice(bytes, &mut out[before..]).unwrap_or(0);
    out.truncate(before + written);
}

/// Returns the text of some bytes.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    ENGINE.encode(bytes)
}

/// Returns the bytes of a text; `None` if it is not base64, or not padded.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    ENGINE.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_text_is_that_of_the_plain_engine(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut out = b"x".to_vec();
            encode(&bytes, &mut out);
            let text = STANDARD.encode(&bytes);
            prop_assert_eq!(&out[1..], text.as_bytes());
            prop_assert_eq!(&encoded(&bytes), &text);
            prop_assert_eq!(decode(text.as_bytes()), Some(bytes));
        }

        #[test]
        fn what_is_not_base64_is_told_as_by_the_plain_engine(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            odd in "[ -~]{0,3}",
            at in any::<proptest::sample::Index>(),
            cut in 0_usize..3,
        ) {
            let mut text = STANDARD.encode(&bytes);
            text.insert_str(at.index(text.len() + 1), &odd);
            let text = &text[..text.len().saturating_sub(cut)];
            prop_assert_eq!(decode(text.as_bytes()), STANDARD.decode(text).ok());
        }
    }
}
