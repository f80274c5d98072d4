//! Every developer command: `cargo xtask <command>`.
mod bench;
mod dist;
mod ebpf;
mod fuzz;
mod run;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Everything a developer of malloc-daemon does.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring what building and testing needs: packages, rust-src, bpf-linker, cargo-deny.
    ///
    /// What is there already is left alone. Ends with one sentence for each thing it could not
    /// bring, and exit status 1 if there is one.
    Setup {
        /// Leave out what only the checks of a merge need (cargo-deny, which takes minutes to build).
        #[arg(long)]
        minimal: bool,
    },
    /// Build the eBPF object that the daemon embeds.
    ///
    /// Needs rustc 1.95.0 with rust-src, and bpf-linker; `cargo xtask setup` brings both.
    Ebpf {
        /// Write nothing: build, and compare with the committed object.
        #[arg(long, conflicts_with = "output")]
        check: bool,
        /// Build nothing: measure the committed programs on this kernel, as root, and write their budgets anew.
        #[arg(long, conflicts_with_all = ["output", "check"])]
        budgets: bool,
        /// Write the object here instead of over the committed one.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make what is shipped, in `target/dist`: a static binary in an archive, a .deb and an .rpm.
    ///
    /// Needs dpkg-deb, rpmbuild and the compiler's musl target; `cargo xtask setup` brings them.
    Dist {
        /// Also install each package into a throwaway copy of this machine's root, run what it brought, remove it.
        #[arg(long, conflicts_with = "output")]
        check: bool,
        /// Write here.
        #[arg(long, value_name = "FOLDER")]
        output: Option<PathBuf>,
    },
    /// Run the service under load for a long time, and watch memory, files, threads and losses.
    Soak {
        /// How long.
        #[arg(long, value_name = "N", default_value_t = 30)]
        minutes: u64,
        /// Watch this daemon instead of building one.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Boot virtual machines with a real systemd and the installed .deb, and run what needs a machine of its own.
    ///
    /// Needs qemu-system-x86, mmdebstrap and cpio; `cargo xtask setup` brings them. Emulated, so that it runs anywhere.
    Vm {
        /// Take the .deb that `cargo xtask dist` left in `target/dist`, if there is one.
        #[arg(long)]
        keep_packages: bool,
        /// Only the machines of these names.
        names: Vec<String>,
    },
    /// Check the rules of the tree that the compiler does not know.
    Tidy,
    /// Run every check and test that this machine can run.
    ///
    /// Ends with a table. A step that could not run is listed as `not run` with its reason and is
    /// never counted as passed; with CI=true in the environment it fails the whole.
    Test {
        /// Leave out the tests that attach probes to this machine's kernel, and so need root.
        #[arg(long)]
        no_kernel: bool,
        /// Run only the tests whose name contains this, and no other check.
        filter: Option<String>,
    },
    /// Measure what observing costs, beside other tools, and write docs/overhead.md.
    ///
    /// Needs root and a machine with nothing else to do; takes at most 16 minutes besides building the daemon.
    Bench {
        /// Fewer workloads and observers: at most 8 minutes.
        #[arg(long)]
        quick: bool,
        /// Only what the service itself takes; it implies `--dry`.
        #[arg(long)]
        service: bool,
        /// Install what is compared with, and measure nothing.
        #[arg(long)]
        setup: bool,
        /// Print the document and leave the file as it is.
        #[arg(long)]
        dry: bool,
        /// Measure this daemon instead of building one.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Fuzz the readers of hostile bytes.
    ///
    /// Needs a stable compiler and g++ alone. Without a target: all, one after the other.
    Fuzz {
        /// Which reader: the name of a folder in fuzz/seeds.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, value_name = "N", default_value_t = 5)]
        seconds: u64,
        /// Keep the smallest inputs that widen the coverage in fuzz/corpus; all are kept in target/fuzz/corpus.
        #[arg(long)]
        keep: bool,
    },
    /// Build and start the daemon, show what it answers, and keep it running until ctrl-c.
    Run {
        /// Arguments for `malloc-daemon serve`.
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Setup { minimal } => setup::setup(minimal),
        Task::Ebpf { check: true, .. } => Workspace::find().and_then(|workspace| ebpf::check(&workspace)),
        Task::Dist { check: true, .. } => Workspace::find().and_then(|workspace| dist::check(&workspace)),
        Task::Dist { check: false, output } => {
            Workspace::find().and_then(|workspace| dist::dist(&workspace, output.as_deref()).map(|_| ()))
        }
        Task::Ebpf { budgets: true, .. } => Workspace::find().and_then(|workspace| ebpf::budgets::rewrite(&workspace)),
        Task::Ebpf { output, .. } => Workspace::find().and_then(|workspace| ebpf::write(&workspace, output.as_deref())),
        Task::Soak { minutes, daemon } => {
            Workspace::find().and_then(|workspace| soak::soak(&workspace, minutes, daemon.as_deref()))
        }
        Task::Bench { quick, service, setup, dry, daemon } => {
            let selection = bench::Selection { quick, service, setup, dry: dry || service, daemon };
            Workspace::find().and_then(|workspace| bench::bench(&workspace, &selection))
        }
        Task::Vm { keep_packages, names } => {
            Workspace::find().and_then(|workspace| vm::vm(&workspace, &names, keep_packages))
        }
        Task::Tidy => Workspace::find().and_then(|workspace| tidy::tidy(&workspace)),
        Task::Test { no_kernel, filter } => {
            let selection = test::Selection { kernel: !no_kernel, filter };
            Workspace::find().and_then(|workspace| test::test(&workspace, &selection))
        }
        Task::Fuzz { target, seconds, keep } => {
            let selection = fuzz::Selection { target, seconds, keep };
            Workspace::find().and_then(|workspace| fuzz::fuzz(&workspace, &selection))
        }
        Task::Run { arguments } => Workspace::find().and_then(|workspace| run::run(&workspace, &arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
