//! One more command in a sandbox that runs: born in its cgroup and its namespaces, as its user, under the
//! backstops of its start. What decides about it is the sandbox's policy, as for any process of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::birth::Process;
use super::child::{self, Invocation, SpawnError};
use super::host::Host;
use super::inherit::Inherit;
use super::launch::joined::Joined;
use super::life::{Life, Sandbox};
use super::recorder::Recorder;
use super::run::{RunError, system};
use super::strays;

/// Such a command.
#[derive(Debug)]
pub struct Further {
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
    /// Where to start; the sandbox's own directory if nothing is said.
    pub workdir: Option<PathBuf>,
    /// What it gets of whoever asks.
    pub inherit: Arc<Inherit>,
    /// The user who asks.
    pub asked_by: u32,
}

impl Host {
    /// Starts one more command in a sandbox; `None` where there is no such sandbox.
    ///
    /// # Errors
    /// It did not start; the sandbox goes on as before.
    pub fn start_further(
        &mut self,
        number: u32,
        further: &Further,
    ) -> Option<Result<Process, RunError>> {
        // What is told from here on may be of the child before its exec.
        self.feed.drain_all(&mut self.recorders);
        let judges = self.lsm().is_active();
        let sandbox = self.sandbox(number)?;
        let prepared = sandbox.prepare_further(further);
        let record = sandbox.told.further_record(further);
        let cgroup = sandbox.cgroup.clone();
        let begun = |recorders: &mut super::recorders::Recorders, step: fn(&mut Recorder)| {
            if let Some(recorder) = recorders.of(number) {
                step(recorder);
            }
        };
        begun(&mut self.recorders, Recorder::further_begins);
        let launcher = &mut self.launcher;
        let started = prepared.and_then(|(invocation, program, backstops)| {
            Ok(child::spawn(launcher, &invocation, program, &cgroup, &backstops, judges)?)
        });
        match &started {
            Ok(process) => {
                if let Some(recorder) = self.recorders.of(number) {
                    recorder.further_started(process.pid().as_raw().cast_unsigned(), record);
                }
            }
            Err(_) => {
                self.feed.drain_all(&mut self.recorders);
                begun(&mut self.recorders, Recorder::further_failed);
            }
        }
        Some(started)
    }
}

impl Sandbox {
    fn prepare_further(
        &self,
        further: &Further,
    ) -> Result<(Invocation, PathBuf, super::launch::Prepared), RunError> {
        let (Some(kept), Life::Command { process, born, .. }) = (&self.kept, &self.life) else {
            return Err(RunError::Unknown(format!(
                "`{}` has no backstops that a further command could be given: clawbox has not started its \
                 first process, or an earlier version has",
                self.name
            )));
        };
        let workdir = further.workdir.as_ref().unwrap_or(&self.policy.settled.workdir);
        // Relative to the sandbox's own.
        let workdir = self.policy.settled.workdir.join(workdir);
        let invocation = Invocation {
            command: further.command.clone(),
            workdir: workdir.clone(),
            user: kept.applied.user.clone(),
            readable: self.policy.ceiling.readable(),
            inherit: Some(Arc::clone(&further.inherit)),
        };
        let program = child::find_inside(&invocation)?;
        let first = process.pid().as_raw().cast_unsigned();
        let joined = Joined::of(first, &workdir).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SpawnError::Gone.into(),
            _ => system("open the sandbox's namespaces")(error),
        })?;
        // Its number may have been another process's by then.
        if strays::started(first) != Some(*born) {
            return Err(SpawnError::Gone.into());
        }
        Ok((invocation, program, kept.prepare(joined)?))
    }
}
