//! TLS on TCP connections, in builds with the feature `tls`; others refuse to be configured for it.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::SecretError;

/// A connection on which TLS is spoken.
pub(super) trait Secured: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Secured for S {}

#[cfg(feature = "tls")]
pub use self::spoken::Tls;
#[cfg(not(feature = "tls"))]
pub use self::unspoken::Tls;

#[cfg(feature = "tls")]
mod spoken {
    use std::sync::Arc;

    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::super::access::{read, secret};
    use super::{Path, SecretError, Secured, TcpStream};

    /// A certificate and its key.
    #[derive(Clone, Debug)]
    pub struct Tls(Arc<ServerConfig>);

    impl Tls {
        /// Reads a certificate chain and its private key.
        ///
        /// # Errors
        ///
        /// [`SecretError`].
        pub fn read(certificate: &Path, key: &Path) -> Result<Self, SecretError> {
            let chain = read(certificate, std::fs::File::open(certificate))?;
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
            let other = |file: &Path, wanted| SecretError::Other { file: file.to_owned(), wanted };
            let wanted = "certificate: write PEM that begins with BEGIN CERTIFICATE";
            let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| other(certificate, wanted))?;
            let wanted = "private key: write PEM that begins with BEGIN PRIVATE KEY";
            let private = PrivateKeyDer::from_pem_slice(&secret(key)?).map_err(|_| other(key, wanted))?;
            let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, private);
            let mut config = config.map_err(|error| SecretError::NoPair {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                why: error.to_string(),
            })?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Self(Arc::new(config)))
        }

        pub(in super::super) async fn accept(self, stream: TcpStream) -> std::io::Result<Box<dyn Secured>> {
            TlsAcceptor::from(self.0).accept(stream).await.map(|stream| Box::new(stream) as Box<dyn Secured>)
        }
    }
}

#[cfg(not(feature = "tls"))]
mod unspoken {
    use super::{Path, SecretError, Secured, TcpStream};

    /// There is none.
    #[derive(Clone, Debug)]
    pub enum Tls {}

    impl Tls {
        /// Refuses.
        ///
        /// # Errors
        ///
        /// [`SecretError::NoTls`].
        pub fn read(_certificate: &Path, _key: &Path) -> Result<Self, SecretError> {
            Err(SecretError::NoTls)
        }

        pub(in super::super) async fn accept(self, _stream: TcpStream) -> std::io::Result<Box<dyn Secured>> {
            match self {}
        }
    }
}
