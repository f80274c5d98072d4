//! Makes hooks of the static probes by which glibc tells of its arenas, its heaps and its mmap threshold.

use malloc_common::depth::Depth;
use malloc_common::site::{Cookie, HeapEvent, PtRegsWord, Role};
use object::read::ReadRef;

use super::{Hook, MallocPar};
use crate::targets::decode::Machine;
use crate::targets::elf::Elf;
use crate::targets::sites::execution;
use crate::targets::usdt::{Argument, Place, UsdtProbe};

/// The probe behind a raise; its first argument is the new threshold.
const RAISE: &str = "memory_mallopt_free_dyn_thresholds";
/// The longest instruction of x86-64.
const INSTRUCTION_BYTES: u64 = 15;

/// What is hooked, and why other probes are not: a sentence each.
#[derive(Debug, Default)]
pub struct Told {
    pub hooks: Vec<Hook>,
    pub notes: Vec<String>,
}

/// The hooks of `probes`. Raises are hooked at all their places or not at all: what some places would miss is found in
/// `mp_` instead.
pub fn hooks<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    probes: &[UsdtProbe],
    mp: Option<MallocPar>,
) -> Told {
    let mut told = Told::default();
    for event in HeapEvent::ALL {
        for probe in probes.iter().filter(|probe| event.probes().contains(&probe.name.as_str())) {
            match hook(elf, machine, probe, Role::Told(event), Cookie::new(Role::Told(event))) {
                Ok(hook) => told.hooks.push(hook),
                Err(why) => told.notes.push(format!("The static probe {} is not used: {why}.", probe.name)),
            }
        }
    }
    let raises = probes.iter().filter(|probe| probe.name == RAISE);
    let raises: Result<Vec<Hook>, &str> = raises.map(|probe| raise(elf, machine, probe, mp)).collect();
    match raises {
        Ok(hooks) => told.hooks.extend(hooks),
        Err(why) => told.notes.push(format!("The static probe {RAISE} is not used: {why}.")),
    }
    told
}

/// Whether `hooks` tell of raises, so that nobody need look for them in `mp_`.
pub fn tell_of_raises(hooks: &[Hook]) -> bool {
    hooks.iter().any(|hook| hook.role == Role::Raise)
}

fn raise<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    probe: &UsdtProbe,
    mp: Option<MallocPar>,
) -> Result<Hook, &'static str> {
    let word = match probe.arguments.first() {
        Some(Ok(Argument { bytes: 8, place: Place::Register(name), .. })) => word(machine, name),
        _ => None,
    };
    let mut cookie = Cookie::new(Role::Raise).with_word(word.ok_or("the new threshold is in no register")?);
    if let Some(mp) = mp
        && let Ok(distance) = i32::try_from(i128::from(mp.vaddr) - i128::from(probe.vaddr))
    {
        cookie = cookie.with_mp(mp.layout, distance);
    }
    hook(elf, machine, probe, Role::Raise, cookie)
}

fn hook<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    probe: &UsdtProbe,
    role: Role,
    cookie: Cookie,
) -> Result<Hook, &'static str> {
    // A counter in the program's memory would have to be raised, and nothing is written there.
    if probe.semaphore.is_some() {
        return Err("it has to be switched on");
    }
    if !elf.is_code(probe.vaddr) {
        return Err("it lies in no code");
    }
    let code = elf.bytes_at(probe.vaddr, INSTRUCTION_BYTES).ok_or("its code cannot be read")?;
    let body = machine.decode(code, probe.vaddr);
    let instruction = body.first().ok_or("its code cannot be read")?;
    Ok(Hook {
        role,
        symbol: probe.name.clone(),
        offset_in_symbol: 0,
        vaddr: probe.vaddr,
        file_offset: probe.file_offset,
        cookie,
        execution: execution(machine, instruction, code),
        pushed_bytes: 0,
        depth: Depth::Sysmalloc,
    })
}

