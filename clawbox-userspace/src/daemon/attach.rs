//! Cgroups that others make: what is attached by hand, and what standing rules are for as soon as the
//! kernel asks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clawbox_common::subject::FileId;
use tokio::sync::mpsc;
use tonic::Status;
use walkdir::WalkDir;

use super::config::ConfigError;
use super::containers::{self, Container, Id};
use super::member::Member;
use super::request::{Refusal, not_started, refuse};
use super::standing::{self, Rule};
use super::{Daemon, DaemonError};
use crate::api::peer::Peer;
use crate::api::{convert, proto};
use crate::audit::AuditLevel;
use crate::kernel::enforcer::cgroups::Whom;
use crate::kernel::file_id::Mounts;
use crate::sandbox::attach::{AttachOrder, may_be_attached, view};
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::confined::cgroup_of;
use crate::sandbox::control::Text;
use crate::sandbox::held::PATIENCE;
use crate::sandbox::ready::Ready;

/// How often cgroups are looked for that are held and that the kernel's word about was lost.
const LOOK: Duration = Duration::from_secs(1);

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Programs that systemd has in a unit's cgroup before the unit's own.
const STARTERS: &[&str] = &["/usr/lib/systemd/systemd-executor", "/lib/systemd/systemd-executor"];

/// What an engine has said of the container in a cgroup.
type Described = (u64, Result<Container, String>);

/// Standing rules, and what waits for them.
pub(super) struct Standing {
    rules: Vec<Rule>,
    /// Cgroups whose engine was asked.
    asked: BTreeMap<u64, Whom>,
    tell: mpsc::Sender<Described>,
    told: mpsc::Receiver<Described>,
    /// What could not be attached, when it is tried again, and for whom.
    failed: BTreeMap<u64, (Instant, Whom)>,
    looked: Instant,
}

impl Standing {
    /// Reads the rules.
    pub(super) fn read(directory: &Path) -> Result<Self, ConfigError> {
        let (tell, told) = mpsc::channel(64);
        Ok(Self {
            rules: standing::read(directory)?,
            asked: BTreeMap::new(),
            tell,
            told,
            failed: BTreeMap::new(),
            looked: Instant::now(),
        })
    }

    /// What an engine has said.
    pub(super) async fn told(&mut self) -> Option<Described> {
        self.told.recv().await
    }

    fn rule_for(&self, path: &Path, container: Option<&Container>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.is_for(path, container))
    }
}

/// What is to be attached, whoever asks for it.
struct Wanted {
    cgroup: Cgroup,
    name: String,
    texts: Vec<Text>,
    network_only: bool,
    audit_level: AuditLevel,
    mode: Option<crate::policy::model::Mode>,
    owner: u32,
    whom: Whom,
}

impl Daemon {
    /// Has these rules in place of those of before. A sandbox that an earlier one has made stays one.
    pub(super) fn stand_by(&mut self, rules: Vec<Rule>) -> Result<(), DaemonError> {
        self.standing.rules = rules;
        self.stand()
    }

    /// Puts the rules in force: for new cgroups, and for those that are there.
    pub(super) fn stand(&mut self) -> Result<(), DaemonError> {
        let asked: Vec<_> = self.standing.rules.iter().flat_map(Rule::selectors).collect();
        let mut spared = standing::spared(&self.standing.rules);
        spared.extend(own().iter().flat_map(|path| standing::itself(path)));
        // First the kernel asks, then it is looked at what is there: nothing is between the two.
        self.host.ask_of(&asked, &spared, &starters())?;
        let now = Instant::now();
        self.standing.failed.values_mut().for_each(|(again, _)| *again = now);
        if self.standing.rules.is_empty() {
            return Ok(());
        }
        tracing::info!(rules = self.standing.rules.len(), "standing rules are in force");
        let (root, pending) = (self.root.clone(), self.host.pending()?);
        for path in directories(&root) {
            let Ok(cgroup) = Cgroup::open(path) else { continue };
            let is_pending = pending.contains(&cgroup.id());
            if !is_pending && !self.is_attached(&cgroup) && self.has_rule(&cgroup) {
                self.decide(cgroup.id(), Whom::Everybody);
            }
        }
        Ok(())
    }

