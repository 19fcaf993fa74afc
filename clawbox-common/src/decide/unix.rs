//! Unix sockets: one with a path is a file that must be writable, or that the policy opens by
//! itself; one without belongs to the sandbox that it was made in.

use super::file::{Name, flags_at};
use super::{Decision, Files, Lookup, allow, deny, placed};
use crate::file::{DENIED, REACHABLE};
use crate::rule::SandboxState;
use crate::subject::{FileId, Standing};
use crate::verdict::Reason;

/// Whether the policy opens the socket that is this object, or has this name in its directory.
/// `name` as in [`super::file::is_held`].
#[inline(always)]
pub fn is_opened<L: Files>(
    lookup: &L,
    state: &SandboxState,
    object: FileId,
    directory: FileId,
    name: impl FnOnce(&mut Name) -> bool,
) -> bool {
    flags_at(lookup, state, object, directory, name) & (REACHABLE | DENIED) == REACHABLE
}

/// May a socket without a path be reached? `theirs` is the sandbox that it was made in.
#[inline(always)]
pub fn nameless<L: Lookup>(lookup: &L, standing: &Standing<'_>, theirs: Option<u32>) -> Decision {
    match placed(lookup, standing) {
        Err(decision) => decision,
        Ok((subject, state)) if theirs == Some(subject.sandbox) => allow(Reason::Rule, state),
        Ok((_, state)) => deny(Reason::ForeignSocket, state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{FileKey, FileRule, HAS_NAMES, NameKey, READABLE, WRITABLE};
    use crate::limits::FILE_NAME;
    use crate::rule::{AddressKey, HostIds, RuleKey, RuleValue, SyntheticKey, SyntheticValue};
    use crate::subject::Subject;
    use crate::verdict::Verdict;

    const STATE: SandboxState = SandboxState::under(7, 0);
    const SOCKET: FileId = FileId { inode: 2, device: 1, zero: 0 };
    const DIRECTORY: FileId = FileId { inode: 1, device: 1, zero: 0 };
    const NAME: Name = [b's'; FILE_NAME];

    /// Flags at the socket, at its name and at its directory.
    #[derive(Default)]
    struct Rules {
        object: FileRule,
        name: FileRule,
        directory: FileRule,
    }

    impl Files for Rules {
        fn file(&self, key: &FileKey) -> Option<&FileRule> {
            assert_eq!(key.policy, 7);
            Some(if key.file == SOCKET { &self.object } else { &self.directory })
        }
        fn name(&self, key: &NameKey) -> Option<&FileRule> {
            (key.name == NAME && key.directory == DIRECTORY).then_some(&self.name)
        }
    }

    impl Lookup for Rules {
        fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
            (sandbox == 1).then_some(&STATE)
        }
        fn rule(&self, _: &RuleKey) -> Option<&RuleValue> {
            None
        }
        fn synthetic(&self, _: &SyntheticKey) -> Option<&SyntheticValue> {
            None
        }
        fn address(&self, _: &AddressKey, _: u32) -> Option<&HostIds> {
            None
        }
    }

    fn flags(flags: u32) -> FileRule {
        FileRule { flags, ..FileRule::default() }
    }

    #[test]
    fn a_socket_is_opened_by_its_own_rule_alone() {
        let open = |rules: &Rules| {
            is_opened(rules, &STATE, SOCKET, DIRECTORY, |into| {
                *into = NAME;
                true
            })
        };
        for (here, opened) in [
            (0, false),
            (READABLE, false),
            (WRITABLE, false),
            (REACHABLE, true),
            (REACHABLE | READABLE, true),
            (REACHABLE | DENIED, false),
        ] {
            let object = Rules { object: flags(here), ..Rules::default() };
            let named = flags(HAS_NAMES);
            let name = Rules { name: flags(here), directory: named, ..Rules::default() };
            assert_eq!((open(&object), open(&name)), (opened, opened), "{here}");
        }
        assert!(!open(&Rules { directory: flags(REACHABLE), ..Rules::default() }));
        let closed = flags(HAS_NAMES);
        let both = Rules { object: flags(REACHABLE), name: flags(DENIED), directory: closed };
        assert!(!open(&both));
    }

    #[test]
    fn a_socket_without_a_path_is_reached_from_its_own_sandbox_alone() {
        let subject = Subject { sandbox: 1, ..Subject::default() };
        let inside = Standing::Subject(&subject);
        for (standing, theirs, verdict) in [
            (inside, Some(1), Verdict::Allow),
            (inside, Some(2), Verdict::Deny),
            (inside, None, Verdict::Deny),
            (Standing::Unidentified, Some(1), Verdict::Deny),
            (Standing::Outside, None, Verdict::Allow),
        ] {
            let decision = nameless(&Rules::default(), &standing, theirs);
            assert_eq!(decision.verdict, verdict, "{standing:?} {theirs:?}");
        }
        assert_eq!(nameless(&Rules::default(), &inside, None).reason, Reason::ForeignSocket);
    }
}
