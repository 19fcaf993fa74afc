//! How this host's kernel gets its parameters, and what they would have to be for BPF LSM programs
//! to run. Read below a root directory, as `probe` does; nothing here changes anything.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::probe::{Answer, Kernel};

/// What keeps the parameters for the next boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loader {
    /// An image-based system: `rpm-ostree kargs`.
    OsTree,
    /// Pop!_OS, over systemd-boot.
    Kernelstub,
    /// Fedora and its relatives, over any loader.
    Grubby,
    /// GRUB with its defaults file, of which this is the line of parameters.
    Grub(Option<String>),
    /// systemd-boot by kernel-install, whose file holds this.
    KernelInstall(String),
    /// systemd-boot with entries written by hand, below this directory.
    Entries(PathBuf),
    /// None of them is here.
    Unknown,
}

/// What the host says about its booting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The running kernel's parameters.
    pub parameters: Answer<String>,
    /// What the distribution calls itself.
    pub distribution: String,
    /// Its short name, and those of what it is derived from.
    pub family: Vec<String>,
    /// What keeps the parameters.
    pub loader: Loader,
    /// Whether the kernel was built with BPF LSM; `None` where its configuration is not there.
    pub built_in: Option<bool>,
}

/// What to do for BPF LSM programs to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fix", rename_all = "kebab-case")]
pub enum Fix {
    /// They do.
    Nothing {
        /// How one can tell.
        why: String,
    },
    /// One parameter is to be changed.
    Parameter {
        /// The distribution that the steps are for.
        distribution: String,
        /// The parameter's value now, where it is set.
        present: Option<String>,
        /// The whole parameter as it must be.
        parameter: String,
        /// What to do, in order.
        steps: Vec<String>,
    },
    /// No parameter helps.
    Elsewhere {
        /// What is in the way, and who can change it.
        why: String,
    },
}

impl Boot {
    /// Reads the files of the host whose root directory is `root` and whose kernel is `release`.
    #[must_use]
    pub fn read(root: &Path, release: Option<&str>) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let parameters = match fs::read_to_string(root.join("proc/cmdline")) {
            Ok(text) => Answer::Yes(text.trim().to_owned()),
            Err(error) => Answer::Unknown(format!("cannot read /proc/cmdline: {error}")),
        };
        let os = text("etc/os-release").or_else(|| text("usr/lib/os-release")).unwrap_or_default();
        let field = |name: &str| {
            let line = os.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned())
        };
        let family = [field("ID"), field("ID_LIKE")].into_iter().flatten();
        let family =
            family.flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
        let config = release.and_then(|release| text(&format!("boot/config-{release}")));
        Self {
            parameters,
            distribution: field("PRETTY_NAME").unwrap_or_else(|| "this distribution".to_owned()),
            family,
            loader: Loader::find(root),
            built_in: config.map(|config| config.lines().any(|line| line == "CONFIG_BPF_LSM=y")),
        }
    }

    /// The value of `lsm=`; the kernel takes the last one.
    fn present(&self) -> Option<&str> {
        let parameters = self.parameters.yes()?;
        parameters.split_whitespace().filter_map(|word| word.strip_prefix("lsm=")).next_back()
    }

    fn is(&self, family: &str) -> bool {
        self.family.iter().any(|name| name == family)
    }
}

impl Loader {
    fn find(root: &Path) -> Self {
        let has = |path: &str| root.join(path).exists();
        let program = |name: &str| {
            ["usr/bin", "usr/sbin", "bin", "sbin"].iter().any(|bin| has(&format!("{bin}/{name}")))
        };
        if has("run/ostree-booted") {
            return Self::OsTree;
        }
        if program("kernelstub") {
            return Self::Kernelstub;
        }
        if program("grubby") {
            return Self::Grubby;
        }
        if let Ok(defaults) = fs::read_to_string(root.join("etc/default/grub")) {
            let line = defaults.lines().find(|line| line.starts_with(GRUB));
            return Self::Grub(line.map(str::to_owned));
        }
        if let Ok(parameters) = fs::read_to_string(root.join("etc/kernel/cmdline")) {
            return Self::KernelInstall(parameters.trim().to_owned());
        }
        let entries = ["boot/loader/entries", "efi/loader/entries", "boot/efi/loader/entries"];
        match entries.into_iter().find(|path| has(path)) {
            Some(path) => Self::Entries(Path::new("/").join(path)),
            None => Self::Unknown,
        }
    }
}

/// The line of GRUB's defaults file that holds for every entry.
const GRUB: &str = "GRUB_CMDLINE_LINUX=";

/// The list that has `module` active beside all that are: what is not in `lsm=` is switched off.
/// `bpf` comes before `landlock`: a denial then has the policy's reason, not Landlock's.
#[must_use]
pub fn list_with(module: &str, active: &[String]) -> String {
    // `capability` is always there and is not named.
    let named = active.iter().map(String::as_str);
    let mut list: Vec<&str> =
        named.filter(|name| *name != "capability" && *name != module).collect();
    let landlock = list.iter().position(|name| module == "bpf" && *name == "landlock");
    list.insert(landlock.unwrap_or(list.len()), module);
    list.join(",")
}

