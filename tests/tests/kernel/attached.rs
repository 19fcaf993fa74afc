//! Cgroups that others make: by hand or by a standing rule they become sandboxes, and nobody who is in
//! one, or is started in one, can do anything before that.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use clawbox_tests::clawbox::cgroup_root;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE, World};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::daemon::{DIALLER, Dialler, output, to_site};
use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene, in_guest};

/// A cgroup in which others are made.
pub(super) struct Parent(PathBuf);

impl Parent {
    pub(super) fn make() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = cgroup_root().join(format!("others-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Below the root of the hierarchy.
    pub(super) fn below(&self) -> String {
        format!("/{}", self.0.strip_prefix(cgroup_root()).unwrap().display())
    }

    /// What of a rule is for those in it of such names.
    fn all(&self, names: &str) -> String {
        format!("{{ cgroup: '{}/{names}' }}", self.below())
    }

    pub(super) fn child(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        remove(&self.0);
    }
}

/// A daemon with one standing rule, for `wanted`, under a policy of this text.
fn standing<'w>(scene: &'w Scene, lsm: &'static str, wanted: &str, policy: &str) -> Daemon<'w> {
    let file = scene.world.bin().join("standing.yaml");
    fs::write(&file, policy).unwrap();
    let rule =
        format!("name: agent\nmatch: {wanted}\npolicy: {}\nnetwork_only: true\n", file.display());
    Daemon::start_standing(&scene.world, lsm, &rule)
}

fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A process that was killed may take a moment to be gone.
    while let Err(error) = fs::remove_dir(directory) {
        if error.kind() != std::io::ErrorKind::ResourceBusy {
            break;
        }
        std::thread::yield_now();
    }
}

/// Has a command begin in a cgroup: it is there before it is executed.
fn in_cgroup(command: &mut Command, cgroup: &Path) {
    let procs = File::options().write(true).open(cgroup.join("cgroup.procs")).unwrap();
    let procs = OwnedFd::from(procs);
    // SAFETY: the closure makes one system call on a descriptor that it owns.
    unsafe {
        command.pre_exec(move || {
            let written = nix::libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1);
            if written == 1 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

/// A dialler that nobody has put into a sandbox, as systemd or a container engine would start one.
pub(super) fn dialler(world: &World, cgroup: &Path) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-c", DIALLER, DIALLER]);
    world.enter(&mut command);
    in_cgroup(&mut command, cgroup);
    command
}

/// Whether a process is stopped.
fn is_stopped(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

/// Waits for something that comes of another process's doing.
pub(super) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let since = std::time::Instant::now();
    while !is() {
        assert!(since.elapsed().as_secs() < 120, "not within two minutes: {what}");
        std::thread::yield_now();
    }
}

/// Connections that were begun to where no policy here allows any, by whomever.
fn dialled_elsewhere(scene: &Scene) -> usize {
    const SYN: u8 = 2;
    let arrived = scene.arrived().into_iter().filter(|packet| packet.to == ELSEWHERE);
    arrived.filter(|packet| packet.payload.get(13).is_some_and(|flags| flags & SYN != 0)).count()
}

/// Connections that were denied or reset.
fn denials(trail: &[Value]) -> Vec<&Value> {
    let denied = trail.iter().filter(|record| record["verdict"] == "deny");
    denied.filter(|record| record["class"] == "network").collect()
}

fn lsm(scene: &Scene) -> &'static str {
    if scene.has_lsm() { "require" } else { "off" }
}

/// The same where that is tested on the newest kernel alone: verifying the programs takes an emulated
/// machine longer than all the rest.
fn lsm_on_newest(scene: &Scene) -> &'static str {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let is_older = ["5.", "6."].iter().any(|version| release.starts_with(version));
    if in_guest() && is_older { "off" } else { lsm(scene) }
}

#[test]
fn who_is_in_a_cgroup_when_it_is_attached_is_held_from_then_on() {
    let scene = Scene::new();
    let lsm = lsm_on_newest(&scene);
    let daemon = Daemon::start_with(&scene.world, lsm);
    let policy = daemon.policy("one", &to_site(&scene));
    let others = Parent::make();
    let place = others.child("agent.service");
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    let mut before = Dialler::of(dialler(&scene.world, &place));
    assert_eq!([before.dial(&site), before.dial(&elsewhere)], ["ok", "ok"]);
    let unit = ["attach", "--unit", "agent.service", "--policy", &policy];
    if lsm == "off" {
        let (status, _, stderr) = output(daemon.clawbox(&unit));
        assert!(status == 2 && stderr.contains("--network-only"), "{stderr}");
        assert_eq!(before.dial(&elsewhere), "ok", "all is as it was");
    }
    let dialled = dialled_elsewhere(&scene);
    let (status, stdout, stderr) =
        output(daemon.clawbox(&[&unit[..], &["--network-only", "--format", "json"]].concat()));
    assert_eq!(status, 0, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    let id = shown["id"].as_str().unwrap();
    assert_eq!(shown["cgroup"], format!("{}/agent.service", &others.below()[1..]));
    assert_eq!([before.dial(&site), before.dial(&elsewhere)], ["ok", "EPERM"]);
    // Its children are who it is, and a program that the policy does not name is nobody.
    assert_eq!(before.dial(&format!("+{PYTHON}")), "ready");
    assert_eq!(
        [before.dial(&format!(">{site}")), before.dial(&format!(">{elsewhere}"))],
        ["ok", "EPERM"]
    );
    let mut after = Dialler::of(dialler(&scene.world, &place));
    assert_eq!([after.dial(&site), after.dial(&elsewhere)], ["ok", "EPERM"]);
    assert!(!is_stopped(after.child.id()));
    assert_eq!(dialled_elsewhere(&scene), dialled);

    // Once more is an error, and so is what does not exist.
    let (status, _, stderr) = output(daemon.clawbox(&[&unit[..], &["--network-only"]].concat()));
    assert!(status == 2 && stderr.contains("already"), "{stderr}");
    let none = ["attach", "--unit", "other.service", "--policy", &policy];
    let (status, _, stderr) = output(daemon.clawbox(&none));
    assert!(status == 2 && stderr.contains("no unit `other.service`"), "{stderr}");
    let (status, _, stderr) = output(daemon.as_nobody(&unit));
    assert!(status == 2 && stderr.contains("only root"), "{stderr}");

    let found = daemon.trail_once(id, |trail| denials(trail).len() >= 4);
    let found = denials(&found);
    let actions: Vec<&Value> = found.iter().map(|record| &record["action"]).collect();
    // The connection that it had when it was attached is judged as any other.
    assert_eq!(actions, ["reset", "connect", "connect", "connect"], "{found:#?}");
    assert!(found.iter().all(|record| record["object"]["ip"] == elsewhere), "{found:#?}");

    let (status, _, stderr) = output(daemon.clawbox(&["stop", "agent", "--timeout", "20s"]));
    assert_eq!(status, 0, "{stderr}");
    assert!(daemon.list().is_empty() && place.exists());
    assert!(!before.child.wait().unwrap().success());
    // It is nobody's cgroup again.
    let mut free = Dialler::of(dialler(&scene.world, &place));
    assert_eq!(free.dial(&elsewhere), "ok");
    assert_eq!(free.end(), 0);
}

#[test]
fn nothing_is_done_in_a_new_cgroup_that_a_standing_rule_is_for_before_it_is_a_sandbox() {
    let scene = Scene::new();
    let others = Parent::make();
    let mut daemon =
        standing(&scene, lsm_on_newest(&scene), &others.all("agent-?"), &to_site(&scene));
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    for number in 0..4 {
        // The first thing it does is to connect.
        let script = format!("/dev/tcp/{elsewhere}/{ECHO}");
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &format!("exec 3<>{script}")]).stderr(Stdio::null());
        scene.world.enter(&mut command);
        in_cgroup(&mut command, &others.child(&format!("agent-{number}")));
        assert!(!command.status().unwrap().success());
    }
    scene.nothing_arrived();
    let mut held = Dialler::of(dialler(&scene.world, &others.child("agent-5")));
    assert_eq!([held.dial(&site), held.dial(&elsewhere)], ["ok", "EPERM"]);
    // A cgroup of its own making inside is a part of it, and one that only begins like it is not.
    let mut inside = Dialler::of(dialler(&scene.world, &others.child("agent-5/inner")));
    assert_eq!([inside.dial(&site), inside.dial(&elsewhere)], ["ok", "EPERM"]);
    let mut other = Dialler::of(dialler(&scene.world, &others.child("agent-55")));
    assert_eq!(other.dial(&elsewhere), "ok");
    assert_eq!(daemon.list().len(), 5);
    let trail = daemon.trail_once("agent-1", |trail| !denials(trail).is_empty());
    let denied = denials(&trail);
    assert_eq!(denied.len(), 1, "{trail:#?}");
    let exe = denied[0]["subject"]["exe"].as_str().unwrap_or_default();
    assert!(exe.ends_with("/bash"), "{trail:#?}");

