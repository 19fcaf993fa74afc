//! `clawbox attach`: makes a cgroup that somebody else has made a sandbox.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Format;
use super::complete;
use super::run::{ModeArgument, texts};
use super::sandboxes::{asked, print_one};
use crate::api::{convert, proto};
use crate::audit::AuditLevel;
use crate::presets::First;

/// Put a systemd unit, a container or another cgroup under a policy
///
/// Its processes are not started again. Each is from now on who it is by the program that it runs; what
/// they have open is judged again, and connections that the policy does not allow are reset. A process
/// whose program cannot be told is denied everything until it starts one. Landlock and seccomp cannot be
/// put underneath processes that run: where the kernel has no BPF LSM, say `--network-only`.
///
/// It is a sandbox until its cgroup is removed; `clawbox stop` ends all that is in it. To have it so from
/// the first instruction on, write a standing rule: see `clawbox daemon --help`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it is a sandbox; 2 it is not, and all is as it was.

Examples:
  clawbox attach --unit openclaw.service --policy openclaw.yaml
  clawbox attach --container 4f5a9b2c --policy agent.yaml --name agent
  clawbox attach --cgroup /agents/one --policy agent.yaml --network-only")]
pub struct Attach {
    #[command(flatten)]
    what: What,
    /// The policy
    #[arg(long, value_name = "FILE", env = "CLAWBOX_POLICY")]
    policy: PathBuf,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// What the sandbox is to be called [default: as the unit or the cgroup]
    #[arg(long)]
    name: Option<String>,
    /// What of the allowed uses of files goes into the trail; denials always do
    #[arg(long, value_enum, default_value_t)]
    audit_level: AuditLevel,
    /// Enforce, or only record what would be denied [default: the policy's]
    #[arg(long, value_enum)]
    mode: Option<ModeArgument>,
    /// Also where BPF LSM is missing, and nothing holds what the processes do with files
    #[arg(long)]
    network_only: bool,
    /// How to print the sandbox
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A cgroup, by its path below the root of the hierarchy
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// A unit of the system's systemd
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// A container of Docker's or Podman's, by how its id begins
    #[arg(long, value_name = "ID")]
    container: Option<String>,
}

impl Attach {
    /// Has the daemon attach it.
    ///
    /// # Errors
    /// There is no such cgroup, the policy has mistakes, or it cannot be held here.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let What { cgroup, unit, container } = self.what;
        let request = proto::AttachRequest {
            cgroup: cgroup.unwrap_or_default(),
            unit: unit.unwrap_or_default(),
            container: container.unwrap_or_default(),
            texts: convert::texts(&texts(&First::File(self.policy), &self.preset, None)?),
            name: self.name.unwrap_or_default(),
            audit_level: convert::to_audit_level(self.audit_level).into(),
            mode: convert::to_mode(self.mode.map(ModeArgument::mode)).into(),
            network_only: self.network_only,
        };
        let made =
            asked(
                |client| async move { Ok(client.sandboxes().attach(request).await?.into_inner()) },
            );
        print_one(made?, self.format)?;
        Ok(ExitCode::SUCCESS)
    }
}
