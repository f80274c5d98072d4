//! Tokens, names and TLS by real requests.

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub(super) fn token() -> Token {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Token::read(&path).unwrap()
}

#[tokio::test]
async fn who_may_ask_changes_while_the_daemon_runs() {
    let served = sample_served().await;
    let status = async |headers: &str| served.ask("GET", "/healthz", headers).await.status;
    assert_eq!(status("host: new.example\r\n").await, 421);
    let hosts = vec!["new.example".to_owned()];
    served.access.send_replace(Arc::new(Access { hosts, token: Some(token()), tls: None }));
    let answer = served.ask("GET", "/v1/snapshot", "host: new.example\r\n").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "unauthorized"));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert_eq!(status("host: prod-1.example\r\n").await, 421);
    assert_eq!(status("host: localhost\r\nauthorization: Bearer 0123456789abcdef\r\n").await, 401);
    assert_eq!(status(&format!("host: localhost\r\nauthorization: Bearer {TOKEN}\r\n")).await, 200);
    served.end().await;
}

/// A certificate for localhost that it signed itself, valid from 2024 to 2124, and its key.
const CERTIFICATE: &str = include_str!("../fixtures/certificate.pem");
const KEY: &str = include_str!("../fixtures/key.pem");

fn certificate_and_key(mode: u32) -> (tempfile::TempDir, [std::path::PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    std::fs::write(&key, KEY).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    (folder, [certificate, key])
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_so() {
    let (_folder, [certificate, key]) = certificate_and_key(0o600);
    assert!(matches!(Tls::read(&certificate, &key), Err(SecretError::NoTls)));
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_is_spoken_where_it_is_configured() {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let (_open, [certificate, key]) = certificate_and_key(0o644);
    assert!(matches!(Tls::read(&certificate, &key), Err(SecretError::Open(_))));
    let (_folder, [certificate, key]) = certificate_and_key(0o600);
    assert!(matches!(Tls::read(&key, &key), Err(SecretError::Other { .. })));

    let limits = Limits { header_timeout: Duration::from_millis(500), ..Limits::default() };
    let served = served(sample::snapshot(Vec::new()), limits).await;
    let spoken = Tls::read(&certificate, &key).unwrap();
    served.access.send_replace(Arc::new(Access { tls: Some(spoken), ..Access::default() }));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(served.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let answer = exchange(&mut stream, "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    // Who does not shake hands is closed as one who does not finish a request.
    for begin in ["", "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut plain = TcpStream::connect(served.address).await.unwrap();
        plain.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, plain.read_to_end(&mut rest)).await.expect("the connection is still open");
        assert!(!rest.starts_with(b"HTTP"));
    }
    served.end().await;
}