    // While nobody can say what it is, it waits; whoever has it go on has it denied everything.
    let dialled = dialled_elsewhere(&scene);
    daemon.end_by(Signal::SIGKILL);
    let mut late = dialler(&scene.world, &others.child("agent-6"));
    let mut late = waiting(&mut late);
    until("it is held", || is_stopped(late.id()));
    assert_eq!([held.dial(&elsewhere), inside.dial(&elsewhere)], ["EPERM", "EPERM"]);
    daemon.start_again();
    let mut line = [0; 6];
    std::io::Read::read_exact(late.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    writeln!(late.stdin.as_mut().unwrap(), "{elsewhere}").unwrap();
    std::io::Read::read_exact(late.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"EPERM\n");
    assert_eq!([held.dial(&site), held.dial(&elsewhere)], ["ok", "EPERM"]);
    assert_eq!(dialled_elsewhere(&scene), dialled);
    late.kill().unwrap();
    late.wait().unwrap();

    // A sandbox ends with its cgroup.
    assert_eq!((inside.end(), held.end()), (0, 0));
    for name in ["agent-5/inner", "agent-5"] {
        fs::remove_dir(others.0.join(name)).unwrap();
    }
    until("it is a sandbox no longer", || {
        daemon
            .list()
            .iter()
            .all(|sandbox| sandbox["cgroup"] != others.below()[1..].to_owned() + "/agent-5")
    });
    assert_eq!(other.end(), 0);
}

#[test]
fn a_cgroup_that_is_made_while_others_are_asked_about_is_held_too() {
    let scene = Scene::new();
    let others = Parent::make();
    let daemon = standing(&scene, "off", &others.all("agent-*"), &to_site(&scene));
    // The agent looks for one at any moment of the making of another.
    let rounds = if in_guest() { 4 } else { 40 };
    let one_after_the_other = &|thread: usize| {
        for round in 0..rounds {
            let place = others.child(&format!("agent-{thread}-{round}"));
            let mut command = Command::new("/bin/bash");
            let script = format!("exec 3<>/dev/tcp/{ELSEWHERE}/{ECHO}");
            command.args(["-c", &script]).stderr(Stdio::null());
            scene.world.enter(&mut command);
            in_cgroup(&mut command, &place);
            assert!(!command.status().unwrap().success(), "{thread} {round}");
            fs::remove_dir(&place).unwrap();
        }
    };
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Who looks around there holds makers up between the making and its end.
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let all = fs::read_dir(&others.0).into_iter().flatten().flatten();
                all.for_each(|entry| drop(fs::read_dir(entry.path()).map(Iterator::count)));
            }
        });
        let makers: Vec<_> =
            (0..4).map(|thread| scope.spawn(move || one_after_the_other(thread))).collect();
        let ended: Vec<_> = makers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|maker| maker.unwrap());
    });
    assert_eq!(dialled_elsewhere(&scene), 0);
    until("they are sandboxes no longer", || daemon.list().is_empty());
}

