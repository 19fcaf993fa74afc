//! A sandbox that an earlier clawbox has started, taken over as it runs. What decides about it is in the
//! kernel and goes on meanwhile; what is made again is who answers its names and writes its events down.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clawbox_common::limits::BINARY_SLOTS;
use clawbox_common::rule::{SyntheticKey, SyntheticValue};
use clawbox_common::subject::Mask;

use super::attach::view;
use super::birth::Process;
use super::cgroup::Cgroup;
use super::change::{LivePolicy, with_approved};
use super::control::{Answer, Text};
use super::held::HeldConnections;
use super::host::Host;
use super::identities::Identities;
use super::in_force::PolicyInForce;
use super::lasting::Lasting;
use super::launch::again::Kept;
use super::life::{Life, Sandbox, Served, Told, recorder, serve};
use super::named::Named;
use super::objects::Objects;
use super::ready::{Sockets, upstream};
use super::recorder::Decisions;
use super::run::{RunError, system};
use super::view::View;
use crate::audit::trail::Trail;
use crate::compile::{BinaryEntry, MapImage, compile_after};
use crate::dns::{Resolver, hosts_file, lines_of};
use crate::kernel::file_id::Mounts;
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::model::Located;
use crate::policy::{Loaded, Policy, load_texts};

/// A sandbox that was written down, and where what belongs to it is.
pub struct Found {
    /// Its number in the kernel's tables.
    pub number: u32,
    /// What is known of it.
    pub lasting: Lasting,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its trail, which goes on.
    pub trail: PathBuf,
    /// The names that it was told of.
    pub names: PathBuf,
}

fn life(lasting: &Lasting) -> Result<Life, RunError> {
    if lasting.attached.is_some() {
        return Ok(Life::Cgroup);
    }
    let found = Process::of_another(lasting.process, lasting.born);
    let found = found.map_err(system("look at the sandbox's first process"))?;
    let gone = || RunError::Unknown(format!("the first process of {} has ended", lasting.name));
    Ok(Life::Command { process: found.ok_or_else(gone)?, born: lasting.born, is_apart: false })
}

/// The number of the policy that is in force; the next one gets a later one.
fn generation_of(host: &mut Host, number: u32) -> Result<u32, RunError> {
    let generation = host.kernel.enforcer.state(number)?.policy;
    host.kernel.generation = host.kernel.generation.max(generation);
    Ok(generation)
}

fn view_of(attached: Option<&Cgroup>) -> Result<View, RunError> {
    attached.map_or_else(|| Ok(View::default()), |cgroup| view(cgroup, &[]))
}

/// A process by which the sandbox's files can be looked at; zero if there is none.
fn first_process(lasting: &Lasting, cgroup: &Cgroup) -> u32 {
    match lasting.attached {
        Some(_) => cgroup.processes().ok().and_then(|all| all.first().copied()).unwrap_or(0),
        None => lasting.process,
    }
}

/// Has a resolver know the names that an earlier one has told of.
fn remember(
    resolver: &Resolver,
    names: &Path,
    handed_out: Vec<(SyntheticKey, SyntheticValue)>,
    generation: u32,
) {
    resolver.names().restore(&fs::read_to_string(names).unwrap_or_default());
    match File::options().append(true).open(names) {
        Ok(file) => resolver.names().keep_in(file),
        // It had none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            resolver.names().keep_at(names.to_owned());
        }
        Err(error) => tracing::warn!("new names will not be known after a restart: {error}"),
    }
    resolver.restore(&handed_out, generation);
}

/// What stands for a slot whose program is not known: nobody can make a file there.
const NOBODY: &str = "/proc/clawbox-no-program-";

/// The slots that files and processes of a sandbox have in the kernel.
fn slots_in_use(host: &mut Host, number: u32) -> Result<Mask, RunError> {
    let mut all = host.kernel.enforcer.slots_named(number)?;
    for (_, subject) in host.kernel.connections.identified().subjects()? {
        if subject.sandbox == number {
            all.extend(&subject.own);
            all.extend(&subject.lineage);
        }
    }
    Ok(all)
}

