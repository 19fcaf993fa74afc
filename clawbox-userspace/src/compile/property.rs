//! Random policies and questions: the kernel's decision on the compiled records against a second
//! reading of the language, written without any of the code it judges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawbox_common::decide::{Destination, egress};
use clawbox_common::rule::{SyntheticKey, SyntheticValue, TCP, UDP};
use clawbox_common::subject::{FileId, Incarnation, Mask, Standing, Subject};
use clawbox_common::verdict::{Reason, Verdict};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::policy::parse_str;

const NAMES: &[&str] = &[
    "a.example.com",
    "B.example.com.",
    "*.example.com",
    "**.example.com",
    "*-x.example.com",
    "q*.example.com",
    "*.s3.*.example.com",
    "q-x.example.com",
    "one",
];
const LITERALS: &[&str] = &["192.0.2.1", "10.0.0.5", "2001:4860::1", "fd00::7", "8.8.8.8"];
const LOOPBACK: &[&str] = &["127.0.0.1", "::1", "localhost", "127.8.8.8"];
const RANGES: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.5",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "::/0",
    "::/64",
    "2000::/3",
    "2001:4860::/32",
    "fd00::/8",
];
const PORTS: &[u16] = &[80, 443, 8000, 53];
const BINARIES: &[&str] = &["/bin/a", "/bin/b", "/opt/*", "/opt/**", "/bin/?", "/**"];
const PROGRAMS: &[&str] = &["/bin/a", "/bin/b", "/opt/x", "/opt/y/z", "/usr/bin/none"];
const ASKED_NAMES: &[&str] = &[
    "a.example.com",
    "A.EXAMPLE.COM.",
    "b.example.com",
    "q-x.example.com",
    "deep.a.example.com",
    "bkt.s3.eu.example.com",
    "example.com",
    "one",
    "localhost",
    "evil.test",
];
const ASKED_ADDRESSES: &[&str] = &[
    "10.0.0.5",
    "::ffff:10.0.0.5",
    "64:ff9b::a00:5",
    "2002:a00:5::",
    "::10.0.0.5",
    "10.0.7.7",
    "10.9.9.9",
    "192.0.2.1",
    "8.8.8.8",
    "2001:4860::1",
    "2001:4860::2",
    "2606:4700::1",
    "fd00::7",
    "127.0.0.1",
    "127.8.8.8",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "::1",
    "169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "224.0.0.1",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "fe80::1",
    "198.18.0.77",
];

#[derive(Clone, Debug)]
struct Written {
    host: String,
    /// `allowed_ips`; without a host these are the endpoint.
    ranges: Vec<&'static str>,
    ports: Vec<u16>,
    transport: &'static str,
    /// What stands behind it over requests: nothing, everything, or too little.
    requests: &'static str,
}

impl Written {
    fn loopback(&self) -> bool {
        LOOPBACK.contains(&self.host.as_str())
    }

    fn yaml(&self) -> String {
        let mut keys = Vec::new();
        if !self.host.is_empty() {
            keys.push(format!("host: {:?}", self.host));
        }
        if !self.ranges.is_empty() {
            keys.push(format!("allowed_ips: {:?}", self.ranges));
        }
        keys.push(format!("ports: {:?}", self.ports));
        // Request rules go over TCP alone, so they stand where the transport is not written.
        if !self.transport.is_empty() {
            keys.push(format!("transport: {}", self.transport));
        } else if !self.requests.is_empty() {
            keys.push(self.requests.to_owned());
        }
        if self.loopback() {
            keys.push("host_loopback: true".to_owned());
        }
        format!("{{ {} }}", keys.join(", "))
    }

    fn is_compiled(&self) -> bool {
        !self.transport.is_empty() || !self.requests.contains("GET")
    }
}

