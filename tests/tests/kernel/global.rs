//! The host's own policy: in force in every sandbox in place of the sandbox's own, over restarts, until it
//! is ended.

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::daemon::{Dialler, output, to_site};
use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

const ALLOWED: [&str; 2] = ["ok", "EPERM"];
const TURNED: [&str; 2] = ["EPERM", "ok"];
const BROKEN: &str = "version: 1\nnetwork_policies: 7\n";
const NOTHING: [&str; 2] = ["EPERM", "EPERM"];

/// What a sandbox reaches of the two hosts.
fn reaches(dialler: &mut Dialler) -> [String; 2] {
    [SITE, ELSEWHERE].map(|address| dialler.dial(&address.to_string()))
}

/// What the daemon says of the host's policy.
fn in_force(daemon: &Daemon<'_>) -> Value {
    let (_, status, _) = output(daemon.clawbox(&["status", "--format", "json"]));
    serde_json::from_str::<Value>(&status).unwrap()["global_policy"].clone()
}

fn refuses_who_has_no_say_and_what_does_not_load(daemon: &Daemon<'_>, nothing: &str) {
    let refused = output(daemon.as_nobody(&["policy", "set", "--global", nothing]));
    assert!(refused.0 != 0 && refused.2.contains("only root and the group clawbox"), "{refused:?}");
    let broken = daemon.policy("broken", BROKEN);
    assert_eq!(output(daemon.clawbox(&["policy", "set", "--global", &broken])).0, 2);
    let (status, text, _) =
        output(daemon.clawbox(&["policy", "set", "--global", nothing, "--expect", "4"]));
    assert!(status == 1 && text.contains("revision 0 is in force, not 4"), "{text}");
}

#[test]
fn the_hosts_policy_is_in_force_in_every_sandbox_until_it_is_ended() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let own = daemon.policy("own", &to_site(&scene));
    let nothing = daemon.policy("nothing", &scene.policy(""));
    let elsewhere = format!("{{ host: {ELSEWHERE}, port: {ECHO} }}");
    let other = daemon.policy("other", &scene.allowing(PYTHON, &elsewhere));
    let mut running = Dialler::start(daemon.as_nobody(&[]), "running", &own);
    assert_eq!(reaches(&mut running), ALLOWED);

    refuses_who_has_no_say_and_what_does_not_load(&daemon, &nothing);
    assert_eq!(
        (reaches(&mut running), in_force(&daemon)),
        (ALLOWED.map(String::from), Value::Null)
    );

    let (status, text, _) = output(daemon.clawbox(&["policy", "set", "--global", &nothing]));
    assert!(status == 0 && text.contains("policy 1 is in force"), "{text}");
    assert_eq!(reaches(&mut running), NOTHING);
    // Also in what is started now, whatever its user says.
    let mut started = Dialler::start(daemon.as_nobody(&[]), "started", &own);
    let mut audited = daemon.as_nobody(&["run", "--mode", "audit", "--name", "audited"]);
    audited.args(["--policy", &own, "--", PYTHON, "-c", super::daemon::DIALLER]);
    let mut audited = Dialler::of(audited);
    assert_eq!([reaches(&mut started), reaches(&mut audited)], [NOTHING, NOTHING]);
    for own_way in [["policy", "set", "running", &own], ["policy", "set", "started", &other]] {
        let (status, text, _) = output(daemon.as_nobody(&own_way));
        assert!(status == 1 && text.contains("policy delete --global"), "{text}");
    }
    // A policy of one's own that does not load is no policy, under the host's either.
    let broken = daemon.policy("broken", BROKEN);
    let run = ["run", "--policy", &broken, "--", "/bin/true"];
    assert_eq!(output(daemon.as_nobody(&run)).0, 125);

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        daemon.end_by(signal);
        assert_eq!([reaches(&mut running), reaches(&mut started)], [NOTHING, NOTHING]);
        daemon.start_again();
        assert_eq!(in_force(&daemon), 1);
        assert_eq!([reaches(&mut running), reaches(&mut started)], [NOTHING, NOTHING]);
    }

    assert_eq!(output(daemon.clawbox(&["policy", "set", "--global", &other])).0, 0);
    assert_eq!([reaches(&mut running), reaches(&mut started)], [TURNED, TURNED]);
    let (status, diff, _) = output(daemon.clawbox(&["policy", "diff", "--global", "1", "2"]));
    assert!(status == 1 && diff.contains(&ELSEWHERE.to_string()), "{diff}");
    assert_eq!(output(daemon.clawbox(&["policy", "rollback", "--global", "1"])).0, 0);
    assert_eq!([reaches(&mut running), reaches(&mut audited)], [NOTHING, NOTHING]);
    let (_, list, _) = output(daemon.clawbox(&["policy", "list", "--global", "--format", "json"]));
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let told: Vec<bool> = list.iter().map(|found| found["in_force"].as_bool().unwrap()).collect();
    assert_eq!(told, [false, false, true]);

    assert_eq!(output(daemon.clawbox(&["policy", "delete", "--global"])).0, 0);
    assert_eq!([reaches(&mut running), reaches(&mut started)], [ALLOWED, ALLOWED]);
    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    assert_eq!(
        (reaches(&mut running), in_force(&daemon)),
        (ALLOWED.map(String::from), Value::Null)
    );
    let (status, _, stderr) = output(daemon.clawbox(&["policy", "get", "--global"]));
    assert!(status != 0 && stderr.contains("no policy in force"), "{stderr}");
    for dialler in [running, started, audited] {
        dialler.end();
    }
}