/// The policy that was in force, as it was compiled: its number in the tables too. And whether it opens the
/// directory that the sandbox was started in.
fn image(lasting: &Lasting, generation: u32, in_use: &Mask) -> Result<(MapImage, bool), RunError> {
    let wrong = |why: String| RunError::Unknown(why);
    let own = || with_approved(lasting.texts.clone(), &lasting.approved);
    let texts = lasting.global.clone().unwrap_or_else(own);
    let policy = policy(&texts, lasting).map_err(&wrong)?;
    let slots = lasting.slots.iter().map(|slot| {
        let pattern = BinaryPattern::parse(slot).map_err(|error| wrong(error.to_string()))?;
        Ok(BinaryEntry { pattern })
    });
    let mut slots: Vec<BinaryEntry> = slots.collect::<Result<_, RunError>>()?;
    // Files and processes have slots that nobody wrote down: no other program may ever get one of them.
    let used =
        (0..BINARY_SLOTS).rev().find(|slot| in_use.contains(*slot)).map_or(0, |last| last + 1);
    for slot in slots.len()..used {
        let nobody = BinaryPattern::parse(&format!("{NOBODY}{slot}"));
        slots.push(BinaryEntry { pattern: nobody.map_err(|error| wrong(error.to_string()))? });
    }
    let mut compiled = compile_after(&policy, generation, &slots).map_err(|found| {
        wrong(found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    compiled.open_hosts(lines_of(&hosts_file()));
    Ok((compiled.shared(), policy.filesystem.include_workdir()))
}

/// That policy, and what it names as it is on this host now.
fn found_again(
    host: &mut Host,
    number: u32,
    lasting: &Lasting,
    generation: u32,
    view: &View,
) -> Result<(MapImage, Mounts, Identities, Objects), RunError> {
    let in_use = slots_in_use(host, number)?;
    let (image, includes_workdir) = image(lasting, generation, &in_use)?;
    let mounts = view.read_mounts().map_err(system("read /proc/self/mountinfo"))?;
    let mut writable = lasting.settled.always_writable.clone();
    if includes_workdir && !lasting.settled.is_attached {
        writable.push(lasting.settled.workdir.clone());
    }
    let patterns = image.binaries.iter().map(|entry| &entry.pattern);
    let found = view.within(|| {
        let ever = &lasting.settled.ever_writable;
        let identities = Identities::find(number, &mounts, patterns, ever);
        (identities, Objects::find(&image, &mounts, &writable))
    });
    let (identities, objects) = found.map_err(system("look at the sandbox's files"))?;
    Ok((image, mounts, identities, objects))
}

fn policy(texts: &[Text], lasting: &Lasting) -> Result<Policy, String> {
    let texts: Vec<_> =
        texts.iter().map(|text| (text.name.as_str().into(), text.text.clone())).collect();
    let loaded = load_texts(&texts).and_then(Loaded::enforceable);
    let mut policy = loaded
        .map_err(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?
        .policy;
    if let Some(value) = lasting.settled.mode.filter(|_| lasting.global.is_none()) {
        policy.mode = Some(Located { value, origin: policy.origin.clone() });
    }
    Ok(policy)
}

impl Sandbox {
    /// Takes one over. What the kernel decides about it does not change, unless that is not the policy that
    /// was written down: then that one comes into force again.
    ///
    /// # Errors
    /// It has ended, or cannot be served; it is enforced on.
    pub(super) fn take_over(host: &mut Host, found: Found) -> Result<Self, RunError> {
        let Found { number, lasting, cgroup, trail, names } = found;
        let life = life(&lasting)?;
        let attached = lasting.attached.is_some().then(|| cgroup.clone());
        let view = view_of(attached.as_ref())?;
        let generation = generation_of(host, number)?;
        let (image, mounts, identities, objects) =
            found_again(host, number, &lasting, generation, &view)?;

        let sockets = Sockets::open_in(&view, lasting.ports)?;
        let (ports, upstream) = (sockets.ports(), upstream(&lasting.dns)?);
        let trail = Trail::go_on(&trail, &lasting.name).stored_in(host.recorders.store());
        let told = Told::of_lasting(&lasting, image.audit_only());
        let in_force = PolicyInForce::new(image);
        let decisions = Decisions::of(number, host.feed.stirred());
        let paths = identities.paths.clone();
        let mut recorder = recorder(&in_force, decisions.clone(), mounts, paths, trail);
        let born = attached.is_none().then_some(lasting.born);
        recorder.resumed(first_process(&lasting, &cgroup), born, told.resume_record());
        let Served { resolver, hidden, servers, room } =
            serve(host, number, &in_force, decisions, upstream, sockets);
        remember(&resolver, &names, host.tables.synthetics.of(number)?, generation);

        let image = in_force.image();
        let enforcer = &mut host.kernel.enforcer;
        let with_lsm = enforcer.lsm().is_active();
        let written = enforcer.known_generation(&image, &objects.files, &objects.names);
        // While nobody held these files, others may have got their inode numbers.
        enforcer.hold_identities(number, &identities.binaries, &identities.scripts)?;
        if generation == lasting.generation && objects.unclosed.is_empty() {
            enforcer.hold_objects(generation, &objects.files, &objects.names)?;
        }
        enforcer.set_state(number, &image.state(ports, lasting.settled.audit.flags(), with_lsm))?;
        host.recorders.add(number, recorder);
        let named = Named::holding(&identities, &objects);
        let policy = LivePolicy {
            sandbox: number,
            texts: lasting.texts,
            global: lasting.global,
            approved: lasting.approved,
            ceiling: lasting.ceiling,
            settled: lasting.settled,
            in_force,
            resolver,
            hidden,
            ports,
            named,
            outgoing: None,
            written,
            attached,
        };
        let mut sandbox = Self {
            number,
            name: lasting.name,
            cgroup,
            life,
            since: UNIX_EPOCH + Duration::from_secs(lasting.since),
            dns: lasting.dns,
            patience: Duration::from_millis(lasting.patience_ms),
            told,
            kept: lasting.backstops.map(Kept::from),
            policy,
            held: HeldConnections::new(room, Duration::from_millis(lasting.patience_ms)),
            servers,
        };
        if generation != lasting.generation {
            sandbox.put_back(host)?;
        }
        Ok(sandbox)
    }

    /// Another policy came into force and whoever had it set was not told so: it counts for nothing.
    fn put_back(&mut self, host: &mut Host) -> Result<(), RunError> {
        match self.policy.put_again(&mut host.kernel).answer {
            Answer::Changed { .. } => Ok(()),
            other => Err(RunError::Unknown(format!(
                "the policy that was written down does not come into force: {other:?}"
            ))),
        }
    }
}