#[derive(Clone, Debug)]
struct Group {
    endpoints: Vec<Written>,
    /// Pattern, and whether descendants are admitted.
    binaries: Vec<(&'static str, bool)>,
}

#[derive(Clone, Debug)]
struct Asked {
    program: &'static str,
    ancestors: Vec<&'static str>,
    name: Option<&'static str>,
    /// Dialled, or what the name resolves to.
    address: &'static str,
    port: u16,
    transport: u8,
}

fn written() -> impl Strategy<Value = Written> {
    let host = prop_oneof![
        5 => select(NAMES).prop_map(|host| (host.to_owned(), false)),
        2 => select(NAMES).prop_map(|host| (host.to_owned(), true)),
        2 => select(LITERALS).prop_map(|host| (host.to_owned(), false)),
        1 => select(LOOPBACK).prop_map(|host| (host.to_owned(), false)),
        2 => Just((String::new(), true)),
    ];
    (
        host,
        subsequence(RANGES, 1..4),
        subsequence(PORTS, 1..3),
        select(&["", "", "tcp", "udp", "any"][..]),
        select(
            &[
                "",
                "access: full",
                "rules: [{ allow: { method: \"*\", path: \"/**\" } }]",
                "rules: [{ allow: { method: GET, path: \"/**\" } }]",
            ][..],
        ),
    )
        .prop_map(|((host, ranged), ranges, ports, transport, requests)| Written {
            host,
            ranges: if ranged { ranges } else { Vec::new() },
            ports,
            transport,
            requests,
        })
}

fn group() -> impl Strategy<Value = Group> {
    (
        prop::collection::vec(written(), 1..5),
        prop::collection::vec((select(BINARIES), any::<bool>()), 0..4),
    )
        .prop_map(|(endpoints, binaries)| Group { endpoints, binaries })
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        select(PROGRAMS),
        prop::collection::vec(select(PROGRAMS), 0..3),
        prop::option::of(select(ASKED_NAMES)),
        select(ASKED_ADDRESSES),
        select(PORTS),
        select(&[TCP, UDP][..]),
    )
        .prop_map(|(program, ancestors, name, address, port, transport)| Asked {
            program,
            ancestors,
            name,
            address,
            port,
            transport,
        })
}

fn yaml(groups: &[Group]) -> String {
    let mut text = String::from("version: 1\nnetwork_policies:\n");
    for (index, group) in groups.iter().enumerate() {
        text.push_str(&format!("  g{index}:\n    endpoints:\n"));
        for endpoint in &group.endpoints {
            text.push_str(&format!("      - {}\n", endpoint.yaml()));
        }
        text.push_str("    binaries:\n");
        for (path, tree) in &group.binaries {
            let matching = if *tree { "tree" } else { "self" };
            text.push_str(&format!("      - {{ path: {path:?}, match: {matching} }}\n"));
        }
        if group.binaries.is_empty() {
            text.push_str("      []\n");
        }
    }
    text
}

/// The second reading of the language.
mod naive {
    use super::*;

