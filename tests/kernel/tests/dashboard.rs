//! Proves what a person sees of the daemon in a real browser: Chromium, driven by its own driver.
#![cfg(feature = "real-kernel")]

use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Instant;

use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use kernel_tests::daemon::Serving;
use kernel_tests::process::{Running, patience};
use kernel_tests::victim;
use serde_json::json;
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef-right";
const ANOTHER: &str = "0123456789abcdef-wrong";

/// A browser without a window, and the driver that owns it.
struct Browser {
    client: Client,
    _driver: Running,
}

impl Browser {
    async fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0");
        let mut driver = Running::start(&mut command);
        let told = "started successfully on port ";
        let port = loop {
            let line = driver.read_line();
            if let Some((_, port)) = line.split_once(told) {
                break port.trim().trim_end_matches('.').to_owned();
            }
        };
        // Root has no sandbox there, and /dev/shm is small in containers.
        let options = json!({"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]});
        let wanted = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let serde_json::Value::Object(wanted) = wanted else { unreachable!("an object") };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(Capabilities::from_iter(wanted));
        let client = builder.connect(&format!("http://127.0.0.1:{port}")).await.expect("a browser");
        Self { client, _driver: driver }
    }

    /// The text of the element that this selects, as it is shown.
    async fn text(&self, css: &str) -> String {
        let Ok(element) = self.client.find(Locator::Css(css)).await else { return String::new() };
        element.text().await.unwrap_or_default()
    }

    /// Waits until the text of an element satisfies `is_it`, and returns it.
    async fn text_when(&self, css: &str, is_it: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let text = self.text(css).await;
            if is_it(&text) {
                return text;
            }
            assert!(began.elapsed() < patience(), "{css} still says {text:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn is_shown(&self, css: &str) -> bool {
        match self.client.find(Locator::Css(css)).await {
            Ok(element) => element.is_displayed().await.unwrap_or(false),
            Err(_) => false,
        }
    }

    async fn give(&self, token: &str) {
        let field = self.client.find(Locator::Css("#secret")).await.expect("a field");
        field.send_keys(token).await.expect("typed");
        self.client.find(Locator::Css("#token button")).await.expect("a button").click().await.expect("clicked");
    }
}

/// A file that nobody else may read.
fn secret(folder: &TempDir) -> std::path::PathBuf {
    let path = folder.path().join("token");
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("a file");
    std::io::Write::write_all(&mut &file, TOKEN.as_bytes()).expect("written");
    path
}

// PAGE-2
#[test]
fn the_page_asks_for_a_token_and_shows_what_the_daemon_answers() {
    let folder = TempDir::new().expect("a folder");
    let config = folder.path().join("config.toml");
    std::fs::write(&config, format!("[http]\ntoken_file = {:?}\n", secret(&folder))).expect("written");
    let mut victim = Running::start(&mut Command::new(victim::program("busy")));
    victim.write(b"x");
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let serving = Serving::start(&["--config", &config.display().to_string()]);
    assert_eq!(serving.get("/v1/processes").status, 401, "the documents want the token");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let browser = Browser::start().await;
        browser.client.goto(&format!("http://{}/", serving.address)).await.expect("the page");
        browser.text_when("#state", |text| text == "waiting for a token").await;
        assert!(browser.is_shown("#token").await);
        assert_eq!(browser.text("#rows").await, "", "no process before the token");

        browser.give(ANOTHER).await;
        browser.text_when("#refused", |text| text == "that token was refused").await;
        browser.give(TOKEN).await;
        browser.text_when("#state", |text| text.starts_with("as of ")).await;
        assert!(!browser.is_shown("#token").await);
        browser.text_when("#health", |text| !text.is_empty()).await;

        let filter = browser.client.find(Locator::Css("#filter")).await.expect("a filter");
        filter.send_keys(&pid.to_string()).await.expect("typed");
        let row = format!("#rows tr:has(a[href='#pid={pid}'])");
        let shown = browser.text_when(&row, |text| text.contains("busy")).await;
        assert!(shown.starts_with(&pid.to_string()), "{shown}");
        let link = format!("#rows a[href='#pid={pid}']");
        browser.client.find(Locator::Css(&link)).await.expect("a link").click().await.expect("clicked");
        let heading = browser.text_when("#process h2", |text| !text.is_empty()).await;
        assert_eq!(heading, format!("busy ({pid})"));
        let told = browser.text("#process").await;
        assert!(told.contains("glibc"), "the allocator is told: {told}");

        // The token is the tab's: it is asked for again in another one, and not in this.
        browser.client.refresh().await.expect("loaded again");
        browser.text_when("#state", |text| text.starts_with("as of ")).await;
        assert_eq!(browser.text_when("#process h2", |text| !text.is_empty()).await, format!("busy ({pid})"));
        browser.client.clone().close().await.expect("closed");
    });
    drop(victim);
}
