//! `clawbox term` as somebody sits before it: in a terminal of tmux, whose screen is read and to which keys
//! are sent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};

use crate::attacks::attempt::PYTHON;
use crate::daemon::{Dialler, output};
use crate::real_programs::has;
use crate::scene::Scene;

const TMUX: &str = "/usr/bin/tmux";

/// How long a screen may take to say something, on an emulated machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal in which a shell runs.
struct Terminal<'s> {
    scene: &'s Scene,
    socket: PathBuf,
}

impl<'s> Terminal<'s> {
    /// One that is so large.
    fn open(scene: &'s Scene, (columns, rows): (u16, u16), script: &str) -> Self {
        let terminal = Self { scene, socket: scene.world.private().join("tmux.sock") };
        let size = ["-x", &columns.to_string(), "-y", &rows.to_string()].map(str::to_owned);
        let mut command = terminal.tmux(&["-f", "/dev/null", "-u", "new-session", "-d"]);
        command.args(size).arg(script).env("LC_ALL", "C.UTF-8");
        command.env_remove("LD_LIBRARY_PATH").env_remove("TMUX");
        let (status, _, stderr) = output(command);
        assert_eq!(status, 0, "{stderr}");
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let mut command = Command::new(TMUX);
        command.arg("-S").arg(&self.socket).args(words);
        self.scene.world.enter(&mut command);
        command
    }

    fn asked(&self, words: &[&str]) -> String {
        let (status, stdout, stderr) = output(self.tmux(words));
        assert_eq!(status, 0, "{words:?}: {stderr}");
        stdout
    }

    fn press(&self, key: &str) {
        self.asked(&["send-keys", key]);
    }

    /// The screen, once it says this.
    #[track_caller]
    fn says(&self, what: &str) -> String {
        self.once(what, |screen| screen.contains(what))
    }

    #[track_caller]
    fn once(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let since = Instant::now();
        loop {
            let screen = self.asked(&["capture-pane", "-p"]);
            if is_so(&screen) {
                return screen;
            }
            assert!(since.elapsed() < PATIENCE, "`{what}` is not said:\n{screen}");
        }
    }

    /// The shell's one child.
    fn child(&self) -> i32 {
        let shell = self.asked(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        children.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).output();
    }
}

/// A shell that runs `term` and says how it ended, three times.
fn script(daemon: &Daemon<'_>) -> String {
    let term = format!(
        "CLAWBOX_SOCKET='{}' '{}' term",
        daemon.socket().display(),
        clawbox_tests::clawbox::program().display()
    );
    let again = "read again";
    format!(
        "echo before; {term}; echo status $?; {again}; {term}; echo second $?; {again}; {term}; \
         echo third $?; exec cat"
    )
}

/// `unknown_endpoints: ask`, with one rule.
fn asking(scene: &Scene) -> String {
    scene.allowing(PYTHON, "{ host: v4.test, port: 7 }") + "\nunknown_endpoints: ask\n"
}

