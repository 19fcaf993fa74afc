//! `unknown_endpoints: ask`: a connection that no rule names waits for an answer, and until there is one
//! nobody hears of it.

use std::process::{Command, Output};

use clawbox_tests::clawbox::{Clawbox, Running, program};
use clawbox_tests::network::{ELSEWHERE, SITE, SITE_V6};
use serde_json::Value;

use crate::attacks::attempt::{ATTACKER, PYTHON, answer};
use crate::scene::{ECHO, Scene, in_guest};

/// Connections that are made in the background, by name.
const CLIENTS: &str = r#"
import socket, threading
made = {}
def talk(name, host, port, patience):
    try:
        with socket.create_connection((host, port), patience) as stream:
            if stream.getpeername()[1] != port: raise OSError(errno.EIO, "")
            stream.send(b"hello\n")
            made[name] = stream.recv(99)
    except OSError as error:
        made[name] = error
def begin(name, host, port, patience=None):
    made[name] = threading.Thread(target=talk, args=(name, host, port, patience)), None
    thread = made[name][0]
    thread.start()
    threads[name] = thread
threads = {}
def ended(name):
    threads[name].join()
    if isinstance(made[name], OSError): raise made[name]
    if made[name] != b"hello\n": raise OSError(errno.EIO, "")
"#;

fn approvals(scene: &Scene, words: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("approvals").args(words).args(["--format", "json"]);
    scene.world.entry().enter(&mut command);
    command.output().unwrap()
}

#[track_caller]
fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The connections that wait, once there are so many.
fn waiting(scene: &Scene, running: &Running, count: usize) -> Vec<Value> {
    loop {
        let listed = said(&approvals(scene, &["list", &running.run()]));
        let connections = listed["connections"].as_array().unwrap().clone();
        if connections.len() == count {
            return connections;
        }
    }
}

#[track_caller]
fn ok(running: &mut Running, code: &str) {
    assert_eq!(answer(running, code), "ok", "{code}");
}

fn begin(scene: &Scene, clawbox: Clawbox<'_>) -> Running {
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    let file = scene.world.script("clients", CLIENTS);
    ok(&mut running, &format!("exec(open('{}').read())", file.display()));
    running
}

#[test]
fn what_no_rule_names_waits_until_it_is_approved_or_denied() {
    let scene = Scene::new();
    // One address, so that a client that is denied has no other to try.
    scene.names.host("new.test", &[SITE.into()]);
    let has_lsm = scene.has_lsm();
    let policy = format!(
        "{}\nunknown_endpoints: ask\n",
        scene.allowing(PYTHON, "{ host: v4.test, port: 7 }")
    );
    let clawbox = Clawbox::new(&scene.world, &policy);
    let mut running = begin(&scene, clawbox.with_lsm_if(has_lsm));
    let run = running.run();
    ok(&mut running, "begin('one', 'new.test', 7)");
    let one = &waiting(&scene, &running, 1)[0];
    assert_eq!((&one["host"], &one["port"]), (&"new.test".into(), &ECHO.into()), "{one}");
    assert!(one["program"].as_str().unwrap().contains("python"), "{one}");
    // Nobody has heard of it, the name server included.
    scene.nothing_arrived();
    assert!(!scene.names.was_asked("new.test"));
    let approved = approvals(&scene, &["approve", &run, "1"]);
    assert_eq!(said(&approved)["outcome"], "approved", "{approved:?}");
    ok(&mut running, "ended('one')");
    assert_eq!(scene.echo.arrivals().len(), 1);

    // Once is once.
    ok(&mut running, "begin('two', 'new.test', 7)");
    assert_eq!(waiting(&scene, &running, 1)[0]["id"], 2);
    assert_eq!(said(&approvals(&scene, &["deny", &run, "2"]))["outcome"], "denied");
    assert_eq!(answer(&mut running, "ended('two')"), "ECONNABORTED");
    let late = approvals(&scene, &["approve", &run, "2"]);
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert!(said(&late)["why"].as_str().unwrap().contains("does not wait any longer"));

    // As long as the sandbox runs, and written down.
    ok(&mut running, "begin('three', 'new.test', 7)");
    waiting(&scene, &running, 1);
    let file = scene.world.private().join("approved.yaml").display().to_string();
    let words = ["approve", &run, "3", "--for", "sandbox", "--save", &file];
    let approved = said(&approvals(&scene, &words));
    assert_eq!((&approved["outcome"], &approved["generation"]), (&"approved".into(), &2.into()));
    ok(&mut running, "ended('three')");
    ok(&mut running, "begin('four', 'new.test', 7); ended('four')");
    assert_eq!(scene.echo.arrivals().len(), 3);
    let saved = std::fs::read_to_string(&file).unwrap();
    assert!(saved.contains("new.test") && saved.starts_with("preset:"), "{saved}");
    // An address of the other family waits and is met in the same way.
    ok(&mut running, &format!("begin('six', '{SITE_V6}', 7)"));
    assert_eq!(waiting(&scene, &running, 1)[0]["host"], SITE_V6.to_string());
    approvals(&scene, &["approve", &run, "4"]);
    ok(&mut running, "ended('six')");
    // And every other port of it is still asked about.
    ok(&mut running, "begin('five', 'new.test', 9)");
    assert_eq!(waiting(&scene, &running, 1)[0]["port"], 9);
    approvals(&scene, &["deny", &run, "5"]);
    assert_eq!(answer(&mut running, "ended('five')"), "ECONNABORTED");

    let finished = running.wait();
    let of = |action: &str| finished.records(action).len();
    assert_eq!((of("approve"), of("refuse")), (3, 2), "{:#?}", finished.trail);
    let held: Vec<&Value> =
        finished.trail.iter().filter(|record| record["reason"] == "held").collect();
    assert!(held.iter().all(|record| record["verdict"] == "none"), "{held:#?}");
    let asked = finished.trail.iter().filter(|record| record["object"]["named"].is_string());
    assert_eq!(asked.count(), 0);
}

