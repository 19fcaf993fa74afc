//! What is read and opened for a sandbox before anything is put into the system, so that most of what can
//! go wrong does so while nothing has to be taken back.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use super::child;
use super::identities::Identities;
use super::launch::{self, BackstopReport};
use super::objects::Objects;
use super::run::{Run, RunError, system};
use super::view::View;
use crate::audit::trail::Trail;
use crate::compile::AgentPorts;
use crate::dns::{ResolverSockets, Upstream, UpstreamError};
use crate::gateway::{self, Network, WaitingRoom};
use crate::kernel::enforcer::cgroups::Whom;
use crate::kernel::file_id::Mounts;
use crate::kernel::load::Sizes;

/// All of it.
pub struct Ready {
    /// The sandbox's number.
    pub(super) number: u32,
    pub(super) trail: Trail,
    pub(super) upstream: Upstream,
    pub(super) sockets: Sockets,
    pub(super) mounts: Mounts,
    pub(super) start: Start,
    /// What the policy names, as it is on this host.
    pub(super) identities: Identities,
    pub(super) objects: Objects,
}

/// How a sandbox comes by its processes.
pub(super) enum Start {
    /// The command is started.
    Command(Box<Launch>),
    /// They are there, or somebody else starts them.
    Attached(Whom),
}

/// What a command is started with.
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) backstops: launch::Prepared,
    pub(super) report: BackstopReport,
}

/// Whom a sandbox's resolver asks: these servers, or the host's own if there are none.
pub(super) fn upstream(servers: &[SocketAddr]) -> Result<Upstream, UpstreamError> {
    if servers.is_empty() { Upstream::system() } else { Upstream::servers(servers) }
}

/// Where the agent serves one sandbox; nobody does yet. All of it is in the sandbox's network.
pub(super) struct Sockets {
    pub(super) resolver: ResolverSockets,
    pub(super) verified: (TcpListener, u16),
    pub(super) room: WaitingRoom,
    /// Where connections that come there go on from.
    pub(super) network: Network,
}

impl Sockets {
    /// For a sandbox in the agent's own network.
    pub(super) fn open() -> Result<Self, RunError> {
        Self::bind(Network::default(), ResolverSockets::bind)
    }

    /// For a sandbox whose processes see the network so; the resolver's ports as an earlier clawbox had them,
    /// zero for any.
    pub(super) fn open_in(view: &View, ports: [u16; 2]) -> Result<Self, RunError> {
        let network = view.network().map_err(system("enter the sandbox's network"))?;
        Self::bind(network, || ResolverSockets::bind_at(ports))
    }

    fn bind(
        network: Network,
        resolver: impl FnOnce() -> std::io::Result<ResolverSockets> + Send,
    ) -> Result<Self, RunError> {
        let resolver = network.within(resolver);
        let verified = network.within(gateway::bind);
        let room = WaitingRoom::open(network.clone());
        Ok(Self {
            resolver: resolver.map_err(system("open the resolver's sockets"))?,
            verified: verified.map_err(system("open the verifier's socket"))?,
            room: room.map_err(system("open the socket for what waits"))?,
            network,
        })
    }

    pub(super) fn ports(&self) -> AgentPorts {
        let (resolver_v4, v6) = self.resolver.ports();
        let (verifier, waiting) = (self.verified.1, self.room.port());
        AgentPorts { resolver_v4, resolver_v6: v6.unwrap_or(0), verifier, waiting }
    }
}

impl Ready {
    /// For a run that is to be the sandbox of this number.
    ///
    /// # Errors
    /// Something that it needs is not there.
    pub fn of(run: &mut Run, number: u32) -> Result<Self, RunError> {
        let trail = Trail::open(&run.audit, &run.name)?;
        let upstream = upstream(&run.dns)?;
        let sockets = Sockets::open()?;
        let program = child::find_program(&run.invocation)?;
        run.backstops.needed.push(program.clone());
        let mounts = Mounts::of_agent().map_err(system("read /proc/self/mountinfo"))?;
        let patterns = run.image.binaries.iter().map(|entry| &entry.pattern);
        let own_tmp = run.backstops.own_tmp();
        let writable: Vec<PathBuf> =
            run.backstops.read_write.iter().chain(&own_tmp).cloned().collect();
        let identities = Identities::find(number, &mounts, patterns, &writable);
        let problems = identities.problems_of(&run.image);
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        // The rule stands at the directory that the private one is mounted on.
        run.also_writable.extend(own_tmp);
        let objects = Objects::find(&run.image, &mounts, &run.also_writable);
        objects.problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        if !objects.unclosed.is_empty() {
            return Err(RunError::Unclosed(objects.unclosed.join("; ")));
        }
        let (backstops, report) = launch::prepare(&run.backstops)?;
        report.skipped_paths.iter().for_each(|skipped| {
            tracing::warn!("no access below `{}`: {}", skipped.path.display(), skipped.why);
        });
        Ok(Self {
            number,
            trail,
            upstream,
            sockets,
            mounts,
            start: Start::Command(Box::new(Launch { program, backstops, report })),
            identities,
            objects,
        })
    }

    /// For processes that are there, or that somebody else starts, and see so.
    ///
    /// # Errors
    /// Something that it needs is not there.
    pub fn of_attached(
        run: &mut Run,
        number: u32,
        view: &View,
        whom: Whom,
    ) -> Result<Self, RunError> {
        let trail = Trail::open(&run.audit, &run.name)?;
        let upstream = upstream(&run.dns)?;
        let sockets = Sockets::open_in(view, [0, 0])?;
        let mounts = view.read_mounts().map_err(system("read its mounts"))?;
        let patterns = run.image.binaries.iter().map(|entry| &entry.pattern);
        let writable = run.backstops.writable();
        let found = view.within(|| {
            let identities = Identities::find(number, &mounts, patterns, &writable);
            (identities, Objects::find(&run.image, &mounts, &[]))
        });
        let (identities, objects) = found.map_err(system("look at its files"))?;
        let of_programs = identities.problems_of(&run.image);
        let problems = of_programs.iter().chain(&objects.problems);
        problems.for_each(|problem| tracing::warn!("{problem}"));
        if !objects.unclosed.is_empty() {
            return Err(RunError::Unclosed(objects.unclosed.join("; ")));
        }
        let start = Start::Attached(whom);
        Ok(Self { number, trail, upstream, sockets, mounts, start, identities, objects })
    }

    /// Room in the kernel's maps for this sandbox alone.
    #[must_use]
    pub fn sizes(&self, run: &Run) -> Sizes {
        let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Sizes {
            rules: entries(run.image.rules.len()),
            addresses: entries(run.image.addresses.len()),
            binaries: entries(self.identities.binaries.len()),
            scripts: entries(self.identities.scripts.len()),
            files: entries(self.objects.files.len()),
            names: entries(self.objects.names.len()),
            sandboxes: 1,
        }
    }
}
