//! Connections that the agent has to see first. They are taken to it, and come from an address that says
//! which they are, so that it needs to believe nobody.

use aya_ebpf::{
    helpers::generated::{bpf_bind, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use clawbox_common::{
    address::{Address, HELD_PORT, redirect_address},
    decide::{Decision, Destination, Route},
    event::Kind,
    limits::REDIRECTS,
    rule::Redirected,
    subject::{FileId, Standing, Subject},
};
use core::{
    ptr::{read_volatile, write_volatile},
    sync::atomic::{Ordering, compiler_fence},
};

use super::{
    address::{AF_INET, AF_INET6, Family, set, socket},
    route::{BOUND, NO_MEMORY},
};
use crate::{
    counter,
    emit::{self, Judged},
    maps::{REDIRECTED, SOCKETS},
};

/// Connections have had numbers up to this one, counted from [`FIRST_REDIRECT`].
static mut LAST: u64 = 0;

/// Where the numbers of this load begin. The agent puts another one here at each load: the addresses of a
/// load before may not be free yet (`TIME_WAIT`).
#[unsafe(no_mangle)]
static FIRST_REDIRECT: u32 = 0;

/// Takes a connection to the agent, and gives the reason where that cannot be; zero where it can.
#[inline(always)]
pub fn to_agent(
    ctx: &SockAddrContext,
    family: Family,
    subject: &Subject,
    to: &Destination,
    decision: &mut Decision,
) -> u32 {
    // SAFETY: a word that only this function changes.
    let count = unsafe { counter::next(&raw mut LAST) } as u32;
    // SAFETY: a reference to an initialised static; volatile, because the agent patches it.
    let first = unsafe { read_volatile(&FIRST_REDIRECT) };
    let number = if count == 0 { 0 } else { count.wrapping_add(first) & 0x003f_ffff };
    let slot = REDIRECTED.get_ptr_mut(number % REDIRECTS);
    let Some(slot) = slot.filter(|_| number != 0) else { return NO_MEMORY };
    decision.number = number;
    let is_held = matches!(decision.route, Route::Waiting);
    let port = if is_held { HELD_PORT } else { 0 };
    if !comes_from(ctx, family, redirect_address(number), port) {
        return BOUND;
    }
    if !remember(ctx, to, decision, if is_held { subject.exe } else { FileId::default() }) {
        return NO_MEMORY;
    }
    describe(slot, number, ctx, subject, to, decision);
    let agent = Address::LOOPBACK_V4;
    set(ctx.sock_addr, matches!(family, Family::V4), agent, decision.target_port as u16);
    0
}

/// Gives the socket its source. An IPv6 socket comes from the IPv4-mapped one: what only speaks IPv6
/// cannot, and is refused.
#[inline(always)]
fn comes_from(ctx: &SockAddrContext, family: Family, source: u32, port: u16) -> bool {
    let port = u32::from(port.to_be()) << 16;
    // struct sockaddr_in: family and port, address, 8 bytes of zero. struct sockaddr_in6: family and
    // port, flow, address, scope.
    let mut v4 = [AF_INET | port, source.to_be(), 0, 0];
    let mut v6 = [AF_INET6 | port, 0, 0, 0, 0xffff_u32.to_be(), source.to_be(), 0];
    // SAFETY: initialised bytes of the lengths given, and the context the helper takes.
    unsafe {
        match family {
            Family::V4 => bpf_bind(ctx.sock_addr, (&raw mut v4).cast(), 16) == 0,
            Family::V6 => bpf_bind(ctx.sock_addr, (&raw mut v6).cast(), 28) == 0,
        }
    }
}

#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    to: &Destination,
    decision: &Decision,
    held_for: FileId,
) -> bool {
    // SAFETY: the context's socket; the storage lives as long as it.
    unsafe {
        let kept = SOCKETS.of(socket(ctx), true);
        if kept.is_null() {
            return false;
        }
        let cookie = bpf_get_socket_cookie(ctx.sock_addr.cast());
        let real = (Address::LOOPBACK_V4, decision.target_port as u16);
        (*kept).connects(cookie, (to.address, to.port), real);
        (*kept).held_for = held_for;
        (*kept).names[0].policy = decision.policy;
        (*kept).names[0].value.real = decision.target;
        (*kept).names[0].value.hosts.ids = [decision.host, 0, 0, 0];
        (*kept).names[0].value.name = decision.name;
    }
    true
}

/// Writes down what the connection is, for the agent. Field by field: the whole does not fit the stack.
#[inline(always)]
fn describe(
    slot: *mut Redirected,
    number: u32,
    ctx: &SockAddrContext,
    subject: &Subject,
    to: &Destination,
    decision: &Decision,
) {
    // SAFETY: a whole value of the map. Whoever reads it meanwhile sees no number, or another one before
    // than after; x86 keeps stores in order.
    unsafe {
        write_volatile(&raw mut (*slot).number, 0);
        compiler_fence(Ordering::SeqCst);
        let event = &raw mut (*slot).event;
        let standing = Standing::Subject(subject);
        (*event).header = emit::header(Kind::Connect, &standing, Judged::by(decision));
        (*event).asked = to.address;
        (*event).real = decision.target;
        (*event).port = to.port;
        (*event).transport = to.transport;
        (*event).route = decision.route as u8;
        (*event).host = decision.host;
        (*event).matched = decision.matched;
        (*event).matched_word = decision.matched_word;
        (*event).name = decision.name;
        (*event).policy = decision.policy;
        (*event).protocol = 0;
        (*event).cookie = bpf_get_socket_cookie(ctx.sock_addr.cast());
        // Not before the rest, for the compiler either.
        compiler_fence(Ordering::SeqCst);
        write_volatile(&raw mut (*slot).number, number);
    }
}
