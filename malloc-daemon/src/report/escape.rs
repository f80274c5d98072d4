//! Names that a process chose for itself, made harmless for a terminal.

use std::fmt::Write;

/// `text` with everything that could move a cursor, hide or reorder letters written as an escape:
/// `\x1b` for a control character, `\u{202e}` for a character of format, `\\` for a backslash.
/// At most `limit` characters of the original are kept; `…` stands for the rest.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, letter) in text.chars().enumerate() {
        if index == limit {
            out.push('…');
            break;
        }
        let code = letter as u32;
        if letter == '\\' {
            out.push_str("\\\\");
        } else if !is_unsafe(letter) {
            out.push(letter);
        } else if code <= 0xff {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{code:02x}");
        } else {
            let _ = write!(out, "\\u{{{code:x}}}");
        }
    }
    out
}

/// Whether a terminal or a reader could be misled by this character: control characters (C0, DEL, C1) and the
/// invisible ones of Unicode (bidirectional controls, joiners, separators, variation selectors, tags).
pub(crate) fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(letter as u32,
            0xad | 0x34f | 0x61c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
            | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
            | 0xe0000..=0xe0fff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_escape_sequence_is_shown_not_obeyed() {
        assert_eq!(printable("\x1b[31mred\u{9b}0m", 64), "\\x1b[31mred\\x9b0m");
        assert_eq!(printable("a\u{202e}b", 64), "a\\u{202e}b");
        assert_eq!(printable("a\\x1b", 64), "a\\\\x1b");
    }

    #[test]
    fn a_long_name_is_cut_and_says_so() {
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }

    proptest! {
        #[test]
        fn nothing_printable_is_unsafe(text in any::<String>(), limit in 0usize..80) {
            prop_assert!(!printable(&text, limit).chars().any(is_unsafe));
        }
    }
}
