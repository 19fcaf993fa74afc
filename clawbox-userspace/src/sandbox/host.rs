//! The kernel side and the sandboxes that a process serves with it: one for `clawbox run`, many for the
//! daemon. It starts them, turns what is told of them into records, and ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::adopt::Found;
use super::attach;
use super::beginning::Beginning;
use super::birth::End;
use super::cgroup::Cgroup;
use super::change::KernelSide;
use super::connections::Connections;
use super::control::{Answer, Request, Text};
use super::feed::{Counts, Feed};
use super::launcher::Launcher;
use super::life::{Sandbox, Written};
use super::memory::give_back;
use super::probe::PROBE;
use super::ready::Ready;
use super::recorder::{Decisions, Recorder};
use super::recorders::Recorders;
use super::run::{Run, RunError, system};
use super::strays::{self, Remnants};
use clawbox_common::attach::{PENDING, Selector};
use clawbox_common::rule::SandboxState;
use clawbox_common::subject::FileId;

use crate::audit::kernel_event::NoMeaning;
use crate::audit::programs::Programs;
use crate::audit::store::in_flight::InFlight;
use crate::audit::store::intake::Intake;
use crate::audit::trail::Trail;
use crate::dns::Traffic;
use crate::gateway;
use crate::kernel::enforcer::Enforcer;
use crate::kernel::enforcer::cgroups::Whom;
use crate::kernel::load::{Keep, Place, Sizes, Wanted};
use crate::kernel::lsm::LsmState;
use crate::kernel::pinned::Identified;
use crate::kernel::synthetics::Synthetics;

/// How often the kernel's loss counters are looked at, and by the daemon what nothing tells of: often enough for
/// what is allowed to be on the disk within a second of when it happened.
const LOSSES: Duration = Duration::from_millis(800);

/// How often what was allowed is summed up.
const SUMMARY: Duration = Duration::from_secs(60);

/// How often it is looked after what somebody waits for and nobody tells.
pub const TICK: Duration = Duration::from_millis(40);

/// How long allowed connects and sends that are alike are counted together.
const SPAN: Duration = Duration::from_secs(10);

/// Tables of the kernel's that the agent's servers use.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) synthetics: Arc<Synthetics>,
    pub(super) redirects: Arc<gateway::Table>,
    /// Which sandboxes ask for names.
    pub(super) traffic: Arc<Traffic>,
}

/// See the module.
pub struct Host {
    pub(super) kernel: KernelSide,
    pub(super) tables: Tables,
    pub(super) feed: Feed,
    pub(super) recorders: Recorders,
    remnants: Remnants,
    pub(super) sandboxes: BTreeMap<u32, Sandbox>,
    looked: Instant,
    summed_up: Instant,
    counted: Instant,
    /// Sandboxes of which something is still there and cannot be ended: enforcement has to stay, and nobody
    /// else may have their numbers.
    pub(super) left: BTreeSet<u32>,
    last_number: u32,
    /// Whether the kernel holds something of which it has to be said what it is.
    is_asked: bool,
    /// Sandboxes with connections that wait for an answer, and some whose have got one since.
    holding: BTreeSet<u32>,
    /// Processes that were held when their cgroup became a sandbox's.
    pub(super) held: Vec<u32>,
    /// Who starts processes in this one's place, if anybody does.
    pub(super) launcher: Option<Launcher>,
}

impl Host {
    /// Loads the kernel side, which governs nobody yet. `name` is that of its pins. Call it inside the
    /// runtime.
    ///
    /// # Errors
    /// The kernel lacks something; nothing stays behind then.
    pub fn load(
        root: &Path,
        place: Place,
        sizes: Sizes,
        name: &str,
        wanted: Wanted,
        keep: Keep,
    ) -> Result<Self, RunError> {
        let mut enforcer = Enforcer::load(root, place, sizes, name, wanted, keep)?;
        let taken = Self::take(&mut enforcer, name);
        let (tables, feed, remnants, connections) = taken.inspect_err(|_| {
            if keep == Keep::Here {
                // Nobody is governed by it.
                drop(enforcer.remove());
            }
        })?;
        give_back();
        let kernel = KernelSide { enforcer, connections, generation: 0 };
        let now = Instant::now();
        Ok(Self {
            kernel,
            tables,
            feed,
            recorders: Recorders::default(),
            remnants,
            sandboxes: BTreeMap::new(),
            looked: now,
            summed_up: now,
            counted: now,
            left: BTreeSet::new(),
            last_number: 0,
            // By who was there before.
            is_asked: true,
            holding: BTreeSet::new(),
            held: Vec::new(),
            launcher: None,
        })
    }

