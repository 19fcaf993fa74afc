//! What enforces is looked after: a program that somebody detaches behind the daemon's back is attached
//! again, a pin that is taken away is there again, and both are told.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clawbox_tests::clawbox::cgroup_root;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::errno::Errno;
use nix::libc;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::daemon::{Dialler, output};
use crate::scene::{ECHO, Scene, in_guest};

/// `BPF_OBJ_GET`, `BPF_LINK_DETACH` and `BPF_MAP_DELETE_ELEM` of bpf(2).
const GET: libc::c_int = 7;
const DETACH: libc::c_int = 34;
const DELETE: libc::c_int = 3;

fn bpf(command: libc::c_int, attributes: &[u64; 2]) -> i32 {
    // SAFETY: initialised, and what it points at outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, 16) };
    i32::try_from(Errno::result(outcome).unwrap()).unwrap()
}

fn get(pin: &Path) -> OwnedFd {
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let object = bpf(GET, &[path.as_ptr() as u64, 0]);
    // SAFETY: the kernel has just made it, for us alone.
    unsafe { OwnedFd::from_raw_fd(object) }
}

/// What `bpftool link detach` does.
fn detach(pin: &Path) {
    let link = get(pin);
    bpf(DETACH, &[u64::try_from(link.as_raw_fd()).unwrap(), 0]);
}

/// What `bpftool map delete` does.
fn forget(pin: &Path, key: &u64) {
    let table = get(pin);
    bpf(DELETE, &[u64::try_from(table.as_raw_fd()).unwrap(), std::ptr::from_ref(key) as u64]);
}

/// The alarms in the agent's own trail.
fn alarms(daemon: &Daemon<'_>) -> Vec<Value> {
    let mut trail = daemon.trail(daemon.name());
    // What the watchdog tries is not told.
    assert!(trail.iter().all(|record| record["verdict"] != "deny"), "{trail:#?}");
    trail.retain(|record| record["class"] == "agent" && record["action"] == "alarm");
    trail
}

#[test]
fn what_is_detached_or_unpinned_behind_its_back_is_put_right_and_told() {
    let scene = Scene::new();
    let daemon = Daemon::start_configured(&scene.world, "auto", "watchdog: 1h\n");
    let one = scene.allowing(PYTHON, &format!("{{ host: {SITE}, port: {ECHO} }}"));
    let mut one = Dialler::start(daemon.as_nobody(&[]), "one", &daemon.policy("one", &one));
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([one.dial(&site), one.dial(&elsewhere)], ["ok", "EPERM"]);
    assert!(alarms(&daemon).is_empty());

    detach(&daemon.pins().join("connect4"));
    // With BPF LSM the send on it is refused still.
    assert_eq!(one.dial(&elsewhere), if in_guest() { "EPERM" } else { "ok" });
    // With the next round, which a shorter time makes due at once.
    daemon.reload(|text| text.replace("watchdog: 1h", "watchdog: 1s"));
    daemon.says("watchdog: put right part=\"connect4\" reason=\"detached\"");
    assert_eq!([one.dial(&site), one.dial(&elsewhere)], ["ok", "EPERM"]);

    for pin in ["sendmsg4", "task_exec", "CGROUPS"] {
        fs::remove_file(daemon.pins().join(pin)).unwrap();
        daemon.says(&format!("watchdog: put right part=\"{pin}\" reason=\"unpinned\""));
        assert!(daemon.pins().join(pin).exists());
    }
    assert_eq!([one.dial(&site), one.dial(&elsewhere)], ["ok", "EPERM"]);

    let cgroup = cgroup_root().join("clawbox").join(daemon.cgroup("one-1"));
    forget(&daemon.pins().join("CGROUPS"), &fs::metadata(cgroup).unwrap().ino());
    daemon.says("watchdog: put right part=\"sandbox 1 `one`\" reason=\"not-admitted\"");

    let told: Vec<_> = alarms(&daemon)
        .iter()
        .map(|alarm| (alarm["object"]["part"].clone(), alarm["object"]["severity"].clone()))
        .collect();
    let expected = [
        ("connect4", "critical"),
        ("sendmsg4", "warning"),
        ("task_exec", "warning"),
        ("CGROUPS", "warning"),
        ("sandbox 1 `one`", "critical"),
    ];
    assert_eq!(told, expected.map(|(part, severity)| (part.into(), severity.into())));
    let (status, text, _) = output(daemon.clawbox(&["status"]));
    assert!(status == 0 && text.contains("5 alarms, all put right"), "{text}");
    assert_eq!(one.end(), 0);
}

#[test]
fn pins_that_cannot_be_put_right_are_told_each_round_and_fail_the_status() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let daemon = Daemon::start_configured(&scene.world, "off", "watchdog: 1s\n");
    // A directory in the place of a pin is not the daemon's to remove.
    let pin = daemon.pins().join("bind4");
    fs::remove_file(&pin).unwrap();
    fs::create_dir(&pin).unwrap();
    for _ in 0..2 {
        daemon.says("watchdog: not put right");
    }
    let (status, text, _) = output(daemon.clawbox(&["status", "--format", "json"]));
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 1, "{told:#}");
    assert!(told["watchdog"]["failing"][0].as_str().unwrap().starts_with("bind4 is unpinned"));
    let alarms = alarms(&daemon);
    assert!(alarms.len() >= 2 && alarms.iter().all(|alarm| alarm["object"]["repaired"] == false));
    fs::remove_dir(&pin).unwrap();
    daemon.says("watchdog: put right part=\"bind4\"");
}
