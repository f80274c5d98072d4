//! Turns the linker's names of Rust and C++ functions into readable ones of bounded length.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, ParseOptions};

/// The longest name that is shown, in bytes.
pub const SHOWN_BYTES: usize = 512;
/// The longest name that is demangled; longer ones are shown as they are, cut.
const MANGLED_BYTES: usize = 4096;
/// How deep the grammar of C++ names is followed: honest names stay under thirty.
const RECURSION: u32 = 96;

/// The readable form of `name`, at most [`SHOWN_BYTES`] long; three dots stand for what is cut.
pub fn demangled(name: &str) -> String {
    let mut shown = Bounded::default();
    let done = name.len() <= MANGLED_BYTES && (rust(name, &mut shown) || cpp(name, &mut shown));
    if !done {
        shown = Bounded::default();
        // Writing fails only when the name is cut, which is what is wanted.
        let _ = shown.write_str(name);
    }
    shown.finish()
}

/// A text of bounded length.
pub fn cut(text: &str) -> String {
    let mut shown = Bounded::default();
    let _ = shown.write_str(text);
    shown.finish()
}

fn rust(name: &str, shown: &mut Bounded) -> bool {
    let Ok(symbol) = rustc_demangle::try_demangle(name) else { return false };
    // The alternate form leaves out the hash.
    write!(shown, "{symbol:#}").is_ok() || shown.is_cut
}

fn cpp(name: &str, shown: &mut Bounded) -> bool {
    if !name.starts_with("_Z") && !name.starts_with("__Z") {
        return false;
    }
    let options = ParseOptions::default().recursion_limit(RECURSION);
    let Ok(symbol) = cpp_demangle::BorrowedSymbol::with_tail_and_options(name.as_bytes(), &options) else {
        return false;
    };
    let (symbol, tail) = symbol;
    let options = DemangleOptions::new().no_return_type().recursion_limit(RECURSION);
    let done = symbol.structured_demangle(shown, &options).is_ok() || shown.is_cut;
    // Compilers append what they did to a function: `.part.0`, `.cold`.
    if done && let Ok(tail) = str::from_utf8(tail) {
        let _ = shown.write_str(tail);
    }
    done
}

#[derive(Default)]
struct Bounded {
    text: String,
    is_cut: bool,
}

impl Bounded {
    fn finish(mut self) -> String {
        if self.is_cut {
            self.text.push_str("...");
        }
        self.text
    }
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.is_cut {
            return Err(fmt::Error);
        }
        let left = SHOWN_BYTES.saturating_sub(self.text.len());
        if part.len() <= left {
            self.text.push_str(part);
            return Ok(());
        }
        self.text.push_str(part.get(..part.floor_char_boundary(left)).unwrap_or_default());
        self.is_cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_each_language_become_readable() {
        assert_eq!(demangled("malloc"), "malloc");
        assert_eq!(demangled("_ZN5outer5innerEi"), "outer::inner(int)");
        assert_eq!(demangled("_ZN5outer5innerEi.part.0"), "outer::inner(int) [clone .part.0]");
        assert_eq!(demangled("_RNvCskwGfYPst2Cb_3foo16example_function"), "foo::example_function");
        assert_eq!(demangled("_ZN3foo3bar17h05af221e174051e9E"), "foo::bar");
    }

    #[test]
    fn a_name_that_unfolds_without_end_is_cut() {
        // Each template argument repeats all before it.
        let mut name = String::from("_Z1fI1aE");
        for _ in 0..60 {
            name = format!("_Z1fI{}S_S_E", name.get(2..).unwrap_or_default());
        }
        assert!(demangled(&name).len() <= SHOWN_BYTES + 3);
        assert_eq!(demangled(&"x".repeat(10_000)).len(), SHOWN_BYTES + 3);
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic_or_grow(name in "(_Z|_R|__Z)?[A-Za-z0-9_.$é]{0,200}") {
            prop_assert!(demangled(&name).len() <= SHOWN_BYTES + 3);
        }
    }
}
