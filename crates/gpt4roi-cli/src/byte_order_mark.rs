//! The mark that programs for Windows put before a text in UTF-8. It is no part of the text.

const BYTE_ORDER_MARK: &[u8] = "\u{FEFF}".as_bytes();

/// The text behind the mark, if there is one.
pub(crate) fn without(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_off_once_and_from_the_beginning_only() {
        for (text, expected) in [("\u{FEFF}a", "a"), ("a", "a"), ("", ""), ("\u{FEFF}", ""), ("a\u{FEFF}", "a\u{FEFF}")]
        {
            assert_eq!(without(text.as_bytes()), expected.as_bytes(), "{text:?}");
        }
    }
}
