//! Numbers and texts as bytes: what every record of the store is made of.

/// Bytes of a text that are kept; a path is 4,096 at most.
const TEXT_BYTES: usize = 4096;

/// Writes a record.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    /// A record that begins with the version of its layout.
    pub(super) fn versioned(version: u8) -> Self {
        Self(vec![version])
    }

    /// Seven bits a byte, the lowest first, the top bit set on all but the last.
    pub(super) fn number(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    /// Its length, then its bytes; what is longer than is kept ends at a whole character.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        let kept = text.floor_char_boundary(TEXT_BYTES.min(text.len()));
        self.number(kept as u64);
        self.0.extend_from_slice(&text.as_bytes()[..kept]);
        self
    }

    /// Zero for nothing, else one more than the number.
    pub(super) fn maybe(&mut self, value: Option<u64>) -> &mut Self {
        self.number(value.map_or(0, |value| value.saturating_add(1)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a record; `None`: it ends early, or is not what it should be.
#[derive(Debug)]
pub(super) struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    /// The record, if it has a layout that is known.
    pub(super) fn versioned(bytes: &'a [u8], version: u8) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        (*first == version).then_some(Self(rest))
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    pub(super) fn maybe(&mut self) -> Option<Option<u64>> {
        Some(self.number()?.checked_sub(1))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(numbers in proptest::collection::vec(any::<u64>(), 0..20), text in any::<String>()) {
            let mut out = Out::versioned(1);
            for number in &numbers {
                out.number(*number).maybe(number.checked_sub(1));
            }
            out.text(&text);
            let mut read = In::versioned(out.bytes(), 1).unwrap();
            for number in &numbers {
                prop_assert_eq!(read.number(), Some(*number));
                prop_assert_eq!(read.maybe(), Some(number.checked_sub(1)));
            }
            prop_assert_eq!(read.text(), Some(text));
            prop_assert!(read.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut read = In(&bytes);
            while read.number().is_some() {}
            let mut read = In(&bytes);
            while read.text().is_some() {}
        }
    }

    #[test]
    fn a_long_text_ends_at_a_whole_character() {
        let mut out = Out::versioned(1);
        out.text(&"é".repeat(4000));
        let text = In::versioned(out.bytes(), 1).unwrap().text().unwrap();
        assert_eq!(text, "é".repeat(2048));
        assert!(In::versioned(out.bytes(), 2).is_none());
    }
}
