//! Rules over a file's tokens: what it names, where it prints, where it is unsafe.
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{Violation, table};

/// Lines between an unsafe place and the comment that justifies it, at most.
const COMMENT_DISTANCE: usize = 3;

/// The tokens of a file, without comments and with every literal alike.
pub struct Source {
    tokens: Vec<Token>,
    paths: Vec<Named>,
    tests: Vec<RangeInclusive<usize>>,
}

struct Token {
    text: String,
    line: usize,
}

/// A path somewhere in the code, with the names of a `use` tree spelled out.
struct Named {
    path: String,
    line: usize,
    /// Whether a `use` names it, so that a single word is a crate.
    imported: bool,
}

impl Source {
    /// Reads Rust source; fails with the line at which it stops being tokens.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let stream: TokenStream = text.parse().map_err(|error: proc_macro2::LexError| error.span().start().line)?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let (paths, tests) = (named_paths(&tokens), test_items(&tokens));
        Ok(Self { tokens, paths, tests })
    }

    /// The text of the file's test code: all of it in a test file, else the items under `cfg(test)`.
    pub fn test_text(&self, path: &str, text: &str) -> String {
        if table::is_test(path) {
            return text.to_owned();
        }
        let lines = text.lines().enumerate();
        lines.map(|(index, line)| if self.is_test(index + 1) { format!("{line}\n") } else { "\n".to_owned() }).collect()
    }

    fn is_test(&self, line: usize) -> bool {
        self.tests.iter().any(|lines| lines.contains(&line))
    }

    fn text(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| &token.text)
    }
}

/// A pure module names nothing that could answer differently elsewhere. Its tests may.
pub fn pure(path: &str, source: &Source) -> Vec<Violation> {
    if !table::lies_in(path, table::PURE) || table::is_test(path) {
        return Vec::new();
    }
    let outside_tests = source.paths.iter().filter(|named| !source.is_test(named.line));
    let impure = outside_tests.filter_map(|named| Some((named, impurity(named)?)));
    impure
        .map(|(named, what)| {
            let remedy = format!("pass in what `{what}` would give: this module is pure");
            Violation::new(path, named.line, "pure", remedy)
        })
        .collect()
}

/// A confined crate is named only where the table allows it. Tests may name it anywhere.
pub fn confined(path: &str, source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (crates, places) in table::CONFINED {
        if table::lies_in(path, places) {
            continue;
        }
        let used = source.paths.iter().filter(|named| !source.is_test(named.line));
        violations.extend(used.filter_map(|named| {
            let name = crates.iter().find(|name| starts(named, name))?;
            Some(Violation::new(path, named.line, "confined", format!("keep `{name}` to {}", places.join(", "))))
        }));
    }
    violations
}

/// Only commands print.
pub fn printing(path: &str, source: &Source) -> Vec<Violation> {
    // A build script speaks to cargo by printing.
    if table::lies_in(path, table::PRINTING) || table::is_test(path) || path.ends_with("build.rs") {
        return Vec::new();
    }
    let prints = |index: usize, name: &str| match name {
        "print" | "println" | "eprint" | "eprintln" => source.text(index + 1) == "!",
        // `command.stdout(Stdio::null())` redirects another program's.
        "stdout" | "stderr" => source.text(index + 1) == "(" && source.text(index + 2) == ")",
        _ => false,
    };
    let tokens = source.tokens.iter().enumerate();
    tokens
        .filter(|(index, token)| prints(*index, &token.text) && !source.is_test(token.line))
        .map(|(_, token)| {
            let remedy = format!("return it or log it: `{}` is for {}", token.text, table::PRINTING.join(", "));
            Violation::new(path, token.line, "printing", remedy)
        })
        .collect()
}

/// `unsafe` is written in few places, each of which says why it is sound.
pub fn unsafety(path: &str, text: &str, source: &Source) -> Vec<Violation> {
    let lines: Vec<&str> = text.lines().collect();
    let allowed = table::lies_in(path, table::UNSAFE);
    let mut violations = Vec::new();
    for (index, token) in source.tokens.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
        if !allowed {
            let remedy = format!("do without `unsafe`, or move it to one of {}", table::UNSAFE.join(", "));
            violations.push(Violation::new(path, token.line, "unsafe", remedy));
        } else if matches!(source.text(index + 1), "{" | "impl" | "fn" | "extern") && !is_justified(&lines, token.line)
        {
            let remedy = format!("say why it is sound in a `SAFETY:` comment at most {COMMENT_DISTANCE} lines above");
            violations.push(Violation::new(path, token.line, "unsafe", remedy));
        }
    }
    violations
}

/// Whether a `SAFETY:` comment (or a `# Safety` section) lies on that line, or begins or is still
/// running at most `COMMENT_DISTANCE` lines above it.
fn is_justified(lines: &[&str], line: usize) -> bool {
    let says = |text: &str| text.contains("SAFETY:") || text.contains("# Safety");
    let is_comment = |text: &str| text.trim_start().starts_with("//");
    let above = lines.get(..line).unwrap_or(lines).iter().rev();
    let mut distance = 0;
    for text in above {
        if says(text) {
            return true;
        }
        // The lines of one comment count as one.
        distance += usize::from(!is_comment(text));
        if distance > COMMENT_DISTANCE {
            return false;
        }
    }
    false
}

