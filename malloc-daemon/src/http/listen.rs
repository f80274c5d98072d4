//! Where to listen, and what to tell a user when that fails.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections that wait for a place.
const BACKLOG: i32 = 1024;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port; port 0 takes any free one.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A text that names no place to listen at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no place to listen at: give ADDRESS:PORT, e.g. 127.0.0.1:7878 or [::1]:7878, or unix:/PATH")]
pub struct ListenParseError(String);

impl FromStr for Listen {
    type Err = ListenParseError;

    fn from_str(text: &str) -> Result<Self, ListenParseError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') {
                Ok(Listen::Unix(PathBuf::from(path)))
            } else {
                Err(ListenParseError(text.to_owned()))
            };
        }
        text.parse().map(Listen::Tcp).map_err(|_| ListenParseError(text.to_owned()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a socket in the file system is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permissions.
    pub mode: u32,
    /// Group that owns it; `None`: the daemon's own.
    pub group: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { mode: 0o660, group: None }
    }
}

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("{0} is in use by another program: stop it, or choose another port with --listen ADDRESS:PORT")]
    PortTaken(SocketAddr),
    /// The port is reserved.
    #[error("no permission to listen on {0}: choose a port above 1023 with --listen ADDRESS:PORT")]
    NotPermitted(SocketAddr),
    /// The address is not one of this machine's.
    #[error("{0} is not an address of this machine: choose one that is with --listen, e.g. 127.0.0.1:{port}", port = .0.port())]
    NotAnAddress(SocketAddr),
    /// A live program answers at the socket.
    #[error("unix:{} is in use by another program: stop it, or choose another path with --listen unix:/PATH", .0.display())]
    SocketTaken(PathBuf),
    /// Something that is not a socket is there; it is left alone.
    #[error("{} exists and is not a socket: remove it, or choose another path with --listen unix:/PATH", .0.display())]
    NotASocket(PathBuf),
    /// The daemon may not give the socket away.
    #[error(
        "unix:{} cannot be given to the group {group}: run the daemon with that group, or leave socket.group out: {source}",
        path.display()
    )]
    Group {
        /// Where.
        path: PathBuf,
        /// Whose it should be.
        group: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A socket that was handed over is none to listen on.
    #[error("socket {0} of those handed over (LISTEN_FDS) is no listening TCP or Unix stream socket")]
    NoListener(usize),
    /// Anything else.
    #[error("cannot listen on {listen}: {source}; choose another place with --listen")]
    Other {
        /// Where.
        listen: Listen,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket. A socket in the file system is removed when this is dropped, if it is still the same one.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// What it is bound to; the port is the real one.
    listen: Listen,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, identity: Option<(u64, u64)> },
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Binds. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// [`BindError`], whose text says what to do.
    pub async fn bind(listen: &Listen, socket: SocketOptions) -> Result<Self, BindError> {
        match listen {
            Listen::Tcp(address) => bind_tcp(*address).await,
            Listen::Unix(path) => bind_unix(path, socket).await,
        }
    }

    /// The sockets that a service manager handed over (`LISTEN_FDS`), if it did. They are its own: a socket file stays.
    ///
    /// # Errors
    ///
    /// One of them is no socket to listen on.
    pub fn inherited() -> Result<Vec<Self>, BindError> {
        let mut handed = listenfd::ListenFd::from_env();
        (0..handed.len()).map(|index| Self::of_inherited(&mut handed, index)).collect()
    }

    fn of_inherited(handed: &mut listenfd::ListenFd, index: usize) -> Result<Self, BindError> {
        let none = || BindError::NoListener(index);
        // A listener of the other kind is left in its place.
        if let Ok(Some(listener)) = handed.take_tcp_listener(index) {
            let address = listener.local_addr().map_err(|_| none())?;
            listener.set_nonblocking(true).map_err(|_| none())?;
            let socket = TcpListener::from_std(listener).map(Socket::Tcp).map_err(|_| none())?;
            return Ok(Self { socket, listen: Listen::Tcp(address) });
        }
        let listener = handed.take_unix_listener(index).ok().flatten().ok_or_else(none)?;
        let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        listener.set_nonblocking(true).map_err(|_| none())?;
        let listener = UnixListener::from_std(listener).map_err(|_| none())?;
        let listen = Listen::Unix(path.unwrap_or_else(|| PathBuf::from("(abstract)")));
        Ok(Self { socket: Socket::Unix { listener, identity: None }, listen })
    }

    /// What it is bound to; the port is the real one.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Socket::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Listen::Unix(path), Socket::Unix { identity: Some(identity), .. }) = (&self.listen, &self.socket)
            && identity_of(path).as_ref() == Some(identity)
        {
            // Nothing depends on it: the next start replaces a socket that nobody listens on.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<Listener, BindError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortTaken(address),
        io::ErrorKind::PermissionDenied => BindError::NotPermitted(address),
        io::ErrorKind::AddrNotAvailable => BindError::NotAnAddress(address),
        _ => BindError::Other { listen: Listen::Tcp(address), source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let real = listener.local_addr().map_err(failed)?;
    Ok(Listener { socket: Socket::Tcp(listener), listen: Listen::Tcp(real) })
}

async fn bind_unix(path: &Path, options: SocketOptions) -> Result<Listener, BindError> {
    let failed = |source| BindError::Other { listen: Listen::Unix(path.to_owned()), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {
            if !is_stale(path).await {
                return Err(BindError::SocketTaken(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = bind_closed(path).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let identity = identity_of(path);
    let listener = Listener { socket: Socket::Unix { listener, identity }, listen: Listen::Unix(path.to_owned()) };
    if let Some(group) = options.group {
        std::os::unix::fs::lchown(path, None, Some(group)).map_err(|source| BindError::Group {
            path: path.to_owned(),
            group,
            source,
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(options.mode)).map_err(failed)?;
    Ok(listener)
}

/// Binds a socket that nobody but its owner may connect to yet: the file takes the mode that the socket has when it is
/// bound (`unix_bind` in Linux).
fn bind_closed(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Only a refused connection proves that nobody listens; a full backlog makes a connection wait.
async fn is_stale(path: &Path) -> bool {
    let attempt = tokio::time::timeout(Duration::from_secs(1), UnixStream::connect(path)).await;
    matches!(attempt, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bind(listen: &Listen) -> Result<Listener, BindError> {
        Listener::bind(listen, SocketOptions::default()).await
    }

    #[test]
    fn a_place_to_listen_at_reads_back_from_its_text() {
        for text in ["127.0.0.1:7878", "[::1]:80", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "7878", "localhost:7878", "unix:", "unix:x.sock", "unix:/run/"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        assert_eq!(crate::http::DEFAULT_LISTEN.parse(), Ok(Listen::Tcp(([127, 0, 0, 1], 7878).into())));
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_option_that_helps() {
        let first = bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.listen()).await.unwrap_err();
        assert!(matches!(error, BindError::PortTaken(_)));
        let text = error.to_string();
        assert!(text.starts_with(&first.listen().to_string()) && text.contains("--listen"), "{text}");
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_refused_by_name() {
        let error = bind(&"192.0.2.1:7878".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:7878 is not an address of this machine"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced_and_removed_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&Listen::Unix(path.clone())).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(bind(&Listen::Unix(path.clone())).await, Err(BindError::SocketTaken(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_has_the_mode_and_the_group_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let group = rustix::process::getgid().as_raw();
        let options = SocketOptions { mode: 0o606, group: Some(group) };
        let _listener = Listener::bind(&Listen::Unix(path.clone()), options).await.unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o606, group));
        let path = folder.path().join("closed.sock");
        let _listener = bind_closed(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(bind(&Listen::Unix(path.clone())).await, Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[tokio::test]
    async fn a_folder_that_does_not_exist_is_named() {
        let error = bind(&"unix:/nonexistent/api.sock".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on unix:/nonexistent/api.sock: "), "{error}");
    }
}
