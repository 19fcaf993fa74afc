//! The one object through which the agent changes what the kernel enforces: policies, sandboxes,
//! identities, synthetic addresses; and through which it reads events and losses.

pub mod cgroups;
mod generations;
mod losses;
mod states;

pub use self::generations::Generation;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, SkStorage};
use clawbox_common::attach::STARTERS;
use clawbox_common::file::{FileKey, FileRule, NameKey};
use clawbox_common::rule::{
    AddressKey, BinaryKey, HostIds, Redirected, RuleKey, RuleValue, SandboxState, ScriptKey,
    SocketState,
};
use clawbox_common::subject::Mask;

use super::attached::Attached;
use super::batch;
use super::calls;
use super::counted::Counted;
use super::flows::Flows;
use super::load::{Keep, LoadError, Place, Programs, SOCKETS, Sizes, Wanted};
use super::losses::{EXEC_HOOK, Losses, Skips};
use super::lsm::{self, LsmState};
use super::numbers::{self, Numbers};
use super::parts::Late;
use super::pin::{self, PinLinksError, PinnedLinks};
use super::pinned::{SUBJECTS, check_layout};
use super::ring::Ring;
use super::synthetics::Synthetics;
use super::tallies::Tallies;

/// Why enforcement could not be put in place or changed.
#[derive(Debug, thiserror::Error)]
pub enum EnforcerError {
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Pinning.
    #[error(transparent)]
    Pin(#[from] PinLinksError),
}

/// Kernel programs and maps under the agent's hand.
#[derive(Debug)]
pub struct Enforcer {
    ebpf: Ebpf,
    pins: PinnedLinks,
    lsm: LsmState,
    judges_open_files: bool,
    /// What is watched, of a load whose tables stay.
    attached: Option<Attached>,
    waiting: states::Waiting,
    /// Who may still be writing rules that are written already.
    late: Mutex<Vec<Late>>,
}

impl Enforcer {
    /// Loads, attaches and pins. From here on enforcement outlives this process.
    ///
    /// # Errors
    /// The kernel lacks something; nothing stays behind then.
    pub fn load(
        cgroup_root: &Path,
        place: Place,
        sizes: Sizes,
        run: &str,
        wanted: Wanted,
        keep: Keep,
    ) -> Result<Self, EnforcerError> {
        if keep == Keep::Pinned {
            return Self::take_over(cgroup_root, place, sizes, run, wanted);
        }
        let Programs { ebpf, links, lsm } =
            Programs::load(cgroup_root, place, sizes, wanted, None)?;
        let pins = PinnedLinks::pin(run, links)?;
        let path = pins.directory().join(SUBJECTS);
        let pinned = match ebpf.map(SUBJECTS) {
            Some(map) => {
                map.pin(path).map_err(|source| PinLinksError::Pin { what: SUBJECTS, source }.into())
            }
            None => Err(LoadError::Absent { kind: "map", name: SUBJECTS }.into()),
        };
        if let Err(error) = pinned {
            // Without it nobody could end who has left the cgroup. The links go too, best effort.
            let _ = pin::remove(pins.directory());
            return Err(error);
        }
        Ok(Self {
            ebpf,
            pins,
            lsm,
            judges_open_files: false,
            attached: None,
            waiting: None,
            late: Mutex::default(),
        })
    }

    /// Loads with tables that stay pinned; those of a load before are taken over, and its programs
    /// replaced, without a moment in which neither decides.
    fn take_over(
        cgroup_root: &Path,
        place: Place,
        sizes: Sizes,
        run: &str,
        wanted: Wanted,
    ) -> Result<Self, EnforcerError> {
        let directory = pin::prepare(run)?;
        let is_first = check_layout(&directory)?;
        let loaded = Programs::load(cgroup_root, place, sizes, wanted, Some(&directory));
        let pinned = loaded.map_err(EnforcerError::from).and_then(|loaded| {
            // Those at cgroups are among the links the first time alone.
            let names = loaded.links.iter().map(|(name, _)| *name).chain(SOCKETS.iter().copied());
            let names: BTreeSet<&'static str> = names.collect();
            let pins = PinnedLinks::replace(run, loaded.links)?;
            let attached = Attached::of(cgroup_root, &directory, &loaded.ebpf, names)?;
            Ok((loaded.ebpf, pins, loaded.lsm, attached))
        });
        let (ebpf, pins, lsm, attached) = pinned.inspect_err(|_| {
            if is_first {
                // Nobody is governed by it.
                drop(pin::remove(&directory));
            }
        })?;
        let attached = Some(attached);
        let mut taken = Self {
            ebpf,
            pins,
            lsm,
            judges_open_files: false,
            attached,
            waiting: None,
            late: Mutex::default(),
        };
        if !is_first {
            // What was open before was judged by who knows which policy.
            taken.judge_open_files()?;
        }
        Ok(taken)
    }