fn impurity(named: &Named) -> Option<&'static str> {
    let root = table::IMPURE_ROOTS.iter().find(|root| starts(named, root));
    root.or_else(|| table::IMPURE_PARTS.iter().find(|part| contains(&named.path, part))).copied()
}

/// Whether the path begins with `root`: as more than a variable of that name.
fn starts(named: &Named, root: &str) -> bool {
    match named.path.strip_prefix(root) {
        Some("") => named.imported || root.contains("::"),
        Some(rest) => rest.starts_with("::"),
        None => false,
    }
}

fn contains(path: &str, part: &str) -> bool {
    let (path, part): (Vec<_>, Vec<_>) = (path.split("::").collect(), part.split("::").collect());
    path.windows(part.len()).any(|window| window == part)
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let text = match tree {
            TokenTree::Ident(ident) => ident.to_string(),
            TokenTree::Literal(_) => "\"".to_owned(),
            TokenTree::Punct(punct) if punct.as_char() == ':' && tokens.last().is_some_and(|last| last.text == ":") => {
                tokens.pop();
                "::".to_owned()
            }
            TokenTree::Punct(punct) => punct.as_char().to_string(),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
                continue;
            }
        };
        tokens.push(Token { text, line });
    }
}

fn named_paths(tokens: &[Token]) -> Vec<Named> {
    let mut paths = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        if token.text == "use" {
            index = use_tree(tokens, index + 1, "", &mut paths);
        } else if is_word(&token.text) {
            let imported = index > 0 && tokens[index - 1].text == "crate" && token.text != "crate";
            let (path, end) = chain(tokens, index);
            paths.push(Named { path, line: token.line, imported });
            index = end;
        } else {
            index += 1;
        }
    }
    paths
}

/// The words joined by `::` from `index` on, and the index after them.
fn chain(tokens: &[Token], index: usize) -> (String, usize) {
    let mut path = tokens[index].text.clone();
    let mut end = index + 1;
    while let [colons, word, ..] = &tokens[end.min(tokens.len())..]
        && colons.text == "::"
        && is_word(&word.text)
    {
        path.push_str("::");
        path.push_str(&word.text);
        end += 2;
    }
    (path, end)
}

/// Spells out the paths of one branch of a `use` tree; gives the index after it.
fn use_tree(tokens: &[Token], mut index: usize, prefix: &str, paths: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_owned();
    let start = index;
    while let Some(token) = tokens.get(index) {
        match token.text.as_str() {
            "::" => {}
            "{" => {
                index += 1;
                while tokens.get(index).is_some_and(|token| token.text != "}") {
                    index = use_tree(tokens, index, &path, paths);
                    index += usize::from(tokens.get(index).is_some_and(|token| token.text == ","));
                }
                return index + 1;
            }
            "as" => index += 1,
            // `self` in a group is the group's own path.
            "self" if !path.is_empty() => {}
            word if is_word(word) || word == "*" => {
                if !path.is_empty() {
                    path.push_str("::");
                }
                path.push_str(word);
            }
            _ => break,
        }
        index += 1;
    }
    if let Some(first) = tokens.get(start) {
        paths.push(Named { path, line: first.line, imported: true });
    }
    // Whatever it is, a token that begins no branch is passed over.
    index.max(start + usize::from(index == start && tokens.get(index).is_some_and(|token| token.text != "}")))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The lines of items under an attribute that names `test`.
fn test_items(tokens: &[Token]) -> Vec<RangeInclusive<usize>> {
    let mut items = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let Some(after) = test_attribute(tokens, index) else {
            index += 1;
            continue;
        };
        let end = item_end(tokens, after);
        let last = tokens.get(end).or(tokens.last()).map_or(0, |token| token.line);
        items.push(tokens[index].line..=last);
        index = end + 1;
    }
    items
}

/// If an attribute like `#[cfg(test)]` or `#[test]` begins at `index`, the index after it.
fn test_attribute(tokens: &[Token], index: usize) -> Option<usize> {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    if word(index) != "#" || word(index + 1) != "[" {
        return None;
    }
    let end = closing(tokens, index + 1);
    let inside = || (index + 2..end).map(word);
    let tests = inside().any(|text| text == "test") && !inside().any(|text| text == "not");
    tests.then_some(end + 1)
}

/// The index of the token that ends the item beginning at `index`: its `;` or its closing brace.
fn item_end(tokens: &[Token], mut index: usize) -> usize {
    while let Some(token) = tokens.get(index) {
        match token.text.as_str() {
            ";" => return index,
            "{" => return closing(tokens, index),
            "(" | "[" => index = closing(tokens, index),
            _ => {}
        }
        index += 1;
    }
    tokens.len()
}

/// The index of the delimiter that closes the one at `index`.
fn closing(tokens: &[Token], index: usize) -> usize {
    let mut depth = 0usize;
    for (offset, token) in tokens[index..].iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return index + offset;
        }
    }
    tokens.len()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
