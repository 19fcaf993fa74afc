//! `clawbox daemon`: one process that owns the kernel side of a host and serves all of its sandboxes. One
//! loop does everything that touches them, a question at a time.

mod attach;
pub mod config;
mod containers;
mod descriptors;
mod exec;
pub mod exposition;
mod global;
mod limits;
pub mod listen_at;
pub mod logs;
mod member;
pub mod metrics;
mod notify;
pub mod reading;
mod recording;
mod reload;
mod request;
mod rounds;
pub mod standing;
mod status;
pub mod store;
pub mod uninstall;
mod usage;
pub mod watchdog;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use clawbox_common::attach::PENDING;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::yield_now;

use crate::api::peer::Peer;
use crate::api::server::{self, Served};
use crate::audit::programs::Programs;
use crate::audit::store::intake as audit;
use crate::audit::trail::Trail;
use crate::kernel::file_id::Mounts;
use crate::kernel::load::{Keep, Place, Sizes, Wanted};
use crate::kernel::pinned;
use crate::sandbox::adopt::Found;
use crate::sandbox::cgroup::{self, Cgroup, CgroupError};
use crate::sandbox::confined::is_confined;
use crate::sandbox::host::Host;
use crate::sandbox::host::TICK;
use crate::sandbox::launcher::Launcher;
use crate::sandbox::oom;
use crate::sandbox::probe::PROBE;
use crate::sandbox::run::{LsmUse, RunError};
use crate::sandbox::run_lock;
use crate::sandbox::timer::Timer;
use crate::ship::Shipping;
use attach::Standing;
use config::{Config, ConfigError};
use descriptors::Descriptors;
use exposition::Changes;
use global::Global;
use listen_at::ListenAt;
use member::{Ended, Member};
use metrics::Metrics;
use recording::Recording;
use rounds::Rounds;
use store::{Kept, Store, StoreError};
use watchdog::Watchdog;

pub use request::EXIT_STATUS;

