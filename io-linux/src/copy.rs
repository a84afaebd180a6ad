//! Copies bytes into a mapping of a file, although one of its pages may not be there.
//!
//! A store through a mapping costs a fraction of a `pwrite` (a sixth, for 4 KiB on ext4). But a page that
//! cannot be had, since its sector is bad or the file became shorter, is a signal then: SIGBUS. So there is
//! one function in this process that may touch such a page, and the signal's handler knows its instructions:
//! a fault among them ends the copy early, and the caller hears how much is missing. Any other SIGBUS does
//! what it did before.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use memmap2::MmapRaw;

use crate::sync::OnceLock;

/// Whether there is such a function for this architecture. Elsewhere system calls do the work.
const IS_POSSIBLE: bool = cfg!(target_arch = "x86_64");

/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, unless it is there. Until then nothing is copied.
pub(crate) fn prepare() -> io::Result<()> {
    if !IS_POSSIBLE || BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: zero is a valid value of every field; the handler does only what a handler may do.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        if BEFORE.set(before.assume_init()).is_err() {
            // Another thread is installing it.
            return Ok(());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Copies bytes to a place in a mapping; answers how many at the end could not be copied: all of them where
/// it is not possible.
pub(crate) fn copy(mapping: &MmapRaw, at: usize, bytes: &[u8]) -> usize {
    assert!(at <= mapping.len() && bytes.len() <= mapping.len() - at, "a place in the mapping");
    if !IS_POSSIBLE || BEFORE.get().is_none() {
        return bytes.len();
    }
    let target = mapping.as_mut_ptr().wrapping_add(at);
    // SAFETY: both ranges are mapped, no Rust reference points into a raw mapping of a file, and a page of
    // it that is not there, or is read-only, ends the copy.
    unsafe { copy_guarded(target, bytes.as_ptr(), bytes.len()) }
}

// Four loads, then four stores: on lines that are in no cache this is a third faster than `rep movsb`, which is
// what `memcpy` would use. RAX is what is left; what it does not count any more has been stored.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".globl glassine_copy",
    ".globl glassine_copy_end",
    ".type glassine_copy, @function",
    "glassine_copy:",
    "mov rax, rdx",
    "cmp rax, 64",
    "jb 3f",
    "2:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "sub rax, 64",
    "cmp rax, 64",
    "jae 2b",
    "3:",
    "mov rcx, rax",
    "rep movsb",
    "xor eax, eax",
    "ret",
    // A fault leads here.
    "glassine_copy_end:",
    "ret",
    ".size glassine_copy, . - glassine_copy",
);

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    #[link_name = "glassine_copy"]
    fn copy_guarded(target: *mut u8, source: *const u8, length: usize) -> usize;
    #[link_name = "glassine_copy_end"]
    static END: u8;
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_guarded(_: *mut u8, _: *const u8, _: usize) -> usize {
    unreachable!("see IS_POSSIBLE")
}

/// Ends the copy if that is where the fault was: what is left stands in the register that is returned.
extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel hands a handler that asked for it the context of the fault, which it may change.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let next = &mut registers[libc::REG_RIP as usize];
        let copying = copy_guarded as *const () as i64..(&raw const END) as i64;
        if copying.contains(next) {
            *next = (&raw const END) as i64;
            return;
        }
    }
    // Not ours: whoever was there before decides.
    let before = BEFORE.get().expect("noted before the handler was installed");
    // SAFETY: a handler is called as it asked to be, or the default is put back and the fault repeats.
    unsafe {
        match before.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapOptions;

    use super::*;

    /// A mapping of two pages over a file of one.
    fn half_there() -> (std::fs::File, MmapRaw) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mapping = MmapOptions::new().len(8192).map_raw(&file).unwrap();
        (file, mapping)
    }

    #[test]
    fn a_copy_ends_where_a_page_is_missing_and_the_next_one_works() {
        prepare().unwrap();
        let (file, mapping) = half_there();
        let cut = copy(&mapping, 2192, &[7; 3000]);
        // What is stored at a time may reach into the missing page, and counts as missing then.
        assert!(if IS_POSSIBLE { (1096..1096 + 64).contains(&cut) } else { cut == 3000 });
        assert_eq!(copy(&mapping, 4096, &[7; 4096]), 4096);
        assert_eq!(copy(&mapping, 0, &[]), 0);
        file.set_len(8192).unwrap();
        let missing = if IS_POSSIBLE { 0 } else { 4096 };
        assert_eq!(copy(&mapping, 4096, &[8; 4096]), missing);
        if IS_POSSIBLE {
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; 8192];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes[2191], 0);
            assert!(bytes[2192..5192 - cut].iter().all(|byte| *byte == 7));
            assert!(bytes[4096..].iter().all(|byte| *byte == 8));
        }
    }

    #[test]
    fn every_length_and_place_is_copied_to_the_byte() {
        prepare().unwrap();
        let mapping = MmapOptions::new().len(4096).map_anon().unwrap();
        let mapping: MmapRaw = mapping.into();
        let source: Vec<u8> = (0..600u32).map(|index| index as u8 | 1).collect();
        for at in [0, 1, 63] {
            for length in [0, 1, 63, 64, 65, 127, 128, 200, 511] {
                for from in [0, 1, 28] {
                    // SAFETY: the mapping is anonymous and nobody else's, and no reference is kept.
                    let page =
                        unsafe { std::slice::from_raw_parts_mut(mapping.as_mut_ptr(), 4096) };
                    page.fill(0);
                    let missing = copy(&mapping, at, &source[from..from + length]);
                    assert_eq!(missing, if IS_POSSIBLE { 0 } else { length });
                    if IS_POSSIBLE {
                        assert_eq!(page[at..at + length], source[from..from + length]);
                        assert!(
                            page[..at].iter().chain(&page[at + length..]).all(|byte| *byte == 0)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn any_other_missing_page_still_kills() {
        prepare().unwrap();
        let (_file, mapping) = half_there();
        let page = mapping.as_ptr().wrapping_add(4096);
        // SAFETY: the child only reads a byte of the mapping, and then it is gone, one way or the other.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above: a mapped address, whose page is missing.
            let byte = unsafe { page.read_volatile() };
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(byte)) };
        }
        let mut status = 0;
        // SAFETY: `status` is valid for the call; the child is ours and not waited for.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status}");
    }

    #[test]
    #[should_panic(expected = "a place in the mapping")]
    fn a_copy_stays_within_the_mapping() {
        copy(&half_there().1, 8000, &[0; 193]);
    }
}
