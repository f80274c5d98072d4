//! The workloads: loops that do nothing else, and programs that people run.
use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::Place;
use crate::shell;

/// One run: CPU time and wall-clock time; of the loops nanoseconds for a pair, of the programs milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub cpu: f64,
    pub wall: f64,
}

/// Prepares the command that is measured.
pub type Prepare<'a> = &'a dyn Fn(&mut Command);

/// Something to observe.
pub struct Workload {
    pub name: &'static str,
    /// What runs, for the document.
    pub shown: &'static str,
    /// Part of a quick run.
    pub quick: bool,
    /// Runs for one of another workload: short ones have more, so that a hundredth can be told.
    pub repeats: usize,
    pub run: fn(&Place, Prepare<'_>) -> Result<Sample>,
}

/// The indices that the verdicts compare.
pub const PAIRS: usize = 0;
pub const PAIRS_OF_TWO: usize = 1;
/// From here on: programs that people run.
pub const PROGRAMS: usize = 3;
/// Programs that depth `sysmalloc` must not slow.
pub const SERVERS: [usize; 3] = [3, 4, 6];

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "malloc and free, 1 thread",
        shown: "pairs 1 90000 64",
        quick: true,
        repeats: 1,
        run: |place, prepare| pairs(place, prepare, &["1", "90000", "64"]),
    },
    Workload {
        name: "malloc and free, 2 threads",
        shown: "pairs 2 90000 64",
        quick: true,
        repeats: 1,
        run: |place, prepare| pairs(place, prepare, &["2", "90000", "64"]),
    },
    Workload {
        name: "mapped chunks of 1 MiB",
        shown: "pairs 1 4500 1048576: each is mapped, written to once and unmapped",
        quick: false,
        repeats: 1,
        run: |place, prepare| pairs(place, prepare, &["1", "4500", "1048576"]),
    },
    Workload {
        name: "sqlite3",
        shown: "sqlite3 :memory: with 60,000 rows inserted, an index, a sum",
        quick: true,
        repeats: 1,
        run: |_, prepare| program(prepare, "sqlite3", &[":memory:", SQL]),
    },
    Workload {
        name: "python3 json",
        shown: "python3 -c: 60 times json.loads(json.dumps(400 objects)), PYTHONMALLOC=malloc",
        quick: false,
        repeats: 1,
        run: |_, prepare| {
            let malloc = |command: &mut Command| {
                command.env("PYTHONMALLOC", "malloc");
                prepare(command);
            };
            program(&malloc, "/usr/bin/python3", &["-c", JSON])
        },
    },
    Workload {
        name: "cc",
        shown: "cc1 -O1 of a preprocessed file with 150 functions: the compiler itself, which `cc` starts. heaptrack \
                observes the program that it is preloaded into and none that this one starts",
        quick: true,
        repeats: 1,
        run: |place, prepare| {
            let source = place.folder.join(PREPROCESSED).display().to_string();
            let compiler = compiler()?;
            program(prepare, &compiler, &["-fpreprocessed", "-quiet", "-O1", "-o", "/dev/null", &source])
        },
    },
    Workload {
        name: "redis-server",
        shown: "redis-benchmark -n 20000 -t set,get -d 100 over a Unix socket; the server's CPU time, with the libc's \
                malloc: LD_PRELOAD=LIB comes before the allocator that distributions link it with",
        quick: true,
        repeats: 1,
        run: redis,
    },
    Workload {
        name: "20 starts",
        shown: "20 times /bin/true: what a program costs that does nothing but start",
        quick: false,
        repeats: 1,
        run: starts,
    },
];

const SQL: &str = "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where \
                   x<60000) insert into t select x, hex(randomblob(20)) from c; create index i on t(b); \
                   select sum(a) from t;";
const JSON: &str = "import json\nd=[{'id':i,'name':'n%d'%i,'tags':['a','b',str(i)]} for i in range(400)]\n\
                    for _ in range(60): json.loads(json.dumps(d))";

/// What the compiler is given.
const PREPROCESSED: &str = "generated.i";

/// A run that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds and writes what the workloads need.
pub fn prepare(place: &Place) -> Result<()> {
    let source = place.folder.join("pairs.c");
    fs::write(&source, include_str!("pairs.c")).with_context(|| format!("cannot write {}", source.display()))?;
    shell::run(Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(place.folder.join("pairs")).arg(&source))?;
    let mut text = String::from("#include <stdio.h>\n#include <string.h>\n");
    for n in 0..150 {
        text.push_str(&format!(
            "struct s{n} {{ int a[{}]; double b; }};\nint f{n}(struct s{n} *s, int n) {{ int r = 0; for (int i = 0; i < \
             n; i++) {{ r += s->a[i % {}] * (i ^ {n}); if (r > {}) r -= (int)s->b; }} return r + (int)strlen(\"f{n}\"); \
             }}\n",
            n + 1,
            n + 1,
            n * 7 + 100
        ));
    }
    let generated = place.folder.join("generated.c");
    fs::write(&generated, text).with_context(|| format!("cannot write {}", generated.display()))?;
    shell::run(Command::new("cc").args(["-E", "-o"]).arg(place.folder.join(PREPROCESSED)).arg(&generated))
}

