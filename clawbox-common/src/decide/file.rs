//! Files: the rule nearest to the object decides. Whoever asks goes up from the object, a
//! directory at a time, and shows each step to a [`Search`].

use super::{Decision, Files, Lookup, allow, deny, placed, placed_where};
use crate::file::{
    BY_BINARY, DENIED, EXECUTE, FileKey, FileRule, HAS_NAMES, HELD, NameKey, READ, READABLE,
    WRITABLE, WRITE, WRITTEN_BY_SOME,
};
use crate::limits::{FILE_NAME, MASK_WORDS};
use crate::rule::{EXECUTE_WRITABLE, NAMES_ANYWHERE, SandboxState};
use crate::subject::{FileId, Standing, Subject};
use crate::verdict::{Reason, Verdict};

/// What the nearest rule with an opinion says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Nothing was found yet.
    Unknown = 0,
    /// Closed.
    Denied = 1,
    /// May be read and executed.
    Readable = 2,
    /// May be written too.
    Writable = 3,
}

/// A step's name in its directory.
pub type Name = [u8; FILE_NAME];

/// The way up from an object, and what was found on it: kept as the numbers that were read, and
/// judged afterwards. To the verifier a number from a map is one state, and an opinion would be
/// one for each value, in every turn of the loop that goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Policy generation.
    pub policy: u32,
    /// [`SandboxState::flags`].
    pub flags: u32,
    /// Flags of the rule that ended the search; zero while none has.
    pub rule: u64,
    /// [`WRITTEN_BY_SOME`] of every rule on the way.
    pub shared: u64,
    /// The subject's slots that the rule lets write; zero if none.
    pub writers: u64,
    /// The subject's slots that the rule lets read; zero if none.
    pub readers: u64,
}

impl Search {
    /// A search that has found nothing.
    #[inline(always)]
    #[must_use]
    pub const fn new(state: &SandboxState) -> Self {
        let SandboxState { policy, flags, .. } = *state;
        Self { policy, flags, rule: 0, shared: 0, writers: 0, readers: 0 }
    }

    /// Looks at an object on the way. `name` writes the name by which the way came into this
    /// directory, and is asked only if names may have rules; false where there is none, as at the
    /// first step, or where it is longer than a rule's can be. True where the search ends.
    #[inline(always)]
    pub fn step<L: Files>(
        &mut self,
        lookup: &L,
        subject: &Subject,
        object: FileId,
        name: impl FnOnce(&mut Name) -> bool,
    ) -> bool {
        let rule = lookup.file(&FileKey { file: object, policy: self.policy, zero: 0 });
        let here = rule.map_or(0, |rule| rule.flags & HAS_NAMES);
        if here | (self.flags & NAMES_ANYWHERE) != 0 {
            let (directory, policy) = (object, self.policy);
            let mut key = NameKey { directory, policy, zero: 0, name: [0; FILE_NAME] };
            if name(&mut key.name) {
                if self.take(lookup.name(&key), subject) {
                    return true;
                }
                key.directory = FileId::default();
                if self.take(lookup.name(&key), subject) {
                    return true;
                }
            }
        }
        self.take(rule, subject)
    }

    /// Takes a rule that has an opinion about a subject.
    #[inline(always)]
    fn take(&mut self, rule: Option<&FileRule>, subject: &Subject) -> bool {
        let Some(rule) = rule else { return false };
        self.shared |= u64::from(rule.flags & WRITTEN_BY_SOME);
        let for_all = u64::from(rule.flags & (DENIED | READABLE | WRITABLE));
        let (mut writers, mut readers) = (0, 0);
        for word in 0..MASK_WORDS {
            let (lineage, own) = (subject.lineage.words[word], subject.own.words[word]);
            writers |= (lineage & rule.write_tree.words[word]) | (own & rule.write_own.words[word]);
            readers |= (lineage & rule.read_tree.words[word]) | (own & rule.read_own.words[word]);
        }
        if for_all | writers | readers == 0 {
            return false;
        }
        (self.rule, self.writers, self.readers) = (for_all, writers, readers);
        true
    }