    /// Labels from the front, by recursion.
    fn labels_match(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), Some((_, names))) => {
                labels_match(rest, names) || labels_match(pattern, names)
            }
            (Some((first, rest)), Some((label, names))) => {
                text_matches(first, label) && labels_match(rest, names)
            }
            _ => false,
        }
    }

    /// `*` is any text, by trying every split.
    fn text_matches(pattern: &str, text: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == text,
            Some((front, back)) => text
                .strip_prefix(front)
                .is_some_and(|rest| (0..=rest.len()).any(|at| text_matches(back, &rest[at..]))),
        }
    }

    pub(super) fn name_matches(pattern: &str, name: &str) -> bool {
        let plain = |text: &str| text.trim_end_matches('.').to_lowercase();
        let (pattern, name) = (plain(pattern), plain(name));
        labels_match(&pattern.split('.').collect::<Vec<_>>(), &name.split('.').collect::<Vec<_>>())
    }

    pub(super) fn path_matches(pattern: &str, path: &str) -> bool {
        match pattern {
            "/**" => true,
            "/opt/**" => path.starts_with("/opt/"),
            "/opt/*" => path.starts_with("/opt/") && path.matches('/').count() == 2,
            "/bin/?" => path.starts_with("/bin/") && path.len() == 6,
            exact => exact == path,
        }
    }

    /// The address that a packet really goes to, whatever form it is written in.
    pub(super) fn plain(address: IpAddr) -> IpAddr {
        let IpAddr::V6(v6) = address else {
            return address;
        };
        let s = v6.segments();
        let low = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
        match s {
            [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => low.into(),
            [0x2002, high, next, ..] => {
                Ipv4Addr::from((u32::from(high) << 16) | u32::from(next)).into()
            }
            [0, 0, 0, 0, 0, 0, _, _] if v6 != Ipv6Addr::LOCALHOST && !v6.is_unspecified() => {
                low.into()
            }
            _ => address,
        }
    }

    pub(super) fn never(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                v4.octets()[0] == 0
                    || v4.octets()[0] >= 224
                    || v4.is_link_local()
                    || (v4.octets()[0] == 198 && v4.octets()[1] & 0xfe == 18)
            }
            IpAddr::V6(v6) => {
                v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()
            }
        }
    }

    fn internal(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.is_private() || v4.is_documentation(),
            IpAddr::V6(v6) => v6.is_unique_local(),
        }
    }

    pub(super) fn within(range: &str, address: IpAddr) -> bool {
        let (network, length) = match range.split_once('/') {
            Some((network, length)) => (network, length.parse::<u32>().unwrap()),
            None => (range, 128),
        };
        match (network.parse::<IpAddr>().unwrap(), address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - length.min(32);
                let bits = |a: Ipv4Addr| u64::from(u32::from(a)) >> shift;
                bits(network) == bits(address)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let bits = |a: Ipv6Addr| u128::from(a).checked_shr(128 - length).unwrap_or(0);
                bits(network) == bits(address)
            }
            _ => false,
        }
    }

    /// Whether a name under this endpoint may stand for this address.
    pub(super) fn stands_for(endpoint: &Written, address: IpAddr) -> bool {
        if never(address) || address.is_loopback() {
            return false;
        }
        if !endpoint.ranges.is_empty() {
            return endpoint.ranges.iter().any(|range| within(range, address));
        }
        !internal(address) || !endpoint.host.contains('*')
    }

    fn is_name(endpoint: &Written) -> bool {
        !endpoint.host.is_empty()
            && !endpoint.loopback()
            && endpoint.host.parse::<IpAddr>().is_err()
    }

    /// Whether an endpoint is what the question asks for.
    fn is_target(endpoint: &Written, asked: &Asked) -> bool {
        let address = plain(asked.address.parse().unwrap());
        if let Some(name) = asked.name {
            return is_name(endpoint)
                && name_matches(&endpoint.host, name)
                && stands_for(endpoint, address);
        }
        if never(address) || is_name(endpoint) {
            return false;
        }
        // What only carries a loopback address leaves the host.
        let written: IpAddr = asked.address.parse().unwrap();
        if address.is_loopback() && !written.to_canonical().is_loopback() {
            return false;
        }
        if address.is_loopback() != endpoint.loopback() {
            return false;
        }
        match endpoint.host.as_str() {
            "" => endpoint.ranges.iter().any(|range| within(range, address)),
            "localhost" => ["127.0.0.1", "::1"].iter().any(|own| within(own, address)),
            literal => literal.parse::<IpAddr>().unwrap() == address,
        }
    }

    pub(super) fn admits(group: &Group, endpoint: &Written, asked: &Asked) -> bool {
        let transport = match endpoint.transport {
            "" | "tcp" => asked.transport == TCP,
            "udp" => asked.transport == UDP,
            _ => true,
        };
        endpoint.is_compiled()
            && transport
            && endpoint.ports.contains(&asked.port)
            && is_target(endpoint, asked)
            && group.binaries.iter().any(|(path, tree)| {
                *path == "/**"
                    || path_matches(path, asked.program)
                    || (*tree && asked.ancestors.iter().any(|up| path_matches(path, up)))
            })
    }

    /// The patterns that a name matches, each with its ranges.
    pub(super) fn patterns(groups: &[Group], name: &str) -> usize {
        let mut found: Vec<(String, Vec<&str>)> = groups
            .iter()
            .filter(|group| !group.binaries.is_empty())
            .flat_map(|group| &group.endpoints)
            .filter(|e| e.is_compiled() && is_name(e) && name_matches(&e.host, name))
            .map(|e| (e.host.trim_end_matches('.').to_lowercase(), e.ranges.clone()))
            .collect();
        found.sort();
        found.dedup();
        found.len()
    }

    pub(super) fn verdict(groups: &[Group], asked: &Asked) -> bool {
        if asked.port == 53 && asked.name.is_none() {
            return true;
        }
        if let Some(name) = asked.name
            && patterns(groups, name) > PATTERNS_PER_HOST
        {
            return false;
        }
        let some = |group: &Group| group.endpoints.iter().any(|e| admits(group, e, asked));
        groups.iter().any(some)
    }

    /// How many distinct ranges and literals lie around one of them, at most.
    pub(super) fn deepest(groups: &[Group]) -> usize {
        let mut nets: Vec<String> = groups
            .iter()
            .filter(|group| !group.binaries.is_empty())
            .flat_map(|group| &group.endpoints)
            .filter(|endpoint| endpoint.is_compiled() && !is_name(endpoint))
            .flat_map(|endpoint| match endpoint.host.as_str() {
                "" => endpoint.ranges.iter().map(|r| (*r).to_owned()).collect(),
                "localhost" => vec!["127.0.0.1".to_owned(), "::1".to_owned()],
                literal => vec![literal.to_owned()],
            })
            .collect();
        nets.sort();
        nets.dedup();
        let length = |net: &str| net.split_once('/').map_or(128, |(_, l)| l.parse().unwrap());
        let first =
            |net: &str| -> IpAddr { net.split_once('/').map_or(net, |(n, _)| n).parse().unwrap() };
        let around = |inner: &String| {
            let holds =
                |outer: &&String| length(outer) <= length(inner) && within(outer, first(inner));
            nets.iter().filter(holds).count()
        };
        nets.iter().map(around).max().unwrap_or(0)
    }
}

