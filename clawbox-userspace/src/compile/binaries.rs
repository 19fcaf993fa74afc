//! Which binary slots belong to one rule: of a rule's binaries one is enough.

use std::collections::BTreeMap;

use clawbox_common::rule::RuleKey;

use super::image::NO_GENERATION;
use super::{Compiled, slots};

impl Compiled {
    /// The slots of each rule that names binaries, by the rule as it is told. A rule that is for every program
    /// needs none of them.
    #[must_use]
    pub fn slots_by_rule(&self) -> BTreeMap<String, Vec<usize>> {
        let mut all: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for admission in &self.admissions {
            let Some(who) = self.who.get(admission.who).filter(|who| !who.anybody) else {
                continue;
            };
            let rule = format!("network_policies.{}", admission.policy_key);
            let named = who.entries.iter().filter_map(|(slot, ..)| *slot);
            all.entry(rule).or_default().extend(named);
        }
        for grant in &self.files {
            let Some((tree, own)) = &grant.whom else { continue };
            let mut both = *tree;
            both.extend(own);
            let rule = format!("the rule of filesystem_policy.rules for {}", grant.path);
            all.entry(rule).or_default().extend(slots(&both));
        }
        if let Some(list) = self.rules.get(&RuleKey::programs(NO_GENERATION)) {
            all.entry("execution.allow".to_owned()).or_default().extend(slots(&list.own));
        }
        for named in all.values_mut() {
            named.sort_unstable();
            named.dedup();
        }
        all
    }
}
