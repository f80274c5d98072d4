//! Attaches the probes of a file and takes them out again: those that a budget governs go through [`Windows`].

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use malloc_common::depth::Depth;
use malloc_common::function::Function;
use malloc_common::site::Role;

use super::files::{Attachment, Files, ProbedFile, Unattached};
use super::programs::programs;
use super::windows::{DeepProbes, Windows};
use crate::budget::{HitPrice, Prices};
use crate::collect::boot_ns;
use crate::probes::{AttachError, Attached, BLANK_VARIABLE, FileProbes, Object, Scope, attach_file, detach_all};
use crate::targets::Hook;
use crate::targets::decode::Execution;

/// How long the observer waits until links that other threads hold are closed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What governs attaching: the budget of single processes, and whether everything is switched off.
pub(super) type Switches<'a> = (Option<&'a Windows>, bool);

impl Files {
    /// Lets go of probes that count for a process that ended.
    pub fn release(&mut self, is_gone: &dyn Fn(u32) -> bool) {
        let mut links = Vec::new();
        for probed in self.probed.values_mut() {
            let gone = probed.take(|scope| matches!(scope, Scope::Process(pid) if is_gone(pid)));
            links.extend(probed.close(gone, self.windows.as_ref()).0);
        }
        detach_all(links);
    }

    /// Detaches everything and remembers it; what is asked for meanwhile is remembered, too.
    pub fn switch_off(&mut self, why: &str) {
        self.off = Some(why.to_owned());
        self.interrupted_ns = boot_ns();
        let (mut links, mut closing) = (Vec::new(), Vec::new());
        for probed in self.probed.values_mut() {
            let kept: Vec<_> = probed.attachments.iter().map(Attachment::without_links).collect();
            let all = probed.take(|_| true);
            let (own, others) = probed.close(all, self.windows.as_ref());
            links.extend(own);
            closing.extend(others);
            probed.attachments = kept;
        }
        detach_all(links);
        wait(closing);
    }

    /// Attaches everything again.
    pub fn switch_on(&mut self, object: &mut Object) {
        if self.off.take().is_none() {
            return;
        }
        for probed in self.probed.values_mut().filter(|probed| !probed.overwritten) {
            // Those for all first: what goes deeper in one process builds on them.
            let mut wanted: Vec<_> = probed.attachments.drain(..).map(|a| (a.scope, a.depth)).collect();
            wanted.sort_unstable();
            for (scope, depth) in wanted {
                let covered = probed.attached(Scope::AllProcesses).max(probed.attached(scope));
                probed.attach(object, scope, (covered, depth), (self.windows.as_ref(), false));
            }
        }
    }
}

