//! A container with a network of its own: what passes through the agent does so in that network, and goes on
//! from there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE, in_network_of};
use clawbox_tests::services::Service;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::attached::{Parent, until};
use super::daemon::{Dialler, output};
use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

const WEB: u16 = 80;

/// Says `HOST NAMED` by HTTP, or with a host alone sends a line to its echo server.
const CLIENT: &str = r#"
import socket, sys, errno
print("ready", flush=True)
for line in sys.stdin:
    words = line.split()
    try:
        made = socket.create_connection((words[0], 80 if len(words) > 1 else 7), 60)
        said = f"GET / HTTP/1.1\r\nHost: {words[1]}\r\nConnection: close\r\n\r\n" if len(words) > 1 else "x\n"
        made.send(said.encode())
        print(made.recv(4096).decode().split("\r\n")[0].strip() or "nothing", flush=True)
    except socket.gaierror: print("no name", flush=True)
    except OSError as error: print(errno.errorcode.get(error.errno, str(error)), flush=True)
"#;

/// One whose network has the site's and another address itself, and no way out.
fn container(cgroup: &std::path::Path) -> Dialler {
    let script = format!(
        "ip link set lo up && ip address add {SITE}/32 dev lo && ip address add {ELSEWHERE}/32 dev lo && \
         echo $$ > {}/cgroup.procs && exec {PYTHON} -c \"$0\"",
        cgroup.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "/bin/sh", "-c", &script, CLIENT]);
    Dialler::of(command)
}

fn approvals(daemon: &Daemon, words: &[&str]) -> Value {
    let words: Vec<&str> =
        ["approvals"].iter().chain(words).chain(&["--format", "json"]).copied().collect();
    let (_, stdout, stderr) = output(daemon.clawbox(&words));
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"))
}

#[test]
fn in_a_network_of_its_own_a_container_is_verified_and_asked_about_and_goes_on_from_there() {
    let scene = Scene::new();
    scene.names.host("api.test", &[SITE.into()]);
    let others = Parent::make();
    let policy = scene.world.bin().join("standing.yaml");
    let verify = format!("{{ host: api.test, port: {WEB}, sni: verify }}");
    let text = format!("{}\nunknown_endpoints: ask\n", scene.allowing(PYTHON, &verify));
    fs::write(&policy, text).unwrap();
    let rule = format!(
        "name: agent\nmatch: {{ cgroup: '{}/*' }}\npolicy: [{}]\nnetwork_only: true\n",
        others.below(),
        policy.display()
    );
    let mut daemon = Daemon::start_standing(&scene.world, "off", &rule);
    let mut container = container(&others.child("one"));
    let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let (web, echo) =
        in_network_of(container.child.id(), || (Service::http(WEB), [Service::echo_at(at(ECHO))]));
    for round in 1..=2 {
        assert_eq!(container.dial("api.test api.test"), "HTTP/1.1 200 OK", "round {round}");
        assert_eq!(container.dial("api.test other.test"), "HTTP/1.1 403 Forbidden");
        assert_eq!(web.arrivals().len(), round, "who names another host reaches nobody");

        let elsewhere = ELSEWHERE.to_string();
        for (answer, came_of_it) in [("approve", "x"), ("deny", "ECONNABORTED")] {
            container.begin(&elsewhere);
            let mut id = String::new();
            until("it waits", || {
                let listed = approvals(&daemon, &["list", "agent"]);
                let waiting = listed["connections"].as_array().cloned().unwrap_or_default();
                waiting.first().inspect(|first| id = first["id"].to_string()).is_some()
            });
            approvals(&daemon, &[answer, "agent", &id]);
            assert_eq!(container.line(), came_of_it, "{answer}, round {round}");
        }
        let arrived = echo[0].arrivals();
        assert_eq!(arrived.len(), round, "{arrived:?}");
        assert!(arrived.iter().all(|arrival| arrival.to.ip() == ELSEWHERE), "{arrived:?}");
        daemon.end_by(Signal::SIGTERM);
        daemon.start_again();
    }
    // The same addresses are the far side's in the agent's own network.
    scene.nothing_arrived();
    let trail = daemon.trail_once("agent-1", |records| {
        let verified = |record: &&Value| record["action"] == "verify";
        records.iter().filter(verified).count() == 4
    });
    let of = |verdict: &str| {
        let is = |record: &&Value| record["action"] == "verify" && record["verdict"] == verdict;
        trail.iter().filter(is).count()
    };
    assert_eq!([of("allow"), of("deny")], [2, 2], "{trail:#?}");
    assert_eq!(container.end(), 0);
}
