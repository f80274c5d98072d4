//! Which processes are probed down to `call`: patterns over what a process is, pure.

use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

/// Selectors of all kinds together, at most: each process that starts is compared with each.
pub const SELECTORS: usize = 1024;

/// A glob: `*` and `?` stand for letters other than `/`, `**` for those too, `[..]` and `{a,b}` for a choice.
#[derive(Clone, Debug)]
pub struct Pattern {
    matcher: GlobMatcher,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.matcher.glob().glob() == other.matcher.glob().glob()
    }
}

/// A text that is no glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no pattern: {why}")]
pub struct PatternError {
    text: String,
    why: String,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |why: String| PatternError { text: text.to_owned(), why };
        if text.is_empty() {
            return Err(wrong("an empty one matches nothing; remove it".to_owned()));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        let glob =
            glob.map_err(|error| wrong(format!("{}; write \\ before a letter meant as itself", error.kind())))?;
        Ok(Self { matcher: glob.compile_matcher() })
    }
}

impl Pattern {
    /// A pattern that only this text matches.
    #[must_use]
    pub fn exactly(text: &str) -> Option<Self> {
        globset::escape(text).parse().ok()
    }

    fn matches(&self, text: &str) -> bool {
        self.matcher.is_match(text)
    }
}

/// Processes probed down to `call`: those that match any entry of any list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deep {
    /// Process ids.
    pub pid: Vec<u32>,
    /// Names, as in /proc/PID/comm: at most 15 bytes.
    pub comm: Vec<Pattern>,
    /// Paths of executables.
    pub exe: Vec<Pattern>,
    /// Paths of control groups.
    pub cgroup: Vec<Pattern>,
    /// systemd units: services, scopes and slices, of the system and of users.
    pub unit: Vec<Pattern>,
}

/// What is known of a process that may be selected.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: &'a str,
    /// Path of its executable, if it could be read.
    pub exe: Option<&'a str>,
    /// Its control group, if it could be read.
    pub cgroup: Option<&'a str>,
}

impl Deep {
    /// Whether nothing can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Selectors of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pid.len() + self.comm.len() + self.exe.len() + self.cgroup.len() + self.unit.len()
    }

    /// Whether a process is selected.
    #[must_use]
    pub fn selects(&self, process: Subject<'_>) -> bool {
        let any = |patterns: &[Pattern], text: &str| patterns.iter().any(|pattern| pattern.matches(text));
        self.pid.contains(&process.pid)
            || any(&self.comm, process.comm)
            || process.exe.is_some_and(|exe| any(&self.exe, exe))
            || process.cgroup.is_some_and(|cgroup| {
                any(&self.cgroup, cgroup) || (!self.unit.is_empty() && units(cgroup).any(|unit| any(&self.unit, unit)))
            })
    }
}

/// The units that a control group lies in, the outermost first. systemd puts `_` before a name that the kernel's own
/// files could have.
fn units(cgroup: &str) -> impl Iterator<Item = &str> {
    const KINDS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
    let folders = cgroup.split('/').map(|folder| folder.strip_prefix('_').unwrap_or(folder));
    folders.filter(|folder| KINDS.iter().any(|kind| folder.len() > kind.len() && folder.ends_with(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deep(text: &str) -> Deep {
        toml::from_str(text).unwrap()
    }

    const NGINX: Subject<'_> = Subject {
        pid: 42,
        comm: "nginx",
        exe: Some("/usr/sbin/nginx"),
        cgroup: Some("/system.slice/nginx.service/worker"),
    };

    #[test]
    fn any_entry_of_any_list_selects() {
        for (text, selected) in [
            ("", false),
            ("pid = [41, 42]", true),
            ("pid = [4]", false),
            ("comm = ['ngin?']", true),
            ("comm = ['ngin']", false),
            ("comm = ['postgres', '{nginx,httpd}']", true),
            ("exe = ['/usr/*/nginx']", true),
            ("exe = ['/usr/*']", false),
            ("exe = ['/usr/**']", true),
            ("cgroup = ['/system.slice/*.service']", false),
            ("cgroup = ['/system.slice/*.service/**']", true),
            ("unit = ['nginx.service']", true),
            ("unit = ['system.slice']", true),
            ("unit = ['worker']", false),
        ] {
            assert_eq!(deep(text).selects(NGINX), selected, "{text}");
        }
    }

    #[test]
    fn a_unit_of_a_user_is_one_and_what_is_unknown_matches_nothing() {
        let cgroup = "/user.slice/user-1000.slice/user@1000.service/app.slice/_firefox.scope";
        let user = Subject { cgroup: Some(cgroup), exe: None, ..NGINX };
        assert!(deep("unit = ['firefox.scope']").selects(user));
        assert!(deep("unit = ['user@*.service']").selects(user));
        assert!(!deep("exe = ['**']").selects(user));
        assert!(!deep("cgroup = ['**']\nunit = ['*']").selects(Subject { cgroup: None, ..NGINX }));
    }

    #[test]
    fn a_name_given_as_itself_is_no_pattern() {
        let exact = Deep { comm: Pattern::exactly("a*[b").into_iter().collect(), ..Deep::default() };
        assert!(exact.selects(Subject { comm: "a*[b", ..NGINX }));
        assert!(!exact.selects(Subject { comm: "aX[b", ..NGINX }));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused_with_a_remedy() {
        for text in ["[", "{a", ""] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains("is no pattern") && error.contains(';'), "{error}");
        }
    }
}
