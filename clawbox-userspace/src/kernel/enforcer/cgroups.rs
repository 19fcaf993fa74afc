//! Cgroups that others have made: of which new ones the kernel asks, which it has asked of, and the
//! walk that gives identities to who is in one.

use std::collections::BTreeMap;
use std::io::{self, Read};

use aya::Btf;
use aya::maps::Array;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::{Iter, ProgramError};
use clawbox_common::attach::{ASKED, PENDING, SPARED, STARTERS, Selector, Walk};
use clawbox_common::rule::BinaryKey;
use clawbox_common::subject::{FileId, Mask};

use super::Enforcer;
use crate::kernel::load::LoadError;

/// The program that is called for each task of the host.
const WALK: &str = "walk";

/// Its table.
const TABLE: &str = "WALK";

/// Whom a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// All that are in the cgroup.
    Everybody,
    /// Those that the kernel has held; others there are about to start one.
    Held,
}

/// Which cgroups the kernel asks of.
const SELECTORS: &str = "SELECTORS";

impl Enforcer {
    /// The kernel asks of new cgroups that begin like these, but for those that begin like what is spared
    /// if that says more, and of no others: a program that is started in one does not run until the
    /// agent has said what it is.
    ///
    /// # Errors
    /// There are more than the kernel's table has room for; those of before stay then.
    pub fn ask_of(
        &mut self,
        asked: &[(Selector, u32)],
        spared: &[(Selector, u32)],
    ) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { name: SELECTORS, source };
        let absent = LoadError::Absent { kind: "map", name: SELECTORS };
        let map = self.ebpf.map_mut(SELECTORS).ok_or(absent)?;
        let mut map = LpmTrie::<_, Selector, u32>::try_from(map).map_err(failed)?;
        for (wanted, value) in [(asked, ASKED), (spared, SPARED)] {
            for (selector, bits) in wanted {
                map.insert(&Key::new(*bits, *selector), value, 0).map_err(failed)?;
            }
        }
        let known: Vec<Key<Selector>> = map.keys().filter_map(Result::ok).collect();
        let is_wanted = |key: &Key<Selector>| {
            asked.iter().chain(spared).any(|(selector, bits)| {
                let (found_bits, found) = (key.prefix_len(), key.data());
                found_bits == *bits && found == *selector
            })
        };
        let stale = known.iter().filter(|key| !is_wanted(key));
        for key in stale {
            map.remove(key).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether cgroups that others have made are sandboxes, or may become some.
    ///
    /// # Errors
    /// The kernel's table is gone.
    pub fn govern_others(&mut self, governs: bool) -> Result<(), LoadError> {
        let name = "OTHERS";
        let failed = |source| LoadError::Map { name, source };
        let map = self.ebpf.map_mut(name).ok_or(LoadError::Absent { kind: "map", name })?;
        let mut map = Array::<_, u32>::try_from(map).map_err(failed)?;
        map.set(0, u32::from(governs), 0).map_err(failed)
    }

    /// These files, and no others, start programs in cgroups that others have made, and are not yet
    /// what runs there.
    ///
    /// # Errors
    /// The kernel's table is full.
    pub fn start_by(&mut self, files: &[FileId]) -> Result<(), LoadError> {
        let mut slot = Mask::EMPTY;
        slot.insert(0);
        let key = |file: &FileId| BinaryKey { file: *file, sandbox: STARTERS, zero: 0 };
        let wanted: BTreeMap<BinaryKey, Mask> =
            files.iter().map(|file| (key(file), slot)).collect();
        self.write("BINARIES", &wanted)?;
        self.remove_where::<BinaryKey, Mask>("BINARIES", |key| {
            key.sandbox == STARTERS && !wanted.contains_key(key)
        })
    }

    /// The cgroups that the kernel has asked of and nobody has said anything about, by their ids.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn pending(&mut self) -> Result<Vec<u64>, LoadError> {
        let all = self.cgroups()?.into_iter();
        Ok(all.filter(|(_, sandbox)| *sandbox == PENDING).map(|(cgroup, _)| cgroup).collect())
    }

    /// Has the kernel ask of a cgroup, as if it were new.
    ///
    /// # Errors
    /// The kernel's table is full.
    pub fn hold(&mut self, cgroup: u64) -> Result<(), LoadError> {
        let name = "CGROUPS";
        let failed = |source| LoadError::Map { name, source };
        self.hash::<u64, u32>(name)?.insert(cgroup, PENDING, 0).map_err(failed)
    }

    /// A cgroup is no sandbox, whatever was said before.
    ///
    /// # Errors
    /// The table is gone.
    pub fn disown(&mut self, cgroup: u64) -> Result<(), LoadError> {
        // It may not be there.
        drop(self.hash::<u64, u32>("CGROUPS")?.remove(&cgroup));
        Ok(())
    }

    /// Gives who is in a sandbox's cgroup, and nobody in it, the identity of the program that they run:
    /// everybody, or those that were held when they were started. For [`PENDING`], has those be nobody that were held in a cgroup which is no sandbox. None of
    /// them may run meanwhile.
    ///
    /// # Errors
    /// The kernel has no such walks, or refuses this one.
    pub fn walk(&mut self, sandbox: u32, whom: Whom) -> Result<Walk, LoadError> {
        let is_for_all = u32::from(whom == Whom::Everybody);
        self.put_walk(Walk { sandbox, is_for_all, ..Walk::default() })?;
        let refused =
            |source: ProgramError| LoadError::Program { program: WALK, source: Box::new(source) };
        let absent = LoadError::Absent { kind: "program", name: WALK };
        let program: &mut Iter =
            self.ebpf.program_mut(WALK).ok_or(absent)?.try_into().map_err(refused)?;
        if program.fd().is_err() {
            program.load("task", &Btf::from_sys_fs()?).map_err(refused)?;
        }
        let link = program.attach().and_then(|id| program.take_link(id)).map_err(refused)?;
        let linked = link.into_file();
        let mut tasks = linked.map_err(|source| LoadError::Link { program: WALK, source })?;
        // It prints nothing: the kernel goes through all tasks before the first read returns, or
        // stops in between and is asked again.
        let mut printed = [0; 64];
        loop {
            match tasks.read(&mut printed) {
                Ok(0) => return self.walked(),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(source) => return Err(LoadError::Walk(source)),
            }
        }
    }

    fn put_walk(&mut self, walk: Walk) -> Result<(), LoadError> {
        let failed = |source| LoadError::Map { name: TABLE, source };
        let map = self.ebpf.map_mut(TABLE).ok_or(LoadError::Absent { kind: "map", name: TABLE })?;
        Array::<_, Walk>::try_from(map).map_err(failed)?.set(0, walk, 0).map_err(failed)
    }

    fn walked(&self) -> Result<Walk, LoadError> {
        let failed = |source| LoadError::Map { name: TABLE, source };
        let map = self.ebpf.map(TABLE).ok_or(LoadError::Absent { kind: "map", name: TABLE })?;
        Array::<_, Walk>::try_from(map).map_err(failed)?.get(&0, 0).map_err(failed)
    }
}
