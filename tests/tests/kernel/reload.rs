//! A changed configuration comes into force while the daemon runs, all of it or nothing.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::World;

use crate::scene::{Scene, in_guest};

/// Starts a sandbox as a user of no rights; `None` if that is refused.
fn start(daemon: &Daemon<'_>, policy: &str) -> Option<Child> {
    let run = ["run", "--policy", policy, "--", "/bin/sh", "-c", "echo runs; read _"];
    let mut command = daemon.as_nobody(&run);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line == "runs\n" {
        return Some(child);
    }
    child.wait().unwrap();
    None
}

fn answers(world: &World, port: u16) -> bool {
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    world.inside(|| TcpStream::connect(at)).is_ok()
}

#[test]
fn a_hangup_brings_a_changed_configuration_into_force_and_a_mistake_changes_nothing() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let world = &scene.world;
    let configured = "metrics: 127.0.0.1:9464\nlimits: { sandboxes_per_user: 1 }\n";
    let daemon = Daemon::start_configured(world, "off", configured);
    let policy = daemon.policy("any", &scene.policy(""));
    let mut running = vec![start(&daemon, &policy).unwrap()];
    assert!(start(&daemon, &policy).is_none());

    daemon.reload(|text| {
        let text = text.replace(":9464", ":9465").replace("per_user: 1", "per_user: 2");
        text.replace("lsm: off", "lsm: auto")
    });
    let said = daemon.says("reloaded: ");
    let last = said.last().unwrap();
    assert!(
        last.contains("metrics") && last.contains("limits") && !last.contains("lsm"),
        "{said:?}"
    );
    assert!(said.iter().any(|line| line.contains("`lsm` stays as it is")), "{said:?}");
    assert_eq!((answers(world, 9464), answers(world, 9465)), (false, true));
    running.push(start(&daemon, &policy).unwrap());
    assert!(start(&daemon, &policy).is_none());

    // A mistake beside what could change, and a port that is somebody else's.
    daemon
        .reload(|text| text.replace("per_user: 2", "per_user: 3").replace("lsm: auto", "lsm: no"));
    daemon.says("nothing is reloaded");
    assert!(start(&daemon, &policy).is_none());
    let taken = world.inside(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let taken = taken.local_addr().unwrap().port();
    daemon
        .reload(|text| text.replace("lsm: no", "lsm: off").replace(":9465", &format!(":{taken}")));
    let said = daemon.says("nothing is reloaded");
    assert!(said.last().unwrap().contains(&taken.to_string()), "{said:?}");
    assert!(answers(world, 9465) && start(&daemon, &policy).is_none());

    assert_eq!(daemon.list().len(), 2);
    for mut child in running {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
