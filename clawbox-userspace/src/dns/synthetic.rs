//! The synthetic addresses of one sandbox: one for each pair of name and real address.
//! An address is in the kernel's table before anyone is told of it, and for as long as it counts.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use clawbox_common::address::{SYNTHETIC_V4, SYNTHETIC_V4_PREFIX, SYNTHETIC_V6};
use clawbox_common::limits::{
    SYNTHETICS, SYNTHETICS_FOR_EACH, SYNTHETICS_PER_SANDBOX, SYNTHETICS_RESERVED,
};
use clawbox_common::rule::{HostIds, SyntheticKey, SyntheticValue};
use tokio::time::Instant;
use tracing::warn;

use super::ADDRESSES_PER_ANSWER;
use super::admission::address_of;
use super::contract::SyntheticTable;
use super::names::NameTable;
use crate::policy::address::readable;

/// How long an address outlives the TTL it was answered with.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// Addresses of an answer that are compared one with the other.
const FEW: usize = 8;

/// The longest TTL that an address was answered with.
const LONGEST: Duration = Duration::from_secs(300);

/// The last index in the IPv4 range; neither the network nor its last address is handed out.
const LAST_V4: u32 = (1 << (32 - SYNTHETIC_V4_PREFIX)) - 2;

/// What the policy grants a name, as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) hosts: HostIds,
    pub(super) policy: u32,
}

/// Why no addresses were handed out.
#[derive(Debug)]
pub(super) enum Refused {
    /// The sandbox holds as many as it may.
    Full,
    /// The kernel's table did not take one.
    Table(io::Error),
}

/// A name and one of its real addresses. The family of the real address is that of the
/// synthetic one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Destination {
    name: u32,
    real: IpAddr,
}

#[derive(Debug)]
struct Entry {
    synthetic: IpAddr,
    grant: Grant,
    expires: Instant,
}

/// The addresses that one sandbox holds.
pub(super) struct Pool {
    sandbox: u32,
    table: Arc<dyn SyntheticTable>,
    names: Arc<NameTable>,
    entries: HashMap<Destination, Entry>,
    taken: HashSet<IpAddr>,
    /// What an earlier policy said of addresses that a later one has its own word on.
    outdated: Vec<SyntheticKey>,
    last_v4: u32,
    last_v6: u32,
}

