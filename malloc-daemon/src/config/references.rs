//! What a configuration refers to outside of itself: files with secrets, a group.

use super::{Config, ConfigError};
use crate::http::{Access, SocketOptions, Tls, Token};

/// What a configuration refers to, read.
#[derive(Clone, Debug)]
pub struct References {
    /// Who may ask.
    pub access: Access,
    /// How sockets in the file system are made.
    pub socket: SocketOptions,
}

impl Config {
    /// Reads the files and looks up the group.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Reference`].
    pub fn references(&self) -> Result<References, ConfigError> {
        let wrong = |key, what: String| ConfigError::Reference { key, what };
        let token = match &self.http.token_file {
            Some(file) => Some(Token::read(file).map_err(|error| wrong("http.token_file", error.to_string()))?),
            None => None,
        };
        let tls = match (&self.tls.certificate, &self.tls.key) {
            (Some(certificate), Some(key)) => {
                Some(Tls::read(certificate, key).map_err(|error| wrong("tls", error.to_string()))?)
            }
            _ => None,
        };
        let group = match &self.socket.group {
            Some(name) => {
                let missing = || format!("there is no group {name:?}: create it with `groupadd --system NAME`");
                let found = nix::unistd::Group::from_name(name).ok().flatten();
                Some(found.map(|group| group.gid.as_raw()).ok_or_else(|| wrong("socket.group", missing()))?)
            }
            None => None,
        };
        Ok(References {
            access: Access { hosts: self.http.hosts.clone(), token, tls },
            socket: SocketOptions { mode: self.socket.mode, group },
        })
    }
}