#[test]
fn what_the_agent_cannot_be_asked_about_is_held_and_denied() {
    // As deep as the kernel programs look; what is too deep is held as what finds no room in the table.
    const LEVELS: usize = 16;
    let scene = Scene::new();
    let others = Parent::make();
    let deep = (0..LEVELS).fold(String::new(), |path, level| format!("{path}{level}/"));
    let daemon = standing(&scene, "off", &others.all(&format!("{deep}*")), &to_site(&scene));
    let place = others.child(&format!("{deep}agent"));
    for place in [place.clone(), place.join("inner")] {
        fs::create_dir_all(&place).unwrap();
        let mut held = waiting(&mut dialler(&scene.world, &place));
        until("it is held", || is_stopped(held.id()));
        // Whoever has it go on has it denied.
        nix::sys::signal::kill(Pid::from_raw(held.id().cast_signed()), Signal::SIGCONT).unwrap();
        let mut input = held.stdin.take().unwrap();
        writeln!(input, "{SITE}").unwrap();
        drop(input);
        let told = held.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("EPERM"), "{told}");
    }
    assert!(daemon.list().is_empty());
    let _ = daemon.trail_once(daemon.name(), |told| {
        told.iter().any(|record| record["object"]["kind"] == "cgroup-unasked")
    });
}

