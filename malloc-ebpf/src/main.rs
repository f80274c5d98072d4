//! The programs that run in the kernel; on the host this crate only checks and lints.
#![cfg_attr(
    target_arch = "bpf",
    no_std,
    no_main,
    feature(asm_experimental_arch, core_intrinsics),
    allow(internal_features)
)]

mod arena;
mod blank;
mod call;
mod counts;
mod faults;
mod fields;
mod kernel;
mod machine;
mod maps;
mod mp;
mod process;
mod slow_path;
mod stack;
mod syscalls;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