    /// Has processes started by another one from now on.
    pub fn start_by(&mut self, launcher: Option<Launcher>) {
        self.launcher = launcher;
    }

    fn take(
        enforcer: &mut Enforcer,
        name: &str,
    ) -> Result<(Tables, Feed, Remnants, Connections), RunError> {
        // Before anything is taken that they look at too.
        let (fills, ring) = (enforcer.fills()?, enforcer.ring_fill()?);
        let (losses, tallies) = (enforcer.take_losses()?, enforcer.take_tallies()?);
        let (flows, numbers) = (enforcer.take_flows()?, enforcer.take_numbers()?);
        let counted = enforcer.take_counted()?;
        let counts = Counts { losses, numbers, tallies, flows, counted, fills, ring };
        let feed =
            Feed::new(enforcer.take_events()?, counts).map_err(system("poll the event ring"))?;
        let remnants = Remnants::of(name, enforcer.skipped_exits()?)?;
        let synthetics = Arc::new(enforcer.take_synthetics()?);
        let redirects = Arc::new(gateway::Table::new(enforcer.take_redirected()?));
        let connections = Connections::of(name, enforcer)?;
        let tables = Tables { synthetics, redirects, traffic: Arc::default() };
        Ok((tables, feed, remnants, connections))
    }

    /// Whether BPF LSM programs decide.
    #[must_use]
    pub fn lsm(&self) -> &LsmState {
        self.kernel.enforcer.lsm()
    }

    /// The number of the next policy that is compiled.
    #[must_use]
    pub fn next_generation(&self) -> u32 {
        self.kernel.generation + 1
    }

    /// A number for a new sandbox: of those that nobody has, the one that was nobody's the longest. `None`
    /// where as many run as can.
    pub fn next_number(&mut self) -> Option<u32> {
        // The last one is the probe's.
        const NUMBERS: u32 = PROBE - 1;
        let next = (1..=NUMBERS)
            .map(|step| (self.last_number + step - 1) % NUMBERS + 1)
            .find(|number| !self.sandboxes.contains_key(number) && !self.left.contains(number))?;
        self.last_number = next;
        Some(next)
    }

    /// Starts a sandbox in its cgroup, under the policy from its first instruction, and gives its number.
    ///
    /// # Errors
    /// The command did not start; nothing of it stays behind.
    pub fn start(&mut self, run: Run, ready: Ready, cgroup: Cgroup) -> Result<u32, RunError> {
        let number = ready.number;
        if run.is_attached {
            self.kernel.enforcer.govern_others(true)?;
        }
        let mut beginning = Beginning::new(number, cgroup, !run.is_attached);
        match beginning.go_on(self, run, ready) {
            Ok(sandbox) => {
                self.sandboxes.insert(number, sandbox);
                Ok(number)
            }
            Err(error) => {
                // What kept it from starting is told.
                self.feed.drain_all(&mut self.recorders);
                self.recorders.remove(number);
                if let Err(error) = self.take_back(beginning) {
                    tracing::error!("{error}; enforcement stays on for what is left");
                    self.left.insert(number);
                }
                Err(error)
            }
        }
    }

    /// Takes over a sandbox that an earlier clawbox has started.
    ///
    /// # Errors
    /// It cannot be served; it is enforced on.
    pub fn adopt(&mut self, found: Found) -> Result<(), RunError> {
        let number = found.number;
        self.last_number = self.last_number.max(number);
        let sandbox = Sandbox::take_over(self, found)?;
        self.sandboxes.insert(number, sandbox);
        Ok(())
    }

    /// Ends what an earlier clawbox has left in a cgroup and cannot be served.
    ///
    /// # Errors
    /// A process does not end: enforcement stays on for it.
    pub fn end_remains(
        &mut self,
        number: u32,
        cgroup: Cgroup,
        is_own: bool,
    ) -> Result<(), RunError> {
        if is_own {
            // And read now: whoever comes after this one finds nothing of it but what it has tried.
            self.recorders.unfinished(number);
            self.feed.drain_all(&mut self.recorders);
        }
        self.take_back(Beginning { is_begun: true, ..Beginning::new(number, cgroup, is_own) })
    }

