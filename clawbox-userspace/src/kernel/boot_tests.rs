//! Hosts made of a few files: which list each must boot with, and by which steps.
//! The kernel's own answers come from the probe's tests' kind of fixture.

use super::*;
use crate::kernel::probe::Calls;

fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn fix(files: &[(&str, &str)], refusal: Option<&str>) -> Fix {
    let root = host(files);
    let calls =
        Calls { landlock_abi: Answer::Yes(6), seccomp: Answer::Yes(()), security_modules: None };
    let mut kernel = Kernel::read(root.path(), calls);
    kernel.bpf_lsm_refusal = refusal.map(str::to_owned);
    plan(&kernel, &Boot::read(root.path(), Some("6.1.0-1-amd64")))
}

const MODULES: (&str, &str) =
    ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor\n");
const DEBIAN: (&str, &str) =
    ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n");
const PLAIN: (&str, &str) = ("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet\n");
const WANTED: &str = "lsm=lockdown,bpf,landlock,yama,apparmor";

#[track_caller]
fn steps(files: &[(&str, &str)]) -> Vec<String> {
    match fix(files, None) {
        Fix::Parameter { parameter, steps, .. } => {
            assert_eq!(parameter, WANTED);
            steps
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_new_list_keeps_every_active_module_and_debian_s_grub_gets_the_whole_line() {
    let grub = (
        "etc/default/grub",
        "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"net.ifnames=0\"\n",
    );
    let steps = steps(&[MODULES, DEBIAN, PLAIN, grub]);
    let line = format!("GRUB_CMDLINE_LINUX=\"net.ifnames=0 {WANTED}\"");
    assert!(steps[0].contains(&line), "{steps:?}");
    assert_eq!(steps[1..], ["update-grub", "reboot", "clawbox doctor: `bpf lsm` must be ready"]);
}

#[test]
fn a_list_that_is_set_is_replaced_and_not_added_to() {
    let set = ("proc/cmdline", "quiet lsm=landlock,yama ro lsm=landlock,apparmor\n");
    let grub = ("etc/default/grub", "GRUB_CMDLINE_LINUX=\"lsm=landlock,apparmor ro\"\n");
    let found = fix(&[MODULES, DEBIAN, set, grub], None);
    let Fix::Parameter { present, steps, .. } = found else { panic!("{found:?}") };
    assert_eq!(present.as_deref(), Some("landlock,apparmor"));
    assert!(steps[0].contains(&format!("GRUB_CMDLINE_LINUX=\"ro {WANTED}\"")), "{steps:?}");
    let files = [MODULES, set, ("usr/bin/kernelstub", "")];
    assert_eq!(
        self::steps(&files)[..2],
        [
            "kernelstub --delete-options 'lsm=landlock,apparmor'".to_owned(),
            format!("kernelstub --add-options '{WANTED}'")
        ]
    );
}

#[test]
fn every_kind_of_loader_has_steps_of_its_own() {
    let fedora = ("etc/os-release", "PRETTY_NAME=\"Fedora\"\nID=fedora\n");
    let suse = ("etc/os-release", "ID=opensuse-leap\nID_LIKE=\"suse opensuse\"\n");
    let grub = ("etc/default/grub", "GRUB_TIMEOUT=1\n");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[fedora, ("usr/sbin/grubby", ""), grub], "grubby --update-kernel=ALL --args='lsm="),
        (&[fedora, ("run/ostree-booted", "")], "rpm-ostree kargs --append='lsm="),
        (&[suse, grub], "grub2-mkconfig -o /boot/grub2/grub.cfg"),
        (&[("etc/os-release", "ID=arch\n"), grub], "grub-mkconfig -o /boot/grub/grub.cfg"),
        (&[("etc/kernel/cmdline", "root=/dev/sda1 ro\n")], "root=/dev/sda1 ro lsm="),
        (&[("boot/loader/entries/arch.conf", "options ro\n")], "below /boot/loader/entries"),
        (&[], "provider or hypervisor"),
    ];
    for (files, wanted) in cases {
        let files: Vec<_> = files.iter().copied().chain([MODULES, PLAIN]).collect();
        let steps = steps(&files);
        assert!(steps.iter().any(|step| step.contains(wanted)), "{wanted}: {steps:?}");
    }
}

#[test]
fn where_programs_run_there_is_nothing_to_fix_and_where_they_are_refused_no_parameter_helps() {
    let debian = ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama,bpf,ima\n");
    assert!(matches!(fix(&[debian, PLAIN], None), Fix::Nothing { .. }));
    let with = ("sys/kernel/security/lsm", "capability,bpf,landlock\n");
    assert!(matches!(fix(&[with, PLAIN], None), Fix::Nothing { .. }));
    let refused = fix(&[with, PLAIN], Some("permission denied"));
    let Fix::Elsewhere { why } = refused else { panic!("{refused:?}") };
    assert!(why.contains("permission denied"), "{why}");
    let config = ("boot/config-6.1.0-1-amd64", "CONFIG_BPF=y\n# CONFIG_BPF_LSM is not set\n");
    let without = fix(&[MODULES, PLAIN, config], None);
    assert!(matches!(&without, Fix::Elsewhere { why } if why.contains("CONFIG_BPF_LSM")));
}

#[test]
fn a_list_is_never_guessed() {
    let unknown = fix(&[PLAIN, DEBIAN], None);
    assert!(matches!(&unknown, Fix::Elsewhere { why } if why.contains("securityfs")));
    let asked = fix(&[("proc/cmdline", "lsm=landlock,yama\n")], None);
    let Fix::Parameter { parameter, .. } = asked else { panic!("{asked:?}") };
    assert_eq!(parameter, "lsm=bpf,landlock,yama");
}