/// The program that `cc` runs to compile.
fn compiler() -> Result<String> {
    let told = shell::capture(Command::new("cc").arg("-print-prog-name=cc1"));
    told.filter(|path| path.starts_with('/')).context("cc runs no cc1: it is not GCC")
}

fn starts(_: &Place, prepare: Prepare<'_>) -> Result<Sample> {
    let mut sum = Sample { cpu: 0.0, wall: 0.0 };
    for _ in 0..20 {
        let one = program(prepare, "/bin/true", &[])?;
        sum = Sample { cpu: sum.cpu + one.cpu, wall: sum.wall + one.wall };
    }
    Ok(sum)
}

fn pairs(place: &Place, prepare: Prepare<'_>, arguments: &[&str]) -> Result<Sample> {
    let mut command = Command::new(place.folder.join("pairs"));
    prepare(command.args(arguments).stdout(Stdio::piped()).stdin(Stdio::null()));
    let mut child = command.spawn().context("pairs does not start")?;
    wait(&mut child)?;
    let output = child.wait_with_output().context("pairs is gone")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (cpu, wall) = text.trim().split_once(' ').with_context(|| format!("pairs says {text:?}"))?;
    Ok(Sample { cpu: cpu.parse()?, wall: wall.parse()? })
}

fn program(prepare: Prepare<'_>, name: &str, arguments: &[&str]) -> Result<Sample> {
    let mut command = Command::new(name);
    prepare(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()));
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{name} does not start"))?;
    let cpu = wait(&mut child)?;
    Ok(Sample { cpu, wall: milliseconds(began.elapsed()) })
}

fn redis(place: &Place, prepare: Prepare<'_>) -> Result<Sample> {
    let socket = place.folder.join("redis.sock");
    let _ = fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"]).arg(&socket);
    prepare(command.current_dir(&place.folder).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()));
    // Behind what an observer preloads, before what the server is linked with.
    let preload = |(name, value): (&OsStr, Option<&OsStr>)| (name == "LD_PRELOAD").then_some(value?.to_owned());
    let mut preloaded = command.get_envs().find_map(preload).unwrap_or_default();
    preloaded.push(":");
    preloaded.push(&place.libc);
    command.env("LD_PRELOAD", preloaded);
    let mut server = command.spawn().context("redis-server does not start")?;
    let asked = ask_redis(&socket.display().to_string(), &mut server);
    let wall = asked.inspect_err(|_| {
        let _ = server.kill();
    });
    let cpu = wait(&mut server)?;
    Ok(Sample { cpu, wall: wall? })
}

/// Waits for the server, loads it, and tells it to stop; milliseconds of the load.
fn ask_redis(socket: &str, server: &mut Child) -> Result<f64> {
    let began = Instant::now();
    while shell::capture(Command::new("redis-cli").args(["-s", socket, "ping"])).as_deref() != Some("PONG") {
        if began.elapsed() > PATIENCE || server.try_wait()?.is_some() {
            bail!("redis-server does not answer");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let began = Instant::now();
    let mut load = Command::new("redis-benchmark");
    load.args(["-s", socket, "-n", "20000", "-t", "set,get", "-d", "100", "-q"]);
    shell::capture(&mut load).context("redis-benchmark failed")?;
    let wall = milliseconds(began.elapsed());
    // Its answer is the end of the connection.
    let _ = shell::capture(Command::new("redis-cli").args(["-s", socket, "shutdown", "nosave"]));
    Ok(wall)
}

/// Waits for a child; milliseconds of CPU time that it and the children it waited for took.
fn wait(child: &mut Child) -> Result<f64> {
    let before = children()?;
    let began = Instant::now();
    loop {
        match child.try_wait().context("it is gone")? {
            Some(status) if status.success() => return Ok(children()? - before),
            Some(status) => bail!("it ended with {status}"),
            None if began.elapsed() > PATIENCE => {
                let _ = child.kill();
                child.wait().context("it is gone")?;
                bail!("it took longer than {} s", PATIENCE.as_secs());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Milliseconds of CPU time of all children that were waited for.
fn children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the kernel tells no usage")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1000.0)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_charged_when_it_was_waited_for() {
        let mut command = Command::new("sh");
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let mut child = command.args(["-c", busy]).spawn().expect("a shell");
        assert!(wait(&mut child).expect("it ends well") > 1.0);
        let mut failing = Command::new("sh").args(["-c", "exit 3"]).spawn().expect("a shell");
        assert!(wait(&mut failing).is_err());
    }

    #[test]
    fn the_indices_name_what_the_verdicts_say() {
        assert_eq!(WORKLOADS[PAIRS].name, "malloc and free, 1 thread");
        assert_eq!(WORKLOADS[PAIRS_OF_TWO].name, "malloc and free, 2 threads");
        let loops = |workload: &Workload| workload.shown.starts_with("pairs ");
        assert_eq!(SERVERS.map(|w| WORKLOADS[w].name), ["sqlite3", "python3 json", "redis-server"]);
        assert!(WORKLOADS[..PROGRAMS].iter().all(loops) && !WORKLOADS[PROGRAMS..].iter().any(loops));
    }
}
