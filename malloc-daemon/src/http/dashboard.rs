//! The page at `/`: files of the binary, which ask for the documents that everyone may ask for.

use std::io::Write;
use std::sync::LazyLock;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::negotiate;
use super::router::{answer, not_found};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Nothing from elsewhere, nothing inline, no text that becomes markup; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

macro_rules! files {
    ($($name:literal $media:ident),* $(,)?) => {
        [$(($name, $media, include_str!(concat!("dashboard/", $name)))),*]
    };
}

/// Name, media type and text of each; the first is the page itself.
const FILES: [(&str, &str, &str); 12] = files![
    "index.html" HTML,
    "style.css" CSS,
    "main.js" SCRIPT,
    "ask.js" SCRIPT,
    "charts.js" SCRIPT,
    "columns.js" SCRIPT,
    "dom.js" SCRIPT,
    "figures.js" SCRIPT,
    "health.js" SCRIPT,
    "list.js" SCRIPT,
    "process.js" SCRIPT,
    "table.js" SCRIPT,
];

/// A file as it is sent.
struct File {
    name: &'static str,
    media_type: &'static str,
    plain: Bytes,
    packed: Bytes,
    /// Of the plain answer; the packed one has `z` at its end.
    tag: String,
}

/// Packed once: they are the same as long as the program runs.
static PACKED: LazyLock<Vec<File>> = LazyLock::new(|| FILES.iter().map(File::of).collect());

impl File {
    fn of((name, media_type, text): &(&'static str, &'static str, &'static str)) -> Self {
        let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 2), Compression::best());
        // Writing to a Vec cannot fail.
        let _ = encoder.write_all(text.as_bytes());
        let digest = Sha256::digest(text.as_bytes());
        Self {
            name,
            media_type,
            plain: Bytes::from_static(text.as_bytes()),
            packed: Bytes::from(encoder.finish().unwrap_or_default()),
            tag: digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let packed = negotiate::takes_gzip(headers);
        let tags = [format!("\"{}\"", self.tag), format!("\"{}z\"", self.tag)];
        let mut sent = match tags.iter().find(|tag| negotiate::has(headers, tag)) {
            Some(held) => {
                let mut sent = answer(StatusCode::NOT_MODIFIED, self.media_type, Bytes::new());
                *sent.body_mut() = Body::empty();
                set(&mut sent, header::ETAG, held);
                sent
            }
            None => {
                let body = if packed { &self.packed } else { &self.plain };
                let mut sent = answer(StatusCode::OK, self.media_type, body.clone());
                set(&mut sent, header::ETAG, &tags[usize::from(packed)]);
                if packed {
                    set(&mut sent, header::CONTENT_ENCODING, "gzip");
                }
                sent
            }
        };
        // Asked for again each time: another version of the daemon has other files.
        set(&mut sent, header::CACHE_CONTROL, "no-cache");
        set(&mut sent, header::VARY, "accept-encoding");
        set(&mut sent, header::CONTENT_SECURITY_POLICY, POLICY);
        set(&mut sent, header::REFERRER_POLICY, "no-referrer");
        sent
    }
}

fn set(answer: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// Whether this path is one of the page's.
pub(super) fn is_at(path: &str) -> bool {
    path == "/" || path.starts_with("/dashboard/")
}

pub(super) async fn index(headers: HeaderMap) -> Response {
    PACKED[0].answer(&headers)
}

pub(super) async fn file(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Response {
    let found = name.ok().and_then(|Path(name)| PACKED.iter().skip(1).find(|file| file.name == name));
    match found {
        Some(file) => file.answer(&headers),
        None => not_found().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_makes_markup_or_code_of_text() {
        for (name, _, text) in FILES {
            for word in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "srcdoc"] {
                assert!(!text.contains(word), "{name}: {word}");
            }
            for word in ["DOMParser", "createContextualFragment", "javascript:", "https://", "import("] {
                assert!(!text.contains(word), "{name}: {word}");
            }
            assert!(text.len() < 16 << 10, "{name} is a small file");
        }
        let page = FILES[0].2;
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("<script type=\"module\" src=\"/dashboard/main.js\"></script>"));
        for word in ["<style", " style=", " onclick", " onload", "<iframe", "<img"] {
            assert!(!page.contains(word), "{word}");
        }
        let tags = page.split('<').filter_map(|tag| tag.split('>').next());
        assert!(!tags.into_iter().any(|tag| tag.contains(" on")), "a handler within the markup");
    }

    #[test]
    fn every_file_that_a_file_names_is_served() {
        for (name, _, text) in FILES {
            let named = text.split("\"/dashboard/").skip(1).chain(text.split("from \"./").skip(1));
            for other in named.filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(name, _, _)| *name == other), "{name} names {other}");
            }
        }
    }
}
