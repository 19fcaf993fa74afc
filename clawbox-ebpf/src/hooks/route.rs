//! What becomes of a connection that goes on: it goes where it was asked to, to the address behind a name,
//! to the resolver, or to the agent; and what it was asked is remembered with its socket.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_bind, bpf_get_socket_cookie},
    },
    programs::SockAddrContext,
};
use clawbox_common::{
    address::asker_address,
    decide::{Decision, Destination, Lookup as _, Route},
    rule::{SocketState, SyntheticKey},
    subject::Subject,
    verdict::Reason,
};
use core::ptr::{read_volatile, write_volatile};

use super::{
    address::{AF_INET, Family, set, socket},
    redirect,
};
use crate::maps::{KernelLookup, SOCKETS};

/// The socket has an address of its own.
pub const BOUND: u32 = Reason::BoundSocket as u32;
/// There is no memory for what has to be remembered.
pub const NO_MEMORY: u32 = Reason::NoMemory as u32;

/// Sends a connection on its way. Gives the reason where it cannot go, zero where it can. A function of
/// its own, with a part of the stack of its own; one for each family and kind of call, because the place of an
/// address in the context must not be computed ("dereference of modified ctx ptr"), and only `connect` may bind.
#[inline(never)]
pub fn go<const V4: bool, const SEND: bool>(
    at: *mut bpf_sock_addr,
    is_own_address: bool,
    subject: *const Subject,
    to: &Destination,
    decision: &mut Decision,
) -> u32 {
    if !decision.goes_on() {
        return 0;
    }
    let ctx = &SockAddrContext::new(at);
    // SAFETY: null, or a subject that the caller has.
    let subject = unsafe { subject.as_ref() };
    let sandbox = subject.map_or(0, |subject| subject.sandbox);
    match decision.route {
        Route::Direct => {
            if SEND {
                return 0;
            }
            let is_own = matches!(decision.reason, Reason::OwnListener);
            if is_own {
                return if remember_own(ctx, to, sandbox) { 0 } else { NO_MEMORY };
            }
            // SAFETY: the context's socket; the storage lives as long as it.
            unsafe {
                let kept = SOCKETS.of(socket(ctx), false);
                if !kept.is_null() {
                    connects_there(ctx, kept, to);
                }
            }
            0
        }
        Route::Real | Route::Resolver => {
            if !remember(ctx, to, decision, SEND, sandbox) {
                return NO_MEMORY;
            }
            set(at, V4, decision.target, decision.target_port as u16);
            if V4 && matches!(decision.route, Route::Resolver) && !is_own_address {
                mark_asker(at, SEND);
            }
            0
        }
        Route::Verifier | Route::Waiting => {
            let family = if V4 { Family::V4 } else { Family::V6 };
            match subject {
                // Only streams are taken there.
                Some(subject) if !SEND => redirect::to_agent(ctx, family, subject, to, decision),
                _ => NO_MEMORY,
            }
        }
    }
}

/// Remembers with the socket what it was asked to reach. False where there is no memory for it. A
/// datagram to somebody else on a connected socket is not: only the peer's answers are received.
#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    to: &Destination,
    decision: &Decision,
    is_send: bool,
    sandbox: u32,
) -> bool {
    // SAFETY: the context's socket; the storage lives as long as it.
    unsafe {
        let kept = SOCKETS.of(socket(ctx), true);
        if kept.is_null() {
            return false;
        }
        if is_send && is_connected(ctx) {
            return true;
        }
        let cookie = bpf_get_socket_cookie(ctx.sock_addr.cast());
        let real = (decision.target, decision.target_port as u16);
        (*kept).connects(cookie, (to.address, to.port), real);
        if !is_send
            && decision.name != 0
            && let Some(value) = KernelLookup.synthetic(&SyntheticKey {
                sandbox,
                policy: decision.policy,
                address: to.address,
            })
        {
            (*kept).names[0].value = *value;
            (*kept).names[0].policy = decision.policy;
        }
    }
    true
}

/// The socket goes where it was asked to.
///
/// # Safety
/// What is kept with the context's socket.
#[inline(always)]
unsafe fn connects_there(ctx: &SockAddrContext, kept: *mut SocketState, to: &Destination) {
    let there = (to.address, to.port);
    // SAFETY: the caller's promise, and the context the helper takes.
    unsafe { (*kept).connects(bpf_get_socket_cookie(ctx.sock_addr.cast()), there, there) };
}

#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context pointer of this program, and its socket, which the verifier knows.
    unsafe { read_volatile(&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).dst_port) != 0 }
}

/// Remembers that it is connected to a listener of its own sandbox: nothing tells that later.
#[inline(always)]
fn remember_own(ctx: &SockAddrContext, to: &Destination, sandbox: u32) -> bool {
    // SAFETY: as in `remember`.
    unsafe {
        let kept = SOCKETS.of(socket(ctx), true);
        if kept.is_null() {
            return false;
        }
        connects_there(ctx, kept, to);
        (*kept).receiver = sandbox;
    }
    true
}

/// Gives a question to the resolver a source address that names the asker's thread group. The
/// whole of 127.0.0.0/8 is this host, so the address is free to carry it; nothing a process does
/// can choose another one. A socket that is bound already keeps its address, and the question is
/// then recorded without its asker.
#[inline(always)]
pub fn mark_asker(at: *mut bpf_sock_addr, is_send: bool) {
    let source = asker_address((bpf_get_current_pid_tgid() >> 32) as u32);
    if is_send {
        // SAFETY: the context pointer of this program; only unconnected sends have this field.
        unsafe { write_volatile(&raw mut (*at).msg_src_ip4, source.to_be()) };
    } else {
        // struct sockaddr_in: family, port 0, address, 8 bytes of zero.
        let mut local = [AF_INET, source.to_be(), 0, 0];
        // SAFETY: 16 initialised bytes, and the context the helper takes.
        unsafe { bpf_bind(at, (&raw mut local).cast(), 16) };
    }
}
