//! Loads the kernel programs and attaches them at the root of the cgroup hierarchy.
//! At the root, because a socket is judged by its own cgroup's programs, wherever its user is.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::MapError;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError,
};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};

use clawbox_common::field::{self, Field};
use clawbox_common::limits;
use nix::time::{ClockId, clock_gettime};

use super::btf::{BtfError, KernelTypes, VMLINUX};
use super::calls;
use super::link;
use super::lsm::{self, LsmState};
use super::numbers;
use super::patch::{PatchError, Patched};
use super::pin::PinLinksError;
use super::probe::{self, Kernel};
use super::symbols;

/// The object, carried in the agent. Aligned, because the ELF reader casts headers in place.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CLAWBOX_BPF_OBJECT"));

/// What the kernel's counts of changed trees begin with: a structure of one word, the count.
const SEQUENCE: &str = "seqcount";

/// Tracing programs with their tracepoints, in the order in which they are attached: identities
/// must be copied before the first one can be made.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("task_exit", "sched_process_exit"),
    ("task_fork", "sched_wakeup_new"),
    ("task_exec", "sched_process_exec"),
];

/// The same for a load that also governs cgroups which others make.
const OF_OTHERS: [(&str, &str); 2] =
    [("cgroup_gone", "cgroup_rmdir"), ("cgroup_made", "cgroup_mkdir")];

/// Socket programs.
pub(super) const SOCKETS: &[&str] = &[
    "sock_create",
    "post_bind4",
    "post_bind6",
    "bind4",
    "bind6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// Why the kernel side could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No usable type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The verifier would say it, of the first helper that reads, in a screenful.
    #[error("{}; {}", probe::LOCKED_DOWN, probe::LOCKED_DOWN_FIX)]
    LockedDown,
    /// aya could not read the kernel's types.
    #[error("the kernel's type information cannot be used: {0}")]
    Types(#[from] aya::BtfError),
    /// The object is not what this agent was built with.
    #[error("the BPF object in this program is damaged: {0}; build it again")]
    Patch(#[from] PatchError),
    /// The object or its maps.
    #[error(
        "the kernel refused clawbox's maps: {0}; run as root (CAP_BPF, CAP_NET_ADMIN, \
         CAP_PERFMON) on a kernel 6.1 or newer with CONFIG_BPF_SYSCALL=y"
    )]
    Object(EbpfError),
    /// The verifier, or a permission.
    #[error("the kernel refused program `{program}`: {source}{}", hint(.source))]
    Program {
        /// Which.
        program: &'static str,
        /// Cause, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A link could not be taken over.
    #[error("program `{program}` is attached but its link cannot be held: {source}")]
    Link {
        /// Which.
        program: &'static str,
        /// Cause.
        source: LinkError,
    },
    /// A program that is attached could not be replaced by this build's.
    #[error(
        "program `{program}` of the daemon before cannot be replaced: {source}; it goes on deciding"
    )]
    Update {
        /// Which.
        program: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The tables that are pinned are another version's.
    #[error(
        "the sandboxes that run are enforced by a version of clawbox whose tables this one cannot take \
         over (layout {found} instead of {own}); they stay enforced. Go back to that version, or end \
         them: `clawbox uninstall`, then start this one"
    )]
    Layout {
        /// What is pinned.
        found: String,
        /// What this build has.
        own: String,
    },
    /// What was attached or pinned cannot be looked at.
    #[error("what stands in bpffs for `{what}` cannot be watched: {source}")]
    Watch {
        /// Program or map.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The object lacks something this agent was built with.
    #[error(
        "the BPF object of this build has no {kind} `{name}`; rebuild with `cargo xtask build`"
    )]
    Absent {
        /// Program or map.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program is attached but would end with this process.
    #[error(transparent)]
    Pin(Box<PinLinksError>),
    /// A map operation failed.
    #[error("cannot write map `{name}`: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Cause.
        source: MapError,
    },
    /// A map could not be read as a whole.
    #[error("cannot read map `{name}`: {source}")]
    Batch {
        /// Its name.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The kernel did not go through its tasks.
    #[error("the kernel did not look through its processes: {0}")]
    Walk(io::Error),
    /// The cgroup hierarchy's root cannot be opened.
    #[error("cannot open the cgroup root `{}`: {source}", path.display())]
    Cgroup {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

fn hint(error: &ProgramError) -> &'static str {
    let denied = matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.raw_os_error() == Some(nix::libc::EPERM));
    if denied { " (run as root: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)" } else { "" }
}

