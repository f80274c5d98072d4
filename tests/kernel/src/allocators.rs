//! Brings the allocators of the distribution and musl's compiler into the target directory, without installing anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{run, write_executable};
use crate::victim::target_directory;

/// An allocator's library and how the tests must speak to it.
#[derive(Clone, Copy, Debug)]
pub struct Preloaded {
    /// As `allocator.kind` must say.
    pub kind: &'static str,
    package: &'static str,
    library: &'static str,
    /// What the portable victim is told of it.
    pub arguments: &'static [&'static str],
}

/// jemalloc 5, which brings its own operators.
pub const JEMALLOC: Preloaded = Preloaded {
    kind: "jemalloc",
    package: "libjemalloc2",
    library: "usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    arguments: &["multiply"],
};
/// gperftools, where `aligned_alloc` is another name of `memalign`.
pub const TCMALLOC: Preloaded = Preloaded {
    kind: "tcmalloc",
    package: "libtcmalloc-minimal4",
    library: "usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    arguments: &["alias", "multiply"],
};
/// mimalloc 2, whose `reallocarray` enters no counted function.
pub const MIMALLOC: Preloaded = Preloaded {
    kind: "mimalloc",
    package: "libmimalloc2.0",
    library: "usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0",
    arguments: &[],
};

impl Preloaded {
    /// Its library.
    ///
    /// # Panics
    /// If the distribution does not give it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        fetched(self.package).join(self.library)
    }
}

/// musl's compiler; what it links finds its loader in the target directory.
///
/// # Panics
/// If the distribution does not give it.
#[must_use]
pub fn musl_gcc() -> PathBuf {
    let roots = ["musl", "musl-dev", "musl-tools"].map(fetched);
    let [loader, development, tools] = &roots;
    let compiler = tools.join("musl-gcc-here");
    if !compiler.exists() {
        let specs = development.join("usr/lib/x86_64-linux-musl/musl-gcc.specs");
        let specs = if specs.exists() { specs } else { tools.join("usr/lib/x86_64-linux-musl/musl-gcc.specs") };
        let text = std::fs::read_to_string(&specs).expect("musl's specs");
        let text = text
            .replace("/usr/lib/x86_64-linux-musl", &development.join("usr/lib/x86_64-linux-musl").display().to_string())
            .replace(
                "/usr/include/x86_64-linux-musl",
                &development.join("usr/include/x86_64-linux-musl").display().to_string(),
            )
            .replace("/lib/ld-musl-x86_64.so.1", &loader.join("lib/ld-musl-x86_64.so.1").display().to_string());
        let own = tools.join("here.specs");
        let unfinished = beside(&own);
        std::fs::write(&unfinished, text).expect("a writable directory");
        unfinished.persist(&own).expect("a writable directory");
        let script = format!("#!/bin/sh\nexec gcc \"$@\" -specs {}\n", own.display());
        let unfinished = beside(&compiler);
        write_executable(&unfinished, script.as_bytes());
        unfinished.persist(&compiler).expect("a writable directory");
    }
    compiler
}

/// What makes musl's compiler link a static executable that is bound to no address, which its own options do not.
///
/// # Panics
/// If the distribution does not give it.
#[must_use]
pub fn musl_static_pie() -> Vec<String> {
    let libraries = fetched("musl-dev").join("usr/lib/x86_64-linux-musl");
    let mut flags: Vec<_> =
        ["-static", "-fPIE", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,text"].map(str::to_owned).into();
    flags.extend(["rcrt1.o", "crti.o", "crtn.o"].map(|file| libraries.join(file).display().to_string()));
    flags
}

/// The root into which a package was unpacked, once for all tests.
fn fetched(package: &str) -> PathBuf {
    let all = target_directory().join("allocators");
    std::fs::create_dir_all(&all).expect("a directory for the packages");
    let root = all.canonicalize().expect("a directory that exists").join(package);
    if root.exists() {
        return root;
    }
    // Tests run at the same time: the first to rename wins, the others take what it made.
    let unfinished = tempfile::Builder::new().prefix(package).tempdir_in(&all).expect("a temporary directory");
    let ended = run(Command::new("apt-get").args(["download", package]).current_dir(unfinished.path()));
    let package_file = std::fs::read_dir(unfinished.path()).expect("the directory").flatten().map(|entry| entry.path());
    let package_file = package_file.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package_file = package_file
        .unwrap_or_else(|| panic!("apt-get download {package} (apt-get update may help): {}", ended.stderr));
    let unpacked = unfinished.path().join("root");
    let ended = run(Command::new("dpkg").arg("-x").arg(&package_file).arg(&unpacked));
    assert!(ended.status.success(), "dpkg -x {package}: {}", ended.stderr);
    match std::fs::rename(&unpacked, &root) {
        Ok(()) => {}
        Err(error) => assert!(root.exists(), "{package}: {error}"),
    }
    root
}

/// A name of the caller's own in the same directory, under which a file is made before it is renamed.
fn beside(path: &Path) -> tempfile::TempPath {
    let directory = path.parent().expect("a file in a directory");
    tempfile::NamedTempFile::new_in(directory).expect("a writable directory").into_temp_path()
}
