//! Whose socket a destination is: asked of the kernel with the tuple of the first packet, so that the
//! answer is the very socket that would get it.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
    programs::SockAddrContext,
};
use clawbox_common::{decide::Destination, rule::TCP};
use core::ffi::c_void;

use crate::maps::SOCKETS;

/// `struct bpf_sock_tuple`, uapi/linux/bpf.h, for either family. The sender's port is not known yet,
/// and no socket has a peer with port 0, so only those are found that take from everybody.
#[repr(C)]
struct Tuple4 {
    from: u32,
    to: u32,
    from_port: u16,
    to_port: u16,
}

#[repr(C)]
struct Tuple6 {
    from: [u32; 4],
    to: [u32; 4],
    from_port: u16,
    to_port: u16,
}

/// The socket that takes what is sent there; to be released.
#[inline(always)]
fn receiver(ctx: &SockAddrContext, to: &Destination) -> *mut bpf_sock {
    let at: *mut c_void = ctx.sock_addr.cast();
    let netns = BPF_F_CURRENT_NETNS as u64;
    let to_port = to.port.to_be();
    // SAFETY: the context the helpers take, and a whole tuple of the family that its size tells.
    unsafe {
        if to.address.is_v4() {
            let address = to.address.words[3];
            let mut tuple = Tuple4 { from: address, to: address, from_port: 0, to_port };
            let (tuple, size) = ((&raw mut tuple).cast(), size_of::<Tuple4>() as u32);
            look_up(at, to.transport, tuple, size, netns)
        } else {
            let address = to.address.words;
            let mut tuple = Tuple6 { from: address, to: address, from_port: 0, to_port };
            let (tuple, size) = ((&raw mut tuple).cast(), size_of::<Tuple6>() as u32);
            look_up(at, to.transport, tuple, size, netns)
        }
    }
}

/// # Safety
/// The context of this program, and a tuple of that size.
#[inline(always)]
unsafe fn look_up(
    at: *mut c_void,
    transport: u8,
    tuple: *mut bpf_sock_tuple,
    size: u32,
    netns: u64,
) -> *mut bpf_sock {
    // SAFETY: the caller's promise.
    unsafe {
        if transport == TCP {
            bpf_sk_lookup_tcp(at, tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(at, tuple, size, netns, 0)
        }
    }
}

/// The sandbox that has bound the socket which takes what is sent there; zero is none.
#[inline(always)]
pub fn owner(ctx: &SockAddrContext, to: &Destination) -> u32 {
    let socket = receiver(ctx, to);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: a socket of this program until it is released.
    unsafe {
        let kept = SOCKETS.of(socket.cast(), false);
        let owner = if kept.is_null() { 0 } else { (*kept).bound_by };
        bpf_sk_release(socket.cast());
        owner
    }
}