fn mask(image: &MapImage, programs: &[&str]) -> Mask {
    let mut mask = Mask::EMPTY;
    for (slot, binary) in image.binaries.iter().enumerate() {
        // The matching itself is tested by tables; here by the second reading.
        let text = binary.pattern.as_str();
        if programs.iter().any(|p| naive::path_matches(text, p)) {
            mask.insert(slot);
        }
    }
    mask
}

/// Answers as the resolver and then the hook would.
fn decide(image: &MapImage, asked: &Asked) -> (bool, Option<(String, usize)>) {
    let real: IpAddr = asked.address.parse().unwrap();
    let mut lookup = ImageLookup::new(image, 9);
    let mut address = wire(real);
    if let Some(name) = asked.name {
        let Ok(Some(rule)) = image.name(name) else {
            return (false, None);
        };
        let Some(hosts) = rule.hosts_for(real) else {
            return (false, None);
        };
        let synthetic = if wire(real).is_v4() { "198.18.3.4" } else { "fd63:6c61:7762:6f78::4" };
        address = wire(synthetic.parse().unwrap());
        let key = SyntheticKey { sandbox: 9, policy: image.generation(), address };
        let value = SyntheticValue { real: wire(real), hosts, name: 1 };
        lookup.synthetics.insert(key, value);
        if asked.port == 53 {
            (lookup.state.resolver_v4, lookup.state.resolver_v6) = (0, 0);
        }
    }
    let mut up = asked.ancestors.clone();
    up.push(asked.program);
    let subject = Subject {
        sandbox: 9,
        is_script: 0,
        kind: 0,
        exe: FileId::default(),
        own: mask(image, &[asked.program]),
        lineage: mask(image, &up),
        incarnation: Incarnation::default(),
    };
    let to =
        Destination { address, port: asked.port, transport: asked.transport, zero: 0, receiver: 0 };
    let decision = egress(&lookup, &Standing::Subject(&subject), &to);
    let allowed = decision.verdict == Verdict::Allow;
    if !(allowed && decision.reason == Reason::Rule) {
        return (allowed, None);
    }
    let rule = image.attribute(
        decision.host,
        to.port,
        to.transport,
        decision.matched_word,
        decision.matched,
    );
    let rule = rule.expect("an allow by rule names its rule");
    (true, Some((rule.policy_key.to_owned(), rule.endpoint)))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_compiled_decision_is_the_policys(
        groups in prop::collection::vec(group(), 1..5),
        questions in prop::collection::vec(asked(), 24),
    ) {
        let text = yaml(&groups);
        let loaded = parse_str("p.yaml", &text)
            .map_err(|all| TestCaseError::fail(format!("{all:#?}\n{text}")))?;
        let image = match compile(&loaded.policy, 7) {
            Ok(image) => image,
            Err(all) => {
                prop_assert!(naive::deepest(&groups) > PATTERNS_PER_HOST, "{all:#?}\n{text}");
                return Ok(());
            }
        };
        prop_assert!(naive::deepest(&groups) <= PATTERNS_PER_HOST, "{text}");
        for asked in &questions {
            let (allowed, rule) = decide(&image, asked);
            let expected = if asked.name.is_some() && asked.port == 53 {
                false
            } else {
                naive::verdict(&groups, asked)
            };
            prop_assert_eq!(allowed, expected, "{:?}\n{}\n{}", asked, text, image);
            if let Some((key, endpoint)) = rule {
                let group = &groups[key[1..].parse::<usize>().unwrap()];
                let endpoint = &group.endpoints[endpoint];
                prop_assert!(naive::admits(group, endpoint, asked), "{asked:?}\n{key}\n{text}");
            }
        }
    }
}