/// The word of `pt_regs` that holds the register of that assembler name, the whole of it.
fn word(machine: Machine, name: &str) -> Option<PtRegsWord> {
    const X86_64: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    match machine {
        Machine::X86_64 => {
            let register = X86_64.iter().position(|known| *known == name)?;
            PtRegsWord::x86_64(u8::try_from(register).ok()?)
        }
        Machine::Aarch64 if name == "sp" => PtRegsWord::aarch64(31),
        Machine::Aarch64 => PtRegsWord::aarch64(name.strip_prefix('x')?.parse().ok().filter(|number| *number < 31)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::fixture::{BASE, Symtab, address, libc};
    use malloc_common::site::MpLayout;

    fn probe(name: &str, arguments: &[(u8, Place)]) -> UsdtProbe {
        let vaddr = address(3);
        UsdtProbe {
            provider: "libc".to_owned(),
            name: name.to_owned(),
            vaddr,
            file_offset: vaddr - BASE,
            semaphore: None,
            arguments: arguments
                .iter()
                .map(|(bytes, place)| Ok(Argument { bytes: *bytes, signed: false, place: place.clone() }))
                .collect(),
        }
    }

    fn found(probes: &[UsdtProbe]) -> Told {
        let file = libc().bytes(Symtab::Stripped);
        let elf = Elf::parse(&*file).expect("an ELF file");
        let mp = MallocPar { vaddr: address(3) + 0x1000, layout: MpLayout::From243 };
        hooks(&elf, Machine::X86_64, probes, Some(mp))
    }

    #[test]
    fn a_raise_is_hooked_with_the_register_that_holds_the_threshold() {
        let told = found(&[probe(RAISE, &[(8, Place::Register("r14".into())), (8, Place::Register("rdx".into()))])]);
        assert_eq!(told.notes, Vec::<String>::new());
        assert!(tell_of_raises(&told.hooks));
        let cookie = told.hooks[0].cookie;
        assert_eq!((cookie.told(), cookie.word()), (Some(Role::Raise), PtRegsWord::x86_64(14)));
        assert_eq!(cookie.mp(0x1000), Some((MpLayout::From243, 0x2000)));
    }

    #[test]
    fn one_raise_whose_threshold_is_in_no_register_leaves_them_all_to_mp() {
        let good = probe(RAISE, &[(8, Place::Register("rax".into()))]);
        for place in [Place::Constant(4096), Place::Register("eax".into()), Place::Register("xmm0".into())] {
            let told = found(&[good.clone(), probe(RAISE, &[(8, place)])]);
            assert_eq!((told.hooks.len(), told.notes.len()), (0, 1));
        }
        let told = found(&[good, probe(RAISE, &[(4, Place::Register("rax".into()))])]);
        assert!(!tell_of_raises(&told.hooks));
    }

    #[test]
    fn every_place_of_an_event_is_hooked_and_what_must_be_switched_on_is_not() {
        let more = probe("memory_sbrk_more", &[]);
        let retry = probe("memory_realloc_retry", &[]);
        let gated = UsdtProbe { semaphore: Some(address(0)), ..probe("memory_heap_new", &[]) };
        let told = found(&[more.clone(), more, retry, gated, probe("memory_mallopt", &[])]);
        let roles: Vec<Role> = told.hooks.iter().map(|hook| hook.role).collect();
        let (more, retried) = (Role::Told(HeapEvent::SbrkMore), Role::Told(HeapEvent::CallRetried));
        assert_eq!(roles, [retried, more, more]);
        assert_eq!(told.notes.len(), 1);
    }

    #[test]
    fn registers_are_known_by_their_whole_names_alone() {
        assert_eq!(word(Machine::Aarch64, "x30"), PtRegsWord::aarch64(30));
        assert_eq!(word(Machine::Aarch64, "sp"), PtRegsWord::aarch64(31));
        for name in ["x31", "w3", "x", "rax"] {
            assert_eq!(word(Machine::Aarch64, name), None, "{name}");
        }
        assert_eq!(word(Machine::X86_64, "r8d"), None);
    }
}
