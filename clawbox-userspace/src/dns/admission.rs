//! Which real addresses may stand behind a name: the answer to rebinding and metadata services.
//! Forms that embed an IPv4 address are judged as that address.

use std::net::{IpAddr, Ipv4Addr};

use clawbox_common::address::{Address, Range};

use super::contract::NameRule;

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

/// Judges one address of an answer.
pub(super) fn admit(rule: &NameRule, real: IpAddr) -> Result<(), Refusal> {
    let judged = address_of(real).embedded();
    match judged.range() {
        Range::Global => Ok(()),
        Range::Special if rule.allowed_ips.is_empty() && rule.internal_allowed => Ok(()),
        Range::Special if is_listed(rule, real, judged) => Ok(()),
        Range::Special => Err(Refusal::NotNamed),
        Range::Loopback
        | Range::LinkLocal
        | Range::Unspecified
        | Range::Multicast
        | Range::Reserved
        | Range::Synthetic => Err(Refusal::Never),
    }
}

/// The address is listed as it is written, or as the IPv4 address it embeds.
fn is_listed(rule: &NameRule, real: IpAddr, judged: Address) -> bool {
    let embedded = judged
        .is_v4()
        .then(|| IpAddr::V4(Ipv4Addr::from(judged.words[3].to_ne_bytes())));
    rule.allowed_ips
        .iter()
        .any(|net| net.contains(&real) || embedded.is_some_and(|ip| net.contains(&ip)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(internal_allowed: bool, allowed_ips: &[&str]) -> NameRule {
        NameRule {
            internal_allowed,
            allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
            ..NameRule::default()
        }
    }

    fn judge(rule: &NameRule, ip: &str) -> Result<(), Refusal> {
        admit(rule, ip.parse().unwrap())
    }

    #[test]
    fn a_public_address_always_passes_and_a_forbidden_one_never() {
        for rule in [
            rule(false, &[]),
            rule(true, &[]),
            rule(true, &["0.0.0.0/0", "::/0"]),
        ] {
            assert_eq!(judge(&rule, "93.184.216.34"), Ok(()));
            assert_eq!(judge(&rule, "2606:4700::1111"), Ok(()));
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
                assert_eq!(judge(&rule, never), Err(Refusal::Never), "{never}");
            }
        }
    }

    #[test]
    fn an_internal_address_needs_an_exact_host_or_allowed_ips_which_is_the_stricter() {
        for internal in ["10.0.0.1", "100.64.0.1", "fd12::1", "64:ff9b::10.0.0.1"] {
            let refused = Err(Refusal::NotNamed);
            assert_eq!(judge(&rule(false, &[]), internal), refused, "{internal}");
            assert_eq!(judge(&rule(true, &[]), internal), Ok(()), "{internal}");
            let elsewhere = rule(true, &["192.168.0.0/16"]);
            assert_eq!(judge(&elsewhere, internal), refused, "{internal}");
        }
        let listed = rule(false, &["10.0.0.0/8"]);
        assert_eq!(judge(&listed, "10.9.9.9"), Ok(()));
        assert_eq!(judge(&listed, "::ffff:10.9.9.9"), Ok(()));
        assert_eq!(judge(&listed, "64:ff9b::10.9.9.9"), Ok(()));
        assert_eq!(judge(&listed, "93.184.216.34"), Ok(()));
    }
}
