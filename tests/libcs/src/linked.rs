//! Links programs with the archives of a C library, and takes their symbols away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::{ARCHES, run, unpacked_as, workplace};

/// How a program is linked.
pub const WAYS: [&[&str]; 2] = [&["-static", "-no-pie"], &["-static-pie", "-fPIE"]];

/// The programs that are linked.
pub const PROGRAMS: [&str; 2] = ["allocates", "prints"];

/// One program, and the same without symbols.
pub struct Pair {
    /// With its symbols.
    pub whole: Vec<u8>,
    /// Without.
    pub stripped: Vec<u8>,
}

/// Where the archives of `suite` for x86-64 lie, once they are fetched and unpacked, and the packages' version.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn archives(suite: &str) -> Result<(PathBuf, String), String> {
    let unpacked = unpacked_as(&format!("{suite}-libc6-dev"), suite, ARCHES[0], &["libc6-dev"])?;
    let version = fs::read_to_string(unpacked.join("version")).unwrap_or_default();
    Ok((unpacked.join("usr/lib").join(ARCHES[0].triplet), version))
}

/// Links `program` with the archives in `folder`, or with this machine's.
///
/// # Errors
/// What the compiler or `strip` says.
pub fn pair(program: &str, way: &[&str], folder: Option<&Path>, name: &str) -> Result<Pair, String> {
    let place = workplace().join("linked");
    fs::create_dir_all(&place).map_err(|error| error.to_string())?;
    let whole = place.join(format!("{program}-{name}{}", way.concat()));
    let stripped = whole.with_extension("stripped");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(format!("{program}.c"));
    let mut compiler = Command::new("cc");
    compiler.arg("-O2").args(way).arg(source).arg("-o").arg(&whole);
    if let Some(folder) = folder {
        // Where the start files and the archives are looked for first.
        compiler.arg(format!("-B{}/", folder.display())).arg(format!("-L{}", folder.display()));
    }
    if name == "bullseye" {
        // This machine's libgcc asks for what glibc has from 2.35 on; nothing is run.
        compiler.arg("-Wl,--defsym=_dl_find_object=0");
    }
    run(&mut compiler)?;
    run(Command::new("strip").arg(&whole).arg("-o").arg(&stripped))?;
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    Ok(Pair { whole: read(&whole)?, stripped: read(&stripped)? })
}