    /// Whether anybody of the sandbox may write what was searched for.
    #[inline(always)]
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.shared != 0 || matches!(self.opinion(), Opinion::Writable)
    }

    /// What the rule that was found says: closed for all wins, then the most that it gives.
    #[inline(always)]
    #[must_use]
    pub const fn opinion(&self) -> Opinion {
        if self.rule & DENIED as u64 != 0 {
            Opinion::Denied
        } else if (self.rule & WRITABLE as u64) | self.writers != 0 {
            Opinion::Writable
        } else if (self.rule & READABLE as u64) | self.readers != 0 {
            Opinion::Readable
        } else {
            Opinion::Unknown
        }
    }
}

/// Who asks, for a search: the subject, or the decision that there is nothing to search for.
///
/// # Errors
/// The decision.
#[inline(always)]
pub fn subject<'a, L: Lookup>(
    lookup: &'a L,
    standing: &Standing<'a>,
) -> Result<(&'a Subject, &'a SandboxState), Decision> {
    placed(lookup, standing)
}

/// The same for the use of a file that is open already, which goes on under its policy while nothing can be
/// recorded: it is no new act. `is_open` whether it is such a use.
///
/// # Errors
/// The decision.
#[inline(always)]
pub fn subject_of<'a, L: Lookup>(
    lookup: &'a L,
    standing: &Standing<'a>,
    is_open: bool,
) -> Result<(&'a Subject, &'a SandboxState), Decision> {
    placed_where(lookup, standing, |state| state.policy != 0 && (is_open || state.is_in_force()))
}

/// May it be done, after what the search has found? `access` is bits of [`crate::file`].
#[inline(always)]
#[must_use]
pub fn access(search: &Search, access: u32, state: &SandboxState) -> Decision {
    let opinion = search.opinion();
    match opinion {
        Opinion::Unknown => deny(Reason::UnknownFile, state),
        Opinion::Denied => deny(Reason::ClosedFile, state),
        Opinion::Readable if access & WRITE != 0 => deny(Reason::ReadOnly, state),
        _ if access & EXECUTE != 0
            && state.flags & EXECUTE_WRITABLE == 0
            && search.is_written() =>
        {
            deny(Reason::WritableProgram, state)
        }
        _ => allow(Reason::Rule, state),
    }
}

/// What a search that allows something allows in all: bits of [`crate::file`].
#[inline(always)]
#[must_use]
pub fn all_allowed(search: &Search, state: &SandboxState) -> u32 {
    let mut allowed = 0;
    for bit in [READ, WRITE, EXECUTE] {
        if matches!(access(search, bit, state).verdict, Verdict::Allow) {
            allowed |= bit;
        }
    }
    allowed
}

/// What was found to be allowed before, by the same rules.
#[inline(always)]
#[must_use]
pub fn remembered(state: &SandboxState) -> Decision {
    allow(Reason::Rule, state)
}

/// What another hook has judged, as the same use of another object.
#[inline(always)]
#[must_use]
pub fn judged_elsewhere(state: &SandboxState) -> Decision {
    Decision { flags: 0, ..allow(Reason::Rule, state) }
}

/// May the entry of a directory be made, moved or removed? `directory` is what the search from the
/// directory has found; `held` whether a rule stands at the entry itself.
#[inline(always)]
#[must_use]
pub fn entry(directory: &Search, held: bool, state: &SandboxState) -> Decision {
    let decision = access(directory, WRITE, state);
    if matches!(decision.verdict, Verdict::Allow) && held {
        return deny(Reason::HeldEntry, state);
    }
    decision
}

/// Whether a rule keeps an entry where it is: one at its object, or one at its name. `name` writes
/// the entry's name; false where it is longer than a rule's can be.
#[inline(always)]
pub fn is_held<L: Files>(
    lookup: &L,
    state: &SandboxState,
    object: FileId,
    directory: FileId,
    name: impl FnOnce(&mut Name) -> bool,
) -> bool {
    flags_at(lookup, state, object, directory, name) & (HELD | DENIED | READABLE | BY_BINARY) != 0
}

