//! A terminal of tmux that is taken by a process of its own, which then panics.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;

const TMUX: &str = "/usr/bin/tmux";

/// Which thread is to panic in [`who_panics_where_it_is_told_to`].
const WHERE: &str = "CLAWBOX_TESTS_PANIC";

/// How long a screen may take to say something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipe that is written to once it may.
const WHEN: &str = "CLAWBOX_TESTS_PANIC_WHEN";

/// What [`a_panic_in_any_thread_gives_the_terminal_back`] runs in its terminal; by itself it does nothing.
#[test]
fn who_panics_where_it_is_told_to() {
    let (Ok(place), Ok(when)) = (std::env::var(WHERE), std::env::var(WHEN)) else { return };
    let panics = move || {
        std::fs::read(when).unwrap();
        panic!("as it was told to");
    };
    if place == "drawing" {
        let _screen = TakenScreen::take(channel().0).unwrap();
        panics();
    }
    std::thread::spawn(panics);
    // There is no daemon, which the screen then says.
    let ended = crate::term::run("/no/such/socket".into(), true).unwrap();
    println!("it ended with {ended:?}");
}

fn tmux(socket: &Path, words: &[&str]) -> String {
    let mut command = Command::new(TMUX);
    command.arg("-S").arg(socket).args(words).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What tmux says, once it says this.
fn once(socket: &Path, words: &[&str], is_so: impl Fn(&str) -> bool) -> String {
    let since = Instant::now();
    loop {
        let said = tmux(socket, words);
        if is_so(&said) {
            return said;
        }
        assert!(since.elapsed() < PATIENCE, "{words:?}: {said}");
    }
}

#[test]
fn a_panic_in_any_thread_gives_the_terminal_back() {
    if !Path::new(TMUX).exists() {
        eprintln!("SKIPPED: there is no tmux here");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let test = "term::screen::tests::who_panics_where_it_is_told_to";
    for (place_of_it, ends) in
        [("drawing", "status 101"), ("another", "it ended with ExitCode(unix_exit_status(101))")]
    {
        let socket = place.path().join(place_of_it);
        let pipe = place.path().join(format!("{place_of_it}.pipe"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!(
            "echo before; export RUST_BACKTRACE=0 {WHERE}={place_of_it} {WHEN}='{}'; '{}' --exact {test} --nocapture; \
             echo status $?; exec cat",
            pipe.display(),
            program.display()
        );
        let size = ["-x", "100", "-y", "30"];
        let begin = ["-f", "/dev/null", "-u", "new-session", "-d"];
        tmux(&socket, &[&begin[..], &size, &[script.as_str()]].concat());
        let modes = ["display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"];
        let is_taken = |modes: &str| modes.trim().starts_with("1 1");
        once(&socket, &modes, is_taken);
        std::fs::write(&pipe, "now").unwrap();
        let shell = once(&socket, &["capture-pane", "-p"], |screen| screen.contains("status "));
        // The picture before is there again, and what the panic says is behind it.
        for says in ["before", "as it was told to", ends] {
            assert!(shell.contains(says), "{place_of_it}: {says}: {shell}");
        }
        assert_eq!(tmux(&socket, &modes).trim(), "0 0 1", "{place_of_it}");
        // Nor is it raw: what is typed is seen, and a line is a line.
        tmux(&socket, &["send-keys", "typed", "Enter"]);
        once(&socket, &["capture-pane", "-p"], |screen| screen.matches("typed").count() == 2);
        tmux(&socket, &["kill-server"]);
    }
}
