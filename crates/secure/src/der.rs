//! The headers of DER values.

/// Returns the tag, the content (as far as it is there) and the rest of a DER value.
pub(super) fn der_header(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        0x80 => (rest.len(), rest),
        _ => {
            let count = usize::from(first & 0x7f);
            let (digits, rest) = rest.split_at_checked(count)?;
            let fold = |sum: usize, &digit: &u8| {
                sum.saturating_mul(256).saturating_add(usize::from(digit))
            };
            (digits.iter().fold(0, fold), rest)
        }
    };
    let (content, rest) = rest.split_at(length.min(rest.len()));
    Some((tag, content, rest))
}

/// Returns the length that a DER value states, in short form.
pub(super) fn der_length(bytes: &[u8]) -> Option<u8> {
    bytes.get(1).copied().filter(|length| *length < 0x80)
}