/// Entries that the maps of one load are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Policy rules.
    pub rules: u32,
    /// Literal addresses and ranges.
    pub addresses: u32,
    /// Files named as binaries.
    pub binaries: u32,
    /// Scripts named as binaries.
    pub scripts: u32,
    /// Objects that have rules.
    pub files: u32,
    /// Names that have rules.
    pub names: u32,
    /// Sandboxes.
    pub sandboxes: u32,
}

impl Sizes {
    /// For as many sandboxes as there can be.
    pub const LARGEST: Self = Self {
        rules: limits::RULES,
        addresses: limits::ADDRESSES,
        binaries: limits::BINARIES,
        scripts: limits::SCRIPTS,
        files: limits::FILES,
        names: limits::NAMES,
        sandboxes: limits::SANDBOXES,
    };
}

/// Entries that come with any policy that takes the place of the first one.
const GROWTH: u32 = 2048;

/// Room for three policies of a size: the one in force, the next, and the one that programs may
/// still be reading; and for some growth. Entries take memory when they are made.
fn room(entries: u32, bound: u32) -> u32 {
    entries.saturating_mul(3).saturating_add(GROWTH).min(bound.max(entries))
}

/// Programs that a load may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The BPF LSM programs.
    pub lsm: bool,
    /// The program that tells what seccomp refuses, and without those, what Landlock does. It costs
    /// every process of the host some time at each system call.
    pub refusals: bool,
    /// The program that tells which Unix sockets are connected to, in place of that: for a load that a
    /// command is learned from under. This one is not done without.
    pub learning: bool,
    /// Hundredths of a ring's free room that one sandbox's events may take while nobody reads them.
    pub share: u32,
}

/// Whose a load's tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// This process's: they end with it.
    Here,
    /// Those that a load before has pinned, or the first that are: they stay.
    Pinned,
}

/// Tables that a load takes over from the one before, and those of the next take over from it: what the
/// agent writes, and what programs know of processes and of sockets. The others only save work.
pub(super) const KEPT: &[&str] = &[
    "CGROUPS",
    "SELECTORS",
    "SANDBOX_STATES",
    "RULES",
    "ADDRESSES",
    "SYNTHETIC",
    "BINARIES",
    "SCRIPTS",
    "FILES",
    "NAMES",
    "SUBJECTS",
    "SEATS",
    "KINDS",
    "ORPHANS",
    "OTHERS",
    "UNASKED",
    "HAS_UNASKED",
    "SOCKETS",
    "EVENTS",
    "ALLOWS",
    "LOSSES",
    "LOSSES_UNATTRIBUTED",
    "NUMBERS",
    "FLOWS",
    "FLOW_SPAN",
    "TALLY_PLACES",
    "TALLIES",
    "TALLY_PLACES_TAKEN",
    "COUNTED",
];

/// Where in the hierarchy sandboxes' cgroups are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Steps below the root.
    pub level: u32,
    /// Id of the cgroup they are all in.
    pub parent: u64,
}

