//! What the host's own table of names opens: libc reads `/etc/hosts` by itself, past the resolver, and a
//! program connects to the address that stands there. For a name that the policy allows it may.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clawbox_common::decide::Lookup as _;
use clawbox_common::limits::PATTERNS_PER_HOST;
use clawbox_common::rule::{ADDRESS_KEY_BITS, AddressKey, HostId};
use ipnet::IpNet;

use super::{Compiled, ImageLookup, MapImage, host_ids};
use crate::policy::address::{readable, wire};
use crate::policy::network::FirstSaid;

impl MapImage {
    /// Opens the addresses of allowed names, each for the rules of its names and of the ranges around it.
    /// Where more meet than a record can hold, the address stays as it was. So it does where what is said
    /// first has to be read: that is for addresses that stand for one name.
    pub fn open_hosts<'n>(&mut self, lines: impl IntoIterator<Item = (IpAddr, &'n str)>) {
        for (address, name) in lines {
            let judged = readable(wire(address).embedded());
            let Some(named) = self.named_at(name, judged) else { continue };
            let (key, bits) = Compiled::egress_key(&IpNet::from(judged));
            let lookup = ImageLookup::new(self, 0);
            let asked = AddressKey { policy: self.generation(), ..key };
            let around = lookup.address(&asked, ADDRESS_KEY_BITS).map_or([0; _], |hosts| hosts.ids);
            let known: BTreeSet<HostId> = around.into_iter().filter(|id| *id != 0).collect();
            let new = named.into_iter().filter(|id| !known.contains(id));
            let ids: Vec<HostId> = around.into_iter().filter(|id| *id != 0).chain(new).collect();
            if ids.len() <= PATTERNS_PER_HOST {
                self.compiled_mut().addresses.insert((key, bits), host_ids(&ids));
            }
        }
    }

    /// The patterns under which a name may stand for an address, if nothing has to be read first.
    fn named_at(&self, name: &str, address: IpAddr) -> Option<Vec<HostId>> {
        let rule = self.name(&name.to_ascii_lowercase()).ok()??;
        if rule.first_said() != FirstSaid::Anything {
            return None;
        }
        let ids = rule.hosts_for(address)?.ids;
        Some(ids.into_iter().filter(|id| *id != 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clawbox_common::decide::{Destination, egress};
    use clawbox_common::rule::TCP;
    use clawbox_common::subject::Standing;
    use clawbox_common::verdict::Reason;

    use super::*;
    use crate::compile::compile;
    use crate::compile::question::subject;
    use crate::policy::parse_str;

    const LINES: [(&str, &str); 9] = [
        ("10.1.0.1", "db.test"),
        ("10.1.0.1", "other.test"),
        ("10.1.0.2", "Inner.Wild.test"),
        ("1.0.0.2", "Outer.Wild.test"),
        ("10.1.0.3", "closed.test"),
        ("10.1.0.4", "read.test"),
        ("127.0.0.1", "db.test"),
        ("169.254.169.254", "db.test"),
        ("64:ff9b::a01:5", "six.test"),
    ];

    fn opened() -> MapImage {
        let text = "version: 1\nnetwork_policies:\n  a:\n    endpoints: [\n      \
             { host: db.test, port: 5432 }, { host: \"*.wild.test\", port: 5432 },\n      \
             { host: read.test, port: 5432, sni: verify }, { host: read.test, port: 80 },\n      \
             { host: six.test, port: 5432 }]\n    binaries: [{ path: /bin/a }]\n  \
             b:\n    endpoints: [{ host: other.test, port: 5432 }, \
             { port: 22, allowed_ips: [10.1.0.0/24] }]\n    binaries: [{ path: /bin/b }]\n";
        let mut image = compile(&parse_str("p.yaml", text).unwrap().policy, 3).unwrap();
        image.open_hosts(LINES.map(|(address, name)| (address.parse().unwrap(), name)));
        image
    }

    #[test]
    fn a_line_opens_its_address_to_the_programs_and_ports_of_its_name_and_nothing_else() {
        let image = opened();
        let lookup = ImageLookup::new(&image, 1);
        for (binary, address, port, expected) in [
            ("/bin/a", "10.1.0.1", 5432, Reason::Rule),
            ("/bin/b", "10.1.0.1", 5432, Reason::Rule),
            ("/bin/a", "10.1.0.1", 5433, Reason::UnknownEndpoint),
            // The range around it is as good as before.
            ("/bin/b", "10.1.0.1", 22, Reason::Rule),
            ("/bin/b", "10.1.0.9", 22, Reason::Rule),
            ("/bin/a", "10.1.0.1", 22, Reason::OtherBinary),
            // Who owns a wildcard's zone does not write this file, but rules mean public addresses.
            ("/bin/a", "10.1.0.2", 5432, Reason::UnknownEndpoint),
            ("/bin/a", "1.0.0.2", 5432, Reason::Rule),
            ("/bin/b", "1.0.0.2", 5432, Reason::OtherBinary),
            ("/bin/a", "10.1.0.3", 5432, Reason::UnknownEndpoint),
            ("/bin/a", "10.1.0.4", 5432, Reason::UnknownEndpoint),
            ("/bin/a", "10.1.0.4", 80, Reason::UnknownEndpoint),
            ("/bin/a", "127.0.0.1", 5432, Reason::Loopback),
            ("/bin/a", "169.254.169.254", 5432, Reason::LinkLocal),
            ("/bin/a", "10.1.0.5", 5432, Reason::Rule),
        ] {
            let subject = subject(&image, Path::new(binary), &[]);
            let address = wire(address.parse().unwrap());
            let to = Destination { address, port, transport: TCP, zero: 0, receiver: 0 };
            let decision = egress(&lookup, &Standing::Subject(&subject), &to);
            assert_eq!(decision.reason, expected, "{binary} {to:?}");
        }
    }

    #[test]
    fn where_more_meet_than_fit_the_address_stays_as_it_was() {
        let names: Vec<String> = (0..5).map(|n| format!("n{n}.test")).collect();
        let endpoints: Vec<String> =
            names.iter().map(|name| format!("{{ host: {name}, port: 1 }}")).collect();
        let text = format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{}]\n    \
             binaries: [{{ path: /bin/a }}]\n",
            endpoints.join(", ")
        );
        let mut image = compile(&parse_str("p.yaml", &text).unwrap().policy, 3).unwrap();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        image.open_hosts(names.iter().map(|name| (address, name.as_str())));
        let hosts: Vec<_> = image.addresses.values().collect();
        assert_eq!(hosts, [&host_ids(&[1, 2, 3, 4])]);
    }
}
