//! What is wrong around the daemon: its disks, its descriptors, what it has written down, what stands among
//! its pins. It says so and enforces what runs, and all is well again when the fault has gone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use clawbox_tests::daemon::Daemon;
use clawbox_tests::disk::Disk;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::attached::until;
use super::daemon::{Dialler, output};
use super::reliability::{Hammer, only};
use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

/// By address, for which no daemon is needed, and by name, which it answers.
fn to_site_and_api(scene: &Scene) -> String {
    let (site, api) = (format!("{{ host: {SITE}, port: {ECHO} }}"), "api.test");
    scene.allowing(PYTHON, &format!("{site}, {{ host: {api}, port: {ECHO} }}"))
}

fn to_elsewhere(scene: &Scene) -> String {
    scene.allowing(PYTHON, &format!("{{ host: {ELSEWHERE}, port: {ECHO} }}"))
}

/// A daemon that runs, with a sandbox that is asked and one that never rests.
struct Faulty<'w> {
    scene: &'w Scene,
    daemon: Daemon<'w>,
    dialler: Dialler,
    hammer: Option<Hammer>,
    policy: String,
    /// Another one, that is to take its place.
    other: String,
}

impl<'w> Faulty<'w> {
    fn begin(scene: &'w Scene, mut daemon: Daemon<'w>) -> Self {
        daemon.start_again();
        let policy = daemon.policy("policy", &to_site_and_api(scene));
        let other = daemon.policy("other", &to_elsewhere(scene));
        let addresses = [SITE, ELSEWHERE].map(|address| address.to_string());
        let hammer = Some(Hammer::start(&daemon, &policy, &addresses));
        let dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
        let mut faulty = Self { scene, daemon, dialler, hammer, policy, other };
        faulty.enforces();
        faulty.serves();
        faulty
    }

    #[track_caller]
    fn enforces(&mut self) {
        let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
        assert_eq!([self.dialler.dial(&site), self.dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    }

    #[track_caller]
    fn serves(&mut self) {
        assert_eq!(
            [self.dialler.dial("api.test"), self.dialler.dial("v4.test")],
            ["ok", "no name"]
        );
    }

    fn set(&self) -> (i32, String, String) {
        output(self.daemon.as_nobody(&["policy", "set", "one", &self.other]))
    }

    fn run(&self) -> (i32, String, String) {
        output(self.daemon.as_nobody(&["run", "--policy", &self.policy, "--", "/bin/true"]))
    }

    fn restart(&mut self, signal: Signal) {
        self.daemon.end_by(signal);
        self.enforces();
        self.daemon.start_again();
        self.enforces();
        self.serves();
    }

    /// The fault has gone: another policy takes the place of the first, and is there after a restart.
    fn recovers(&mut self) {
        let (status, _, stderr) = self.run();
        assert_eq!(status, 0, "{stderr}");
        let (status, stdout, stderr) = self.set();
        assert_eq!(status, 0, "{stdout}{stderr}");
        for _ in 0..2 {
            let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
            assert_eq!([self.dialler.dial(&site), self.dialler.dial(&elsewhere)], ["EPERM", "ok"]);
            self.daemon.end_by(Signal::SIGKILL);
            self.daemon.start_again();
        }
    }

    /// Whoever never rested has met nothing but the policy.
    fn end(mut self) {
        let seen = self.hammer.take().unwrap().end();
        assert!(only(&seen, &SITE.to_string(), &["ok"]) > 10, "{seen}");
        assert!(only(&seen, &ELSEWHERE.to_string(), &["EPERM"]) > 10, "{seen}");
        drop(self.dialler);
        let _ = self.scene;
    }
}

#[test]
fn what_a_full_disk_cannot_keep_is_refused_and_what_was_before_is_in_force() {
    let scene = Scene::new();
    let daemon = Daemon::at_rest(&scene.world, "off", "");
    let disk = Disk::mount(daemon.place("state"), 4 << 20);
    let mut faulty = Faulty::begin(&scene, daemon);
    disk.fill();
    // The first one finds out.
    let (status, stdout, stderr) = faulty.set();
    assert!(status == 1 && stdout.contains("cannot be written"), "{status} {stdout}{stderr}");
    assert!(stdout.contains("the policy of before is in force"), "{stdout}");
    faulty.enforces();
    faulty.serves();
    let (status, stdout, _) = faulty.set();
    assert!(status == 1 && stdout.contains("look at its disk"), "{stdout}");
    let (status, _, stderr) = faulty.run();
    assert!(status == 125 && stderr.contains("look at its disk"), "{status} {stderr}");
    assert_eq!(faulty.daemon.list().len(), 2);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        faulty.restart(signal);
        assert_eq!(faulty.set().0, 1);
        faulty.enforces();
    }
    disk.empty();
    faulty.recovers();
    faulty.end();
}

#[test]
fn a_read_only_disk_takes_no_sandbox_away_and_no_change() {
    let scene = Scene::new();
    let daemon = Daemon::at_rest(&scene.world, "off", "");
    let disks = ["state", "trails"].map(|place| Disk::mount(daemon.place(place), 64 << 20));
    let mut faulty = Faulty::begin(&scene, daemon);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        faulty.daemon.end_by(signal);
        disks.iter().for_each(|disk| disk.set_read_only(true));
        faulty.daemon.start_again();
        faulty.enforces();
        faulty.serves();
        let (status, stdout, _) = faulty.set();
        assert!(status == 1 && stdout.contains("look at its disk"), "{stdout}");
        let (status, _, stderr) = faulty.run();
        assert!(status == 125 && stderr.contains("look at its disk"), "{status} {stderr}");
        faulty.enforces();
        assert_eq!(faulty.daemon.list().len(), 2);
        disks.iter().for_each(|disk| disk.set_read_only(false));
    }
    faulty.recovers();
    faulty.end();
}