/// Tasks that what somebody waits for passes through until it is on the socket.
const TELLING: usize = 4;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// See the source.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See the source.
    #[error(transparent)]
    Run(#[from] RunError),
    /// See the source.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// See the source.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// BPF LSM is missing and must not be.
    #[error("no BPF LSM programs, and the configuration says `lsm: require`: {0}")]
    NeedsLsm(String),
    /// Another one of this name runs.
    #[error("a daemon called `{0}` runs already; stop it first, or give this one another `name`")]
    Running(String),
    /// A system call.
    #[error("cannot {what}: {source}")]
    System {
        /// What it was for.
        what: String,
        /// Cause.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::System { what, source }
}

/// Everything that the loop works on.
struct Daemon {
    config: Config,
    host: Host,
    root: PathBuf,
    members: BTreeMap<u32, Member>,
    further: Vec<exec::Command>,
    /// What is still to be cleared up after.
    ended: Vec<Ended>,
    store: Store,
    standing: Standing,
    since: SystemTime,
    changes: Changes,
    global: Global,
    watchdog: Watchdog,
    descriptors: Descriptors,
    rounds: Rounds,
    recording: Recording,
    readers: reading::Readers,
    /// Where its configuration is, if not where it is by default.
    file: Option<PathBuf>,
    /// Before the store, which tells it what there is.
    _ship: Shipping,
    /// Written to the end, so after all else.
    audit: audit::Store,
}

/// Runs until it is told to stop; what it enforces stays. The file is where the configuration was read, the
/// launcher who starts processes in this one's place.
///
/// # Errors
/// It cannot begin, and nothing stays behind.
pub fn run(
    config: Config,
    file: Option<PathBuf>,
    launcher: Option<Launcher>,
) -> Result<(), DaemonError> {
    let root = cgroup::hierarchy_root()?;
    let _lock = take_lock(&config.name)?;
    run_lock::remove_stale(&root);
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    runtime.block_on(async {
        let listener = bind(&config.socket)?;
        let mut daemon = Daemon::load(config, file, root)?;
        if launcher.is_some() {
            // Sandboxes are not this process's to fork.
            oom::spare();
        }
        daemon.host.start_by(launcher);
        // What is looked at by its number was that process only if it is still there.
        let is_nobody = |peer: &Peer| is_confined(peer.pid) || peer.has_ended();
        // Whoever opens connections without an end takes none away from what runs.
        let has_room = |peer: &Peer| peer.manages() || descriptors::has_room_for_questions();
        let asked = server::serve(listener, is_nobody, has_room);
        let asked = asked.map_err(system("serve the control socket"))?;
        let mut metrics = Metrics::new();
        let at = daemon.config.metrics.clone();
        if let Err(error) = metrics.serve(&at).await {
            // Sandboxes need a daemon more than anybody needs its numbers.
            tracing::error!("no metrics at `{at}`: {error}");
            daemon.config.metrics = ListenAt::Off;
        }
        daemon.serve(asked, metrics).await
    })
}

/// The socket, where everybody may connect: who may ask what is told by who they are.
fn bind(path: &Path) -> Result<UnixListener, DaemonError> {
    let what = format!("listen at `{}`", path.display());
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
        // A run without a daemon keeps it for root alone.
        made.and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o711)))
            .map_err(system(what.clone()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(what)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(system(what.clone()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(system(what))?;
    Ok(listener)
}

/// Held for the daemon's life. Not among the runs' locks: what a dead daemon leaves is adopted, not removed.
fn take_lock(name: &str) -> Result<Flock<File>, DaemonError> {
    let directory = Path::new(run_lock::DIRECTORY);
    let path = directory.join(format!("{name}.daemon"));
    let what = || format!("lock `{}`", path.display());
    fs::create_dir_all(directory).map_err(system(what()))?;
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(system(what()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| DaemonError::Running(name.to_owned()))
}

/// The host's audit store, in which everything is from now on, and who it is shipped to.
fn audit_store(config: &Config, host: &mut Host) -> Result<(audit::Store, Shipping), DaemonError> {
    let (at, key) = (audit::directory_of(&config.state), audit::key_of(&config.state));
    // Before anything is read or written.
    let flight = host.in_flight(&config.name, &at);
    if let Err(error) = &flight {
        tracing::error!("what is read and not stored is not counted should this end: {error}");
    }
    let store = audit::Store::start(at, key, &config.name, config.audit, flight.ok());
    let store = store.map_err(system("start the audit store's writer"))?;
    let ship = Shipping::start(&config.ship, &config.state, &store.intake().stored());
    let ship = ship.map_err(system("start what ships the audit store"))?;
    host.store_in(store.intake());
    Ok((store, ship))
}

/// A cgroup that stays, so that the parent of all sandboxes does, whose id the programs are given.
fn keeper(root: &Path, name: &str) -> Result<Cgroup, DaemonError> {
    let own = root.join(cgroup::PARENT).join(format!(".{name}"));
    let keeper =
        if own.exists() { Cgroup::open(own) } else { Cgroup::create(root, &format!(".{name}")) };
    Ok(keeper?)
}

impl Daemon {
    fn load(config: Config, file: Option<PathBuf>, root: PathBuf) -> Result<Self, DaemonError> {
        let keeper = keeper(&root, &config.name)?;
        // Before anything is put into the kernel.
        let standing = Standing::read(&config.standing)?;
        let running = pinned::cgroups(&config.name).unwrap_or_default();
        let is_awaited = running.iter().any(|(_, number)| !matches!(*number, PENDING | PROBE));
        let store = Store::open(&config.state, is_awaited)?;
        let global = Global::kept(store.global()?);
        let place = Place { level: cgroup::LEVEL, parent: keeper.parent_id()? };
        let lsm = LsmUse::from(config.lsm);
        let wanted = Wanted {
            lsm: lsm != LsmUse::Off,
            refusals: config.refusals,
            learning: false,
            share: config.audit.share,
        };
        let mut host =
            Host::load(&root, place, Sizes::LARGEST, &config.name, wanted, Keep::Pinned)?;
        if lsm == LsmUse::Require && !host.lsm().is_active() {
            let why = host.lsm().why.clone();
            // What an earlier daemon has started stays enforced as it is.
            if host.cgroups()?.is_empty() {
                host.take_down()?;
            }
            return Err(DaemonError::NeedsLsm(why));
        }
        let trail =
            Trail::go_on(&config.trails.join(format!("{}.jsonl", config.name)), &config.name);
        let mounts = Mounts::read().map_err(system("read /proc/self/mountinfo"))?;
        let (audit, ship) = audit_store(&config, &mut host)?;
        host.keep_rest(trail, Programs::new(mounts, []));
        let (members, since) = (BTreeMap::new(), SystemTime::now());
        let (further, ended, changes) = (Vec::new(), Vec::new(), Changes::new());
        let watchdog = Watchdog::new(keeper.clone());
        let mut daemon = Self {
            config,
            host,
            root,
            members,
            further,
            ended,
            store,
            standing,
            since,
            changes,
            global,
            watchdog,
            descriptors: Descriptors::default(),
            rounds: Rounds::new(),
            readers: reading::Readers::default(),
            recording: Recording::of(audit.intake().condition()),
            file,
            _ship: ship,
            audit,
        };
        daemon.host.find_paused()?;
        daemon.take_over()?;
        daemon.host.tell_left();
        daemon.resume_global();
        daemon.host.admit_probe(&keeper).map_err(RunError::from)?;
        daemon.stand()?;
        // Of those that were taken over: what is recorded next is by them.
        daemon.tell_policies();
        Ok(daemon)
    }

    /// Serves the sandboxes that an earlier daemon has started, and ends what nobody knows any more.
    fn take_over(&mut self) -> Result<(), DaemonError> {
        let known = self.host.cgroups()?.into_iter().map(|(id, number)| (number, id));
        // Of those that are pending it is said later what they are.
        let mut cgroups: BTreeMap<u32, u64> =
            known.filter(|(number, _)| *number != PENDING).collect();
        for kept in self.store.sandboxes()? {
            let (id, number) = (kept.id.clone(), kept.number);
            let is_own = kept.state.attached.is_none();
            let own = || self.root.join(cgroup::PARENT).join(self.cgroup_of(&id));
            let cgroup = Cgroup::open(kept.state.attached.clone().unwrap_or_else(own));
            let is_its = |cgroup: &Cgroup| cgroups.get(&number) == Some(&cgroup.id());
            match cgroup.ok().filter(is_its) {
                // After a reboot, say.
                None => tracing::info!(sandbox = id, "ended while nobody served it"),
                Some(cgroup) => match self.adopt(kept, cgroup.clone()) {
                    Ok(()) => {
                        cgroups.remove(&number);
                        tracing::info!(sandbox = id, "taken over");
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(sandbox = id, "ended, because nobody can serve it: {error}");
                        self.host.end_remains(number, cgroup, is_own)?;
                        cgroups.remove(&number);
                    }
                },
            }
            if let Err(error) = self.store.remove(&id) {
                tracing::error!(sandbox = id, "{error}");
            }
        }
        // One that was being started, and that nobody was told of.
        for (number, id) in cgroups {
            let own = self.root.join(cgroup::PARENT);
            match Cgroup::by_id(&own, id) {
                Some(cgroup) => {
                    let path = cgroup.path().display();
                    tracing::warn!(cgroup = %path, "ended: its start was not finished");
                    self.host.end_remains(number, cgroup, true)?;
                }
                None => match Cgroup::of_id(&self.root, id)? {
                    Some(cgroup) => {
                        let path = cgroup.path().display();
                        tracing::warn!(cgroup = %path, "ended: nobody wrote down what it is under");
                        self.host.end_remains(number, cgroup, false)?;
                    }
                    None => self.host.forget(number, id)?,
                },
            }
        }
        Ok(self.host.sweep()?)
    }

    fn adopt(&mut self, kept: Kept, cgroup: Cgroup) -> Result<(), RunError> {
        let Kept { id, number, owner, trail, revision, state } = kept;
        let names = self.names_of(&id);
        let generation = state.generation;
        self.host.adopt(Found {
            number,
            lasting: state,
            cgroup,
            trail: trail.clone().into(),
            names,
        })?;
        let member = Member::new(id, owner, trail, revision);
        self.members.insert(number, member);
        if self.host.sandbox(number).is_some_and(|found| found.generation() != generation) {
            self.keep_in_time(number, owner);
        }
        Ok(())
    }

    /// A sandbox's cgroup, which no other daemon's has the name of.
    fn cgroup_of(&self, id: &str) -> String {
        format!("{}.{id}", self.config.name)
    }

    /// Where the names are written down that a sandbox is told of.
    fn names_of(&self, id: &str) -> PathBuf {
        self.config.state.join(format!("{id}.names"))
    }

    /// Writes a sandbox down as it is now; `author` is who has set its policy.
    fn keep(&mut self, number: u32, author: u32) -> Result<(), StoreError> {
        let (Some(member), Some(sandbox)) = (self.members.get(&number), self.host.sandbox(number))
        else {
            return Ok(());
        };
        let kept = Kept {
            id: member.id.clone(),
            number,
            owner: member.owner,
            trail: member.trail.clone(),
            revision: member.revision,
            state: sandbox.lasting(),
        };
        self.tell_policy(number);
        self.store.put(&kept, author)
    }

    /// Writes a sandbox down now, or else when the disk takes it.
    fn keep_in_time(&mut self, number: u32, author: u32) {
        let kept = self.keep(number, author);
        let Some(member) = self.members.get_mut(&number) else { return };
        member.unwritten = kept.is_err().then_some(author);
        if let Err(error) = kept {
            tracing::error!(sandbox = member.id, "not known after a restart as it is now: {error}");
        }
    }

    /// Writes down what was not, where the disk takes it by now.
    fn look_after_store(&mut self) {
        if !self.store.is_failing() || self.store.check().is_err() {
            return;
        }
        let unwritten = self.members.iter().filter_map(|(number, member)| {
            let author = member.unwritten?;
            Some((*number, author))
        });
        for (number, author) in unwritten.collect::<Vec<_>>() {
            self.keep_in_time(number, author);
        }
    }

    /// Until when nothing has to be looked at.
    fn deadline(&self) -> Instant {
        let deadline = self.host.deadline();
        if !self.rounds.ending.is_empty() { deadline.min(Instant::now() + TICK) } else { deadline }
    }

    fn say_ready(&self) {
        let (socket, lsm) = (self.config.socket.display(), self.host.lsm().is_active());
        tracing::info!(%socket, lsm, "ready");
    }

    async fn serve(&mut self, served: Served, mut metrics: Metrics) -> Result<(), DaemonError> {
        let watch = |kind| signal(kind).map_err(system("watch for signals"));
        let mut ended = watch(SignalKind::child())?;
        let (mut stop, mut interrupt) =
            (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
        let mut hangup = watch(SignalKind::hangup())?;
        // Only now: a signal that comes before would end it.
        self.say_ready();
        let Served { calls: mut asked, departures } = served;
        let mut heartbeat = notify::ready();
        let mut is_due = false;
        let mut rest = usage::Rest::new();
        let mut timer = Timer::new().map_err(system("set a timer"))?;
        loop {
            let deadline = self.deadline();
            let mut is_disturbed = true;
            tokio::select! {
                _ = ended.recv() => is_due = true,
                () = timer.at(deadline) => is_disturbed = false,
                () = self.host.due() => is_disturbed = false,
                () = departures.notified() => self.look_after_others(),
                Some((peer, asked)) = asked.recv() => {
                    self.answer(&peer, asked);
                    rest.disturbed();
                }
                Some(said) = self.standing.told() => self.engine_said(said),
                Some(()) = self.recording.changes() => self.look_after_recording(),
                Some(ask) = metrics.asked() => drop(ask.send(self.families())),
                _ = stop.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    let file = self.file.clone();
                    notify::reloading(self.reload(file.as_deref(), &mut metrics)).await;
                }
            }
            heartbeat.alive();
            if is_disturbed {
                self.rounds.disturb();
            }
            let looks_after_all = self.host.look();
            self.look_at_pending();
            self.watch();
            if std::mem::take(&mut is_due) {
                self.look_after_further();
                self.look_after_ended();
            }
            if looks_after_all {
                self.go_round();
                rest.look(self.host.reads_events());
            }
            if !self.ended.is_empty() {
                // Whoever waits hears of it first, by way of the tasks that serve the socket.
                for _ in 0..TELLING {
                    yield_now().await;
                }
                self.clear_up();
            }
        }
        metrics.stop().await;
        notify::stopping();
        self.leave();
        Ok(())
    }

    /// Ends with everything written down, and leaves the sandboxes to the next daemon.
    fn leave(&mut self) {
        self.host.let_go();
        tracing::info!(sandboxes = self.members.len(), "stopped; what runs is enforced on");
        if let Err(error) = fs::remove_file(&self.config.socket) {
            tracing::debug!("the socket stays: {error}");
        }
    }
}
