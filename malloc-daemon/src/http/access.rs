//! Who may ask: names of this machine, a token, a certificate; may change while the daemon runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, HeaderValue, header};
use subtle::ConstantTimeEq;

use super::Tls;

/// The most that is read of a token, a certificate or a key. 64 KiB: a dozen certificates.
const SECRET_BYTES: u64 = 64 * 1024;

/// Who may ask over TCP. A socket in the file system leaves that to its permissions.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Names, beside those of the loopback and the address itself, under which clients reach the daemon (no port).
    pub hosts: Vec<String>,
    /// What clients must show.
    pub token: Option<Token>,
    /// Talks TLS.
    pub tls: Option<Tls>,
}

/// A secret that both sides know.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl Token {
    /// The value of `Authorization` that shows it; `None`: it is nothing that a header can hold.
    #[must_use]
    pub fn shown(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", self.0.as_slice()].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a file with a secret is not used. Its content is never part of the text.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read it.
    #[error("others can read {}: chmod 0600 it", .0.display())]
    Open(PathBuf),
    /// It holds something else.
    #[error("{} holds no {wanted}", file.display())]
    Other {
        /// Which.
        file: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The certificate and the key are no pair.
    #[error("{} and {} are no pair: {why}", certificate.display(), key.display())]
    NoPair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        why: String,
    },
    /// This build speaks no TLS.
    #[error("this build speaks no TLS: build it with `--features tls`, or let a proxy speak it")]
    NoTls,
}

impl Token {
    /// Reads a file that nobody but its owner may read: one line of 16 to 1,024 visible ASCII characters.
    ///
    /// # Errors
    ///
    /// [`SecretError`].
    pub fn read(file: &Path) -> Result<Self, SecretError> {
        let text = secret(file)?;
        let line = text.trim_ascii_end();
        if (16..=1024).contains(&line.len()) && line.iter().all(u8::is_ascii_graphic) {
            return Ok(Self(line.to_vec()));
        }
        let wanted = "token: write one line of 16 to 1024 letters without spaces, e.g. by `openssl rand -hex 32`";
        Err(SecretError::Other { file: file.to_owned(), wanted })
    }

    /// Whether a request shows it. Takes the same time wherever a wrong token differs.
    pub(super) fn is_shown_in(&self, headers: &HeaderMap) -> bool {
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (shown.next(), shown.next()) else { return false };
        let Some((scheme, token)) = value.as_bytes().split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(&self.0))
    }
}

/// A file that nobody but its owner may read.
pub(super) fn secret(file: &Path) -> Result<Vec<u8>, SecretError> {
    let opened = File::open(file);
    if let Ok(metadata) = opened.as_ref().map(File::metadata)
        && metadata.is_ok_and(|metadata| metadata.mode() & 0o077 != 0)
    {
        return Err(SecretError::Open(file.to_owned()));
    }
    read(file, opened)
}

pub(super) fn read(file: &Path, opened: io::Result<File>) -> Result<Vec<u8>, SecretError> {
    let unreadable = |source| SecretError::Unreadable { file: file.to_owned(), source };
    let opened = opened.map_err(unreadable)?;
    if !opened.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is no regular file")));
    }
    let mut content = Vec::new();
    opened.take(SECRET_BYTES).read_to_end(&mut content).map_err(unreadable)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn written(folder: &tempfile::TempDir, content: &str, mode: u32) -> PathBuf {
        let path = folder.path().join("secret");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_token_is_one_long_line_in_a_file_of_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let long = "0123456789abcdef";
        assert!(Token::read(&written(&folder, &format!("{long}\n"), 0o600)).is_ok());
        assert!(matches!(Token::read(&written(&folder, long, 0o640)), Err(SecretError::Open(_))));
        for wrong in ["", "short", "0123456789 abcdef", "0123456789abcdef\nmore", "0123456789abcdeü"] {
            let error = Token::read(&written(&folder, wrong, 0o600)).unwrap_err();
            assert!(matches!(error, SecretError::Other { .. }), "{wrong}");
            assert!(wrong.is_empty() || !error.to_string().contains(wrong), "the content is in the text: {error}");
        }
        assert!(matches!(Token::read(folder.path()), Err(SecretError::Open(_) | SecretError::Unreadable { .. })));
    }

    #[test]
    fn a_token_is_shown_once_and_whole() {
        let token = Token(b"0123456789abcdef".to_vec());
        let shown = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            token.is_shown_in(&headers)
        };
        assert!(shown(&["Bearer 0123456789abcdef"]) && shown(&["bearer 0123456789abcdef"]));
        for wrong in ["Bearer 0123456789abcde", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "Bearer", ""] {
            assert!(!shown(&[wrong]), "{wrong}");
        }
        assert!(!shown(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]));
        assert!(!shown(&[]));
    }
}
