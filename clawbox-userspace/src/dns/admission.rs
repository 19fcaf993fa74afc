//! Which real addresses may stand behind a name: the answer to rebinding and metadata services.
//! Forms that embed an IPv4 address are judged as that address.

use std::net::IpAddr;

use clawbox_common::address::{Address, Range};
use clawbox_common::rule::HostIds;

use super::contract::NamePolicy;

/// Why an address may not stand behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No policy can allow it.
    Never,
    /// A policy could allow it, and this rule does not.
    NotNamed,
}

/// The form shared with the kernel.
pub(super) fn address_of(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Address::from_octets(v6.octets()),
    }
}

/// Judges one address of an answer: the host patterns it may be reached by. `audited` is a name
/// that no rule allows and that is answered because the sandbox only records.
pub(super) fn admit(
    policy: &dyn NamePolicy,
    name: &str,
    audited: bool,
    real: IpAddr,
) -> Result<HostIds, Refusal> {
    match address_of(real).embedded().range() {
        Range::Global | Range::Special if audited => Ok(HostIds::default()),
        Range::Global | Range::Special => policy.hosts_for(name, real).ok_or(Refusal::NotNamed),
        Range::Loopback
        | Range::LinkLocal
        | Range::Unspecified
        | Range::Multicast
        | Range::Reserved
        | Range::Synthetic => Err(Refusal::Never),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::NameDecision;

    /// A policy that would allow anything if it were asked.
    struct Everything;

    impl NamePolicy for Everything {
        fn name(&self, _: &str) -> NameDecision {
            NameDecision::Allowed
        }

        fn hosts_for(&self, _: &str, _: IpAddr) -> Option<HostIds> {
            Some(HostIds::default())
        }

        fn generation(&self) -> u32 {
            1
        }
    }

    #[test]
    fn what_is_always_denied_is_refused_before_the_policy_is_asked() {
        for audited in [false, true] {
            for never in [
                "127.0.0.1",
                "169.254.169.254",
                "0.0.0.0",
                "224.0.0.1",
                "255.255.255.255",
                "198.18.0.1",
                "::1",
                "fe80::1",
                "::ffff:127.0.0.1",
                "64:ff9b::169.254.169.254",
                "2002:7f00:1::1",
                "fd00:ec2::254",
                "fd63:6c61:7762:6f78::1",
            ] {
                let judged = admit(&Everything, "a.test", audited, never.parse().unwrap());
                assert_eq!(judged, Err(Refusal::Never), "{never}");
            }
        }
    }
}
