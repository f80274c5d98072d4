//! Rules over the documents: the map names what exists, every guarantee has a test.
use std::collections::{BTreeMap, BTreeSet};

use super::{File, Violation, table};

/// Every path in backticks exists: below the root, or below one of the table's folders.
pub fn named_paths_exist(text: &str, exists: impl Fn(&str) -> bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (line, span) in code_spans(text) {
        for path in expand_braces(span).into_iter().filter(|path| looks_like_path(path)) {
            if !table::PATH_BASES.iter().any(|base| exists(&format!("{base}{path}"))) {
                let remedy = format!("correct `{path}`: nothing of that name is in the tree");
                violations.push(Violation::new(table::ARCHITECTURE, line, "architecture", remedy));
            }
        }
    }
    violations
}

/// Every source folder is named, in full or by its last part with a slash.
pub fn folders_are_named(text: &str, folders: &BTreeSet<String>) -> Vec<Violation> {
    let unnamed = folders.iter().filter(|folder| {
        let last = folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        !names(text, folder.trim_end_matches('/')) && !names(text, &format!("{last}/"))
    });
    let report = |folder: &String| {
        Violation::new(table::ARCHITECTURE, 1, "architecture", format!("say what `{folder}` is for: it is not named"))
    };
    unnamed.map(report).collect()
}

/// Every guarantee is cited by a test; no test cites one of a known family that is not there.
///
/// A test cites `COUNT-1` by writing that, or by a function name that begins with `count_1_`.
pub fn guarantees_are_cited(contract: &str, tests: &[File]) -> Vec<Violation> {
    let mut promised = BTreeMap::new();
    for (index, line) in contract.lines().enumerate() {
        if let Some(id) = defined(line) {
            promised.entry(id).or_insert(index + 1);
        }
    }
    let families: BTreeSet<_> = promised.keys().filter_map(|id| family(id)).collect();
    let (mut cited, mut violations) = (BTreeSet::new(), Vec::new());
    for file in tests {
        for (index, line) in file.text.lines().enumerate() {
            for id in identifiers(line).into_iter().chain(named_in_function(line)) {
                if !promised.contains_key(&id) && family(&id).is_some_and(|family| families.contains(family)) {
                    let remedy = format!("cite a guarantee that is in {}: {id} is not", table::CONTRACT);
                    violations.push(Violation::new(&file.path, index + 1, "contract", remedy));
                }
                cited.insert(id);
            }
        }
    }
    let uncited = promised.iter().filter(|(id, _)| !cited.contains(*id));
    violations.extend(uncited.map(|(id, &line)| {
        Violation::new(table::CONTRACT, line, "contract", format!("write a test that proves {id} and cites it"))
    }));
    if promised.is_empty() {
        let remedy = "name guarantees as headings or table rows like `COUNT-1`: there are none";
        violations.push(Violation::new(table::CONTRACT, 1, "contract", remedy));
    }
    violations
}

