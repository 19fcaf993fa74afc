//! Programs: where a policy lists those that may be started, no other file is. Each file that exec
//! opens is asked about by itself, a script and its interpreter.

use super::{Decision, Lookup, allow, deny, under_none};
use crate::limits::MASK_WORDS;
use crate::rule::{ANYBODY, LISTED_PROGRAMS, RuleKey};
use crate::subject::Mask;
use crate::verdict::Reason;

/// May this file be started in this sandbox? `slots` are those that it stands for, none for a file
/// that the policy does not name. Who starts it does not matter, not even whether it is known.
#[inline(always)]
#[must_use]
pub fn start<L: Lookup>(lookup: &L, sandbox: u32, slots: Option<&Mask>) -> Decision {
    let state = match lookup.sandbox(sandbox) {
        Some(state) if state.is_in_force() => state,
        state => return under_none(state),
    };
    if state.flags & LISTED_PROGRAMS == 0 {
        return allow(Reason::Rule, state);
    }
    let Some(list) = lookup.rule(&RuleKey::programs(state.policy)) else {
        return deny(Reason::UnlistedProgram, state);
    };
    let mut met = u64::from(list.flags & ANYBODY);
    if let Some(slots) = slots {
        for word in 0..MASK_WORDS {
            met |= slots.words[word] & list.own.words[word];
        }
    }
    if met == 0 { deny(Reason::UnlistedProgram, state) } else { allow(Reason::Rule, state) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{AddressKey, HostIds, RuleValue, SandboxState, SyntheticKey, SyntheticValue};
    use crate::verdict::Verdict;

    /// Sandbox 1 and a rule.
    struct OneRule {
        state: SandboxState,
        key: RuleKey,
        rule: Option<RuleValue>,
    }

    impl Lookup for OneRule {
        fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
            (sandbox == 1).then_some(&self.state)
        }
        fn rule(&self, key: &RuleKey) -> Option<&RuleValue> {
            self.rule.as_ref().filter(|_| *key == self.key)
        }
        fn synthetic(&self, _: &SyntheticKey) -> Option<&SyntheticValue> {
            None
        }
        fn address(&self, _: &AddressKey, _: u32) -> Option<&HostIds> {
            None
        }
    }

    fn set(slots: &[usize]) -> Mask {
        let mut mask = Mask::EMPTY;
        slots.iter().for_each(|slot| mask.insert(*slot));
        mask
    }

    #[test]
    fn only_listed_programs_are_started_and_only_where_there_is_a_list() {
        let free = SandboxState::under(7, 0);
        let listed = SandboxState { flags: LISTED_PROGRAMS, ..free };
        let list = |own: Mask, flags| Some(RuleValue { own, flags, ..RuleValue::default() });
        let some = list(set(&[1, 130]), 0);
        for (state, rule, file, verdict) in [
            (free, None, None, Verdict::Allow),
            (free, some, Some(set(&[9])), Verdict::Allow),
            (listed, some, Some(set(&[1])), Verdict::Allow),
            (listed, some, Some(set(&[5, 130])), Verdict::Allow),
            (listed, some, Some(set(&[2])), Verdict::Deny),
            (listed, some, None, Verdict::Deny),
            (listed, list(Mask::EMPTY, 0), Some(set(&[0])), Verdict::Deny),
            (listed, list(Mask::EMPTY, ANYBODY), None, Verdict::Allow),
            // The flag without the list: a list that was lost closes.
            (listed, None, Some(set(&[1])), Verdict::Deny),
        ] {
            let table = OneRule { state, key: RuleKey::programs(7), rule };
            let decision = start(&table, 1, file.as_ref());
            assert_eq!(decision.verdict, verdict, "{state:?} {rule:?} {file:?}");
            if verdict == Verdict::Deny {
                assert_eq!(decision.reason, Reason::UnlistedProgram);
            }
        }
        let other = OneRule { state: listed, key: RuleKey::programs(8), rule: some };
        assert_eq!(start(&other, 1, Some(&set(&[1]))).verdict, Verdict::Deny);
        assert_eq!(start(&other, 2, Some(&set(&[1]))).reason, Reason::NoPolicy);
        let paused = OneRule { state: SandboxState { audit_only: 1, ..listed }.paused(), ..other };
        let decision = start(&paused, 1, Some(&set(&[1])));
        assert!(!decision.goes_on() && decision.reason == Reason::Unrecorded);
        assert_eq!((paused.state.waiting().map(|it| it.policy), listed.waiting()), (Some(7), None));
        let recorded = OneRule { state: SandboxState { audit_only: 1, ..listed }, ..other };
        assert!(start(&recorded, 1, None).goes_on());
    }
}
