//! A packet to the resolver, by either transport: a reply is a reply to that question, and never longer
//! than a client can take.

#![no_main]

use clawbox::dns::{Transport, refusal_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = refusal_of(packet, transport) else { continue };
        assert!(reply.len() >= 12 && reply.len() <= 4096);
        assert_eq!(reply[..2], packet[..2], "its number");
        assert_ne!(reply[2] & 0x80, 0, "it is a reply");
    }
});