/// The `code spans` of a Markdown text with their lines, without those of fenced blocks.
fn code_spans(text: &str) -> Vec<(usize, &str)> {
    let mut spans = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2).map(|span| (index + 1, span)));
        }
    }
    spans
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`; one pair of braces.
fn expand_braces(span: &str) -> Vec<String> {
    let parts = span.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    match parts {
        Some((head, (choices, tail))) => {
            choices.split(',').map(|choice| format!("{head}{}{tail}", choice.trim())).collect()
        }
        None => vec![span.to_owned()],
    }
}

/// Relative, with a slash, of characters that this tree's file names have.
fn looks_like_path(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    text.contains('/') && !text.starts_with('/') && text.chars().all(plain)
}

/// Whether `text` holds `name` and not just as the end of a longer one.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
    })
}

/// The guarantee that a heading or the first cell of a table row names.
fn defined(line: &str) -> Option<String> {
    let line = line.trim_start();
    let place = if line.starts_with('#') { line } else { line.strip_prefix('|')?.split('|').next()? };
    identifiers(place).into_iter().next()
}

/// Every word like `COUNT-1`: capitals, a hyphen, digits.
fn identifiers(line: &str) -> Vec<String> {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
    words.filter(|word| family(word).is_some()).map(str::to_owned).collect()
}

/// `COUNT` of `COUNT-1`.
fn family(id: &str) -> Option<&str> {
    let (family, number) = id.split_once('-')?;
    let shaped = family.len() > 1
        && family.chars().all(|c| c.is_ascii_uppercase())
        && !number.is_empty()
        && number.chars().all(|c| c.is_ascii_digit());
    shaped.then_some(family)
}

/// `COUNT-1` of a line with `fn count_1_holds_under_fork`.
fn named_in_function(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("fn ")?;
    let mut words = rest.split('(').next()?.split('_');
    let (family, number) = (words.next()?, words.next()?);
    let number_given = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
    (number_given && family.len() > 1).then(|| format!("{}-{number}", family.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = "# Contract\n\n## COUNT-1 every call counts\n\n| guarantee | says |\n|---|---|\n| SAFE-1 | no harm, unlike COUNT-7 |\n";

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn spelled(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_named_path_that_is_gone_is_reported_at_its_line() {
        let text = "See `xtask/` and\n`tests/gone.rs`, `probes/{attach,lost}.rs`.";
        let there = ["xtask/", "malloc-daemon/src/probes/attach.rs"];
        let found = named_paths_exist(text, |path| there.contains(&path));
        assert_eq!(
            spelled(&found),
            [
                "ARCHITECTURE.md:2: architecture: correct `tests/gone.rs`: nothing of that name is in the tree",
                "ARCHITECTURE.md:2: architecture: correct `probes/lost.rs`: nothing of that name is in the tree",
            ]
        );
    }

    #[test]
    fn what_is_no_path_of_the_tree_is_let_be() {
        let text = "`/proc/PID/maps`, `a / b`, `aya::maps`, `tests/*/x`, `<dir>/x`, `brk`\n```\na/b\n`c/d`\n```\n";
        assert!(named_paths_exist(text, |_| false).is_empty());
    }

    #[test]
    fn a_folder_is_named_in_full_or_by_its_last_part() {
        let folders = BTreeSet::from(["malloc-daemon/src/probes/".to_owned(), "tests/kernel/".to_owned()]);
        assert!(folders_are_named("`probes/` and tests/kernel", &folders).is_empty());
        assert_eq!(folders_are_named("uprobes/ and the kernel", &folders).len(), 2);
    }

    #[test]
    fn a_guarantee_is_cited_by_text_or_by_a_function_name() {
        let tests = [file("tests/a.rs", "// proves COUNT-1\nfn safe_1_holds() {}")];
        assert!(guarantees_are_cited(CONTRACT, &tests).is_empty());
    }

    #[test]
    fn an_uncited_guarantee_is_reported_where_it_is_promised() {
        let found = guarantees_are_cited(CONTRACT, &[file("tests/a.rs", "// COUNT-1")]);
        assert_eq!(spelled(&found), ["docs/contract.md:7: contract: write a test that proves SAFE-1 and cites it"]);
    }

    #[test]
    fn a_citation_of_a_guarantee_that_is_not_there_is_reported() {
        let tests = [file("tests/a.rs", "// COUNT-1, SAFE-1, not UTF-8\n// COUNT-2\nfn a_1_b() {}")];
        let found = guarantees_are_cited(CONTRACT, &tests);
        assert_eq!(
            spelled(&found),
            ["tests/a.rs:2: contract: cite a guarantee that is in docs/contract.md: COUNT-2 is not"]
        );
    }

    #[test]
    fn a_contract_without_guarantees_is_reported() {
        assert_eq!(guarantees_are_cited("# Contract\nwe promise\n", &[]).len(), 1);
    }
}