    /// Forgets a sandbox of an earlier clawbox whose cgroup, of this id, is no more. Who has left that ends.
    ///
    /// # Errors
    /// A process does not end: enforcement stays on for it.
    pub fn forget(&mut self, number: u32, cgroup: u64) -> Result<(), RunError> {
        strays::end_sandbox(self.kernel.connections.identified(), number)?;
        Ok(self.kernel.enforcer.dismiss(cgroup, number)?)
    }

    /// The cgroups that the kernel takes for sandboxes', by their ids, and which.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn cgroups(&mut self) -> Result<Vec<(u64, u32)>, RunError> {
        let mut all = self.kernel.enforcer.cgroups()?;
        all.retain(|(_, number)| *number != PROBE);
        Ok(all)
    }

    /// Has the kernel ask of new cgroups that begin like these, and of no others, and take these files for
    /// programs that only start others in them.
    ///
    /// # Errors
    /// There are more than the kernel's tables have room for.
    pub fn ask_of(
        &mut self,
        asked: &[(Selector, u32)],
        spared: &[(Selector, u32)],
        starters: &[FileId],
    ) -> Result<(), RunError> {
        let is_attached = self.sandboxes.values().any(Sandbox::is_attached);
        let enforcer = &mut self.kernel.enforcer;
        // Before it is, and as long as it may be.
        if !asked.is_empty() || is_attached {
            enforcer.govern_others(true)?;
        }
        enforcer.start_by(starters)?;
        enforcer.ask_of(asked, spared)?;
        if asked.is_empty() && !is_attached {
            enforcer.govern_others(false)?;
        }
        Ok(())
    }

    /// The cgroups that the kernel asks of. What is started in them does not run yet.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn pending(&mut self) -> Result<Vec<u64>, RunError> {
        self.is_asked = false;
        Ok(self.kernel.enforcer.pending()?)
    }

    /// Whether the kernel has asked of a cgroup since [`Host::pending`].
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// A cgroup that the kernel has asked of is no sandbox: what was started in it goes on, and is what it
    /// is around it.
    ///
    /// # Errors
    /// The kernel's tables cannot be changed: it is held on.
    pub fn release(&mut self, id: u64, cgroup: &Cgroup) -> Result<(), RunError> {
        self.kernel.enforcer.disown(id)?;
        let frozen = cgroup.freeze()?;
        let held = attach::held(self.identified(), cgroup)?;
        let around = self.sandboxes.values().find(|sandbox| {
            sandbox.is_attached() && cgroup.path().starts_with(sandbox.cgroup().path())
        });
        let around = around.map_or(PENDING, Sandbox::number);
        self.kernel.enforcer.walk(around, Whom::Held)?;
        drop(frozen);
        attach::resume(&held);
        Ok(())
    }

    /// What was held when it was started in a cgroup.
    #[must_use]
    pub fn held_in(&self, cgroup: &Cgroup) -> Vec<u32> {
        attach::held(self.identified(), cgroup).unwrap_or_default()
    }

    /// Has those go on that were held when their cgroup became a sandbox's.
    pub fn go_on(&mut self) {
        attach::resume(&std::mem::take(&mut self.held));
    }

    /// What is started in this cgroup from now on is held until it is said what it is.
    ///
    /// # Errors
    /// The kernel's table is full.
    pub fn hold(&mut self, cgroup: &Cgroup) -> Result<(), RunError> {
        Ok(self.kernel.enforcer.hold(cgroup.id())?)
    }

    /// Leaves the sandboxes to whoever takes them over: they are enforced on, and whatever would go by way
    /// of this process is refused until then. Somebody else of the host could listen in its place.
    pub fn let_go(&mut self) {
        self.look();
        for sandbox in self.sandboxes.values() {
            let number = sandbox.number();
            let enforcer = &mut self.kernel.enforcer;
            let refused = enforcer.state(number).and_then(|state| {
                let SandboxState { policy, audit_only, flags, .. } = state;
                enforcer.set_state(
                    number,
                    &SandboxState { audit_only, ..SandboxState::under(policy, flags) },
                )
            });
            if let Err(error) = refused {
                tracing::error!("sandbox {number} still asks where nobody answers: {error}");
            }
        }
    }

    /// Takes out of the kernel's tables what belongs to no sandbox that runs.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn sweep(&mut self) -> Result<(), RunError> {
        let policies = self.sandboxes.values().map(Sandbox::generation).collect();
        let sandboxes = self.sandboxes.keys().copied().collect();
        self.kernel.enforcer.sweep(&policies, &sandboxes)?;
        self.tables.synthetics.count();
        Ok(())
    }

    /// A sandbox that runs.
    #[must_use]
    pub fn sandbox(&self, number: u32) -> Option<&Sandbox> {
        self.sandboxes.get(&number)
    }

    /// Those that run.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// How a sandbox's first process has ended, if it has.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn ended(&mut self, number: u32) -> std::io::Result<Option<End>> {
        match self.sandboxes.get_mut(&number) {
            Some(sandbox) => sandbox.try_wait(),
            None => Ok(None),
        }
    }

    /// A copy of every record goes there from now on.
    pub fn store_in(&mut self, store: Intake) {
        self.feed.store_in(store.clone());
        self.recorders.store_in(store);
    }

    /// What a killed agent has left of what it had read; see [`Feed::in_flight`].
    ///
    /// # Errors
    /// The kernel's memory for it cannot be had.
    pub fn in_flight(&mut self, name: &str, store: &Path) -> std::io::Result<InFlight> {
        self.feed.in_flight(name, store)
    }

    /// Records what killed agents have read and not stored.
    pub fn tell_left(&mut self) {
        self.feed.tell_left(&mut self.recorders);
    }

    /// Whose denials go where.
    pub fn keep_rest(&mut self, trail: Trail, programs: Programs) {
        let decisions = Decisions::of(0, self.feed.stirred());
        let recorder =
            Recorder::new(decisions, programs, Box::new(NoMeaning), Arc::new(|| false), trail);
        self.recorders.keep_rest(recorder.of_rest());
    }

    /// Denials in a sandbox's trail so far.
    pub fn denied(&mut self, number: u32) -> u64 {
        self.recorders.of(number).map_or(0, |recorder| recorder.trail.denied())
    }

    /// What its policy has allowed, as far as its trail was told.
    pub fn allowed(&mut self, number: u32) -> u64 {
        let Some(recorder) = self.recorders.of(number) else { return 0 };
        let decisions = recorder.trail.counted.decisions();
        let allowed = decisions.filter(|(_, verdict, _)| *verdict == "allow");
        allowed.map(|(_, _, count)| count).fold(0, u64::saturating_add)
    }

    /// Told whenever something was written to a sandbox's trail; closed at its end.
    pub fn trail_grows(&mut self, number: u32) -> Option<tokio::sync::watch::Receiver<()>> {
        self.recorders.of(number).map(|recorder| recorder.trail.grows())
    }

    /// Who is who.
    #[must_use]
    pub fn identified(&self) -> &Identified {
        self.kernel.connections.identified()
    }

    /// Whether events were read in the last seconds.
    #[must_use]
    pub fn reads_events(&self) -> bool {
        self.feed.reads()
    }

    /// Waits until something is to be written down.
    pub async fn due(&mut self) {
        self.feed.due().await;
    }

    /// Until when there has to be another look, whatever is told.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        // Who waits for an answer is answered in time.
        let is_busy = self.feed.is_counting() || !self.holding.is_empty();
        let deadline = self.looked + LOSSES;
        if is_busy { deadline.min(Instant::now() + TICK) } else { deadline }
    }

    /// Writes down what has been told, answers what has waited too long, and looks after the kernel's
    /// tables. To be called when [`Host::due`] is, and at [`Host::deadline`]. Whether it has looked after all,
    /// which it does once in a second.
    pub fn look(&mut self) -> bool {
        for number in self.feed.drain(&mut self.recorders) {
            self.is_asked |= number == PENDING;
            self.take_up(number);
        }
        self.give_up();
        if self.looked.elapsed() < LOSSES {
            return false;
        }
        self.looked = Instant::now();
        if self.feed.count_losses(&mut self.recorders) {
            self.find_skipped();
        }
        if self.counted.elapsed() >= SPAN {
            self.counted = Instant::now();
            self.feed.tell_counted(&mut self.recorders, None);
        }
        if self.summed_up.elapsed() >= SUMMARY {
            self.summed_up = Instant::now();
            self.feed.sum_up(&mut self.recorders);
        }
        if let Err(error) = self.remnants.clear() {
            tracing::warn!("identities of ended processes stay: {error}");
        }
        true
    }

    /// Says of servers that have stopped what that means. To be called now and then.
    pub fn check_servers(&mut self) {
        self.sandboxes.values_mut().for_each(Sandbox::check_servers);
    }

    /// Answers connections that have waited too long.
    fn give_up(&mut self) {
        let (sandboxes, recorders) = (&mut self.sandboxes, &mut self.recorders);
        self.holding.retain(|number| {
            let Some(sandbox) = sandboxes.get_mut(number) else { return false };
            if let Some(recorder) = recorders.of(*number) {
                sandbox.held.give_up(recorder);
            }
            sandbox.holds_any()
        });
    }

    /// In a cgroup of clawbox's own who has no identity is denied. In somebody else's it may be about to
    /// start something, so that a start which the kernel has left out (7.x, see [`crate::kernel::losses`])
    /// leaves a process that nobody holds: it is found.
    fn find_skipped(&mut self) {
        for sandbox in self.sandboxes.values().filter(|sandbox| sandbox.is_attached()) {
            let found = sandbox.cgroup().freeze().map_err(RunError::from).and_then(|frozen| {
                let walk = self.kernel.enforcer.walk(sandbox.number(), Whom::Everybody)?;
                drop(frozen);
                Ok(walk)
            });
            if let Err(error) = found {
                tracing::error!(
                    "sandbox {} may have a process without identity: {error}",
                    sandbox.number()
                );
            }
        }
    }

    /// Connections that have begun to wait for an answer.
    fn take_up(&mut self, number: u32) {
        if let (Some(sandbox), Some(recorder)) =
            (self.sandboxes.get_mut(&number), self.recorders.of(number))
        {
            sandbox.held.take_up(recorder, &sandbox.policy, &self.kernel);
            if sandbox.holds_any() {
                self.holding.insert(number);
            }
        }
    }

    /// Does what is asked of a sandbox and writes it down; `None` if there is none of this number.
    pub fn answer(&mut self, number: u32, request: Request) -> Option<Answer> {
        // What was decided before is written down under the policy that decided it.
        self.feed.drain_all(&mut self.recorders);
        self.take_up(number);
        let sandbox = self.sandboxes.get_mut(&number)?;
        let recorder = self.recorders.of(number)?;
        let answer = sandbox.answer(&mut self.kernel, recorder, request);
        Some(answer)
    }

    /// Puts a sandbox's policy of before in force again; `None` if there is no sandbox of this number.
    ///
    /// # Errors
    /// Why it is not.
    pub fn go_back(&mut self, number: u32, before: Written) -> Option<Result<(), String>> {
        let sandbox = self.sandboxes.get_mut(&number)?;
        let recorder = self.recorders.of(number)?;
        Some(sandbox.go_back(&mut self.kernel, recorder, before))
    }

    /// Puts the host's policy in force in place of a sandbox's own, or its own again; `None` if there is no
    /// sandbox of this number.
    pub fn go_under(&mut self, number: u32, global: Option<Vec<Text>>) -> Option<Answer> {
        let sandbox = self.sandboxes.get_mut(&number)?;
        let recorder = self.recorders.of(number)?;
        Some(sandbox.go_under(&mut self.kernel, recorder, global))
    }

    /// Ends all sandboxes, and then enforcement. Not to be called where it is to outlive the process.
    ///
    /// # Errors
    /// A process does not end, or a pin cannot be removed: enforcement stays on.
    pub fn take_down(&mut self) -> Result<(), RunError> {
        let numbers: Vec<u32> = self.sandboxes.keys().copied().collect();
        for number in numbers {
            self.end(number, None)?;
        }
        if !self.left.is_empty() {
            return Err(RunError::Left);
        }
        self.kernel.enforcer.remove().map_err(system("remove the pinned links"))
    }
}