    /// Whether a rule may be for a cgroup that is there; of containers more has to be known.
    fn has_rule(&self, cgroup: &Cgroup) -> bool {
        let path = cgroup.below(&self.root);
        if may_be_attached(&self.root, cgroup).is_err() {
            return false;
        }
        let is_container = containers::is_outermost(&path) && !standing::is_users(&path);
        self.standing.rule_for(&path, None).is_some()
            || is_container && self.standing.rules.iter().any(Rule::is_for_containers)
    }

    fn is_attached(&self, cgroup: &Cgroup) -> bool {
        let mut all = self.host.sandboxes();
        all.any(|sandbox| sandbox.is_attached() && sandbox.cgroup().id() == cgroup.id())
    }

    /// Says of all cgroups that the kernel asks of what they are.
    pub(super) fn look_at_pending(&mut self) {
        let is_due = !self.standing.rules.is_empty() && self.standing.looked.elapsed() >= LOOK;
        if !self.host.is_asked() && !is_due {
            return;
        }
        self.standing.looked = Instant::now();
        let pending = match self.host.pending() {
            Ok(pending) => pending,
            Err(error) => return tracing::error!("what is held is held on: {error}"),
        };
        self.standing.failed.retain(|id, _| pending.contains(id));
        for id in pending {
            let failed = self.standing.failed.get(&id).copied();
            let is_early = failed.is_some_and(|(again, _)| Instant::now() < again);
            if !self.standing.asked.contains_key(&id) && !is_early {
                self.decide(id, failed.map_or(Whom::Held, |(_, whom)| whom));
            }
        }
    }

    /// Says of a cgroup what it is, unless something more has to be asked first.
    fn decide(&mut self, id: u64, whom: Whom) {
        let cgroup = match Cgroup::of_id(&self.root, id) {
            Ok(Some(cgroup)) => cgroup,
            // Not yet there, or no more: whichever, it is not let go. The kernel forgets it with its end.
            Ok(None) => return,
            Err(error) => return self.held_on(id, whom, &error),
        };
        if whom == Whom::Held && self.host.held_in(&cgroup).is_empty() {
            // Whoever is there is about to start something, which will be held.
            return;
        }
        let path = cgroup.below(&self.root);
        if self.standing.rule_for(&path, None).is_some() {
            return self.attach_by_rule(id, &cgroup, None, whom);
        }
        let asks =
            !standing::is_users(&path) && self.standing.rules.iter().any(Rule::is_for_containers);
        match containers::of_path(&path).filter(|_| asks && containers::is_outermost(&path)) {
            Some(container) => self.ask_engine(id, container, whom),
            None => self.release(id, &cgroup),
        }
    }

    fn ask_engine(&mut self, id: u64, container: Id, whom: Whom) {
        self.standing.asked.insert(id, whom);
        let tell = self.standing.tell.clone();
        tokio::task::spawn_blocking(move || {
            let found = containers::describe(&container);
            // Nobody hears it if the daemon ends.
            let _ = tell.blocking_send((id, found));
        });
    }

    /// An engine has answered.
    pub(super) fn engine_said(&mut self, (id, found): Described) {
        let whom = self.standing.asked.remove(&id).unwrap_or(Whom::Held);
        let cgroup = match Cgroup::of_id(&self.root, id) {
            Ok(Some(cgroup)) => cgroup,
            Ok(None) => return,
            Err(error) => return self.held_on(id, whom, &error),
        };
        match found {
            // It may be one that a rule is for.
            Err(why) => self.held_on(id, whom, &why),
            Ok(container) => {
                let path = cgroup.below(&self.root);
                if self.standing.rule_for(&path, Some(&container)).is_some() {
                    self.attach_by_rule(id, &cgroup, Some(&container), whom);
                } else {
                    self.release(id, &cgroup);
                }
            }
        }
    }