/// Whether Landlock stands before `bpf`. The kernel asks modules in the order of its list, and the
/// first that refuses is the last that is asked (`call_int_hook`, security/security.c).
#[must_use]
pub fn is_landlock_first(active: &[String]) -> bool {
    let place = |module: &str| active.iter().position(|name| name == module);
    matches!((place("landlock"), place("bpf")), (Some(landlock), Some(bpf)) if landlock < bpf)
}

/// What to do on this host.
#[must_use]
pub fn plan(kernel: &Kernel, boot: &Boot) -> Fix {
    let active = match (&kernel.security_modules, boot.present()) {
        (Answer::Yes(active), _) => active.clone(),
        // Without the active ones, what was asked for is the best that is known.
        (_, Some(present)) => present.split(',').map(str::to_owned).collect(),
        (Answer::No(why) | Answer::Unknown(why), None) => {
            let why = format!(
                "{why}; which modules a new list must keep cannot be told: mount -t securityfs \
                 securityfs /sys/kernel/security, and ask again"
            );
            return Fix::Elsewhere { why };
        }
    };
    let has_bpf = active.iter().any(|name| name == "bpf");
    if has_bpf {
        return match &kernel.bpf_lsm_refusal {
            None => Fix::Nothing { why: "`bpf` is among the active security modules".to_owned() },
            Some(why) => Fix::Elsewhere {
                why: format!(
                    "`bpf` is among the active security modules, and yet: {why}. No boot parameter \
                     changes that; ask whoever runs this kernel to let BPF LSM programs load"
                ),
            },
        };
    }
    if !has_bpf && boot.built_in == Some(false) {
        let why = "this kernel was built without CONFIG_BPF_LSM=y, so no boot parameter helps: boot \
                   one that has it (Debian's and Ubuntu's generic kernels do)";
        return Fix::Elsewhere { why: why.to_owned() };
    }
    let parameter = format!("lsm={}", list_with("bpf", &active));
    Fix::Parameter {
        distribution: boot.distribution.clone(),
        present: boot.present().map(str::to_owned),
        steps: steps(boot, &parameter),
        parameter,
    }
}

fn steps(boot: &Boot, parameter: &str) -> Vec<String> {
    let old = boot.present().map(|value| format!("lsm={value}"));
    let mut steps = match &boot.loader {
        Loader::OsTree => vec![match &old {
            Some(old) => format!("rpm-ostree kargs --delete='{old}' --append='{parameter}'"),
            None => format!("rpm-ostree kargs --append='{parameter}'"),
        }],
        Loader::Kernelstub => {
            let delete = old.map(|old| format!("kernelstub --delete-options '{old}'"));
            let add = format!("kernelstub --add-options '{parameter}'");
            delete.into_iter().chain([add]).collect()
        }
        Loader::Grubby => vec![format!("grubby --update-kernel=ALL --args='{parameter}'")],
        Loader::Grub(line) => vec![grub_line(line.as_deref(), parameter), grub_update(boot)],
        Loader::KernelInstall(present) => vec![
            format!("write into /etc/kernel/cmdline: {}", replaced(present, parameter)),
            "kernel-install add \"$(uname -r)\" \"/lib/modules/$(uname -r)/vmlinuz\"".to_owned(),
        ],
        Loader::Entries(directory) => vec![format!(
            "in the entry that is booted, below {}, let the line `options` end with {parameter} and \
             have no other lsm=",
            directory.display()
        )],
        Loader::Unknown => vec![format!(
            "add {parameter} to the kernel's parameters, in place of any other lsm=; neither GRUB \
             nor systemd-boot is set up here, so where that is the host's provider or hypervisor \
             says"
        )],
    };
    steps.push("reboot".to_owned());
    steps.push("clawbox doctor: `bpf lsm` must be ready".to_owned());
    steps
}

/// Parameters with this one in place of others of its name.
fn replaced(parameters: &str, parameter: &str) -> String {
    let others = parameters.split_whitespace().filter(|word| !word.starts_with("lsm="));
    others.chain([parameter]).collect::<Vec<_>>().join(" ")
}

fn grub_line(line: Option<&str>, parameter: &str) -> String {
    let present = line.and_then(|line| line.strip_prefix(GRUB)).unwrap_or_default();
    let present = present.trim().trim_matches(['"', '\'']);
    format!(
        "in /etc/default/grub: {GRUB}\"{}\" (and no lsm= in GRUB_CMDLINE_LINUX_DEFAULT or in \
         /etc/default/grub.d/)",
        replaced(present, parameter)
    )
}

fn grub_update(boot: &Boot) -> String {
    if boot.is("debian") || boot.is("ubuntu") {
        "update-grub".to_owned()
    } else if boot.is("suse") || boot.is("opensuse") || boot.is("fedora") || boot.is("rhel") {
        "grub2-mkconfig -o /boot/grub2/grub.cfg".to_owned()
    } else {
        "grub-mkconfig -o /boot/grub/grub.cfg".to_owned()
    }
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
