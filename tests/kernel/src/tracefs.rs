//! Probes of the kernel's own tracing, beside the daemon's: a second witness.

use std::fs;
use std::path::{Path, PathBuf};

const TRACING: &str = "/sys/kernel/tracing";

/// Probes in an instance of tracing of their own, gone when this is dropped.
pub struct Probes {
    group: String,
    names: Vec<String>,
    instance: PathBuf,
}

impl Probes {
    /// None yet; `name` tells them from those of other tests.
    ///
    /// # Panics
    /// If tracing is not to be had.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let group = format!("malloc_tests_{name}_{}", std::process::id());
        let instance = Path::new(TRACING).join("instances").join(&group);
        fs::create_dir(&instance).unwrap_or_else(|error| panic!("{}: {error}", instance.display()));
        Probes { group, names: Vec::new(), instance }
    }

    /// One more, which notes a register.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn add(&mut self, name: &str, file: &Path, offset: u64, register: &str) {
        let line = format!("p:{}/{name} {}:{offset:#x} value=%{register}\n", self.group, file.display());
        append("uprobe_events", &line);
        self.names.push(name.to_owned());
    }

    /// Lets them note what they see from now on.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn enable(&self) {
        fs::write(self.instance.join("events").join(&self.group).join("enable"), "1").expect("tracing");
    }

    /// What they noted of one thread, in order: probe and value.
    ///
    /// # Panics
    /// If the kernel's answer is not understood.
    #[must_use]
    pub fn seen(&self, thread: u32) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.instance.join("trace")).expect("a trace");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mine = lines
            .filter(|line| line.split(" [").next().is_some_and(|who| who.trim_end().ends_with(&format!("-{thread}"))));
        mine.map(|line| {
            let (front, value) = line.rsplit_once(" value=").expect("a value");
            let name = front.split(": ").nth(1).expect("a name").to_owned();
            (name, u64::from_str_radix(value.trim_start_matches("0x"), 16).expect("a number"))
        })
        .collect()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _gone = fs::write(self.instance.join("events").join(&self.group).join("enable"), "0");
        let _gone = fs::remove_dir(&self.instance);
        for name in &self.names {
            append("uprobe_events", &format!("-:{}/{name}\n", self.group));
        }
    }
}

fn append(file: &str, line: &str) {
    use std::io::Write;
    let path = Path::new(TRACING).join(file);
    let written = fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {line:?}: {error}", path.display()));
}