    /// Whether BPF LSM programs decide.
    #[must_use]
    pub fn lsm(&self) -> &LsmState {
        &self.lsm
    }

    /// The cgroups that are sandboxes', by their ids, and which.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn cgroups(&mut self) -> Result<Vec<(u64, u32)>, LoadError> {
        let failed = |source| LoadError::Map { name: "CGROUPS", source };
        let map = self.map_data("CGROUPS")?;
        batch::all(map.fd().as_fd()).map_err(|errno| failed(batch::failed(errno)))
    }

    /// Takes out what belongs to policies that none of these is, and to sandboxes that none of these is:
    /// what an earlier clawbox was ended in the middle of.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn sweep(
        &mut self,
        policies: &BTreeSet<u32>,
        sandboxes: &BTreeSet<u32>,
    ) -> Result<(), LoadError> {
        self.remove_where::<RuleKey, RuleValue>("RULES", |key| !policies.contains(&key.policy))?;
        self.remove_where::<FileKey, FileRule>("FILES", |key| !policies.contains(&key.policy))?;
        self.remove_where::<NameKey, FileRule>("NAMES", |key| !policies.contains(&key.policy))?;
        self.remove_where::<BinaryKey, Mask>("BINARIES", |key| {
            key.sandbox != STARTERS && !sandboxes.contains(&key.sandbox)
        })?;
        self.remove_where::<ScriptKey, Mask>("SCRIPTS", |key| !sandboxes.contains(&key.sandbox))?;
        let mut trie = self.trie()?;
        let stale: Vec<Key<AddressKey>> = trie
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !policies.contains(&{ key.data() }.policy))
            .collect();
        stale.iter().for_each(|key| drop(trie.remove(key)));
        Ok(())
    }

    /// From now on a use of a file that is open already is judged by the policy in force: reading,
    /// writing, mapping. Until a policy changes, what was opened was judged when it was, and
    /// nobody pays for asking again. Without BPF LSM programs nothing can be judged.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    pub fn judge_open_files(&mut self) -> Result<(), LoadError> {
        if !self.lsm.is_active() || self.judges_open_files {
            return Ok(());
        }
        let links = lsm::attach_for_open_files(&mut self.ebpf)?;
        let names: Vec<&'static str> = links.iter().map(|(name, _)| *name).collect();
        self.pins.take_in(links).map_err(|error| LoadError::Pin(Box::new(error)))?;
        if let Some(attached) = &mut self.attached {
            attached.take_in(&self.ebpf, names)?;
        }
        self.judges_open_files = true;
        Ok(())
    }

    /// What is watched, and what it takes to put it right.
    pub(super) fn watched(&mut self) -> (&mut Ebpf, &PinnedLinks, Option<&mut Attached>) {
        (&mut self.ebpf, &self.pins, self.attached.as_mut())
    }

    /// A table that was not taken.
    pub(super) fn map_named(&self, name: &str) -> Option<&Map> {
        self.ebpf.map(name)
    }

    fn map<T, E>(&mut self, name: &'static str) -> Result<T, LoadError>
    where
        T: TryFrom<Map, Error = E>,
        MapError: From<E>,
    {
        let map = self.ebpf.take_map(name).ok_or(LoadError::Absent { kind: "map", name })?;
        T::try_from(map).map_err(|error| LoadError::Map { name, source: error.into() })
    }

    /// Writes entries, in the place of those that have their keys.
    fn write<K: aya::Pod + Send + Sync, V: aya::Pod + Send + Sync>(
        &self,
        name: &'static str,
        entries: &BTreeMap<K, V>,
    ) -> Result<(), LoadError> {
        self.write_all(name, entries.iter().map(|(key, value)| (*key, *value)))
    }

    fn write_all<K: aya::Pod + Send + Sync, V: aya::Pod + Send + Sync>(
        &self,
        name: &'static str,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<(), LoadError> {
        // Who comes next may write others in their place.
        self.begin_to_write(name, entries)?.into_iter().for_each(Late::wait);
        Ok(())
    }

    fn begin_to_write<K: aya::Pod + Send + Sync, V: aya::Pod + Send + Sync>(
        &self,
        name: &'static str,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<Option<Late>, LoadError> {
        let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
        let written = batch::write(self.map_data(name)?.fd().as_fd(), keys, values);
        written.map_err(|errno| LoadError::Batch { name, source: errno.into() })
    }

    /// Removes the entries whose keys are meant.
    fn remove_where<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
        is_meant: impl Fn(&K) -> bool,
    ) -> Result<(), LoadError> {
        let map = self.map_data(name)?.fd().as_fd();
        let all = batch::all::<K, V>(map);
        let all = all.map_err(|errno| LoadError::Batch { name, source: errno.into() })?;
        let meant: Vec<K> = all.into_iter().map(|(key, _)| key).filter(is_meant).collect();
        batch::remove(map, &meant);
        Ok(())
    }

    /// Removes entries, best effort: one that stays is unreachable, and costs its room alone.
    fn remove_keys<K: aya::Pod>(&self, name: &'static str, keys: &[K]) {
        if let Ok(map) = self.map_data(name) {
            batch::remove(map.fd().as_fd(), keys);
        }
    }

    /// A second descriptor of a table that goes on being written.
    fn again(&self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let fd = self.map_data(name)?.fd().as_fd().try_clone_to_owned();
        fd.map_err(|source| LoadError::Batch { name, source })
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, LoadError> {
        let map = self.ebpf.map_mut(name).ok_or(LoadError::Absent { kind: "map", name })?;
        HashMap::try_from(map).map_err(|source| LoadError::Map { name, source })
    }

    fn trie(&mut self) -> Result<LpmTrie<&mut MapData, AddressKey, HostIds>, LoadError> {
        let name = "ADDRESSES";
        let map = self.ebpf.map_mut(name).ok_or(LoadError::Absent { kind: "map", name })?;
        LpmTrie::try_from(map).map_err(|source| LoadError::Map { name, source })
    }

    /// Makes a cgroup a sandbox's: from now on its tasks without an identity are denied
    /// everything, and those that exec get one. Loss counters come first, so that not even the
    /// first event can be lost uncounted.
    ///
    /// # Errors
    /// A map is full.
    pub fn admit_cgroup(&mut self, cgroup: u64, sandbox: u32) -> Result<(), LoadError> {
        for sandbox in [sandbox, 0] {
            self.begin_losses(sandbox)?;
        }
        let name = "CGROUPS";
        self.hash(name)?
            .insert(cgroup, sandbox, 0)
            .map_err(|source| LoadError::Map { name, source })
    }

    /// A sandbox that has no process left is none any more: its cgroup, its state and its counts go.
    ///
    /// # Errors
    /// A map is gone.
    pub fn dismiss(&mut self, cgroup: u64, sandbox: u32) -> Result<(), LoadError> {
        // Each is best effort: the cgroup is gone, and nobody finds the rest.
        drop(self.hash::<u64, u32>("CGROUPS")?.remove(&cgroup));
        self.end_losses(sandbox);
        self.set_state(sandbox, &SandboxState::under(0, 0))
    }

    /// Takes out what [`Enforcer::write_identities`] wrote.
    pub fn remove_identities(
        &mut self,
        binaries: &BTreeMap<BinaryKey, Mask>,
        scripts: &BTreeMap<ScriptKey, Mask>,
    ) {
        // As with a generation: what stays is reached by nobody.
        if let Ok(mut map) = self.hash::<BinaryKey, Mask>("BINARIES") {
            binaries.keys().for_each(|key| drop(map.remove(key)));
        }
        if let Ok(mut map) = self.hash::<ScriptKey, Mask>("SCRIPTS") {
            scripts.keys().for_each(|key| drop(map.remove(key)));
        }
    }

    /// Makes these the only files and scripts that stand for slots in a sandbox: what an earlier clawbox has
    /// written of a policy that counts for nothing, or of a file whose inode number somebody may have by now,
    /// goes.
    ///
    /// # Errors
    /// A map is full.
    pub fn hold_identities(
        &mut self,
        sandbox: u32,
        binaries: &BTreeMap<BinaryKey, Mask>,
        scripts: &BTreeMap<ScriptKey, Mask>,
    ) -> Result<(), LoadError> {
        self.write_identities(binaries, scripts)?;
        self.remove_where::<BinaryKey, Mask>("BINARIES", |key| {
            key.sandbox == sandbox && !binaries.contains_key(key)
        })?;
        self.remove_where::<ScriptKey, Mask>("SCRIPTS", |key| {
            key.sandbox == sandbox && !scripts.contains_key(key)
        })
    }

    /// Every slot that a file or a script stands for in a sandbox.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn slots_named(&mut self, sandbox: u32) -> Result<Mask, LoadError> {
        let mut all = Mask::EMPTY;
        let failed = |name| move |source| LoadError::Map { name, source };
        for entry in self.hash::<BinaryKey, Mask>("BINARIES")?.iter() {
            let (key, mask) = entry.map_err(failed("BINARIES"))?;
            if key.sandbox == sandbox {
                all.extend(&mask);
            }
        }
        for entry in self.hash::<ScriptKey, Mask>("SCRIPTS")?.iter() {
            let (key, mask) = entry.map_err(failed("SCRIPTS"))?;
            if key.sandbox == sandbox {
                all.extend(&mask);
            }
        }
        Ok(all)
    }

    /// Makes these the rules at objects and names of a policy that is in force: new ones first, then those
    /// of objects that are no more go.
    ///
    /// # Errors
    /// A map is full.
    pub fn hold_objects(
        &mut self,
        policy: u32,
        files: &BTreeMap<FileKey, FileRule>,
        names: &BTreeMap<NameKey, FileRule>,
    ) -> Result<(), LoadError> {
        self.write("FILES", files)?;
        self.write("NAMES", names)?;
        self.remove_where::<FileKey, FileRule>("FILES", |key| {
            key.policy == policy && !files.contains_key(key)
        })?;
        self.remove_where::<NameKey, FileRule>("NAMES", |key| {
            key.policy == policy && !names.contains_key(key)
        })
    }

    /// Writes which files stand for which binary slots.
    ///
    /// # Errors
    /// A map is full.
    pub fn write_identities(
        &mut self,
        binaries: &BTreeMap<BinaryKey, Mask>,
        scripts: &BTreeMap<ScriptKey, Mask>,
    ) -> Result<(), LoadError> {
        self.write("BINARIES", binaries)?;
        self.write("SCRIPTS", scripts)
    }

    /// The events: what is denied, held or started, and what is allowed. They have one reader.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub fn take_events(&mut self) -> Result<[Ring; 2], LoadError> {
        let ring = |name| {
            let ring = Ring::of(self.map_data(name)?);
            ring.map_err(|error| LoadError::Map { name, source: error.into() })
        };
        Ok([ring("EVENTS")?, ring("ALLOWS")?])
    }

    /// The loss counters, to be read. Can be taken once.
    ///
    /// # Errors
    /// They were taken before, or the kernel does not open them again.
    pub fn take_losses(&mut self) -> Result<Losses, LoadError> {
        let mut skips = vec![
            (EXEC_HOOK, Skips::of(&self.ebpf, "task_exec")?),
            ("fork-hook", Skips::of(&self.ebpf, "task_fork")?),
        ];
        if !self.lsm.is_active() && self.lsm.unrecorded.is_none() {
            skips.push(("system-call-hook", Skips::of(&self.ebpf, calls::PROGRAM)?));
        } else if self.is_learning() {
            skips.push(("system-call-hook", Skips::of(&self.ebpf, calls::LEARNING)?));
        }
        Ok(Losses::new(self.again("LOSSES")?, self.map("LOSSES_UNATTRIBUTED")?, skips))
    }

    /// Whether the program was loaded that tells what a command is learned from does.
    fn is_learning(&self) -> bool {
        self.ebpf.program(calls::LEARNING).is_some_and(|program| program.fd().is_ok())
    }

    /// The numbers of records, to be compared with what is read from now on. Can be taken once.
    ///
    /// # Errors
    /// They were taken before, or cannot be read.
    pub fn take_numbers(&mut self) -> Result<Numbers, LoadError> {
        let table = self.map(numbers::TABLE)?;
        Numbers::of(table).map_err(|source| LoadError::Map { name: numbers::TABLE, source })
    }

    /// The counts of what was allowed. Can be taken once.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_tallies(&mut self) -> Result<Tallies, LoadError> {
        let places = self.again("TALLY_PLACES")?;
        Ok(Tallies::new(places, self.map("TALLIES")?))
    }

    /// The counts of allowed connects and sends. Can be taken once.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_flows(&mut self) -> Result<Flows, LoadError> {
        let table = self.again("FLOWS")?;
        Ok(Flows::new(table, self.map("FLOW_SPAN")?))
    }

    /// Of which sandboxes there are any. Can be taken once.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_counted(&mut self) -> Result<Counted, LoadError> {
        Ok(Counted::new(self.map("COUNTED")?))
    }

    /// Ends of processes that the kernel did not tell: their identities are still there.
    ///
    /// # Errors
    /// The build's object lacks the program.
    pub fn skipped_exits(&self) -> Result<Skips, LoadError> {
        Skips::of(&self.ebpf, "task_exit")
    }

    /// What is kept with sockets. Can be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_sockets(&mut self) -> Result<SkStorage<MapData, SocketState>, LoadError> {
        self.map("SOCKETS")
    }

    /// Connections that the kernel has taken to the agent. Can be taken once.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_redirected(&mut self) -> Result<Array<MapData, Redirected>, LoadError> {
        self.map("REDIRECTED")
    }

    /// The table of synthetic addresses. Can be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_synthetics(&mut self) -> Result<Synthetics, LoadError> {
        Ok(Synthetics::in_table(self.map("SYNTHETIC")?))
    }

    /// Ends enforcement: nothing of this load stays in the kernel.
    ///
    /// # Errors
    /// A pin cannot be removed; it goes on enforcing.
    pub fn remove(&self) -> std::io::Result<()> {
        pin::remove(self.pins.directory())
    }
}
