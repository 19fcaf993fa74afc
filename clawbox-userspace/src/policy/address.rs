//! Addresses and ranges as a policy writes them, judged by the kernel's own classification.
//! An address has one spelling here; a second one would be a way around a rule.

use std::net::{IpAddr, Ipv6Addr};

use clawbox_common::address::{Address, Range};
use ipnet::IpNet;

/// The contract's form of an address, as it goes on the wire.
#[must_use]
pub fn wire(address: IpAddr) -> Address {
    Address::from_octets(match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

/// The std form of an address of the contract, IPv4-mapped ones as IPv4.
#[must_use]
pub fn readable(address: Address) -> IpAddr {
    Ipv6Addr::from(address.octets()).to_canonical()
}

/// The range an address lies in once the forms that embed an IPv4 address are undone.
#[must_use]
pub fn range_of(address: IpAddr) -> Range {
    wire(address).embedded().range()
}

/// What a range that is denied whatever a policy says is called.
#[must_use]
pub fn always_denied(range: Range) -> Option<&'static str> {
    match range {
        Range::Global | Range::Special => None,
        Range::Loopback => Some("loopback"),
        Range::LinkLocal => Some("link-local, where clouds keep their metadata service"),
        Range::Unspecified => Some("unspecified"),
        Range::Multicast => Some("multicast"),
        Range::Reserved => Some("reserved or broadcast"),
        Range::Synthetic => Some("used by clawbox for the addresses it hands out for names"),
    }
}

/// The IPv4 address that an IPv6 spelling stands for.
#[must_use]
pub fn hidden_v4(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(_) = address else { return None };
    let judged = wire(address).embedded();
    judged.is_v4().then(|| readable(judged))
}

/// Parses an address or a range; the error is what is wrong and what to write.
pub fn parse_range(written: &str) -> Result<IpNet, (String, String)> {
    let net = match (written.parse::<IpNet>(), written.parse::<IpAddr>()) {
        (Ok(net), _) => net,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            return Err((
                format!("{written:?} is neither an address nor a range"),
                "write for example 192.0.2.1 or 10.0.0.0/8".to_owned(),
            ));
        }
    };
    if net.trunc() != net {
        return Err((
            format!("{written} has bits behind its prefix"),
            format!("write {}", net.trunc()),
        ));
    }
    if hidden_v4(net.network()).is_some() {
        return Err((
            format!("{written} is an IPv6 spelling of IPv4 addresses"),
            "write the IPv4 range".to_owned(),
        ));
    }
    let (first, last) = (range_of(net.network()), range_of(net.broadcast()));
    // Ranges are aligned blocks, so one that begins and ends in a denied block lies within it.
    if let (Some(kind), true) = (always_denied(first), first == last) {
        return Err((format!("{written} is {kind}, and never reachable"), "remove it".to_owned()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_one_spelling_and_a_reachable_part() {
        for (written, says) in [
            ("10.0.0.0/8", None),
            ("10.1.2.3", None),
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("2606:4700::/32", None),
            ("10.0.0.1/8", Some("bits behind its prefix")),
            ("10.0.0.0/33", Some("neither")),
            ("example.com", Some("neither")),
            ("::ffff:10.0.0.0/104", Some("IPv6 spelling")),
            ("64:ff9b::a00:0/104", Some("IPv6 spelling")),
            ("2002::/16", Some("IPv6 spelling")),
            ("127.0.0.0/8", Some("loopback")),
            ("169.254.169.254", Some("metadata")),
            ("224.0.0.0/4", Some("multicast")),
            ("240.0.0.0/4", Some("reserved")),
            ("fe80::/10", Some("link-local")),
            ("198.18.0.0/15", Some("hands out")),
        ] {
            match (parse_range(written), says) {
                (Ok(_), None) => {}
                (Err((message, _)), Some(says)) => {
                    assert!(message.contains(says), "{written}: {message}");
                }
                (result, _) => panic!("{written}: {result:?}"),
            }
        }
    }
}
