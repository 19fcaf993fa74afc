//! The kernel's tables as ordered maps, so that `policy explain` and the tests run the very
//! function that the hooks run.

use std::collections::BTreeMap;

use clawbox_common::address::Address;
use clawbox_common::decide::Lookup;
use clawbox_common::rule::{
    ADDRESS_KEY_HEAD, AddressKey, HostIds, RuleKey, RuleValue, SandboxState, SyntheticKey,
    SyntheticValue,
};

use super::{AgentPorts, MapImage};

/// A sandbox that the agent serves in full.
const EVERYWHERE: AgentPorts =
    AgentPorts { resolver_v4: 53, resolver_v6: 53, verifier: 443, waiting: 444 };

/// One sandbox under a compiled policy.
#[derive(Clone, Debug)]
pub struct ImageLookup<'a> {
    /// The policy.
    pub image: &'a MapImage,
    /// The sandbox's number.
    pub sandbox: u32,
    /// Its state.
    pub state: SandboxState,
    /// Addresses handed out for names.
    pub synthetics: BTreeMap<SyntheticKey, SyntheticValue>,
}

impl<'a> ImageLookup<'a> {
    /// A sandbox with a resolver, and nothing resolved yet.
    #[must_use]
    pub fn new(image: &'a MapImage, sandbox: u32) -> Self {
        Self {
            image,
            sandbox,
            state: image.state(EVERYWHERE, 0, true),
            synthetics: BTreeMap::new(),
        }
    }
}

impl Lookup for ImageLookup<'_> {
    fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
        (sandbox == self.sandbox).then_some(&self.state)
    }

    fn rule(&self, key: &RuleKey) -> Option<&RuleValue> {
        self.image.rule(key)
    }

    fn synthetic(&self, key: &SyntheticKey) -> Option<&SyntheticValue> {
        self.synthetics.get(key)
    }

    fn address(&self, key: &AddressKey, bits: u32) -> Option<&HostIds> {
        (ADDRESS_KEY_HEAD..=bits).rev().find_map(|bits| {
            let prefix =
                AddressKey { address: masked(key.address, bits - ADDRESS_KEY_HEAD), ..*key };
            self.image.address(prefix, bits)
        })
    }
}

fn masked(address: Address, prefix: u32) -> Address {
    let all = u128::from_be_bytes(address.octets());
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    Address::from_octets((all & mask).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masking_keeps_the_leading_bits() {
        let all = Address::from_octets([0xff; 16]);
        for (prefix, expected) in [(0, 0), (1, 1 << 127), (96, u128::MAX << 32), (128, u128::MAX)] {
            assert_eq!(u128::from_be_bytes(masked(all, prefix).octets()), expected, "{prefix}");
        }
    }
}