/// Waits until links that other threads hold are closed.
fn wait(closing: Vec<Receiver<()>>) {
    let until = Instant::now() + PATIENCE;
    for closed in closing {
        // The other end is dropped when it is done.
        let _ = closed.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl Attachment {
    fn without_links(&self) -> Self {
        let Self { scope, depth, since_ns, sites, budgeted, .. } = *self;
        Self { scope, depth, since_ns, sites, budgeted, links: None, broken: self.broken.clone() }
    }
}

impl ProbedFile {
    /// Attaches what goes deeper than `depths.0`, down to `depths.1`.
    pub(super) fn attach(
        &mut self,
        object: &mut Object,
        scope: Scope,
        depths: (Depth, Depth),
        (windows, is_off): Switches<'_>,
    ) {
        let ((covered, depth), is_blank) = (depths, object.blank);
        let sites = self.hooks(covered, depth).count();
        // What a budget may detach is attached apart.
        let windows = windows.filter(|_| depth > Depth::Sysmalloc && !is_blank);
        let (budgeted, cheap) = match (scope, windows) {
            (Scope::Process(pid), Some(windows)) => (Some((pid, windows)), depth.min(Depth::Sysmalloc)),
            _ => (None, depth),
        };
        let attach = |object: &mut Object| -> Result<Option<Attached>, AttachError> {
            if is_off {
                return Ok(None);
            }
            let links = match cheap > covered {
                true => Some(attach_file(object, &self.probes(scope, covered, cheap, is_blank))?),
                false => None,
            };
            if let Some((pid, windows)) = budgeted {
                windows.probe(pid, self.deep_probes(scope, (covered.max(cheap), depth), windows.price()))?;
            }
            Ok(links)
        };
        let (links, broken) = match attach(object) {
            Ok(links) => (links, None),
            Err(error) if error.is_of_an_ended_process() => (None, Some(Unattached::Ended)),
            Err(error) => (None, Some(Unattached::Refused(error.to_string()))),
        };
        // What is not counted is not measured.
        let broken = broken.or_else(|| {
            is_blank.then(|| Unattached::Refused(format!("{BLANK_VARIABLE} is set: its probes count nothing")))
        });
        let budgeted = budgeted.is_some() && broken.is_none();
        self.attachments.push(Attachment { scope, depth, since_ns: boot_ns(), sites, links, budgeted, broken });
    }

    /// Takes out the probes that count for single processes, and waits until they are gone: others that count for all
    /// take their place.
    pub(super) fn give_way(&mut self, windows: Option<&Windows>) {
        let gone = self.take(|scope| scope != Scope::AllProcesses);
        let (links, closing) = self.close(gone, windows);
        detach_all(links);
        wait(closing);
    }

    fn take(&mut self, is_gone: impl Fn(Scope) -> bool) -> Vec<Attachment> {
        let (gone, stay) = std::mem::take(&mut self.attachments).into_iter().partition(|a| is_gone(a.scope));
        self.attachments = stay;
        gone
    }

    /// The links to be closed, and what tells when those that [`Windows`] holds are.
    fn close(&self, gone: Vec<Attachment>, windows: Option<&Windows>) -> (Vec<Attached>, Vec<Receiver<()>>) {
        let (mut links, mut closing) = (Vec::new(), Vec::new());
        for attachment in gone {
            if let (true, Scope::Process(pid), Some(windows)) = (attachment.budgeted, attachment.scope, windows) {
                closing.push(windows.forget(pid, self.file.key));
            }
            links.extend(attachment.links);
        }
        (links, closing)
    }

    fn hooks(&self, from: Depth, to: Depth) -> impl Iterator<Item = &Hook> {
        let wanted = move |hook: &&Hook| hook.depth > from && hook.depth <= to && !self.spared.contains(&hook.role);
        self.located.hooks.iter().filter(wanted)
    }

    fn probes(&self, scope: Scope, from: Depth, to: Depth, is_blank: bool) -> FileProbes {
        let mut programs = programs(self.hooks(from, to));
        if is_blank {
            let sites = programs.drain(..).flat_map(|(_, sites)| sites).collect();
            programs.push(("blank", sites));
        }
        FileProbes { file: self.file.attach_path(), programs, scope }
    }

    /// The probes of `arena` and `call`, as far as they are wanted. The busiest have a link of their own, which comes last
    /// and goes first: attaching takes half a millisecond a site, and is paid with hits of the sites that are in place.
    fn deep_probes(&self, scope: Scope, (from, to): (Depth, Depth), price: HitPrice) -> DeepProbes {
        let is_busiest = |hook: &&Hook| matches!(hook.role, Role::Call(Function::Malloc | Function::Free));
        let calls = || self.hooks(from.max(Depth::Arena), to);
        let mut call = programs(calls().filter(|hook| !is_busiest(hook)));
        call.extend(programs(calls().filter(is_busiest)));
        DeepProbes {
            key: self.file.key,
            arena: self.probes(scope, from, to.min(Depth::Arena), false),
            call: FileProbes { file: self.file.attach_path(), programs: call, scope },
            prices: self.prices(price),
        }
    }

    /// What hits of its probes cost.
    fn prices(&self, price: HitPrice) -> Prices {
        let mut prices = Prices::emulated(price);
        for hook in &self.located.hooks {
            if let (Role::Call(f), Execution::SingleStepped(_)) = (hook.role, &hook.execution) {
                prices.calls[f as usize] = price.stepped_ns;
            }
            if let (Role::Arena, Execution::SingleStepped(_)) = (hook.role, &hook.execution) {
                prices.arena = price.stepped_ns;
            }
        }
        prices
    }
}
