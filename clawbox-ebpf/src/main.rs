//! clawbox's kernel programs. Hooks are thin: they gather a subject and an object, call
//! `clawbox_common::decide`, report, and turn the decision into what their hook returns.
#![no_std]
#![no_main]
#![feature(core_intrinsics, asm_experimental_arch)]
#![allow(internal_features, reason = "BPF has no stable way to add atomically to a map value")]

mod allowed;
mod attached;
mod contact;
mod counter;
mod emit;
mod flow;
mod hooks;
mod kernel_read;
mod kind;
mod maps;
mod search;
mod seat;
mod share;
mod subject;
mod tally;

/// The helpers used here are open to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never reached: nothing here can panic, and the verifier refuses a program with a loop that
    // does not end, so a build in which something could panic does not load.
    loop {}
}
