//! Whom the sandboxed program runs as: a policy's `run_as_user` and `run_as_group`, or `--user`,
//! resolved once, in the parent, to numbers that the child only has to set.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// The user to become before exec. Never root.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    name: String,
}

impl Identity {
    /// The user id; not 0.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The primary group id; not 0.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The supplementary groups, without group 0.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// The user's name, or the number if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why a user or group cannot be run as.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such name.
    #[error(
        "there is no {kind} `{name}` on this host; create it, or name another with `--user` \
         (a number works without an entry in /etc/passwd)"
    )]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// As given.
        name: String,
    },
    /// Root, by name or number.
    #[error("{kind} `{name}` is root; name an unprivileged {kind} (for example with `--user`)")]
    Root {
        /// `user` or `group`.
        kind: &'static str,
        /// As given.
        name: String,
    },
    /// A number that is none.
    #[error("{kind} id `{name}` is out of range; write a name or a number from 1 to 4294967294")]
    OutOfRange {
        /// `user` or `group`.
        kind: &'static str,
        /// As given.
        name: String,
    },
    /// A uid that /etc/passwd does not know, without a group.
    #[error("uid {0} has no entry in /etc/passwd, so its group is unknown; set `run_as_group` too")]
    NoGroup(u32),
    /// A group without a user.
    #[error("`run_as_group: {0}` needs a user: set `run_as_user` or pass `--user`")]
    GroupAlone(String),
    /// The user database failed.
    #[error("cannot look up {kind} `{name}`: {source}; check /etc/nsswitch.conf")]
    Lookup {
        /// `user` or `group`.
        kind: &'static str,
        /// As given.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Resolves the user and group to run as; `None` if neither is given.
///
/// The supplementary groups are those that the group database lists for the user, as with
/// initgroups(3); nothing of the caller's own groups is kept.
pub fn resolve(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, IdentityError> {
    let Some(user) = user else {
        return match group {
            None => Ok(None),
            Some(group) => Err(IdentityError::GroupAlone(group.to_owned())),
        };
    };
    let (uid, entry) = find_user(user)?;
    let gid = match (group, &entry) {
        (Some(group), _) => find_group(group)?,
        (None, Some(entry)) => refuse_root("group", user, entry.gid.as_raw())?,
        (None, None) => return Err(IdentityError::NoGroup(uid)),
    };
    let (name, groups) = match entry {
        None => (uid.to_string(), Vec::new()),
        Some(entry) => {
            let groups = groups_of(&entry.name, gid)?;
            (entry.name, groups)
        }
    };
    Ok(Some(Identity { uid, gid, groups, name }))
}

/// A user by what the kernel says of a process of theirs, with that process's groups and no others; `None`
/// for root.
///
/// # Errors
/// Their group is root's, or the database cannot be read.
pub fn of_numbers(uid: u32, gid: u32, groups: &[u32]) -> Result<Option<Identity>, IdentityError> {
    if uid == 0 {
        return Ok(None);
    }
    let given = uid.to_string();
    let gid = refuse_root("group", &given, gid)?;
    let entry = User::from_uid(Uid::from_raw(uid));
    let entry = entry.map_err(|errno| lookup_failed("user", &given, errno))?;
    let groups = groups.iter().copied().filter(|group| *group != 0).collect();
    Ok(Some(Identity { uid, gid, groups, name: entry.map_or(given, |entry| entry.name) }))
}

fn find_user(given: &str) -> Result<(u32, Option<User>), IdentityError> {
    let lookup = |errno: nix::Error| lookup_failed("user", given, errno);
    match number("user", given)? {
        Some(uid) => Ok((uid, User::from_uid(Uid::from_raw(uid)).map_err(lookup)?)),
        None => {
            let entry = User::from_name(given).map_err(lookup)?;
            let entry = entry.ok_or_else(|| unknown("user", given))?;
            Ok((refuse_root("user", given, entry.uid.as_raw())?, Some(entry)))
        }
    }
}

fn find_group(given: &str) -> Result<u32, IdentityError> {
    if let Some(gid) = number("group", given)? {
        return Ok(gid);
    }
    let entry = Group::from_name(given).map_err(|errno| lookup_failed("group", given, errno))?;
    let entry = entry.ok_or_else(|| unknown("group", given))?;
    refuse_root("group", given, entry.gid.as_raw())
}

/// A number is anything of digits only; names cannot start with one.
fn number(kind: &'static str, given: &str) -> Result<Option<u32>, IdentityError> {
    if given.is_empty() || !given.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match given.parse() {
        Ok(0) => refuse_root(kind, given, 0).map(Some),
        // 4294967295 is -1, which setresuid(2) takes for "leave as it is".
        Ok(id) if id < u32::MAX => Ok(Some(id)),
        _ => Err(IdentityError::OutOfRange { kind, name: given.to_owned() }),
    }
}

fn groups_of(user: &str, gid: u32) -> Result<Vec<u32>, IdentityError> {
    let name = CString::new(user).map_err(|_| unknown("user", user))?;
    let groups = getgrouplist(&name, Gid::from_raw(gid))
        .map_err(|errno| lookup_failed("user", user, errno))?;
    let mut groups: Vec<u32> = groups.into_iter().map(Gid::as_raw).filter(|id| *id != 0).collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

fn refuse_root(kind: &'static str, given: &str, id: u32) -> Result<u32, IdentityError> {
    if id == 0 { Err(IdentityError::Root { kind, name: given.to_owned() }) } else { Ok(id) }
}

fn unknown(kind: &'static str, given: &str) -> IdentityError {
    IdentityError::Unknown { kind, name: given.to_owned() }
}

fn lookup_failed(kind: &'static str, given: &str, errno: nix::Error) -> IdentityError {
    IdentityError::Lookup { kind, name: given.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_resolves_to_its_entry() {
        let nobody = resolve(Some("nobody"), None).unwrap().unwrap();
        let entry = User::from_name("nobody").unwrap().unwrap();
        assert_eq!(nobody.uid(), entry.uid.as_raw());
        assert_eq!(nobody.gid(), entry.gid.as_raw());
        assert_eq!(nobody.name(), "nobody");
        assert!(!nobody.groups().contains(&0));
    }

    #[test]
    fn a_number_without_an_entry_needs_a_group() {
        assert!(matches!(resolve(Some("3999999999"), None), Err(IdentityError::NoGroup(_))));
        let identity = resolve(Some("3999999999"), Some("3999999998")).unwrap().unwrap();
        assert_eq!((identity.uid(), identity.gid()), (3_999_999_999, 3_999_999_998));
        assert!(identity.groups().is_empty());
        assert_eq!(identity.name(), "3999999999");
    }

    #[test]
    fn root_is_refused_under_every_spelling() {
        for (user, group) in [
            (Some("root"), None),
            (Some("0"), None),
            (Some("000"), None),
            (Some("nobody"), Some("root")),
            (Some("nobody"), Some("0")),
        ] {
            let error = resolve(user, group).unwrap_err();
            assert!(matches!(error, IdentityError::Root { .. }), "{user:?} {group:?}: {error}");
        }
    }

    #[test]
    fn what_does_not_resolve_says_what_to_do() {
        for (user, group, want) in [
            (Some("no-such-user-here"), None, "there is no user"),
            (Some(""), None, "there is no user"),
            (Some("nobody"), Some("no-such-group-here"), "there is no group"),
            (Some("4294967295"), None, "out of range"),
            (Some("99999999999999999999"), None, "out of range"),
            (None, Some("nogroup"), "needs a user"),
        ] {
            let error = resolve(user, group).unwrap_err().to_string();
            assert!(error.contains(want), "{user:?} {group:?}: {error}");
        }
    }

    #[test]
    fn nothing_asked_is_no_identity() {
        assert_eq!(resolve(None, None).unwrap(), None);
    }
}