#[test]
fn a_client_that_polls_goes_on_too_when_all_like_it_are_approved() {
    let scene = Scene::new();
    scene.names.host("new.test", &[SITE.into()]);
    let rules = scene.allowing(PYTHON, "{ host: v4.test, port: 7 }");
    let policy = format!("{rules}\nunknown_endpoints: ask\n");
    let mut running = begin(&scene, Clawbox::new(&scene.world, &policy));
    let run = running.run();
    // By name and by address.
    for (id, host) in [("1", "new.test".to_owned()), ("2", ELSEWHERE.to_string())] {
        ok(&mut running, &format!("begin('{id}', '{host}', 7, 300)"));
        waiting(&scene, &running, 1);
        let approved = said(&approvals(&scene, &["approve", &run, id, "--for", "sandbox"]));
        assert_eq!(approved["outcome"], "approved", "{approved}");
        ok(&mut running, &format!("ended('{id}')"));
        ok(&mut running, &format!("begin('again', '{host}', 7, 300); ended('again')"));
    }
    let finished = running.wait();
    assert!(finished.records("reset").is_empty(), "{:#?}", finished.trail);
    // Who was started before any rule named it is nobody to a rule that comes: then one is not taken for
    // an answer, and the connection goes on by one that is.
    let policy = format!("{}\nunknown_endpoints: ask\n", scene.policy(""));
    let mut running = begin(&scene, Clawbox::new(&scene.world, &policy));
    let run = running.run();
    ok(&mut running, "begin('1', 'new.test', 7, 300)");
    waiting(&scene, &running, 1);
    let refused = approvals(&scene, &["approve", &run, "1", "--for", "sandbox"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(said(&refused)["why"].as_str().unwrap().contains("approve it once"), "{refused:?}");
    assert_eq!(said(&approvals(&scene, &["approve", &run, "1"]))["outcome"], "approved");
    ok(&mut running, "ended('1')");
}

#[test]
fn what_nobody_answers_is_refused_and_no_more_than_so_many_wait() {
    let scene = Scene::new();
    let policy = format!("{}\nunknown_endpoints: ask\n", scene.policy(""));
    // All are to wait at one time: an emulated machine is slow to begin them.
    let patience = if in_guest() { "30s" } else { "2s" };
    let clawbox = Clawbox::new(&scene.world, &policy).argument(format!("--ask-timeout={patience}"));
    let mut running = begin(&scene, clawbox);
    let many = format!("for number in range(70): begin(number, '{ELSEWHERE}', 7)\n");
    ok(&mut running, many.trim_end());
    ok(&mut running, "[thread.join() for thread in threads.values()]");
    ok(&mut running, "assert all(error.errno == errno.ECONNABORTED for error in made.values())");
    // Datagrams cannot wait, nor what is never allowed.
    let send = format!("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{ELSEWHERE}', 7))");
    assert_eq!(answer(&mut running, &send), "EPERM");
    assert_eq!(answer(&mut running, "socket.create_connection(('169.254.169.254', 80))"), "EPERM");
    let finished = running.wait();
    let refused = finished.records("refuse");
    let of = |reason: &str| refused.iter().filter(|record| record["reason"] == reason).count();
    assert_eq!((of("refusal"), of("too-many-held")), (64, 6), "{refused:#?}");
    assert!(refused.iter().all(|record| record["object"]["ip"] == ELSEWHERE.to_string()));
    scene.nothing_arrived();
}