    fn attach_by_rule(
        &mut self,
        id: u64,
        cgroup: &Cgroup,
        container: Option<&Container>,
        whom: Whom,
    ) {
        let path = cgroup.below(&self.root);
        let Some(rule) = self.standing.rule_for(&path, container) else { return };
        let texts = rule.written.policy.all().iter().map(|file| {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|error| format!("`{}`: {error}", file.display()))?;
            Ok(Text { name: file.display().to_string(), text })
        });
        let texts = match texts.collect::<Result<Vec<_>, String>>() {
            Ok(texts) => texts,
            Err(why) => return self.held_on(id, whom, &why),
        };
        let standing::Written { name, network_only, audit_level, mode, .. } = &rule.written;
        let wanted = Wanted {
            cgroup: cgroup.clone(),
            name: name.clone(),
            texts,
            network_only: *network_only,
            audit_level: *audit_level,
            mode: *mode,
            owner: 0,
            whom,
        };
        match self.attach_cgroup(wanted) {
            Ok(_) => drop(self.standing.failed.remove(&id)),
            Err(refusal) => self.held_on(id, whom, &refusal.message()),
        }
    }

    /// What cannot be told or attached does not run, and nothing more is started there: also where it was
    /// there before the rule. Who ran there runs on until it can be attached.
    fn held_on(&mut self, id: u64, whom: Whom, why: &dyn std::fmt::Display) {
        let cgroup = Cgroup::of_id(&self.root, id).ok().flatten();
        if let Some(cgroup) = &cgroup
            && !self.is_attached(cgroup)
            && let Err(error) = self.host.hold(cgroup)
        {
            tracing::error!("what is started next in it is not held: {error}");
        }
        let path = cgroup.map(|cgroup| cgroup.below(&self.root).display().to_string());
        tracing::error!(
            cgroup = path.unwrap_or_default(),
            "what is started in it is held, and denied everything, until this is mended: {why}"
        );
        self.standing.failed.insert(id, (Instant::now() + AGAIN, whom));
    }

    fn release(&mut self, id: u64, cgroup: &Cgroup) {
        match self.host.release(id, cgroup) {
            Ok(()) => drop(self.standing.failed.remove(&id)),
            Err(error) => self.held_on(id, Whom::Held, &error),
        }
    }

    /// Attaches what a manager names.
    pub(super) fn attach(
        &mut self,
        peer: &Peer,
        request: proto::AttachRequest,
    ) -> Result<proto::Sandbox, Refusal> {
        if !peer.manages() {
            return Err(refuse(Status::permission_denied(
                "only root and the group clawbox attach cgroups",
            )));
        }
        if request.texts.is_empty() {
            return Err(refuse(Status::invalid_argument("name a policy")));
        }
        let cgroup = self.named_cgroup(&request)?;
        let (audit_level, mode) = (convert::audit_level(request.audit_level()), request.mode());
        let name = if request.name.is_empty() { default_name(cgroup.path()) } else { request.name };
        let number = self.attach_cgroup(Wanted {
            cgroup,
            name,
            texts: convert::own_texts(request.texts),
            network_only: request.network_only,
            audit_level,
            mode: convert::mode(mode),
            owner: peer.uid,
            whom: Whom::Everybody,
        })?;
        let gone = || refuse(Status::not_found("the cgroup has just gone"));
        self.described(number).ok_or_else(gone)
    }

    fn named_cgroup(&self, request: &proto::AttachRequest) -> Result<Cgroup, Refusal> {
        let wrong = |why: String| refuse(Status::invalid_argument(why));
        let proto::AttachRequest { cgroup, unit, container, .. } = request;
        match (cgroup.as_str(), unit.as_str(), container.as_str()) {
            (path, "", "") if !path.is_empty() => {
                let path = Path::new(path);
                let below = path.strip_prefix(&self.root).or_else(|_| path.strip_prefix("/"));
                let below = below
                    .map_err(|_| wrong(format!("`{}`: write the whole path", path.display())))?;
                opened(self.root.join(below))
            }
            ("", unit, "") if !unit.is_empty() => {
                let has_end = unit.contains('.');
                let name = if has_end { unit.to_owned() } else { format!("{unit}.service") };
                self.only(&format!("unit `{name}`"), |path| path.ends_with(&name))
            }
            ("", "", number) if number.len() >= 4 => {
                self.only(&format!("container `{number}`"), |path| {
                    let found = containers::of_path(path);
                    let found = found.filter(|_| containers::is_outermost(path));
                    found.is_some_and(|id| id.number.starts_with(number))
                })
            }
            ("", "", number) if !number.is_empty() => {
                Err(wrong("name four digits of the container's id, or more".to_owned()))
            }
            _ => Err(wrong("name one of a cgroup, a unit and a container".to_owned())),
        }
    }

    /// The one cgroup that is meant.
    fn only(&self, what: &str, is: impl Fn(&Path) -> bool) -> Result<Cgroup, Refusal> {
        let below =
            |path: &PathBuf| Path::new("/").join(path.strip_prefix(&self.root).unwrap_or(path));
        let mut found = directories(&self.root).filter(|path| is(&below(path)));
        match (found.next(), found.next()) {
            (Some(path), None) => opened(path),
            (None, _) => Err(refuse(Status::not_found(format!("no {what} is running here")))),
            (Some(one), Some(other)) => Err(refuse(Status::failed_precondition(format!(
                "several are meant: {} and {}; name one by --cgroup",
                one.display(),
                other.display()
            )))),
        }
    }

    fn attach_cgroup(&mut self, wanted: Wanted) -> Result<u32, Refusal> {
        let failed =
            |error: &dyn std::error::Error| refuse(Status::failed_precondition(error.to_string()));
        let Wanted { cgroup, name, texts, network_only, audit_level, mode, owner, whom } = wanted;
        may_be_attached(&self.root, &cgroup).map_err(|error| failed(&error))?;
        if self.is_attached(&cgroup) {
            return Err(refuse(Status::already_exists(format!(
                "`{}` is a sandbox already; change its policy with `clawbox policy set`",
                cgroup.path().display()
            ))));
        }
        self.may_begin()?;
        let number = self.free_number()?;
        let id = format!("{name}-{number}");
        let (audit, names) = (self.trail_of(&id), self.names_of(&id));
        let order = AttachOrder {
            texts,
            global: self.global.texts(),
            name,
            audit_level,
            mode,
            lsm: self.config.lsm.into(),
            network_only,
            dns: self.config.servers().map_err(|why| refuse(Status::internal(why)))?,
            patience: PATIENCE,
            cgroup: cgroup.below(&self.root),
            audit: audit.clone(),
        };
        let mut run = order.prepare(self.host.next_generation()).map_err(|error| failed(&error))?;
        // Of one of this number that ended while nobody served it.
        drop(std::fs::remove_file(&names));
        run.names = Some(names);
        // Whoever is about to start something may see other files.
        let view = view(&cgroup, &self.host.held_in(&cgroup)).map_err(|error| failed(&error))?;
        let ready = Ready::of_attached(&mut run, number, &view, whom);
        let ready = ready.map_err(|error| not_started(&error))?;
        self.host.start(run, ready, cgroup.clone()).map_err(|error| not_started(&error))?;
        let member = Member::new(id.clone(), owner, audit.display().to_string(), 1);
        self.members.insert(number, member);
        self.keep_in_time(number, owner);
        // What the kernel has held goes on once it is written down whose it is.
        self.host.go_on();
        tracing::info!(sandbox = id, cgroup = %cgroup.below(&self.root).display(), "attached");
        Ok(number)
    }

    /// Of an attached sandbox that has ended while its cgroup is still there: what is started in it next
    /// is asked about again, if a rule is for it.
    pub(super) fn hold_again(&mut self, cgroup: &Cgroup) {
        if cgroup.is_there()
            && self.has_rule(cgroup)
            && let Err(error) = self.host.hold(cgroup)
        {
            tracing::error!("`{}` is no sandbox any more: {error}", cgroup.path().display());
        }
    }
}

fn opened(path: PathBuf) -> Result<Cgroup, Refusal> {
    Cgroup::open(path).map_err(|error| refuse(Status::not_found(error.to_string())))
}

/// The cgroups of the hierarchy.
fn directories(root: &Path) -> impl Iterator<Item = PathBuf> {
    let all = WalkDir::new(root).min_depth(1).into_iter().flatten();
    all.filter(|entry| entry.file_type().is_dir()).map(walkdir::DirEntry::into_path)
}

/// The daemon's own cgroup, which has no name where that is the root.
fn own() -> Option<PathBuf> {
    cgroup_of(std::process::id()).ok().filter(|path| path.file_name().is_some())
}

/// Those of [`STARTERS`] that are here.
fn starters() -> Vec<FileId> {
    let Ok(mounts) = Mounts::read() else { return Vec::new() };
    let found = STARTERS.iter().filter_map(|path| mounts.hold(Path::new(path)).ok());
    found.map(|held| held.id).collect()
}

/// What a cgroup's sandbox is called if nobody says: as its unit or its directory.
fn default_name(path: &Path) -> String {
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.trim_start_matches(['.', '-']).chars().map(fits).take(32).collect();
    if name.is_empty() { "attached".to_owned() } else { name }
}
