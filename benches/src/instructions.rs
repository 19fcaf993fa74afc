//! Counts instructions, user's and kernel's, where the machine's clock goes forward by one for each
//! of them: QEMU's `-icount shift=0`. Such figures are the same on every host, busy or idle.

use std::arch::{asm, x86_64::_rdtsc};

use anyhow::{Context, Result, bail};

/// Turns of the loop whose length is known, and instructions in each.
const TURNS: u64 = 100_000;
const LOOP: u64 = 2;

/// The machine's clock.
fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it to programs.
    unsafe { _rdtsc() }
}

/// Instructions that `work` takes.
pub fn taken(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = now();
    work()?;
    Ok(now().wrapping_sub(began) as f64)
}

/// The least of some batches, of which each gives what it took: instructions repeat, and whatever
/// else the guest does meanwhile only adds to them.
pub fn of_batches(batches: usize, mut batch: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    // The first one fills caches.
    let counts = (0..=batches).map(&mut batch).collect::<Result<Vec<f64>>>()?;
    counts.into_iter().skip(1).min_by(f64::total_cmp).context("no batch")
}

/// Fails where the clock counts anything else, by a loop whose length is known.
pub fn prove() -> Result<()> {
    let counted = of_batches(5, |_| {
        taken(|| {
            // SAFETY: changes a register of its own and the flags.
            unsafe {
                asm!("2:", "dec {0}", "jnz 2b", inout(reg) TURNS => _, options(nomem, nostack));
            }
            Ok(())
        })
    })?;
    let known = (TURNS * LOOP) as f64;
    if !(known..known * 1.02).contains(&counted) {
        bail!(
            "this machine's clock does not count instructions ({counted} for {known}): \
             `cargo xtask bench lsm` starts one whose does"
        );
    }
    Ok(())
}