/// The flags of all rules that stand at an entry itself; arguments as for [`is_held`].
#[inline(always)]
pub(super) fn flags_at<L: Files>(
    lookup: &L,
    state: &SandboxState,
    object: FileId,
    directory: FileId,
    name: impl FnOnce(&mut Name) -> bool,
) -> u32 {
    let flags = |rule: Option<&FileRule>| rule.map_or(0, |rule| rule.flags);
    let policy = state.policy;
    let mut found = flags(lookup.file(&FileKey { file: object, policy, zero: 0 }));
    let above = lookup.file(&FileKey { file: directory, policy, zero: 0 });
    let here = above.is_some_and(|rule| rule.flags & HAS_NAMES != 0);
    let anywhere = state.flags & NAMES_ANYWHERE != 0;
    if !here && !anywhere {
        return found;
    }
    let mut key = NameKey { directory, policy, zero: 0, name: [0; FILE_NAME] };
    if !name(&mut key.name) {
        return found;
    }
    if here {
        found |= flags(lookup.name(&key));
    }
    if anywhere {
        key.directory = FileId::default();
        found |= flags(lookup.name(&key));
    }
    found
}

/// What has no place in any directory, such as a pipe or a memfd: who has it was given it by its
/// maker, but it is no program.
#[inline(always)]
#[must_use]
pub fn placeless(access: u32, state: &SandboxState) -> Decision {
    if access & EXECUTE != 0 {
        return deny(Reason::WritableProgram, state);
    }
    // In no directory, so there is none to count it for.
    judged_elsewhere(state)
}

/// A way up that was not followed to its end.
#[inline(always)]
#[must_use]
pub fn too_deep(state: &SandboxState) -> Decision {
    deny(Reason::TooDeep, state)
}

/// Another process: only one of the same sandbox may be touched.
#[inline(always)]
pub fn process<L: Lookup>(lookup: &L, standing: &Standing<'_>, other: Option<u32>) -> Decision {
    match placed(lookup, standing) {
        Err(decision) => decision,
        Ok((subject, state)) if other == Some(subject.sandbox) => allow(Reason::Rule, state),
        Ok((_, state)) => deny(Reason::OtherProcess, state),
    }
}

