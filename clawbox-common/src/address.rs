//! One form for every network address, and the ranges that are denied whatever a policy says.
//! An IPv4 address, an IPv4-mapped one and the IPv6 forms that embed one are the same address.

/// A 128-bit address; IPv4 is held IPv4-mapped. Each word is in network byte order, as socket
/// hooks see it, so that the bytes in memory are the address's bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Address {
    /// Four words in network byte order.
    pub words: [u32; 4],
}

/// Port of the name service, which is always taken to the sandbox's own resolver.
pub const DNS_PORT: u16 = 53;

/// Port that iputils' ping connects a datagram socket to, to be told which address it would send from; it
/// sends nothing there, and gives up where it may not.
pub const PING_PROBE_PORT: u16 = 1025;

/// `::ffff:0:0/96`, third word.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// The kind of an address where the kind alone can forbid it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// A public address.
    Global,
    /// Private, shared, test, benchmark or unique-local: only for a rule that names it.
    Special,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`, and the metadata alias `fd00:ec2::254`.
    LinkLocal,
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `240.0.0.0/4` with limited broadcast, `fec0::/10`, discard-only and documentation blocks.
    Reserved,
    /// Handed out by a sandbox's resolver; never on a wire.
    Synthetic,
}

/// First word of the synthetic IPv6 range `fd63:6c61:7762:6f78::/64` ("clawbox" in ASCII).
pub const SYNTHETIC_V6: [u32; 2] = [0xfd63_6c61_u32.to_be(), 0x7762_6f78_u32.to_be()];

/// The synthetic IPv4 range 198.18.0.0/15 (RFC 2544: benchmarking, never routed), host order.
pub const SYNTHETIC_V4: u32 = 0xc612_0000;
/// Its prefix length.
pub const SYNTHETIC_V4_PREFIX: u32 = 15;

/// The loopback address, host byte order, that a question to the resolver comes from when this
/// thread group asks it: `127.64.0.0/10` holds 22 bits, and `PID_MAX_LIMIT` is 2²² (threads.h).
#[inline(always)]
#[must_use]
pub const fn asker_address(tgid: u32) -> u32 {
    0x7f40_0000 | (tgid & 0x003f_ffff)
}

/// The thread group that a question came from; the inverse of [`asker_address`].
#[must_use]
#[inline(always)]
pub const fn asker_of(source: u32) -> Option<u32> {
    if source >> 22 == 0x7f40_0000 >> 22 { Some(source & 0x003f_ffff) } else { None }
}

/// The loopback address, host byte order, that a connection comes from which is taken to the agent
/// instead: `127.128.0.0/10`, with the connection's number.
#[inline(always)]
#[must_use]
pub const fn redirect_address(number: u32) -> u32 {
    0x7f80_0000 | (number & 0x003f_ffff)
}

/// The number of a connection that was taken to the agent; the inverse of [`redirect_address`].
#[must_use]
pub const fn redirect_of(source: u32) -> Option<u32> {
    if source >> 22 == 0x7f80_0000 >> 22 { Some(source & 0x003f_ffff) } else { None }
}

/// Whether the kernel programs give this address to sockets, so that nobody else may.
#[inline(always)]
#[must_use]
pub const fn is_given(source: u32) -> bool {
    asker_of(source).is_some() || redirect_of(source).is_some()
}

/// The port, host byte order, that a connection comes from which is held: known before it is made, and
/// free, because the address is the connection's alone.
pub const HELD_PORT: u16 = 4711;

impl Address {
    /// 127.0.0.1.
    pub const LOOPBACK_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// ::1.
    pub const LOOPBACK_V6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };

    /// 0.0.0.0.
    pub const UNSPECIFIED_V4: Self = Self::v4(0);
    /// `::`.
    pub const UNSPECIFIED_V6: Self = Self { words: [0; 4] };

    /// The loopback address of this address's family.
    #[inline(always)]
    #[must_use]
    pub const fn loopback(self) -> Self {
        if self.is_v4() { Self::LOOPBACK_V4 } else { Self::LOOPBACK_V6 }
    }

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(network_order: u32) -> Self {
        Self { words: [0, 0, MAPPED, network_order] }
    }

    /// From the 16 bytes of an IPv6 address.
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// The 16 bytes, IPv4 as IPv4-mapped.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        (self.words[0] | self.words[1]) == 0 && self.words[2] == MAPPED
    }

    /// Turns the IPv6 forms that only carry an IPv4 address into that address: NAT64
    /// `64:ff9b::/96` (RFC 6052), 6to4 `2002::/16` (RFC 3056), IPv4-compatible `::/96`
    /// (RFC 4291) and IPv4-translated `::ffff:0:0:0/96` (RFC 2765).
    ///
    /// The result is for judging the destination only; what goes on the wire stays as asked.
    #[inline(always)]
    #[must_use]
    pub const fn embedded(self) -> Self {
        let [a, b, c, d] = self.words;
        let host_d = u32::from_be(d);
        if a == 0x0064_ff9b_u32.to_be() && (b | c) == 0 {
            return Self::v4(d);
        }
        if u32::from_be(a) >> 16 == 0x2002 {
            return Self::v4(((u32::from_be(a) << 16) | (u32::from_be(b) >> 16)).to_be());
        }
        // `::` and `::1` are addresses of their own.
        if (a | b | c) == 0 && host_d > 1 {
            return Self::v4(d);
        }
        if (a | b) == 0 && c == 0xffff_0000_u32.to_be() {
            return Self::v4(d);
        }
        self
    }

    /// The range an address lies in. Call it on [`Address::embedded`] forms.
    #[inline(always)]
    #[must_use]
    pub const fn range(self) -> Range {
        if self.is_v4() { range_v4(u32::from_be(self.words[3])) } else { self.range_v6() }
    }

    #[inline(always)]
    const fn range_v6(self) -> Range {
        let [a, b, c, d] = self.words;
        let first = u32::from_be(a);
        let second = u32::from_be(b);
        if (a | b | c) == 0 {
            return if d == 0 { Range::Unspecified } else { Range::Loopback };
        }
        if first >> 24 == 0xff {
            return Range::Multicast;
        }
        if first >> 22 == 0xfe80 >> 6 {
            return Range::LinkLocal;
        }
        if a == SYNTHETIC_V6[0] && b == SYNTHETIC_V6[1] {
            return Range::Synthetic;
        }
        // The IPv6 name of 169.254.169.254 on one large cloud.
        if first == 0xfd00_0ec2 && (b | c) == 0 && u32::from_be(d) == 0x254 {
            return Range::LinkLocal;
        }
        if first >> 25 == 0xfc >> 1 {
            return Range::Special;
        }
        // NAT64 with a local prefix, 64:ff9b:1::/48 (RFC 8215), hides any IPv4 address.
        if first == 0x0064_ff9b && second >> 16 == 1 {
            return Range::Special;
        }
        // 2001::/23 with Teredo, 2001:db8::/32 and 3fff::/20 documentation.
        if first >> 9 == 0x2001_0000 >> 9 || first == 0x2001_0db8 || first >> 12 == 0x3fff0 {
            return Range::Special;
        }
        // Global unicast is 2000::/3 (RFC 4291); nothing outside it has a host.
        if first >> 29 == 1 { Range::Global } else { Range::Reserved }
    }
}

/// IANA's IPv4 special-purpose registry (RFC 6890 and successors), host byte order.
#[inline(always)]
const fn range_v4(a: u32) -> Range {
    let top = a >> 24;
    if top == 127 {
        return Range::Loopback;
    }
    if top == 0 {
        return Range::Unspecified;
    }
    if top >= 240 {
        return Range::Reserved;
    }
    if top >= 224 {
        return Range::Multicast;
    }
    if a >> 16 == 0xa9fe {
        return Range::LinkLocal;
    }
    if a >> (32 - SYNTHETIC_V4_PREFIX) == SYNTHETIC_V4 >> (32 - SYNTHETIC_V4_PREFIX) {
        return Range::Synthetic;
    }
    let special = top == 10
        || a >> 20 == 0xac1
        || a >> 16 == 0xc0a8
        || a >> 22 == 0x6440_0000 >> 22
        || a >> 8 == 0xc0_0000
        || a >> 8 == 0xc0_0002
        || a >> 8 == 0xc6_3364
        || a >> 8 == 0xcb_0071
        || a >> 8 == 0xc0_5863;
    if special { Range::Special } else { Range::Global }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    fn address(text: &str) -> Address {
        let ip: core::net::IpAddr = text.parse().unwrap();
        let v6: Ipv6Addr = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            core::net::IpAddr::V6(v6) => v6,
        };
        Address::from_octets(v6.octets())
    }

    #[test]
    fn every_special_range_is_recognised_in_every_spelling() {
        for (text, range) in [
            ("8.8.8.8", Range::Global),
            ("172.15.255.255", Range::Global),
            ("172.16.0.1", Range::Special),
            ("172.31.255.255", Range::Special),
            ("172.32.0.0", Range::Global),
            ("10.0.0.1", Range::Special),
            ("192.168.1.1", Range::Special),
            ("100.64.0.1", Range::Special),
            ("100.127.255.255", Range::Special),
            ("100.128.0.1", Range::Global),
            ("192.0.2.1", Range::Special),
            ("198.51.100.7", Range::Special),
            ("203.0.113.9", Range::Special),
            ("198.18.0.1", Range::Synthetic),
            ("198.19.255.255", Range::Synthetic),
            ("198.20.0.0", Range::Global),
            ("127.255.0.1", Range::Loopback),
            ("0.0.0.0", Range::Unspecified),
            ("0.1.2.3", Range::Unspecified),
            ("169.254.169.254", Range::LinkLocal),
            ("224.0.0.1", Range::Multicast),
            ("239.1.1.1", Range::Multicast),
            ("240.0.0.1", Range::Reserved),
            ("255.255.255.255", Range::Reserved),
            ("::", Range::Unspecified),
            ("::1", Range::Loopback),
            ("::ffff:127.0.0.1", Range::Loopback),
            ("::127.0.0.1", Range::Loopback),
            ("64:ff9b::127.0.0.1", Range::Loopback),
            ("64:ff9b::169.254.169.254", Range::LinkLocal),
            ("2002:7f00:0001::", Range::Loopback),
            ("2002:0a00:0001::1", Range::Special),
            ("::ffff:0:169.254.169.254", Range::LinkLocal),
            ("fe80::1", Range::LinkLocal),
            ("febf::1", Range::LinkLocal),
            ("fec0::1", Range::Reserved),
            ("fd00:ec2::254", Range::LinkLocal),
            ("fc00::1", Range::Special),
            ("fd12::1", Range::Special),
            ("fd63:6c61:7762:6f78::5", Range::Synthetic),
            ("ff02::1", Range::Multicast),
            ("2001:db8::1", Range::Special),
            ("2001::1", Range::Special),
            ("64:ff9b:1::a00:1", Range::Special),
            ("2606:4700::1111", Range::Global),
            ("100::1", Range::Reserved),
            ("4000::1", Range::Reserved),
        ] {
            assert_eq!(address(text).embedded().range(), range, "{text}");
        }
    }

    #[test]
    fn an_asker_is_told_from_its_address_and_from_no_other_loopback_address() {
        for tgid in [1, 1234, 32_768, (1 << 22) - 1] {
            assert_eq!(asker_of(asker_address(tgid)), Some(tgid));
        }
        assert_eq!(asker_of(0x7f00_0001), None);
        assert_eq!(asker_of(0x7f80_0000), None);
    }

    #[test]
    fn what_the_programs_give_to_sockets_is_told_apart_and_nothing_else_is_given() {
        for number in [0, 1, 4_194_303] {
            let source = redirect_address(number);
            assert_eq!((redirect_of(source), asker_of(source)), (Some(number), None));
            assert!(is_given(source) && is_given(asker_address(number)));
        }
        for other in [0x7f00_0001, 0x7f3f_ffff, 0x7fc0_0000, 0x7e80_0000] {
            assert!(!is_given(other), "{other:x}");
        }
    }

    #[test]
    fn octets_survive_a_round_trip() {
        for text in ["1.2.3.4", "::1", "2606:4700::1111"] {
            let a = address(text);
            assert_eq!(Address::from_octets(a.octets()), a);
        }
    }
}
