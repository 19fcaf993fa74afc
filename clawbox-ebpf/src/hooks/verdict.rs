//! What an LSM hook gives back. LLVM turns `if denied { -1 } else { 0 }` into a negation, of which
//! 6.12 forgets the range: "R0 has unknown scalar value should have been in [-4095, 0]". Read from
//! frozen .rodata, the number is known and cannot be computed with.

use core::ptr::read_volatile;

#[unsafe(no_mangle)]
static MINUS_EACCES: i64 = -13;
#[unsafe(no_mangle)]
static MINUS_EPERM: i64 = -1;

/// For files, as Landlock answers.
#[inline(always)]
pub fn eacces(goes_on: bool) -> i32 {
    // SAFETY: a reference to an initialised static.
    if goes_on { 0 } else { unsafe { read_volatile(&MINUS_EACCES) as i32 } }
}

/// For everything else.
#[inline(always)]
pub fn eperm(goes_on: bool) -> i32 {
    // SAFETY: a reference to an initialised static.
    if goes_on { 0 } else { unsafe { read_volatile(&MINUS_EPERM) as i32 } }
}