/// Another process's memory, environment or descriptors: of the same sandbox, and of one that is
/// nobody more than this subject is, or its rights would be had through it.
#[inline(always)]
pub fn reach<L: Lookup>(lookup: &L, standing: &Standing<'_>, other: Option<&Subject>) -> Decision {
    let (subject, state) = match placed(lookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    let Some(other) = other.filter(|other| other.sandbox == subject.sandbox) else {
        return deny(Reason::OtherProcess, state);
    };
    let mut more = 0;
    for word in 0..MASK_WORDS {
        more |= other.own.words[word] & !subject.own.words[word];
        more |= other.lineage.words[word] & !subject.lineage.words[word];
    }
    if more == 0 { allow(Reason::Rule, state) } else { deny(Reason::OtherBinary, state) }
}

/// What no sandbox may do, recorded only or not.
#[inline(always)]
pub fn privileged<L: Lookup>(lookup: &L, standing: &Standing<'_>) -> Decision {
    match placed(lookup, standing) {
        Err(decision) => decision,
        Ok((_, state)) => deny(Reason::Privileged, state),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rule::{
        AddressKey, FILES_BY_BINARY, HostIds, PAUSED, RuleKey, RuleValue, SyntheticKey,
        SyntheticValue,
    };
    use crate::subject::Mask;

    /// A policy as tables; its sandbox is 1 and its generation 7.
    #[derive(Default)]
    struct Tables {
        files: BTreeMap<FileKey, FileRule>,
        names: BTreeMap<NameKey, FileRule>,
        state: Option<SandboxState>,
    }

    impl Files for Tables {
        fn file(&self, key: &FileKey) -> Option<&FileRule> {
            self.files.get(key)
        }
        fn name(&self, key: &NameKey) -> Option<&FileRule> {
            self.names.get(key)
        }
    }

    impl Lookup for Tables {
        fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
            (sandbox == 9).then_some(self.state.as_ref().unwrap_or(&STATE))
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

    const STATE: SandboxState = SandboxState::under(7, NAMES_ANYWHERE);

    fn id(inode: u64) -> FileId {
        FileId { inode, device: 1, zero: 0 }
    }

    fn name(text: &str) -> Name {
        let mut name = [0; FILE_NAME];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    fn flags(flags: u32) -> FileRule {
        FileRule { flags, ..FileRule::default() }
    }

    impl Tables {
        fn at(mut self, inode: u64, rule: FileRule) -> Self {
            self.files.insert(FileKey { file: id(inode), policy: 7, zero: 0 }, rule);
            self
        }

        fn named(mut self, directory: u64, text: &str, rule: FileRule) -> Self {
            let directory = if directory == 0 { FileId::default() } else { id(directory) };
            let key = NameKey { directory, policy: 7, zero: 0, name: name(text) };
            self.names.insert(key, rule);
            self
        }

        /// Goes up from the first object; each has the name it is known by in the next.
        fn up(&self, subject: &Subject, way: &[(u64, &str)]) -> Opinion {
            self.search(subject, way).opinion()
        }

        fn search(&self, subject: &Subject, way: &[(u64, &str)]) -> Search {
            let mut search = Search::new(&STATE);
            let mut below: Option<&str> = None;
            for (inode, text) in way {
                let write = |into: &mut Name| match below {
                    Some(text) => {
                        *into = name(text);
                        true
                    }
                    None => false,
                };
                if search.step(self, subject, id(*inode), write) {
                    break;
                }
                below = Some(text);
            }
            search
        }
    }

    /// `/home/repo/.git/hooks/x`.
    const WAY: [(u64, &str); 5] = [(5, "x"), (4, "hooks"), (3, ".git"), (2, "repo"), (1, "home")];

    #[test]
    fn while_nothing_can_be_recorded_what_is_open_goes_on_under_its_policy_and_is_not_told() {
        let all = SandboxState { audit_only: 1, ..SandboxState::under(7, 0xffff) };
        let subject = Subject { sandbox: 9, ..Subject::default() };
        let standing = Standing::Subject(&subject);
        let tables = |state| Tables { state: Some(state), ..Tables::default() };
        let paused = tables(all.paused());
        for is_open in [false, true] {
            let found = subject_of(&tables(all), &standing, is_open).map(|(_, state)| *state);
            assert_eq!(found, Ok(all));
            let none = tables(SandboxState::under(0, PAUSED));
            let reason = subject_of(&none, &standing, is_open).unwrap_err().reason;
            assert_eq!(reason, Reason::Unrecorded);
        }
        let new = subject_of(&paused, &standing, false).unwrap_err();
        assert!(!new.goes_on() && new.reason == Reason::Unrecorded, "{new:?}");
        assert!(super::subject(&paused, &standing).is_err());
        let (_, state) = subject_of(&paused, &standing, true).unwrap();
        let rules = NAMES_ANYWHERE | EXECUTE_WRITABLE | FILES_BY_BINARY;
        assert_eq!((state.policy, state.flags), (7, PAUSED | rules));
        let readable = Search { rule: READABLE.into(), ..Search::new(state) };
        assert!(access(&readable, READ, state).goes_on());
        assert!(!access(&readable, WRITE, state).goes_on());
        assert_eq!(state.waiting(), Some(SandboxState::under(7, rules)));
    }

    #[test]
    fn a_process_reaches_another_of_its_sandbox_that_is_nobody_more_than_it_is() {
        let of = |slots: &[usize]| {
            let mut own = Mask::EMPTY;
            slots.iter().for_each(|slot| own.insert(*slot));
            Subject { sandbox: 9, own, lineage: own, ..Subject::default() }
        };
        let tables = Tables::default();
        let verdict = |subject: &Subject, other: Option<&Subject>| {
            let decision = reach(&tables, &Standing::Subject(subject), other);
            (decision.verdict, decision.reason)
        };
        let (nobody, tool, both) = (of(&[]), of(&[70]), of(&[3, 70]));
        let elsewhere = Subject { sandbox: 8, ..nobody };
        for (subject, other) in [(&nobody, &nobody), (&tool, &nobody), (&both, &tool)] {
            assert_eq!(verdict(subject, Some(other)), (Verdict::Allow, Reason::Rule));
        }
        for (subject, other) in [(&nobody, &tool), (&tool, &both)] {
            assert_eq!(verdict(subject, Some(other)), (Verdict::Deny, Reason::OtherBinary));
        }
        assert_eq!(verdict(&both, Some(&elsewhere)), (Verdict::Deny, Reason::OtherProcess));
        assert_eq!(verdict(&both, None), (Verdict::Deny, Reason::OtherProcess));
    }

    #[test]
    fn the_rule_nearest_to_the_object_decides() {
        let nobody = Subject::default();
        let home = || Tables::default().at(1, flags(READABLE));
        let repo = || home().at(2, flags(WRITABLE | HAS_NAMES));
        for (tables, opinion) in [
            (Tables::default(), Opinion::Unknown),
            (home(), Opinion::Readable),
            (repo(), Opinion::Writable),
            (repo().at(4, flags(READABLE)), Opinion::Readable),
            (repo().at(4, flags(READABLE | DENIED)), Opinion::Denied),
            (repo().at(4, flags(HELD)), Opinion::Writable),
            (repo().named(2, ".git", flags(DENIED)), Opinion::Denied),
            (repo().named(2, "other", flags(DENIED)), Opinion::Writable),
            (repo().named(0, "hooks", flags(DENIED)), Opinion::Denied),
            (repo().named(0, "x", flags(DENIED)), Opinion::Denied),
            (repo().at(5, flags(READABLE)).named(0, "x", flags(DENIED)), Opinion::Readable),
        ] {
            assert_eq!(tables.up(&nobody, &WAY), opinion, "{:?} {:?}", tables.files, tables.names);
        }
    }

    #[test]
    fn a_rule_for_binaries_has_no_opinion_about_others() {
        let mut slot = Mask::EMPTY;
        slot.insert(3);
        let git = FileRule { flags: BY_BINARY, write_tree: slot, ..FileRule::default() };
        let alone = FileRule { flags: BY_BINARY, read_own: slot, ..FileRule::default() };
        let tables = Tables::default().at(1, flags(READABLE)).at(2, git).at(4, alone);
        let itself = Subject { own: slot, lineage: slot, ..Subject::default() };
        let child = Subject { lineage: slot, ..Subject::default() };
        assert_eq!(tables.up(&itself, &WAY), Opinion::Readable);
        assert_eq!(tables.up(&itself, &WAY[2..]), Opinion::Writable);
        assert_eq!(tables.up(&child, &WAY), Opinion::Writable);
        assert_eq!(tables.up(&Subject::default(), &WAY), Opinion::Readable);
    }

    #[test]
    fn opinions_become_verdicts_by_what_was_asked() {
        use crate::file::READ;
        let executes = SandboxState { flags: EXECUTE_WRITABLE, ..STATE };
        for (rule, asked, state, reason) in [
            (0, READ, STATE, Reason::UnknownFile),
            (DENIED, READ, STATE, Reason::ClosedFile),
            (READABLE, READ | EXECUTE, STATE, Reason::Rule),
            (READABLE, READ | WRITE, STATE, Reason::ReadOnly),
            (WRITABLE, READ | WRITE, STATE, Reason::Rule),
            (WRITABLE, EXECUTE, STATE, Reason::WritableProgram),
            (WRITABLE, EXECUTE, executes, Reason::Rule),
        ] {
            let found = Search { rule: u64::from(rule), ..Search::new(&state) };
            let decision = access(&found, asked, &state);
            assert_eq!(decision.reason, reason, "{rule} {asked}");
            assert_eq!(decision.verdict == Verdict::Allow, reason == Reason::Rule);
        }
    }

    #[test]
    fn what_one_binary_may_write_no_other_may_execute() {
        let mut slot = Mask::EMPTY;
        slot.insert(3);
        let flags_of_writer = BY_BINARY | WRITTEN_BY_SOME;
        let tee = FileRule { flags: flags_of_writer, write_tree: slot, ..FileRule::default() };
        let tables = Tables::default().at(1, flags(READABLE)).at(2, tee);
        let nobody = Subject::default();
        let below = tables.search(&nobody, &WAY);
        assert_eq!(below.opinion(), Opinion::Readable);
        assert_eq!(access(&below, EXECUTE, &STATE).reason, Reason::WritableProgram);
        let above = tables.search(&nobody, &WAY[4..]);
        assert_eq!(access(&above, EXECUTE, &STATE).reason, Reason::Rule);
    }

    #[test]
    fn an_entry_that_a_rule_stands_at_or_below_keeps_its_name() {
        let here = |tables: Tables| {
            is_held(&tables, &STATE, id(5), id(4), |into| {
                *into = name("x");
                true
            })
        };
        let directory = || Tables::default().at(4, flags(WRITABLE | HAS_NAMES));
        assert!(!here(directory()) && !here(directory().at(5, flags(WRITABLE))));
        for rule in [HELD, DENIED, READABLE, BY_BINARY] {
            assert!(here(directory().at(5, flags(rule))));
            assert!(here(directory().named(4, "x", flags(rule))));
        }
        assert!(here(directory().named(0, "x", flags(DENIED))));
        assert!(!here(directory().named(4, "y", flags(DENIED))));
    }
}