/// An attached program's link, by the program's name.
pub type NamedLink = (&'static str, FdLink);

/// Programs and maps in the kernel. Dropping it detaches every program whose link was not pinned.
pub struct Programs {
    /// The loaded object.
    pub ebpf: Ebpf,
    /// One link for each program, in order of attachment.
    pub links: Vec<NamedLink>,
    /// Whether BPF LSM programs are among them.
    pub lsm: LsmState,
}

impl Programs {
    /// Loads everything that is wanted and attaches it to the hierarchy whose root is `cgroup_root`;
    /// what is in a sandbox is told by its `place` below it. With a directory of pins, tables that are
    /// there are taken over, and programs that are attached at cgroups replaced.
    ///
    /// # Errors
    /// The kernel lacks something or refuses a program; nothing stays attached then.
    pub fn load(
        cgroup_root: &Path,
        place: Place,
        sizes: Sizes,
        wanted: Wanted,
        kept: Option<&Path>,
    ) -> Result<Self, LoadError> {
        if Kernel::probe().keeps_memory_from_bpf() {
            return Err(LoadError::LockedDown);
        }
        let kernel = KernelTypes::read(Path::new(VMLINUX))?;
        let offsets = offsets(&kernel)?;
        let types = Btf::from_sys_fs()?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&types));
        let globals = Globals::of(&kernel, place, wanted);
        globals.give(&mut loader);
        for (name, entries) in [
            ("RULES", room(sizes.rules, limits::RULES)),
            ("ADDRESSES", room(sizes.addresses, limits::ADDRESSES)),
            ("BINARIES", room(sizes.binaries, limits::BINARIES)),
            ("SCRIPTS", room(sizes.scripts, limits::SCRIPTS)),
            ("FILES", room(sizes.files, limits::FILES)),
            ("NAMES", room(sizes.names, limits::NAMES)),
            // And as many of which it has yet to be said whether they are one.
            ("CGROUPS", sizes.sandboxes.max(1).saturating_mul(2)),
            // Sandboxes are numbered from one.
            ("SANDBOX_STATES", sizes.sandboxes.max(1) + 1),
            ("SHARES", 2 * (sizes.sandboxes.max(1) + 1)),
        ] {
            loader.map_max_entries(name, entries);
        }
        for name in KEPT {
            if let Some(directory) = kept {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let object = Patched::new(OBJECT, &offsets, globals.function)?;
        let mut ebpf = loader.load(object.bytes()).map_err(LoadError::Object)?;
        drop(object);
        numbers::begin(&mut ebpf)?;
        #[cfg(feature = "debug-log")]
        log_to_standard_error(&mut ebpf);
        let root = File::open(cgroup_root)
            .map_err(|source| LoadError::Cgroup { path: cgroup_root.to_owned(), source })?;
        let mut links = Vec::with_capacity(TRACEPOINTS.len() + OF_OTHERS.len() + SOCKETS.len());
        let of_others = kept.iter().flat_map(|_| &OF_OTHERS);
        for &(name, tracepoint) in TRACEPOINTS.iter().chain(of_others) {
            let link = attach(&mut ebpf, name, |program| trace(program, tracepoint, &types))?;
            links.push((name, link));
        }
        attach_sockets(&mut ebpf, &root, kept, &mut links)?;
        let (of_lsm, mut lsm) = if wanted.lsm {
            lsm::attach_all(&mut ebpf, &types, &kernel)?
        } else {
            (Vec::new(), LsmState::absent("switched off by --lsm off"))
        };
        links.extend(of_lsm);
        if wanted.learning {
            let trace = |program: &mut Program| trace(program, calls::TRACEPOINT, &types);
            links.push(calls::attach_learning(&mut ebpf, trace)?);
            lsm.unrecorded =
                Some("a command is learned from: only what it reaches is told".to_owned());
        } else if wanted.refusals {
            links.extend(watch_refusals(&mut ebpf, &types, &mut lsm));
        } else if !lsm.is_active() {
            lsm.unrecorded = Some("not asked for: --refusals records it, at a cost".to_owned());
        }
        Ok(Self { ebpf, links, lsm })
    }
}

/// What programs are told once, when they are loaded.
struct Globals {
    renames: u64,
    mounts: u64,
    unseen: u64,
    place: Place,
    first_redirect: u32,
    first_kind: u64,
    /// Of the kernel's function that takes a word for a structure, and that structure's type.
    function: u32,
    structure: u32,
    share: u32,
}

impl Globals {
    fn of(kernel: &KernelTypes, place: Place, wanted: Wanted) -> Self {
        let trees = if wanted.lsm { symbols::tree_counts() } else { None };
        let (renames, mounts) = trees.unwrap_or_default();
        let cast = if trees.is_some() { kernel.cast(SEQUENCE) } else { None };
        let (function, structure) = cast.unwrap_or_default();
        // Not the wall clock, which may be set back between two loads.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self {
            renames,
            mounts,
            unseen: u64::from(trees.is_none()),
            place,
            first_redirect: now.subsec_nanos(),
            first_kind: u64::try_from(now.as_nanos()).unwrap_or(0),
            function,
            structure,
            share: wanted.share.min(100),
        }
    }

    fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("RENAME_LOCK", &self.renames, true)
            .override_global("MOUNT_LOCK", &self.mounts, true)
            .override_global("MOVES_UNSEEN", &self.unseen, true)
            .override_global("SANDBOX_LEVEL", &self.place.level, true)
            .override_global("SANDBOX_PARENT", &self.place.parent, true)
            .override_global("FIRST_KIND", &self.first_kind, true)
            .override_global("FIRST_REDIRECT", &self.first_redirect, true)
            .override_global("TYPE_SEQUENCE", &self.structure, true)
            .override_global("SHARE", &self.share, true);
    }
}

