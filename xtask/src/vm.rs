//! Boots Debian's kernels with a real systemd as PID 1 and the installed .deb, and runs tests that need a machine of
//! their own.
mod image;
mod machine;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{dist, workspace::Workspace};

/// One machine.
pub struct Plan {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The release of Debian whose kernel it boots.
    pub suite: &'static str,
    /// Whether it is part of `cargo xtask test`.
    pub in_test: bool,
    /// More for the kernel's command line.
    pub kernel: &'static str,
    /// Test programs that run in it, one after the other, with the names of tests; none: all of the program.
    pub tests: &'static [(&'static str, &'static [&'static str])],
}

/// What every kernel must do: the installed daemon finds its probes and counts each call.
const COUNTS: (&str, &[&str]) = (
    "counting",
    &[
        "every_public_function_is_counted_once_as_the_outermost",
        "every_size_falls_into_its_bucket",
        "four_threads_lose_no_call",
        "a_call_that_never_returns_is_one_call_and_spoils_no_other",
        "what_a_depth_does_not_probe_is_null",
    ],
);

/// Each program of the kernel side is loaded as it is when stacks are taken and chains are told.
const TRACES: (&str, &[&str]) =
    ("trace", &["one_mebibyte_is_traced_from_the_call_to_the_kernel", "every_raise_is_a_line_below_its_free"]);

/// What is installed works with every kernel. The first is tried first: the others change what it looks at.
const ON_EACH: &[&str] = &[
    "the_installed_service_comes_up_with_the_machine",
    "the_installed_service_counts_each_call",
    "this_kernel_is_good_for_every_depth",
];

/// The machines. Debian has no kernel between 5.10, which lacks attach cookies, and 6.1.
const PLANS: &[Plan] = &[
    Plan {
        name: "systemd",
        suite: "trixie",
        in_test: true,
        kernel: "",
        tests: &[
            ("own_machine", ON_EACH),
            (
                "systemd",
                &[
                    "the_service_starts_reloads_crashes_and_stops_in_order",
                    "a_collector_that_hangs_is_restarted_although_answers_still_come",
                    "a_connection_to_the_shipped_socket_starts_a_service_without_network",
                ],
            ),
            ("oom", &[]),
            (
                "own_machine",
                &[
                    "a_process_that_the_machine_has_no_memory_for_is_marked_and_whole",
                    "a_suspended_machine_goes_on_counting",
                    "a_clock_set_back_a_day_and_forward_a_year_loses_nothing",
                    // Last: it takes the package off.
                    "the_documented_way_leads_from_the_package_to_an_answer_for_a_group_alone",
                ],
            ),
        ],
    },
    Plan {
        name: "oldest",
        suite: "bookworm",
        in_test: true,
        kernel: "",
        tests: &[("own_machine", ON_EACH), COUNTS, TRACES],
    },
    // Here a thread can be preempted at each instruction of a probe's program. What uprobes count stays exact; tracepoints
    // skip the programs of whom the processor is given to, and tell it as a loss.
    Plan {
        name: "newest",
        suite: "sid",
        in_test: false,
        kernel: "preempt=full",
        tests: &[("own_machine", ON_EACH), ("counting", &["four_threads_lose_no_call"]), TRACES],
    },
];

/// Everything that boots must do so within this time, on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(1500);

/// Boots the machines of these names, or all.
pub fn vm(workspace: &Workspace, names: &[String], keep_packages: bool) -> Result<()> {
    if let Some(why) = missing() {
        bail!("{why}: run `cargo xtask setup`");
    }
    if let Some(unknown) = names.iter().find(|name| PLANS.iter().all(|plan| plan.name != name.as_str())) {
        let known: Vec<_> = PLANS.iter().map(|plan| plan.name).collect();
        bail!("there is no machine {unknown:?}; there are {}", known.join(", "));
    }
    let made = workspace.target.join("dist").join(dist::deb_name(&workspace.version()?));
    let deb = if keep_packages && made.exists() { made } else { dist::dist(workspace, None)?.deb };
    boot(workspace, &deb, |plan| names.is_empty() || names.iter().any(|name| name == plan.name))
}

/// The part that belongs to every test of the tree, with the .deb that was just made.
pub fn in_test(workspace: &Workspace) -> Result<()> {
    let made = workspace.target.join("dist").join(dist::deb_name(&workspace.version()?));
    if !made.exists() {
        bail!("there is no {}: the packages could not be made", workspace.relative(&made).display());
    }
    boot(workspace, &made, |plan| plan.in_test)
}

fn boot(workspace: &Workspace, deb: &Path, wanted: impl Fn(&Plan) -> bool) -> Result<()> {
    let root = image::root(workspace, deb)?;
    let mut failed = Vec::new();
    for plan in PLANS.iter().filter(|plan| wanted(plan)) {
        let start = Instant::now();
        let kernel = image::kernel(workspace, plan.suite)?;
        println!("\n=== {}: {}", plan.name, kernel.release);
        let initrd = image::initrd(workspace, &root, deb, plan)?;
        let outcome = machine::boot(&kernel.image, &initrd, plan.kernel, PATIENCE);
        println!("=== {}: {:.0} s", plan.name, start.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            eprintln!("error: {error:#}");
            failed.push(plan.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// Why no machine can be booted here, if so.
pub fn missing() -> Option<String> {
    let tools = [("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap"), ("cpio", "cpio")];
    dist::missing_of(&tools).or_else(dist::missing)
}
