//! The shipped example, and what becomes of files that are wrong.

use super::*;

const EXAMPLE: &str = include_str!("../../../packaging/config.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("c.toml")).map_err(|error| error.to_string())
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse(EXAMPLE).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

/// Every key of a section, as serde tells it where a key is unknown.
fn keys_of(section: &str) -> Vec<String> {
    let error = parse(&format!("{section}\nno-such-key = 1\n")).unwrap_err();
    let (_, names) = error.split_once("expected ").unwrap();
    let names = names.split_once("; ").unwrap().0;
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_example_names_every_key_with_a_sentence() {
    let mut section = String::new();
    let mut commented = false;
    let mut named = Vec::new();
    for line in EXAMPLE.lines() {
        if line.starts_with('#') {
            assert!(line.len() <= 120, "{line}");
            commented = true;
        } else if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some((key, _)) = line.split_once(" = ") {
            assert!(commented, "{section} {key} has no sentence of its own");
            named.push((section.clone(), key.to_owned()));
            commented = false;
        }
    }
    let top = keys_of("");
    let sections: Vec<&String> = top.iter().filter(|key| EXAMPLE.contains(&format!("\n[{key}]\n"))).collect();
    for key in top.iter().filter(|key| !sections.contains(key)) {
        assert!(named.contains(&(String::new(), key.clone())), "{key} is not in the example");
    }
    assert!(sections.len() >= 5);
    for section in sections {
        let section = format!("[{section}]");
        for key in keys_of(&section) {
            assert!(named.contains(&(section.clone(), key.clone())), "{section} {key} is not in the example");
        }
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_a_remedy() {
    for (text, place, words) in [
        ("dept = \"call\"", "c.toml:1:1: ", "unknown field `dept`"),
        ("\n[http]\n  conections = 1", "c.toml:3:3: ", "correct the name"),
        ("depth = \"deep\"", "c.toml:1:9: ", "one of syscall, sysmalloc, arena, call"),
        ("depth = 3", "c.toml:1:9: ", "expected a string"),
        ("# ü\ninterval = \"1\"", "c.toml:2:12: ", "write 1s, 500ms or 2m"),
        ("interval = \"0s\"", "c.toml:1:12: ", "from 10ms to 1h"),
        ("interval = \"2h\"", "c.toml:1:12: ", "from 10ms to 1h"),
        ("listen = [\"127.0.0.1:1\", \"localhost:1\"]", "c.toml:1:10: ", "127.0.0.1:7878"),
        ("listen = []", "c.toml:1:10: ", "ADDRESS:PORT"),
        ("listen = \"127.0.0.1:1\"", "c.toml:1:10: ", "invalid type"),
        ("[deep]\ncomm = [\"a\", \"[\"]", "c.toml:2:8: ", "is no pattern"),
        ("[deep]\npid = [-1]", "c.toml:2:8: ", "integer `-1`"),
        ("[http]\nconnections = 0", "c.toml:2:15: ", "between 1 and 4096"),
        ("[http]\nhosts = [\"http://a/\"]", "c.toml:2:9: ", "without scheme, port and path"),
        ("[http]\nhosts = [\"a:80\"]", "c.toml:2:9: ", "without scheme, port and path"),
        ("[http]\ntoken_file = \"token\"", "c.toml:2:14: ", "begin it with /"),
        ("[socket]\nmode = \"0999\"", "c.toml:2:8: ", "octal digits"),
        ("[socket]\nmode = \"+77\"", "c.toml:2:8: ", "octal digits"),
        ("[socket]\nmode = 660", "c.toml:2:8: ", "expected a string"),
        ("[metrics]\nlabel = \"pid\"", "c.toml:2:9: ", "\"comm\" or \"cgroup\""),
        ("[push]\ncollector = \"collector:4318\"", "c.toml:2:13: ", "give http://HOST:PORT/v1/metrics"),
        ("\n[tls]\nkey = \"/k\"", "c.toml:2:1: ", "give both, or neither"),
        ("depth = \"call\"\ndepth = \"call\"", "c.toml:2:1: ", "keep one of the two"),
        ("depth = call", "c.toml:1:9: ", "string"),
        ("[http", "c.toml:1:6: ", "table"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(words), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn what_is_written_is_taken_over() {
    let config = parse(
        "listen = ['unix:/run/a.sock', '[::1]:1']\ndepth = 'call'\ninterval = '250ms'\n[socket]\nmode = '0600'\n\
         group = 'adm'\n[http]\nhosts = ['a.example', '[fe80::1]']\ntoken_file = '/t'\n[metrics]\nlabel = 'cgroup'\nnames = 7\n",
    );
    let config = config.unwrap();
    assert_eq!(config.listen, ["unix:/run/a.sock".parse().unwrap(), "[::1]:1".parse().unwrap()]);
    assert_eq!((config.depth, config.interval), (Depth::Call, Duration::from_millis(250)));
    assert_eq!((config.socket.mode, config.socket.group.as_deref()), (0o600, Some("adm")));
    assert_eq!(config.http.hosts, ["a.example", "[fe80::1]"]);
    assert_eq!(config.http.token_file, Some(PathBuf::from("/t")));
    assert_eq!((config.metrics.label.name(), config.metrics.names), ("cgroup", 7));
}

#[test]
fn a_file_that_is_no_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| Config::load(path).unwrap_err().to_string();
    let path = folder.path().join("c.toml");
    assert!(error(&path).contains("--config"), "{}", error(&path));
    assert!(error(folder.path()).contains("regular file"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(error(&path).contains("UTF-8"));
    std::fs::write(&path, "#".repeat(FILE_BYTES as usize + 1)).unwrap();
    assert!(error(&path).contains("at most"));
    std::fs::write(&path, EXAMPLE).unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::default());
}