#[test]
fn lines_that_a_full_disk_does_not_take_are_counted_and_hold_nobody_up() {
    let scene = Scene::new();
    let mut daemon = Daemon::at_rest(&scene.world, "off", "");
    let disk = Disk::mount(daemon.place("trails"), 8 << 20);
    daemon.start_again();
    let policy = daemon.policy("policy", &to_site_and_api(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let elsewhere = ELSEWHERE.to_string();
    disk.fill();
    let mut denied = 0_u16;
    // No two alike: of those that are, few are lines.
    let mut deny = |dialler: &mut Dialler, count: u16| {
        for _ in 0..count {
            denied += 1;
            let [high, low] = denied.to_be_bytes();
            assert_eq!(dialler.dial(&format!("10.99.{high}.{low}")), "EPERM");
        }
        u64::from(denied)
    };
    deny(&mut dialler, 6000);
    let _ = daemon.says("the audit trail cannot be written");
    assert_eq!([dialler.dial(&SITE.to_string()), dialler.dial("api.test")], ["ok", "ok"]);
    // On a busy machine the daemon is behind: lines are lost once all that it can hold waits.
    until("lines are lost", || {
        let (_, status, _) = output(daemon.clawbox(&["status", "--format", "json"]));
        let status: Value = serde_json::from_str(&status).unwrap();
        status["events_lost"].as_u64().unwrap() > 0
    });
    disk.empty();
    let denied = deny(&mut dialler, 1);
    let found = |trail: &[Value], is: &dyn Fn(&&Value) -> bool| trail.iter().filter(is).count();
    let is_unwritten = |record: &&Value| record["object"]["kind"] == "unwritten";
    let mut last = (0, 0);
    let told = || {
        let _ = dialler.dial(&SITE.to_string());
        let trail = daemon.trail("one-1");
        // An agent that is far behind has lost some before that, too: a gap of its own tells.
        let gaps = trail.iter().filter(|record| record["class"] == "gap");
        let lost: u64 = gaps.map(|gap| gap["object"]["count"].as_u64().unwrap()).sum();
        let written = found(&trail, &|record| record["verdict"] == "deny") as u64;
        last = (written, lost);
        // Of what was allowed meanwhile some lines may be among those that are lost.
        found(&trail, &is_unwritten) > 0 && written + lost >= denied
    };
    until("each denial is written or counted as lost", told);
    assert!(last.0 < denied, "{last:?}, {denied}");
    let trail = daemon.trail("one-1");
    let numbers = trail.iter().map(|record| record["seq"].as_u64().unwrap());
    assert!(numbers.eq(1..=trail.len() as u64));
    // A daemon that is ended in a line goes on behind it.
    disk.fill();
    for _ in 0..200 {
        assert_eq!(dialler.dial(&elsewhere), "EPERM");
    }
    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    disk.empty();
    until("it is written again", || {
        let _ = dialler.dial(&elsewhere);
        daemon.trail("one-1").iter().any(|record| record["action"] == "resume")
    });
    assert_eq!(dialler.dial("api.test"), "ok");
}

/// Descriptors that a process has.
fn descriptors(process: u32) -> u64 {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64
}

#[test]
fn without_descriptors_nothing_is_begun_and_what_runs_goes_on() {
    let scene = Scene::new();
    let mut faulty = Faulty::begin(&scene, Daemon::at_rest(&scene.world, "off", ""));
    faulty.daemon.end_by(Signal::SIGTERM);
    faulty.daemon.start_again();
    let open = descriptors(faulty.daemon.process());
    faulty.daemon.end_by(Signal::SIGKILL);
    // The last 64 are for what runs.
    faulty.daemon.bound_descriptors(Some(open + 64 + 16));
    faulty.daemon.start_again();
    assert_eq!(faulty.run().0, 0);
    // Of whoever opens connections without an end none are taken any more, but for who manages.
    let mut ends = connected(&faulty, clawbox_tests::network::NOBODY, 200);
    let _ = faulty.daemon.says("descriptors open");
    faulty.enforces();
    faulty.serves();
    let run = ["run", "--policy", &faulty.policy, "--", "/bin/true"];
    let (status, _, stderr) = output(faulty.daemon.clawbox(&run));
    assert!(status == 125 && stderr.contains("LimitNOFILE"), "{status} {stderr}");
    ends.end();
    let _ = faulty.daemon.says("there are descriptors again");
    // Root gets more of them than anybody else.
    let mut all = connected(&faulty, 0, 200);
    let _ = faulty.daemon.says("descriptors open");
    faulty.enforces();
    let _ = faulty.dialler.dial("api.test");
    faulty.enforces();
    all.end();
    let _ = faulty.daemon.says("there are descriptors again");
    faulty.serves();
    faulty.daemon.bound_descriptors(None);
    faulty.recovers();
    faulty.end();
}

/// Somebody who holds connections to the control socket.
struct Clients(std::process::Child);

impl Clients {
    fn end(&mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

fn connected(faulty: &Faulty<'_>, user: u32, count: u32) -> Clients {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;
    let code = "import socket, sys\nmade = []\nfor _ in range(int(sys.argv[2])):\n    \
                one = socket.socket(socket.AF_UNIX)\n    one.setblocking(False)\n    \
                try: one.connect(sys.argv[1])\n    except BlockingIOError: pass\n    \
                made.append(one)\nprint('ready', flush=True)\nsys.stdin.read()";
    let mut command = Command::new(PYTHON);
    command.args(["-c", code]).arg(faulty.daemon.socket()).arg(count.to_string());
    let mut child = command.uid(user).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Clients(child)
}

#[test]
fn a_damaged_store_is_said_and_left_as_it_is_and_all_is_enforced() {
    let scene = Scene::new();
    let mut faulty = Faulty::begin(&scene, Daemon::at_rest(&scene.world, "off", ""));
    let file = faulty.daemon.place("state").join("clawbox.sqlite");
    let garbage = |mut bytes: Vec<u8>| {
        bytes[..600].fill(0xa5);
        bytes
    };
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2 + 100].to_vec();
    let nothing = |_| Vec::new();
    let damages: [&dyn Fn(Vec<u8>) -> Vec<u8>; 3] = [&garbage, &half, &nothing];
    for damage in damages {
        // With all of it in the one file.
        faulty.daemon.end_by(Signal::SIGTERM);
        let whole = faulty.daemon.keep_state();
        let damaged = damage(fs::read(&file).unwrap());
        fs::write(&file, &damaged).unwrap();
        for _ in 0..2 {
            let said = faulty.daemon.says_why_it_does_not_start();
            for what in ["clawbox.sqlite", "enforced", "clawbox uninstall", "back"] {
                assert!(said.contains(what), "{what}: {said}");
            }
            faulty.enforces();
        }
        assert_eq!(fs::read(&file).unwrap(), damaged);
        faulty.daemon.put_state_back(whole);
        faulty.daemon.start_again();
        faulty.enforces();
        faulty.serves();
    }
    faulty.recovers();
    // Without a copy it is the end of what runs.
    faulty.daemon.end_by(Signal::SIGTERM);
    fs::write(&file, "no database, and no copy of one").unwrap();
    drop(faulty.hammer.take().unwrap());
    let removed = faulty.daemon.uninstall();
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(faulty.daemon.remains(), Vec::<PathBuf>::new());
}

#[test]
fn pins_of_another_layout_are_said_and_left_as_they_are() {
    let scene = Scene::new();
    let mut faulty = Faulty::begin(&scene, Daemon::at_rest(&scene.world, "off", ""));
    faulty.daemon.end_by(Signal::SIGKILL);
    let pins = || fs::read_dir(faulty.daemon.pins()).unwrap().map(|entry| entry.unwrap().path());
    let is_mark =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("layout-");
    let mark = pins().find(is_mark).unwrap();
    let other = mark.with_file_name("layout-0123456789abcdef");
    fs::rename(&mark, &other).unwrap();
    let before: Vec<PathBuf> = pins().collect();
    for _ in 0..2 {
        let said = faulty.daemon.says_why_it_does_not_start();
        for what in ["0123456789abcdef", "stay enforced", "clawbox uninstall"] {
            assert!(said.contains(what), "{what}: {said}");
        }
        let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
        assert_eq!([faulty.dialler.dial(&site), faulty.dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    }
    assert_eq!(pins().collect::<Vec<_>>(), before);
    fs::rename(&other, &mark).unwrap();
    faulty.daemon.start_again();
    faulty.serves();
    faulty.recovers();
    faulty.end();
}