impl Pool {
    pub(super) fn new(sandbox: u32, table: Arc<dyn SyntheticTable>, names: Arc<NameTable>) -> Self {
        Self {
            sandbox,
            table,
            names,
            entries: HashMap::new(),
            taken: HashSet::new(),
            outdated: Vec::new(),
            last_v4: 0,
            last_v6: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives each real address of a name its synthetic one, and returns the pairs. An address
    /// that is held already stays, and its life is extended.
    pub(super) fn hand_out(
        &mut self,
        name: &str,
        grants: &[(IpAddr, Grant)],
        ttl: Duration,
    ) -> Result<Vec<(IpAddr, IpAddr)>, Refused> {
        let number = self.names.hold(name);
        if number == 0 {
            return Err(Refused::Full);
        }
        let expires = Instant::now() + ttl + GRACE;
        let result = match self.hand_out_again(number, grants, expires) {
            Some(pairs) => Ok(pairs),
            None => self.hand_out_numbered(number, grants, expires),
        };
        self.names.release(number);
        result
    }

    /// Extends the life of what is held, where that is all there is to do: few addresses, and each as it
    /// was. Nothing else makes a question that is asked again cost more than a look.
    fn hand_out_again(
        &mut self,
        name: u32,
        grants: &[(IpAddr, Grant)],
        expires: Instant,
    ) -> Option<Vec<(IpAddr, IpAddr)>> {
        if grants.len() > FEW {
            return None;
        }
        let mut pairs = Vec::with_capacity(grants.len());
        for (place, &(real, grant)) in grants.iter().enumerate() {
            let entry = self.entries.get(&Destination { name, real })?;
            let came_before = grants[..place].iter().any(|&(before, _)| before == real);
            if entry.grant != grant || came_before {
                return None;
            }
            pairs.push((entry.synthetic, real));
        }
        for &(real, _) in grants {
            if let Some(entry) = self.entries.get_mut(&Destination { name, real }) {
                entry.expires = entry.expires.max(expires);
            }
        }
        Some(pairs)
    }

    fn hand_out_numbered(
        &mut self,
        name: u32,
        grants: &[(IpAddr, Grant)],
        expires: Instant,
    ) -> Result<Vec<(IpAddr, IpAddr)>, Refused> {
        let reals: Vec<IpAddr> = grants.iter().map(|(real, _)| *real).collect();
        let grants: HashMap<IpAddr, Grant> = grants.iter().copied().collect();
        let chosen = self.choose(name, &reals);
        let fresh = chosen.iter().filter(|d| !self.entries.contains_key(d)).count();
        if !self.has_room(fresh) {
            self.sweep();
            if !self.has_room(fresh) {
                return Err(Refused::Full);
            }
        }
        let mut added = Vec::new();
        let mut pairs = Vec::with_capacity(chosen.len());
        for destination in chosen {
            let Some(&grant) = grants.get(&destination.real) else { continue };
            match self.ensure(destination, grant, expires) {
                Ok((synthetic, is_new)) => {
                    if is_new {
                        added.push(destination);
                    }
                    pairs.push((synthetic, destination.real));
                }
                Err(error) => {
                    for destination in added {
                        self.forget(destination);
                    }
                    return Err(Refused::Table(error));
                }
            }
        }
        Ok(pairs)
    }

    /// Whether it may hold so many more: within its bound, and beyond the few that each may have, not of the
    /// room that is kept for those of others.
    fn has_room(&self, fresh: usize) -> bool {
        let own = self.entries.len() + fresh;
        let shared = (SYNTHETICS - SYNTHETICS_RESERVED) as usize;
        fresh == 0
            || own <= SYNTHETICS_FOR_EACH as usize
            || (own <= SYNTHETICS_PER_SANDBOX as usize && self.table.in_use() + fresh <= shared)
    }

    /// At most [`ADDRESSES_PER_ANSWER`] different addresses. Those that are held come first, so
    /// that a name whose server rotates a long list does not collect the whole of it.
    fn choose(&self, name: u32, reals: &[IpAddr]) -> Vec<Destination> {
        let all = reals.iter().map(|&real| Destination { name, real });
        let (held, fresh): (Vec<_>, Vec<_>) = all.partition(|d| self.entries.contains_key(d));
        let mut seen = HashSet::new();
        let distinct = held.into_iter().chain(fresh).filter(|d| seen.insert(*d));
        let mut chosen: Vec<_> = distinct.take(ADDRESSES_PER_ANSWER).collect();
        // The server's order is a preference; keep it among the chosen.
        let order: HashMap<IpAddr, usize> =
            reals.iter().enumerate().rev().map(|(i, &ip)| (ip, i)).collect();
        chosen.sort_by_key(|d| order.get(&d.real).copied());
        chosen
    }

    fn ensure(
        &mut self,
        destination: Destination,
        grant: Grant,
        expires: Instant,
    ) -> io::Result<(IpAddr, bool)> {
        if let Some(entry) = self.entries.get_mut(&destination) {
            let synthetic = entry.synthetic;
            if entry.grant != grant {
                let (key, value) = record(self.sandbox, destination, synthetic, grant);
                self.table.publish(&key, &value)?;
                if entry.grant.policy != grant.policy {
                    self.outdated.push(self::key(self.sandbox, entry.grant.policy, synthetic));
                }
                entry.grant = grant;
            }
            entry.expires = entry.expires.max(expires);
            return Ok((synthetic, false));
        }
        let synthetic = self.next(destination.real);
        let (key, value) = record(self.sandbox, destination, synthetic, grant);
        self.table.publish(&key, &value)?;
        if let Some(name) = self.names.name_of(destination.name) {
            self.names.hold(&name);
        }
        self.taken.insert(synthetic);
        let entry = Entry { synthetic, grant, expires };
        self.entries.insert(destination, entry);
        Ok((synthetic, true))
    }

    /// The next address that nobody holds, in the family of the real one. It ends: the bound of
    /// entries is far below the size of either range.
    fn next(&mut self, real: IpAddr) -> IpAddr {
        loop {
            let synthetic = if real.is_ipv4() {
                self.last_v4 = self.last_v4 % LAST_V4 + 1;
                synthetic_v4(self.last_v4)
            } else {
                self.last_v6 = self.last_v6.checked_add(1).unwrap_or(1);
                synthetic_v6(self.last_v6)
            };
            if !self.taken.contains(&synthetic) {
                return synthetic;
            }
        }
    }

    /// Withdraws what no policy in force asks for any more.
    pub(super) fn forget_outdated(&mut self) {
        for key in std::mem::take(&mut self.outdated) {
            if let Err(error) = self.table.withdraw(&key) {
                warn!(%error, "synthetic address of an earlier policy not withdrawn");
            }
        }
    }

    /// Withdraws what has expired and returns when something will next.
    pub(super) fn sweep(&mut self) -> Option<Instant> {
        self.forget_outdated();
        let now = Instant::now();
        let mut next = None;
        let mut expired = Vec::new();
        for (destination, entry) in &self.entries {
            if entry.expires <= now {
                expired.push(*destination);
            } else if next.is_none_or(|at| entry.expires < at) {
                next = Some(entry.expires);
            }
        }
        for destination in expired {
            self.forget(destination);
        }
        next
    }

    /// Judges everything that is held again, for a policy that is to come into force. What the one
    /// before said stays until [`Pool::forget_outdated`].
    pub(super) fn refresh(&mut self, mut judge: impl FnMut(&str, IpAddr) -> Option<Grant>) {
        let held: Vec<_> = self.entries.keys().copied().collect();
        for destination in held {
            let name = self.names.name_of(destination.name);
            let grant = name.and_then(|name| judge(&name, destination.real));
            let kept = grant.is_some_and(|grant| {
                self.ensure(destination, grant, Instant::now())
                    .inspect_err(|error| warn!(%error, "synthetic address not renewed"))
                    .is_ok()
            });
            if !kept {
                self.forget(destination);
            }
        }
    }

    /// Takes up what is in the kernel's table of an earlier time, with names that the table of names has
    /// again; what it has not is withdrawn.
    pub(super) fn restore(&mut self, held: &[(SyntheticKey, SyntheticValue)], policy: u32) {
        let expires = Instant::now() + LONGEST + GRACE;
        for (key, value) in held {
            let name = self.names.name_of(value.name).filter(|_| key.policy == policy);
            let Some(name) = name else {
                if let Err(error) = self.table.withdraw(key) {
                    warn!(%error, "synthetic address of an earlier time not withdrawn");
                }
                continue;
            };
            self.names.hold(&name);
            let destination = Destination { name: value.name, real: readable(value.real) };
            let synthetic = readable(key.address);
            let grant = Grant { hosts: value.hosts, policy };
            self.taken.insert(synthetic);
            self.entries.insert(destination, Entry { synthetic, grant, expires });
        }
    }

    /// Withdraws everything.
    pub(super) fn clear(&mut self) {
        let held: Vec<_> = self.entries.keys().copied().collect();
        for destination in held {
            self.forget(destination);
        }
    }

    fn forget(&mut self, destination: Destination) {
        let Some(entry) = self.entries.remove(&destination) else {
            return;
        };
        let key = key(self.sandbox, entry.grant.policy, entry.synthetic);
        if let Err(error) = self.table.withdraw(&key) {
            warn!(%error, synthetic = %entry.synthetic, "synthetic address not withdrawn");
        }
        self.taken.remove(&entry.synthetic);
        self.names.release(destination.name);
    }
}

fn key(sandbox: u32, policy: u32, synthetic: IpAddr) -> SyntheticKey {
    SyntheticKey { sandbox, policy, address: address_of(synthetic) }
}

fn record(
    sandbox: u32,
    destination: Destination,
    synthetic: IpAddr,
    grant: Grant,
) -> (SyntheticKey, SyntheticValue) {
    let value = SyntheticValue {
        real: address_of(destination.real),
        hosts: grant.hosts,
        name: destination.name,
    };
    (key(sandbox, grant.policy, synthetic), value)
}

fn synthetic_v4(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(SYNTHETIC_V4 + index).into()
}

fn synthetic_v6(index: u32) -> IpAddr {
    let [a, b] = SYNTHETIC_V6.map(|word| u128::from(u32::from_be(word)));
    Ipv6Addr::from_bits(a << 96 | b << 64 | u128::from(index)).into()
}
