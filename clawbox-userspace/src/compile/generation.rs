//! A compiled policy under a generation, by which the kernel tells the entries of one policy from those of
//! another. Sandboxes under the same policy have it compiled once, each under a generation of its own.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use clawbox_common::rule::{AddressKey, HostIds, RuleKey, RuleValue, SandboxState};

use super::image::{Compiled, NO_GENERATION};

/// Ports on loopback where the agent serves a sandbox; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentPorts {
    /// Names, on 127.0.0.1.
    pub resolver_v4: u16,
    /// Names, on ::1.
    pub resolver_v6: u16,
    /// Connections that are to be verified, on 127.0.0.1.
    pub verifier: u16,
    /// Connections that wait for an answer, on 127.0.0.1.
    pub waiting: u16,
}

/// A compiled policy, and the generation that its keys have in the kernel's tables.
#[derive(Clone, Debug)]
pub struct MapImage {
    compiled: Arc<Compiled>,
    generation: u32,
}

impl Deref for MapImage {
    type Target = Compiled;

    fn deref(&self) -> &Compiled {
        &self.compiled
    }
}

/// What is compiled and in use, by a digest that tells most from each other.
static IN_USE: LazyLock<Mutex<HashMap<u64, Vec<Weak<Compiled>>>>> = LazyLock::new(Mutex::default);

impl MapImage {
    pub(super) fn new(compiled: Compiled, generation: u32) -> Self {
        Self { compiled: Arc::new(compiled), generation }
    }

    /// The policy generation in every key.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The same under another generation.
    #[must_use]
    pub fn under(&self, generation: u32) -> Self {
        Self { compiled: Arc::clone(&self.compiled), generation }
    }

    /// The same, from now on in memory once with all others that say the same.
    #[must_use]
    pub fn shared(self) -> Self {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = in_use.entry(digest(&self.compiled)).or_default();
        let found = alike.iter().filter_map(Weak::upgrade).find(|other| *other == self.compiled);
        let compiled = found.unwrap_or_else(|| {
            alike.retain(|other| other.strong_count() > 0);
            alike.push(Arc::downgrade(&self.compiled));
            Arc::clone(&self.compiled)
        });
        in_use.retain(|_, alike| alike.iter().any(|other| other.strong_count() > 0));
        Self { compiled, ..self }
    }

    /// To be changed before anybody else has it.
    pub(super) fn compiled_mut(&mut self) -> &mut Compiled {
        Arc::make_mut(&mut self.compiled)
    }

    /// The keys and values of its rules.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = (RuleKey, RuleValue)> + '_ {
        let policy = self.generation;
        self.compiled.rules.iter().map(move |(key, value)| (RuleKey { policy, ..*key }, *value))
    }

    /// The rule at a key; none under another generation.
    #[must_use]
    pub fn rule(&self, key: &RuleKey) -> Option<&RuleValue> {
        let key =
            (key.policy == self.generation).then_some(RuleKey { policy: NO_GENERATION, ..*key });
        self.compiled.rules.get(&key?)
    }

    /// The keys of its addresses, with their length in bits, and what they match.
    pub fn addresses(&self) -> impl ExactSizeIterator<Item = ((AddressKey, u32), HostIds)> + '_ {
        let policy = self.generation;
        let addresses = self.compiled.addresses.iter();
        addresses.map(move |((key, bits), hosts)| ((AddressKey { policy, ..*key }, *bits), *hosts))
    }

    /// What an address matches, by its key; nothing under another generation.
    #[must_use]
    pub fn address(&self, key: AddressKey, bits: u32) -> Option<&HostIds> {
        let is_own = key.policy == self.generation;
        let key = is_own.then_some(AddressKey { policy: NO_GENERATION, ..key })?;
        self.compiled.addresses.get(&(key, bits))
    }

    /// The state of a sandbox under this policy, given the ports of its resolver, the flags that its audit
    /// level means, and whether BPF LSM programs judge.
    #[must_use]
    pub fn state(&self, ports: AgentPorts, audit: u32, with_lsm: bool) -> SandboxState {
        let AgentPorts { resolver_v4, resolver_v6, verifier, waiting } = ports;
        SandboxState {
            policy: self.generation,
            audit_only: u32::from(self.audit_only()),
            resolver_v4,
            resolver_v6,
            verifier,
            waiting,
            flags: audit | self.flags(with_lsm),
        }
    }
}

fn digest(compiled: &Compiled) -> u64 {
    let mut hasher = DefaultHasher::new();
    compiled.rules.keys().for_each(|key| key.hash(&mut hasher));
    compiled.patterns.hash(&mut hasher);
    (compiled.addresses.len(), compiled.files.len()).hash(&mut hasher);
    hasher.finish()
}

/// A listing for people and for snapshots.
impl fmt::Display for MapImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "generation {}", self.generation)?;
        self.compiled.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::policy::parse_str;

    fn image(host: &str, generation: u32) -> MapImage {
        let text = format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: {host}, port: 443 }}]\n    \
             binaries: [{{ path: /bin/a }}]\n"
        );
        compile(&parse_str("p.yaml", &text).unwrap().policy, generation).unwrap()
    }

    #[test]
    fn policies_that_say_the_same_are_in_memory_once_and_apart_in_the_kernel() {
        let (one, same) = (image("192.0.2.1", 7).shared(), image("192.0.2.1", 8).shared());
        let other = image("192.0.2.2", 9).shared();
        assert!(Arc::ptr_eq(&one.compiled, &same.compiled));
        assert!(!Arc::ptr_eq(&one.compiled, &other.compiled));
        for (image, generation) in [(&one, 7), (&same, 8), (&other, 9)] {
            assert!(image.rules().all(|(key, _)| key.policy == generation));
            assert!(image.addresses().all(|((key, _), _)| key.policy == generation));
            let (key, value) = image.rules().next().unwrap();
            assert_eq!(image.rule(&key), Some(&value));
            assert_eq!(image.rule(&RuleKey { policy: 99, ..key }), None);
            assert_eq!(image.rule(&RuleKey { policy: NO_GENERATION, ..key }), None);
            let ((key, bits), hosts) = image.addresses().next().unwrap();
            assert_eq!(image.address(key, bits), Some(&hosts));
            assert_eq!(image.address(AddressKey { policy: 99, ..key }, bits), None);
        }
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let host = "198.51.100.77";
        let of = |image: &MapImage| digest(&image.compiled);
        let kept = image(host, 1).shared();
        let known = of(&kept);
        drop(kept);
        let _other = image("198.51.100.78", 2).shared();
        let in_use = IN_USE.lock().unwrap();
        assert!(!in_use.contains_key(&known));
    }
}
