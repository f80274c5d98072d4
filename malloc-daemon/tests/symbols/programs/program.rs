//! Stops itself inside nested Rust functions, one of them merged into its caller.
// SAFETY: the signature of raise(3).
unsafe extern "C" {
    fn raise(signal: i32) -> i32;
}

mod deep {
    #[inline(never)]
    pub fn innermost(count: usize) -> usize {
        // SAFETY: raise takes any number; 19 is SIGSTOP.
        count + unsafe { super::raise(19) } as usize
    }

    #[inline(always)]
    pub fn merged(count: usize) -> usize {
        std::hint::black_box(innermost(count)) + 1
    }
}

#[inline(never)]
fn outer(value: u32) -> usize {
    deep::merged(value as usize) + 1
}

fn main() {
    std::process::exit((outer(std::hint::black_box(7u32)) & 1) as i32);
}
