//! What tells one content of a file from every other.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::elf::{self, BuildId};

/// The identity of some bytes. A build id alone is what the file says of itself: another file may say the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId {
    /// What the linker stamped on the file.
    pub build_id: Option<BuildId>,
    /// How many bytes it has.
    pub size_bytes: u64,
    /// Of all of them.
    pub digest: Digest,
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl ContentId {
    /// That of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { build_id: elf::build_id(bytes), size_bytes: bytes.len() as u64, digest: Digest::of(bytes) }
    }
}

impl Digest {
    /// That of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// `BUILD_ID-SIZE-DIGEST`, hexadecimal: a name for a file about that content.
impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.build_id {
            Some(id) => write!(f, "{id}")?,
            None => f.write_str("none")?,
        }
        write!(f, "-{:x}-{}", self.size_bytes, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_separator_and_fits_into_a_folder() {
        let id = ContentId::of(b"abc");
        assert_eq!(id.to_string(), "none-3-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let longest = ContentId { build_id: Some(BuildId::new(vec![0xff; 64])), size_bytes: u64::MAX, ..id };
        assert!(longest.to_string().len() <= 220);
    }
}
