//! The child's part of the backstops as bytes and descriptors, for the process that starts it in the agent's
//! place: see `sandbox::launcher`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sched::CloneFlags;

use super::Entry;
use super::enter::{Credentials, Filters, Plan};
use super::joined::Joined;
use super::landlock::Ceiling;
use super::late_rules::LateRule;
use super::namespaces::Namespaces;

/// All of it but the descriptors.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntryBytes {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespacesBytes>,
    #[prost(message, optional, tag = "2")]
    joined: Option<JoinedBytes>,
    #[prost(bool, tag = "3")]
    drop_bounding_set: bool,
    #[prost(message, optional, tag = "4")]
    user: Option<UserBytes>,
    #[prost(message, optional, tag = "5")]
    ceiling: Option<CeilingBytes>,
    #[prost(bool, tag = "6")]
    ping: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamespacesBytes {
    #[prost(bool, tag = "1")]
    pid: bool,
    #[prost(bool, tag = "2")]
    ipc: bool,
    #[prost(bool, tag = "3")]
    uts: bool,
    #[prost(bool, tag = "4")]
    cgroup: bool,
    #[prost(bool, tag = "5")]
    mount: bool,
    #[prost(bool, tag = "6")]
    proc: bool,
    #[prost(bytes = "vec", optional, tag = "7")]
    tmp: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "8")]
    workdir: Option<Vec<u8>>,
    #[prost(bool, tag = "9")]
    required: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct JoinedBytes {
    #[prost(bool, tag = "1")]
    pid: bool,
    #[prost(int32, repeated, tag = "2")]
    others: Vec<i32>,
    #[prost(bytes = "vec", tag = "3")]
    workdir: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserBytes {
    #[prost(uint32, tag = "1")]
    uid: u32,
    #[prost(uint32, tag = "2")]
    gid: u32,
    #[prost(uint32, repeated, tag = "3")]
    groups: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CeilingBytes {
    #[prost(uint32, tag = "1")]
    flags: u32,
    #[prost(message, repeated, tag = "2")]
    in_proc: Vec<LateBytes>,
    #[prost(message, optional, tag = "3")]
    in_tmp: Option<LateBytes>,
    #[prost(bool, tag = "4")]
    required: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LateBytes {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    directory: u64,
    #[prost(uint64, tag = "3")]
    file: u64,
}

/// What has come is not what is sent.
pub fn odd() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Entry {
    /// Gives the bytes, and adds the descriptors in the order in which [`Entry::read`] takes them.
    #[must_use]
    pub fn write<'e>(&'e self, descriptors: &mut Vec<BorrowedFd<'e>>) -> EntryBytes {
        let Plan { namespaces, joined, drop_bounding_set, user, ceiling, filters } = &self.plan;
        descriptors.extend([self.failed.as_fd(), ceiling.ruleset.as_fd()]);
        let joined = joined.as_ref().map(|Joined { pid, others, workdir }| {
            descriptors.extend(pid.as_ref().map(AsFd::as_fd));
            descriptors.extend(others.iter().map(|(namespace, _)| namespace.as_fd()));
            JoinedBytes {
                pid: pid.is_some(),
                others: others.iter().map(|(_, kind)| kind.bits()).collect(),
                workdir: workdir.as_bytes().to_vec(),
            }
        });
        EntryBytes {
            namespaces: Some(namespaces.into()),
            joined,
            drop_bounding_set: *drop_bounding_set,
            user: user.as_ref().map(|Credentials { uid, gid, groups }| UserBytes {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
            }),
            ceiling: Some(CeilingBytes {
                flags: ceiling.flags,
                in_proc: ceiling.in_proc.iter().map(LateBytes::from).collect(),
                in_tmp: ceiling.in_tmp.as_ref().map(LateBytes::from),
                required: ceiling.required,
            }),
            ping: filters.ping,
        }
    }

    /// The same again.
    ///
    /// # Errors
    /// Something of it is missing.
    pub fn read(
        bytes: EntryBytes,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Self> {
        let mut next = || descriptors.next().ok_or_else(odd);
        let (failed, ruleset) = (next()?, next()?);
        let joined = bytes.joined.map(|JoinedBytes { pid, others, workdir }| {
            let pid = pid.then(&mut next).transpose()?;
            let other =
                |kind| Ok::<_, io::Error>((next()?, CloneFlags::from_bits(kind).ok_or_else(odd)?));
            let others = others.into_iter().map(other).collect::<Result<_, _>>()?;
            Ok::<_, io::Error>(Joined { pid, others, workdir: CString::new(workdir)? })
        });
        let CeilingBytes { flags, in_proc, in_tmp, required } = bytes.ceiling.ok_or_else(odd)?;
        let in_proc = in_proc.iter().map(LateBytes::rule).collect::<Result<_, _>>()?;
        let in_tmp = in_tmp.as_ref().map(LateBytes::rule).transpose()?;
        let plan = Plan {
            namespaces: bytes.namespaces.ok_or_else(odd)?.try_into()?,
            joined: joined.transpose()?,
            drop_bounding_set: bytes.drop_bounding_set,
            user: bytes.user.map(|UserBytes { uid, gid, groups }| Credentials { uid, gid, groups }),
            ceiling: Ceiling { ruleset, flags, in_proc, in_tmp, required },
            filters: Filters::of(bytes.ping).map_err(io::Error::other)?,
        };
        Ok(Self { plan, failed })
    }
}

impl From<&Namespaces> for NamespacesBytes {
    fn from(from: &Namespaces) -> Self {
        let Namespaces { pid, ipc, uts, cgroup, mount, proc, tmp, workdir, required } = from;
        let bytes = |text: &Option<CString>| text.as_ref().map(|text| text.as_bytes().to_vec());
        Self {
            pid: *pid,
            ipc: *ipc,
            uts: *uts,
            cgroup: *cgroup,
            mount: *mount,
            proc: *proc,
            tmp: bytes(tmp),
            workdir: bytes(workdir),
            required: *required,
        }
    }
}

impl TryFrom<NamespacesBytes> for Namespaces {
    type Error = io::Error;

    fn try_from(from: NamespacesBytes) -> io::Result<Self> {
        let NamespacesBytes { pid, ipc, uts, cgroup, mount, proc, tmp, workdir, required } = from;
        let text = |bytes: Option<Vec<u8>>| bytes.map(CString::new).transpose();
        let (tmp, workdir) = (text(tmp)?, text(workdir)?);
        Ok(Self { pid, ipc, uts, cgroup, mount, proc, tmp, workdir, required })
    }
}

impl From<&LateRule> for LateBytes {
    fn from(rule: &LateRule) -> Self {
        let (directory, file) = rule.rights();
        Self { path: rule.path().as_os_str().as_bytes().to_vec(), directory, file }
    }
}

impl LateBytes {
    fn rule(&self) -> io::Result<LateRule> {
        let path = Path::new(std::ffi::OsStr::from_bytes(&self.path));
        LateRule::new(path, self.directory, self.file).ok_or_else(odd)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::{Request, prepare};
    use super::*;

    #[test]
    fn what_the_child_needs_comes_back_whole_from_its_bytes_and_descriptors() {
        let request = Request {
            read_only: vec!["/usr".into(), "/proc/sys".into()],
            read_write: vec!["/var/tmp".into()],
            ping: true,
            workdir: "/usr".into(),
            ..Request::default()
        };
        let (prepared, _) = prepare(&request).unwrap();
        let mut descriptors = Vec::new();
        let bytes = prepared.entry.write(&mut descriptors);
        let count = descriptors.len();
        let text = bytes.encode_to_vec();
        let copies: Vec<OwnedFd> =
            descriptors.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let read = EntryBytes::decode(text.as_slice()).unwrap();
        let again = Entry::read(read, &mut copies.into_iter()).unwrap();
        let mut descriptors = Vec::new();
        assert_eq!(again.write(&mut descriptors), bytes);
        assert_eq!(descriptors.len(), count);
    }

    #[test]
    fn without_a_descriptor_or_a_part_there_is_no_entry() {
        let (prepared, _) = prepare(&Request::default()).unwrap();
        let mut descriptors = Vec::new();
        let bytes = prepared.entry.write(&mut descriptors);
        let copies = || descriptors.iter().map(|fd| fd.try_clone_to_owned().unwrap());
        assert!(Entry::read(bytes.clone(), &mut copies().take(1)).is_err());
        let lacking = [
            EntryBytes { namespaces: None, ..bytes.clone() },
            EntryBytes { ceiling: None, ..bytes.clone() },
        ];
        for bytes in lacking {
            assert!(Entry::read(bytes, &mut copies()).is_err());
        }
        assert!(Entry::read(bytes, &mut copies()).is_ok());
    }
}