#[test]
fn a_held_connection_is_approved_at_a_terminal_and_goes_on_without_a_retry() {
    if !has(&[TMUX]) {
        return;
    }
    let scene = Scene::new();
    scene.names.host("new.test", &[SITE.into()]).host("bad.test", &[ELSEWHERE.into()]);
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("agent", &asking(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "agent", &policy);
    let terminal = Terminal::open(&scene, (110, 34), &script(&daemon));
    terminal.says("agent-1");

    dialler.begin("new.test");
    terminal.says("? 1 waiting for an answer");
    terminal.press("4");
    let card = terminal.once("the card", |screen| {
        screen.contains("connect to new.test:7") && screen.contains("held")
    });
    assert!(card.contains("python3") && card.contains("in agent-1"), "{card}");
    scene.nothing_arrived();
    terminal.press("a");
    assert_eq!(dialler.line(), "ok");
    terminal.says("approved new.test:7: once");
    assert_eq!(scene.echo.arrivals().len(), 1);

    dialler.begin("bad.test");
    terminal.says("connect to bad.test:7");
    terminal.press("d");
    assert_eq!(dialler.line(), "ECONNABORTED");
    terminal.says("denied bad.test:7");
    assert_eq!(scene.echo.arrivals().len(), 1);

    // As long as it runs, taken back, and written into the policy.
    dialler.begin("new.test");
    terminal.once("the card", |screen| {
        screen.contains("connect to new.test:7") && screen.contains("? 1 waiting,")
    });
    terminal.press("s");
    assert_eq!(dialler.line(), "ok");
    terminal.says("as long as the sandbox runs");
    assert_eq!(dialler.dial("new.test"), "ok");
    terminal.press("u");
    terminal.says("taken back: new.test:7");
    dialler.begin("new.test");
    terminal.once("the card", |screen| {
        screen.contains("connect to new.test:7") && screen.contains("? 1 waiting,")
    });
    terminal.press("p");
    terminal.says("revision 4 of the policy allows it");
    assert_eq!(dialler.line(), "ok");
    assert_eq!(dialler.dial("new.test"), "ok");
    let (_, text, _) = output(daemon.clawbox(&["policy", "get", "agent"]));
    assert!(text.contains("approved python3 new.test 7"), "{text}");
    assert_eq!(dialler.end(), 0);
}

#[test]
fn a_terminal_may_become_smaller_and_is_given_back_however_it_ends() {
    if !has(&[TMUX]) {
        return;
    }
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("agent", &asking(&scene));
    let dialler = Dialler::start(daemon.as_nobody(&[]), "agent", &policy);
    let terminal = Terminal::open(&scene, (110, 34), &script(&daemon));
    terminal.says("agent-1");
    terminal.press("3");
    let one = terminal.once("one sandbox", |screen| screen.contains("unknown_endpoints: ask"));
    assert!(one.contains("1 revisions") && one.contains(PYTHON), "{one}");
    terminal.asked(&["resize-window", "-x", "64", "-y", "16"]);
    let small = terminal.once("a smaller screen", |screen| {
        let rows: Vec<&str> = screen.lines().collect();
        rows.len() == 16 && rows[15].contains("q quit") && rows[0].contains("Approvals")
    });
    assert!(small.lines().all(|row| row.chars().count() <= 64), "{small}");
    let modes = ["display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"];
    assert_eq!(terminal.asked(&modes).trim(), "1 1 0");
    terminal.press("q");
    let shell = terminal.says("status 0");
    assert!(shell.contains("before") && !shell.contains("Approvals"), "{shell}");
    assert_eq!(terminal.asked(&modes).trim(), "0 0 1");

    terminal.press("Enter");
    terminal.says("agent-1");
    let term = nix::unistd::Pid::from_raw(terminal.child());
    nix::sys::signal::kill(term, nix::sys::signal::Signal::SIGTERM).unwrap();
    let shell = terminal.says("second 143");
    assert!(!shell.contains("Approvals"), "{shell}");
    assert_eq!(terminal.asked(&modes).trim(), "0 0 1");

    // As when a connection is lost and the terminal is there all the same.
    terminal.press("Enter");
    terminal.says("agent-1");
    let term = nix::unistd::Pid::from_raw(terminal.child());
    nix::sys::signal::kill(term, nix::sys::signal::Signal::SIGHUP).unwrap();
    let shell = terminal.says("third 129");
    assert!(!shell.contains("Approvals"), "{shell}");
    assert_eq!(terminal.asked(&modes).trim(), "0 0 1");
    // What is written on the terminal is seen again.
    terminal.press("x");
    terminal.says("x");
    assert_eq!(dialler.end(), 0);

    let (status, _, stderr) = output(daemon.clawbox(&["term"]));
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("needs a terminal"), "{stderr}");
    assert!(Path::new(TMUX).exists());
}