/// Attaches the socket programs, or puts them in the place of those of a load before.
fn attach_sockets(
    ebpf: &mut Ebpf,
    root: &File,
    kept: Option<&Path>,
    links: &mut Vec<NamedLink>,
) -> Result<(), LoadError> {
    for &name in SOCKETS {
        match kept.map(|directory| directory.join(name)).filter(|pin| pin.exists()) {
            Some(pin) => replace(ebpf, name, &pin)?,
            None => links.push((name, attach(ebpf, name, |program| socket(program, root))?)),
        }
    }
    Ok(())
}

/// Attaches the program that tells refused system calls. Enforcement does not depend on it: where it
/// cannot be had, that the trail lacks something is said.
fn watch_refusals(ebpf: &mut Ebpf, types: &Btf, lsm: &mut LsmState) -> Option<NamedLink> {
    let told = if lsm.is_active() { calls::Told::Filtered } else { calls::Told::All };
    let attached = calls::attach(ebpf, told, |program| trace(program, calls::TRACEPOINT, types));
    attached.map_err(|error| lsm.unrecorded = Some(error.to_string())).ok()
}

/// Passes on what the programs log, from a thread of its own that ends with the process.
#[cfg(feature = "debug-log")]
fn log_to_standard_error(ebpf: &mut Ebpf) {
    struct Standard;
    impl log::Log for Standard {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            eprintln!("bpf: {}", record.args());
        }
        fn flush(&self) {}
    }
    match aya_log::EbpfLogger::init_with_logger(ebpf, Standard) {
        Ok(mut logger) => drop(std::thread::spawn(move || {
            loop {
                logger.flush();
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
        })),
        Err(error) => tracing::warn!("the BPF programs' log cannot be read: {error}"),
    }
}

/// Where each of [`field::ALL`] is in this kernel's structures.
fn offsets(types: &KernelTypes) -> Result<Vec<u32>, BtfError> {
    let offset = |field: &Field| match types.offset(field.structure, field.path) {
        Err(_) if field.is_optional => Ok(0),
        found => found,
    };
    field::ALL.iter().map(offset).collect()
}

/// A link, or which of the two steps failed.
pub(super) enum AttachError {
    Program(ProgramError),
    Link(LinkError),
}

impl From<ProgramError> for AttachError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<LinkError> for AttachError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

pub(super) fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    how: impl FnOnce(&mut Program) -> Result<FdLink, AttachError>,
) -> Result<FdLink, LoadError> {
    let since = Instant::now();
    let program = ebpf.program_mut(name).ok_or(LoadError::Absent { kind: "program", name })?;
    let link = how(program).map_err(|error| match error {
        AttachError::Program(source) => {
            LoadError::Program { program: name, source: Box::new(source) }
        }
        AttachError::Link(source) => LoadError::Link { program: name, source },
    })?;
    let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(
        program = name,
        verified,
        micros = since.elapsed().as_micros() as u64,
        "attached"
    );
    Ok(link)
}

/// Loads a socket program and puts it in the place of one that is attached.
fn replace(ebpf: &mut Ebpf, name: &'static str, pin: &Path) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Absent { kind: "program", name })?;
    let loaded = match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => return Err(LoadError::Absent { kind: "socket program", name }),
    };
    let refused =
        |source: ProgramError| LoadError::Program { program: name, source: source.into() };
    loaded.map_err(refused)?;
    let fd = program.fd().map_err(refused)?;
    link::update(pin, fd.as_fd()).map_err(|source| LoadError::Update { program: name, source })
}

/// Attaches a socket program that is loaded once more.
pub(super) fn attach_socket_again(
    ebpf: &mut Ebpf,
    name: &'static str,
    root: &File,
) -> Result<FdLink, LoadError> {
    attach(ebpf, name, |program| at_root(program, root))
}

fn trace(program: &mut Program, tracepoint: &str, types: &Btf) -> Result<FdLink, AttachError> {
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(tracepoint, types)?;
    let id = program.attach()?;
    Ok(program.take_link(id)?.into())
}

fn socket(program: &mut Program, root: &File) -> Result<FdLink, AttachError> {
    match &mut *program {
        Program::CgroupSock(program) => program.load()?,
        other => <&mut CgroupSockAddr>::try_from(other)?.load()?,
    }
    at_root(program, root)
}

fn at_root(program: &mut Program, root: &File) -> Result<FdLink, AttachError> {
    // `Single` is no flag, and a link without flags is always one of many: `AllowMultiple` is
    // refused by link_create.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSock(program) => {
            let id = program.attach(root, mode)?;
            Ok(CgroupSock::take_link(program, id)?.try_into()?)
        }
        other => {
            let program: &mut CgroupSockAddr = other.try_into()?;
            let id = program.attach(root, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
    }
}