/// Takes one connection from each listener that it was given, and says what comes of reading from it.
const TAKER: &str = r#"
import errno, socket
for number in (3, 4):
    made, _ = socket.socket(fileno=number).accept()
    try: print(made.recv(1).decode(), flush=True)
    except OSError as error: print(errno.errorcode[error.errno], flush=True)
"#;

#[test]
fn who_is_handed_a_listener_takes_connections_where_the_policy_would_let_it_listen() {
    let scene = Scene::new();
    let others = Parent::make();
    let _daemon = standing(
        &scene,
        lsm(&scene),
        &others.all("*"),
        &format!("{}listen: {{ ports: [7071] }}\n", to_site(&scene)),
    );
    let ports = [7071, 7072];
    let listeners = scene
        .world
        .inside(|| ports.map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap()));
    // What has it started waits before anybody takes it, as with systemd.
    let made = scene.world.inside(|| {
        ports.map(|port| {
            let mut made = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            made.write_all(b"x").unwrap();
            made
        })
    });
    let mut command = Command::new(PYTHON);
    command.args(["-c", TAKER]);
    scene.world.enter(&mut command);
    in_cgroup(&mut command, &others.child("taker"));
    let given = listeners.each_ref().map(AsRawFd::as_raw_fd);
    // SAFETY: the closure makes system calls on numbers that it owns.
    unsafe {
        command.pre_exec(move || {
            // Away from where they are to go.
            let moved = given.map(|from| nix::libc::fcntl(from, nix::libc::F_DUPFD, 100));
            for (from, to) in moved.into_iter().zip([3, 4]) {
                if nix::libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let (status, stdout, stderr) = output(command);
    assert_eq!(status, 0, "{stderr}");
    // Without BPF LSM nobody judges what is received.
    let other = if scene.has_lsm() { "EPERM" } else { "x" };
    assert_eq!(stdout.lines().collect::<Vec<_>>(), ["x", other]);
    drop(made);
}

#[test]
fn sandboxes_are_started_as_before_once_a_cgroup_was_attached() {
    let scene = Scene::new();
    let daemon = Daemon::start_with(&scene.world, lsm(&scene));
    let policy = daemon.policy("one", &to_site(&scene));
    let others = Parent::make();
    let mut first = Dialler::of(dialler(&scene.world, &others.child("agent.service")));
    let unit = ["attach", "--unit", "agent.service", "--policy", &policy, "--network-only"];
    let (status, _, stderr) = output(daemon.clawbox(&unit));
    assert_eq!(status, 0, "{stderr}");
    let mut second = Dialler::start(daemon.clawbox(&[]), "second", &policy);
    for dialler in [&mut first, &mut second] {
        let answers = [SITE, ELSEWHERE].map(|to| dialler.dial(&to.to_string()));
        assert_eq!(answers, ["ok", "EPERM"]);
    }
    // Its trail is whole once it has ended.
    assert_eq!(second.end(), 0);
    let trail = daemon.trail("second-2");
    assert_eq!(denials(&trail).len(), 1, "{trail:#?}");
    assert!(trail.iter().all(|record| record["reason"] != "no-identity"), "{trail:#?}");
}

#[test]
fn what_watches_a_container_runs_without_an_agent_and_the_container_does_not() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let others = Parent::make();
    let wanted = "{ container: { labels: { no-such: label } } }";
    let mut daemon = standing(&scene, lsm(&scene), wanted, &to_site(&scene));
    daemon.end_by(Signal::SIGKILL);
    let number = "0123456789abcdef".repeat(4);
    let watcher = others.child(&format!("libpod-conmon-{number}.scope"));
    let mut watcher = Dialler::of(dialler(&scene.world, &watcher));
    assert_eq!(watcher.dial(&ELSEWHERE.to_string()), "ok");
    assert_eq!(watcher.end(), 0);
    let mut held = dialler(&scene.world, &others.child(&format!("libpod-{number}.scope")));
    let mut held = waiting(&mut held);
    until("it is held", || is_stopped(held.id()));
    held.kill().unwrap();
    held.wait().unwrap();
}

#[test]
fn a_container_has_its_own_files_and_its_resolver_in_its_own_network() {
    let scene = Scene::new();
    let others = Parent::make();
    let policy = scene.world.bin().join("standing.yaml");
    // There is no such program but in the container.
    let inside = scene.world.bin().join("inside");
    fs::create_dir(&inside).unwrap();
    let agent = inside.join("agent").display().to_string();
    fs::write(&policy, scene.allowing(&agent, &format!("{{ host: api.test, port: {ECHO} }}")))
        .unwrap();
    let rule = format!(
        "name: agent\nmatch: {{ cgroup: '{}/*' }}\npolicy: [{}]\nnetwork_only: true\n",
        others.below(),
        policy.display()
    );
    let mut daemon = Daemon::start_standing(&scene.world, "off", &rule);
    // As a container engine does it: the last step is the program.
    let script = format!(
        "mount -t tmpfs none {} && cp {PYTHON} {agent} && ip link set lo up && \
         echo $$ > {}/cgroup.procs && exec {agent} -c \"$0\" \"$0\"",
        inside.display(),
        others.child("one").display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--", "/bin/sh", "-c", &script, DIALLER]);
    let mut container = Dialler::of(command);
    for _ in 0..2 {
        let answers =
            ["api.test", "other.test", &ELSEWHERE.to_string()].map(|to| container.dial(to));
        // Its network leads nowhere.
        assert_eq!(answers, ["ENETUNREACH", "no name", "EPERM"]);
        daemon.end_by(Signal::SIGTERM);
        daemon.start_again();
    }
    let nothing = daemon.policy("nothing", &scene.policy(""));
    let (status, _, stderr) = output(daemon.clawbox(&["policy", "set", "agent", &nothing]));
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(container.dial("api.test"), "no name");
    assert_eq!(container.end(), 0);
}

#[test]
fn where_a_rules_policy_does_not_load_nothing_more_is_started_and_all_is_held_once_it_does() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let others = Parent::make();
    let place = others.child("agent");
    let policy = scene.world.bin().join("standing.yaml");
    fs::write(&policy, "version: 1\nno_such_part: 1\n").unwrap();
    let mut before = Dialler::of(dialler(&scene.world, &place));
    let rule = format!(
        "name: agent\nmatch: {{ cgroup: '{}/*' }}\npolicy: {}\nnetwork_only: true\n",
        others.below(),
        policy.display()
    );
    let daemon = Daemon::start_standing(&scene.world, lsm(&scene), &rule);
    let mut late = waiting(&mut dialler(&scene.world, &place));
    until("it is held", || is_stopped(late.id()));
    assert!(daemon.list().is_empty());
    fs::write(&policy, to_site(&scene)).unwrap();
    daemon.reload(|text| text);
    let mut line = [0; 6];
    std::io::Read::read_exact(late.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([before.dial(&site), before.dial(&elsewhere)], ["ok", "EPERM"]);
    drop(late.stdin.take());
    assert!(late.wait().unwrap().success());
    assert_eq!(before.end(), 0);
}

/// A dialler that may not get as far as to say that it is ready.
fn waiting(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}
